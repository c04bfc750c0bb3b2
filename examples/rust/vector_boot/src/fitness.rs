//! The fitness that examples/python/evolution_daemon.py describes.

use crate::{Error, Gguf};

/// How well the first and the last layer alone predict a text: the mean
/// log-probability of each byte's token, given the one before.
pub fn fitness(g: &Gguf, text: &[u8]) -> Result<f64, Error> {
    let embd = g.read("token_embd.weight")?;
    let norm = g.read("output_norm.weight")?;
    let out = g.read("output.weight")?;
    let width = norm.len().max(1);
    let tokens = (out.len() / width).max(1);
    let id = |b: u8| (b as usize + 3) % tokens; // <unk>, <s> and </s> come first
    let mut sum = 0.0;
    for pair in text.windows(2) {
        let row = &embd[id(pair[0]) * width..][..width];
        let mean = row.iter().map(|v| v * v).sum::<f32>() / width as f32;
        let scale = 1.0 / (mean + 1e-5).sqrt();
        let x: Vec<f32> = row.iter().zip(&norm).map(|(v, n)| v * scale * n).collect();
        let z: Vec<f64> = out.chunks_exact(width).map(|w| dot(w, &x)).collect();
        let top = z.iter().cloned().fold(f64::MIN, f64::max);
        let all: f64 = z.iter().map(|v| (v - top).exp()).sum();
        sum += z[id(pair[1])] - top - all.ln();
    }
    Ok(sum / (text.len().max(2) - 1) as f64)
}

/// Eight sums at once: the compiler does not reorder additions by itself.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0f32; 8];
    for (x, y) in a.chunks(8).zip(b.chunks(8)) {
        for ((s, x), y) in sums.iter_mut().zip(x).zip(y) {
            *s += x * y;
        }
    }
    sums.iter().sum::<f32>() as f64
}
