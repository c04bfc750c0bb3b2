//! Two ways to be woken and to answer: the session file, through the daemon, and
//! the control page, between processes that map it.

use crate::{sys, Control};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// What a runtime is asked to do.
#[derive(Debug, PartialEq)]
pub enum Request {
    Interrupt(u32),
    /// The model has another generation.
    Generation(u64),
}

/// An attached runtime. It is detached when this is dropped, or the process dies.
pub struct Session {
    file: File,
}

impl Session {
    /// Attaches to a model, models/P.
    pub fn attach(dir: &Path) -> io::Result<Session> {
        let file = OpenOptions::new().read(true).write(true).open(dir.join("session"))?;
        Ok(Session { file })
    }

    /// Waits for the next request and its number; None: the model was removed.
    pub fn wait(&mut self) -> io::Result<Option<(u64, Request)>> {
        let mut buf = [0; 256];
        let n = loop {
            match self.file.read(&mut buf) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                n => break n?,
            }
        };
        let line = std::str::from_utf8(&buf[..n]).unwrap_or("");
        let words: Vec<&str> = line.split_whitespace().collect();
        let request = match words[..] {
            [] => return Ok(None),
            [n, "interrupt", op] => {
                parse(n).zip(u32::from_str_radix(op.trim_start_matches("0x"), 16).ok().map(Request::Interrupt))
            }
            [n, "generation", g] => parse(n).zip(parse(g).map(Request::Generation)),
            _ => None,
        };
        request.map(Some).ok_or_else(|| crate::other(format!("request {line:?}")))
    }

    /// Acknowledges all requests up to one.
    pub fn ack(&mut self, n: u64) -> io::Result<()> {
        self.file.write_all(format!("ack {n}").as_bytes())
    }
}

fn parse(s: &str) -> Option<u64> {
    s.parse().ok()
}

/// The doorbell of a control page: no system call but the futex's own, and no
/// daemon in between.
pub struct Bell<'a> {
    page: &'a Control,
    seen: u32,
    generation: u64,
}

impl<'a> Bell<'a> {
    pub fn new(page: &'a Control) -> Bell<'a> {
        let seen = page.doorbell.load(Acquire);
        Bell { page, seen, generation: page.generation.load(Acquire) }
    }

    /// Waits until it rings. Rings that come before the answer are one.
    pub fn wait(&mut self) -> Request {
        loop {
            let now = self.page.doorbell.load(Acquire);
            if now != self.seen {
                self.seen = now;
                break;
            }
            sys::futex_wait(&self.page.doorbell, now);
        }
        let generation = self.page.generation.load(Acquire);
        if generation != self.generation {
            self.generation = generation;
            return Request::Generation(generation);
        }
        Request::Interrupt(self.page.opcode.load(Relaxed))
    }

    /// Tells who rang that it was heard.
    pub fn ack(&self) {
        self.page.ack.store(self.seen, Release);
        sys::futex_wake(&self.page.ack);
    }

    /// Rings with an opcode as any process may, and waits for the runtime's answer.
    pub fn ring(page: &Control, opcode: u32) {
        page.opcode.store(opcode, Relaxed);
        let mine = page.doorbell.fetch_add(1, Release).wrapping_add(1);
        sys::futex_wake(&page.doorbell);
        loop {
            let ack = page.ack.load(Acquire);
            if mine.wrapping_sub(ack) as i32 <= 0 {
                return;
            }
            sys::futex_wait(&page.ack, ack);
        }
    }
}
