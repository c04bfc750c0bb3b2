//! Models in a vbootfs mount, for a runtime that has them mapped.
//!
//! `VectorBoot::load` maps a model, `Gguf` reads it in place, `Session` and
//! `Bell` are two ways to be woken and to answer. Nothing but std is used.

mod fitness;
mod gguf;
mod session;
mod sys;

pub use fitness::fitness;
pub use gguf::{type_name, Error, Gguf, TensorInfo, Value};
pub use session::{Bell, Request, Session};
pub use sys::pin;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{fence, AtomicU32, AtomicU64, Ordering};

/// The control page of a model, `models/P/control`.
#[repr(C)]
pub struct Control {
    pub magic: [u8; 8], // VBOOTCTL
    pub abi: u32,
    pub size: u32,
    /// Odd while tensors are being changed.
    pub sequence: AtomicU64,
    pub generation: AtomicU64,
    /// Inode of the segment. Another number means: map the model anew.
    pub segment: AtomicU64,
    pub bytes: AtomicU64,
    _reserved: [u8; 16],
    /// Futex word: one more for every change and interrupt.
    pub doorbell: AtomicU32,
    pub opcode: AtomicU32,
    /// Number of the newest interrupt that came through ctl.
    pub request: AtomicU64,
    _reserved2: [u8; 48],
    /// Futex word for the runtime's answer: the doorbell that it has dealt with.
    pub ack: AtomicU32,
}

/// A mapped model.
pub struct VectorBoot {
    dir: PathBuf, // models/P
    control: sys::Map,
    gguf: Gguf<'static>, // of map, and never lent out for longer
    map: sys::Map,
    segment: u64,
}

/// Where a model's bytes are in memory, and what the mount says is in them.
pub struct DataLayout {
    pub ptr: *const u8,
    pub size: usize,
    pub generation: u64,
    pub tensors: Vec<TensorRow>,
}

/// A line of layout.tsv.
#[derive(Debug, PartialEq)]
pub struct TensorRow {
    pub name: String,
    pub kind: String,
    pub shape: String, // "64x64", slowest first
    pub offset: usize,
    pub nbytes: usize,
}

impl VectorBoot {
    /// Maps a loaded model. `path` is it in output/, its directory below
    /// vector_boot/models, or vector_boot itself for the active model.
    pub fn load(path: impl AsRef<Path>) -> io::Result<VectorBoot> {
        let dir = model_dir(path.as_ref())?;
        let file = OpenOptions::new().read(true).write(true).open(dir.join("control"))?;
        let control = sys::Map::new(&file, true)?;
        let page = control.ptr as *const Control;
        if control.size < 4096 || unsafe { (*page).magic != *b"VBOOTCTL" || (*page).abi != 1 } {
            return Err(other("control: this is not the page that is known here"));
        }
        let (map, gguf, segment) = map_model(&dir, unsafe { &*page })?;
        Ok(VectorBoot { dir, control, gguf, map, segment })
    }

    /// The directory below vector_boot/models.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The page that is shared with everybody who uses this model.
    pub fn control(&self) -> &Control {
        unsafe { &*(self.control.ptr as *const Control) }
    }

