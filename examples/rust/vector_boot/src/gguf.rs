//! GGUF in memory, parsed in place: names, strings and arrays are slices of the
//! bytes, and nothing is copied but the two lists that lead to them.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicU8, Ordering::Relaxed};

/// Why bytes are not a model, or a tensor cannot be read.
#[derive(Debug)]
pub struct Error {
    pub offset: usize,
    pub what: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at byte {}: {}", self.offset, self.what)
    }
}

impl std::error::Error for Error {}

/// A value of the metadata.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    U64(u64), // all unsigned types
    I64(i64), // all signed types
    F64(f64), // both float types
    Bool(bool),
    Str(&'a str),
    /// Elements of one type, as they are stored.
    Array {
        kind: u32,
        count: u64,
        bytes: &'a [u8],
    },
}

/// Where a tensor is, and what.
#[derive(Debug, Clone)]
pub struct TensorInfo<'a> {
    pub name: &'a str,
    pub kind: u32,     // ggml's number of the type
    pub ne: Vec<u64>,  // ggml's order, fastest first
    pub offset: usize, // from the first byte of the file
    pub nbytes: usize,
}

impl TensorInfo<'_> {
    pub fn elements(&self) -> usize {
        self.ne.iter().product::<u64>() as usize
    }
}

/// A model in memory.
pub struct Gguf<'a> {
    ptr: *const u8,
    pub version: u32,
    pub alignment: usize,
    pub data_offset: usize,
    pub keys: Vec<(&'a str, Value<'a>)>,
    pub tensors: Vec<TensorInfo<'a>>,
}

/// ggml's types: number, name, elements and bytes of a block.
const TYPES: &[(u32, &str, usize, usize)] = &[
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
    (42, "Q2_0", 64, 18),
];

/// The name of a ggml type, "?" of one that is not in the table.
pub fn type_name(kind: u32) -> &'static str {
    TYPES.iter().find(|t| t.0 == kind).map_or("?", |t| t.1)
}

impl<'a> Gguf<'a> {
    /// Parses a model that is in memory.
    ///
    /// # Safety
    /// `size` bytes at `ptr` stay readable for `'a`. Tensor data may change
    /// meanwhile; the header in front of it may not (vbootfs never changes the
    /// header of a segment: other keys mean a new segment).
    pub unsafe fn new(ptr: *const u8, size: usize) -> Result<Gguf<'a>, Error> {
        // Only the header is read through the slice.
        let mut c = Cursor { b: std::slice::from_raw_parts(ptr, size), at: 0 };
        if c.take(4)? != b"GGUF" {
            return Err(Error { offset: 0, what: "this is no GGUF".into() });
        }
        let version = c.u32()?;
        if !(2..=3).contains(&version) {
            return c.fail(format!("version {version}: only 2 and 3, little-endian, are read here"));
        }
        let (tensor_count, key_count) = (c.u64()?, c.u64()?);
        let mut g = Gguf { ptr, version, alignment: 32, data_offset: 0, keys: Vec::new(), tensors: Vec::new() };
        for _ in 0..key_count {
            let key = c.str()?;
            let kind = c.u32()?;
            let value = c.value(kind)?;
            if let ("general.alignment", Value::U64(n)) = (key, value) {
                g.alignment = n as usize;
            }
            g.keys.push((key, value));
        }
        if !g.alignment.is_power_of_two() {
            return c.fail(format!("alignment {}", g.alignment));
        }
        for _ in 0..tensor_count {
            let t = c.tensor()?;
            g.tensors.push(t);
        }
        g.data_offset = c.at.next_multiple_of(g.alignment);
        for t in &mut g.tensors {
            t.offset = t.offset.saturating_add(g.data_offset);
            if t.offset.saturating_add(t.nbytes) > size {
                return Err(Error { offset: t.offset, what: format!("tensor {} ends after the file", t.name) });
            }
        }
        Ok(g)
    }

    pub fn key(&self, name: &str) -> Option<Value<'a>> {
        self.keys.iter().find(|k| k.0 == name).map(|k| k.1)
    }

    pub fn tensor(&self, name: &str) -> Option<&TensorInfo<'a>> {
        self.tensors.iter().find(|t| t.name == name)
    }

    /// Copies the stored bytes of a tensor as they are now. To be sure that they
    /// all belong to one generation, read within `VectorBoot::consistent`.
    pub fn raw(&self, t: &TensorInfo) -> Vec<u8> {
        unsafe { copy(self.ptr.add(t.offset), t.nbytes) }
    }

    /// The values of a tensor of type F32, F16, BF16 or Q8_0, as `raw` reads it.
    pub fn read(&self, name: &str) -> Result<Vec<f32>, Error> {
        let Some(t) = self.tensor(name) else {
            return Err(Error { offset: 0, what: format!("there is no tensor {name}") });
        };
        let b = self.raw(t);
        Ok(match t.kind {
            0 => b.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect(),
            1 => b.chunks_exact(2).map(|c| half(u16::from_le_bytes([c[0], c[1]]))).collect(),
            30 => b.chunks_exact(2).map(|c| f32::from_bits((u16::from_le_bytes([c[0], c[1]]) as u32) << 16)).collect(),
            8 => b.chunks_exact(34).flat_map(q8_0).collect(),
            k => return Err(Error { offset: t.offset, what: format!("{name} is {}: not read here", type_name(k)) }),
        })
    }
}

