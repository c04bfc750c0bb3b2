//! The design in a few lines: load a model, see where it is, read it in place.
//!
//!     cargo run --example design -- /mnt/models/geometry_os_v7/output/model.gguf

use vector_boot::{Gguf, VectorBoot};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: design MODEL")?;

    let vector_boot = VectorBoot::load(&path)?;
    let layout = vector_boot.get_data_layout()?;
    // Zero-copy: names and strings are slices of the shared memory.
    let gguf = unsafe { Gguf::new(layout.ptr, layout.size)? };

    println!("generation {}, {} bytes, {} keys", layout.generation, layout.size, gguf.keys.len());
    for (t, row) in gguf.tensors.iter().zip(&layout.tensors) {
        assert_eq!((t.name, t.offset, t.nbytes), (row.name.as_str(), row.offset, row.nbytes));
        match gguf.read(t.name) {
            Ok(values) => {
                let sum: f64 = values.iter().map(|&v| v as f64).sum();
                println!("{}\t{}\t{}\t{}\t{}\t{sum:.6}", row.name, row.kind, row.shape, row.offset, row.nbytes);
            }
            Err(_) => println!("{}\t{}\t{}\t{}\t{}\t-", row.name, row.kind, row.shape, row.offset, row.nbytes),
        }
    }
    println!("{} loads since the mount", vector_boot.get_stats()?["loads"]);
    Ok(())
}