    /// The model as it is mapped. Its tensors may change at any time.
    pub fn gguf(&self) -> &Gguf<'_> {
        &self.gguf
    }

    /// Where the model is in memory. Valid as long as `self` is, and maps nothing anew.
    pub fn get_data_layout(&self) -> io::Result<DataLayout> {
        let text = fs::read_to_string(self.dir.join("layout.tsv"))?;
        let tensors = text.lines().skip(1).map(tensor_row).collect::<Option<_>>();
        Ok(DataLayout {
            ptr: self.map.ptr,
            size: self.map.size,
            generation: self.control().generation.load(Ordering::Acquire),
            tensors: tensors.ok_or_else(|| other("layout.tsv: a line has not five columns"))?,
        })
    }

    /// The counters of the mount: stats.json has one a line.
    pub fn get_stats(&self) -> io::Result<BTreeMap<String, f64>> {
        let (mount, _) = split(&self.dir)?;
        let text = fs::read_to_string(mount.join("vector_boot/stats.json"))?;
        let counter = |line: &str| {
            let (name, value) = line.trim().trim_end_matches(',').split_once(':')?;
            Some((name.trim_matches('"').to_string(), value.trim().parse().ok()?))
        };
        Ok(text.lines().filter_map(counter).collect())
    }

    /// Reads under the sequence counter: what `f` returns is of one generation,
    /// whole. `f` runs again when a commit came in between. A model that was
    /// replaced is mapped anew.
    pub fn consistent<T>(&mut self, f: impl Fn(&Gguf) -> T) -> io::Result<(u64, T)> {
        loop {
            let sequence = self.control().sequence.load(Ordering::Acquire);
            if sequence % 2 == 1 {
                std::thread::yield_now();
                continue;
            }
            if self.control().segment.load(Ordering::Relaxed) != self.segment {
                (self.map, self.gguf, self.segment) = map_model(&self.dir, self.control())?;
                continue;
            }
            let generation = self.control().generation.load(Ordering::Relaxed);
            let value = f(&self.gguf);
            fence(Ordering::Acquire);
            if self.control().sequence.load(Ordering::Relaxed) == sequence {
                return Ok((generation, value));
            }
        }
    }

    /// The values of a tensor, all of one generation, and which.
    pub fn read(&mut self, name: &str) -> io::Result<(u64, Vec<f32>)> {
        let (generation, values) = self.consistent(|g| g.read(name))?;
        Ok((generation, values.map_err(other)?))
    }
}

/// Maps the segment that the control page names. The path in layout.json leads
/// to it directly; the number says whether it still is the right one.
fn map_model(dir: &Path, control: &Control) -> io::Result<(sys::Map, Gguf<'static>, u64)> {
    File::open(dir.join("model.gguf"))?; // brings a cold model into memory
    let path = segment_path(dir)?;
    loop {
        let segment = control.segment.load(Ordering::Acquire);
        let file = File::open(&path)?;
        if file.metadata()?.ino() != segment {
            std::thread::yield_now(); // being replaced right now
            continue;
        }
        let map = sys::Map::new(&file, false)?;
        // The caller keeps gguf no longer than map.
        let gguf = unsafe { Gguf::new(map.ptr, map.size) }.map_err(other)?;
        return Ok((map, gguf, segment));
    }
}

/// segment.path of layout.json, which is its first string of that name.
fn segment_path(dir: &Path) -> io::Result<PathBuf> {
    let text = fs::read_to_string(dir.join("layout.json"))?;
    let rest = text.split_once("\"segment\":{\"path\":\"").map(|s| s.1);
    match rest.and_then(|r| r.split_once('"')) {
        Some((path, _)) if !path.contains('\\') => Ok(path.into()),
        _ => Ok(dir.join("model.gguf")),
    }
}

fn model_dir(path: &Path) -> io::Result<PathBuf> {
    let path = fs::canonicalize(path)?;
    let text = path.to_string_lossy();
    if let Some((mount, p)) = text.split_once("/geometry_os_v7/output/") {
        return Ok(PathBuf::from(format!("{mount}/vector_boot/models/{p}")));
    }
    if path.join("active").exists() {
        return fs::canonicalize(path.join("active"));
    }
    Ok(if path.ends_with("model.gguf") && path.is_file() { path.parent().unwrap().into() } else { path })
}

/// Splits MNT/vector_boot/models/P into MNT and P.
pub(crate) fn split(dir: &Path) -> io::Result<(PathBuf, String)> {
    let text = dir.to_string_lossy();
    let (mount, p) = text.split_once("/vector_boot/models/").ok_or_else(|| other("this is not in a vbootfs mount"))?;
    Ok((mount.into(), p.into()))
}

fn tensor_row(line: &str) -> Option<TensorRow> {
    let c: Vec<&str> = line.split('\t').collect();
    let [name, kind, shape, offset, nbytes] = c[..] else { return None };
    Some(TensorRow {
        name: name.into(),
        kind: kind.into(),
        shape: shape.into(),
        offset: offset.parse().ok()?,
        nbytes: nbytes.parse().ok()?,
    })
}

pub(crate) fn other(e: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::other(e)
}
