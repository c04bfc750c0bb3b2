//! The system calls that std does not have: mappings and futexes.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicU32;

extern "C" {
    fn mmap(addr: *mut c_void, len: usize, prot: i32, flags: i32, fd: i32, off: i64) -> *mut c_void;
    fn munmap(addr: *mut c_void, len: usize) -> i32;
    fn syscall(number: i64, ...) -> i64;
    fn sched_setaffinity(pid: i32, size: usize, mask: *const u64) -> i32;
}

const PROT_READ: i32 = 1;
const PROT_WRITE: i32 = 2;
const MAP_SHARED: i32 = 1;

#[cfg(target_arch = "x86_64")]
const SYS_FUTEX: i64 = 202;
#[cfg(any(target_arch = "aarch64", target_arch = "riscv64"))]
const SYS_FUTEX: i64 = 98;
const FUTEX_WAIT: i32 = 0; // not the private ones: other processes use the word too
const FUTEX_WAKE: i32 = 1;

/// A shared mapping of a file. It stays as it is when the file is replaced.
pub struct Map {
    pub ptr: *const u8,
    pub size: usize,
}

// Other processes change the bytes, so they are never lent out as slices of
// plain memory where that can happen: see `copy`.
unsafe impl Send for Map {}
unsafe impl Sync for Map {}

impl Map {
    /// Maps a whole file.
    pub fn new(file: &File, write: bool) -> io::Result<Map> {
        let size = file.metadata()?.len() as usize;
        let prot = PROT_READ | if write { PROT_WRITE } else { 0 };
        let ptr = unsafe { mmap(std::ptr::null_mut(), size, prot, MAP_SHARED, file.as_raw_fd(), 0) };
        if ptr as isize == -1 {
            return Err(io::Error::last_os_error());
        }
        Ok(Map { ptr: ptr as *const u8, size })
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        unsafe { munmap(self.ptr as *mut c_void, self.size) };
    }
}

/// Waits until somebody wakes the word; returns at once if it is not `seen` any more.
pub fn futex_wait(word: &AtomicU32, seen: u32) {
    unsafe { syscall(SYS_FUTEX, word as *const AtomicU32, FUTEX_WAIT, seen, std::ptr::null::<c_void>()) };
}

/// Wakes everybody who waits on the word.
pub fn futex_wake(word: &AtomicU32) {
    unsafe { syscall(SYS_FUTEX, word as *const AtomicU32, FUTEX_WAKE, i32::MAX) };
}

/// Keeps this thread on one of the first 64 processors.
pub fn pin(cpu: usize) -> io::Result<()> {
    match unsafe { sched_setaffinity(0, 8, &(1 << cpu)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