/// Copies memory that another process may be changing: words, not a slice.
unsafe fn copy(from: *const u8, n: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(n);
    let head = from.align_offset(8).min(n);
    let byte = |i: usize| (*(from.add(i) as *const AtomicU8)).load(Relaxed);
    out.extend((0..head).map(byte));
    for i in 0..(n - head) / 8 {
        let word = &*(from.add(head + 8 * i) as *const AtomicU64);
        out.extend_from_slice(&word.load(Relaxed).to_ne_bytes());
    }
    out.extend((out.len()..n).map(byte).collect::<Vec<_>>());
    out
}

/// float16 to float32.
fn half(h: u16) -> f32 {
    let (sign, exp, frac) = ((h as u32 & 0x8000) << 16, (h >> 10) as u32 & 31, h as u32 & 1023);
    match exp {
        0 => f32::from_bits(sign | (frac as f32 / (1 << 24) as f32).to_bits()),
        31 => f32::from_bits(sign | 0x7f80_0000 | frac << 13),
        _ => f32::from_bits(sign | (exp + 112) << 23 | frac << 13),
    }
}

fn q8_0(block: &[u8]) -> impl Iterator<Item = f32> + '_ {
    let d = half(u16::from_le_bytes([block[0], block[1]]));
    block[2..].iter().map(move |&q| d * (q as i8) as f32)
}

/// Walks the header. No length in it is believed before the bytes are there.
struct Cursor<'a> {
    b: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn fail<T>(&self, what: String) -> Result<T, Error> {
        Err(Error { offset: self.at, what })
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8], Error> {
        let left = &self.b[self.at..];
        if n > left.len() as u64 {
            return self.fail(format!("{n} bytes wanted, {} left", left.len()));
        }
        self.at += n as usize;
        Ok(&left[..n as usize])
    }

    fn u32(&mut self) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().unwrap()))
    }

    fn u64(&mut self) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().unwrap()))
    }

    fn str(&mut self) -> Result<&'a str, Error> {
        let n = self.u64()?;
        let b = self.take(n)?;
        std::str::from_utf8(b).or_else(|e| self.fail(format!("a string is not UTF-8: {e}")))
    }

    fn value(&mut self, kind: u32) -> Result<Value<'a>, Error> {
        let mut number = [0u8; 8];
        let n = scalar_size(kind);
        number[..n].copy_from_slice(self.take(n as u64)?);
        let u = u64::from_le_bytes(number);
        let signed = |u: u64| (u << (64 - 8 * n)) as i64 >> (64 - 8 * n);
        Ok(match kind {
            0 | 2 | 4 | 10 => Value::U64(u),
            1 | 3 | 5 | 11 => Value::I64(signed(u)),
            6 => Value::F64(f32::from_bits(u as u32) as f64),
            7 => Value::Bool(u != 0),
            8 => Value::Str(self.str()?),
            9 => self.array()?,
            12 => Value::F64(f64::from_bits(u)),
            _ => return self.fail(format!("value type {kind}")),
        })
    }

    fn array(&mut self) -> Result<Value<'a>, Error> {
        let (kind, count) = (self.u32()?, self.u64()?);
        let start = self.at;
        match scalar_size(kind) {
            0 if kind == 8 => {
                for _ in 0..count {
                    self.str()?;
                }
            }
            0 => return self.fail(format!("array of type {kind}")),
            n => {
                self.take(count.saturating_mul(n as u64))?;
            }
        }
        Ok(Value::Array { kind, count, bytes: &self.b[start..self.at] })
    }

    fn tensor(&mut self) -> Result<TensorInfo<'a>, Error> {
        let name = self.str()?;
        let dims = self.u32()?;
        if dims > 4 {
            return self.fail(format!("tensor {name} has {dims} dimensions"));
        }
        let ne = (0..dims).map(|_| self.u64()).collect::<Result<Vec<_>, _>>()?;
        let kind = self.u32()?;
        let offset = self.u64()? as usize; // within the data, for now
        let Some(&(_, _, block, size)) = TYPES.iter().find(|t| t.0 == kind) else {
            return self.fail(format!("tensor {name} has the type {kind}, which is not known here"));
        };
        let elements = ne.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
        match elements.map(|n| (n % block as u64, (n / block as u64).checked_mul(size as u64))) {
            Some((0, Some(n))) => Ok(TensorInfo { name, kind, ne, offset, nbytes: n as usize }),
            _ => self.fail(format!("tensor {name} has the shape {ne:?}")),
        }
    }
}

/// Bytes of a metadata value; 0 for strings and arrays, whose size varies.
fn scalar_size(kind: u32) -> usize {
    match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => 0,
    }
}
