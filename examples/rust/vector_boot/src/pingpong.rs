//! Measures how long an answer takes, between two processes: through session
//! files, through the control page, and, to compare, through two pipes.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vector_boot::{pin, Bell, Session, VectorBoot};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const WAYS: [&str; 3] = ["pipes", "session", "futex"];
/// Where the two processes run: as the kernel likes, on one processor, or on two.
/// A pipe is several times faster on one. The daemon runs where it likes.
const PLACES: [(&str, Option<[usize; 2]>); 3] = [("any", None), ("one", Some([0, 0])), ("two", Some([0, 1]))];
const BLOCK: usize = 100; // rounds of one way before the next one's turn

/// The other process. It says when it is ready; it ends with its input or by kill.
pub fn peer(way: &str, place: &str, model: &str) -> Result<()> {
    if let Some((_, Some(cpus))) = PLACES.iter().find(|p| p.0 == place) {
        pin(cpus[1])?;
    }
    let vb = VectorBoot::load(model)?;
    let mut out = std::io::stdout().lock();
    let ready = |out: &mut std::io::StdoutLock| writeln!(out, "ready").and_then(|()| out.flush());
    match way {
        "session" => {
            let mut session = Session::attach(vb.dir())?;
            ready(&mut out)?;
            while let Some((n, _)) = session.wait()? {
                session.ack(n)?;
            }
        }
        "futex" => {
            let mut bell = Bell::new(vb.control());
            ready(&mut out)?;
            loop {
                bell.wait();
                bell.ack();
            }
        }
        _ => {
            ready(&mut out)?;
            let (mut input, mut byte) = (File::open("/dev/stdin")?, [0]);
            while input.read(&mut byte)? == 1 {
                out.write_all(b".\n")?; // the newline makes std flush
            }
        }
    }
    Ok(())
}

struct Peer {
    child: Child,
    from: BufReader<std::process::ChildStdout>,
}

impl Peer {
    fn start(way: &str, place: &str, model: &str) -> Result<Peer> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["pingpong-peer", way, place, model])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let from = BufReader::new(child.stdout.take().unwrap());
        let mut p = Peer { child, from };
        p.line()?;
        Ok(p)
    }

    fn line(&mut self) -> Result<()> {
        let mut line = String::new();
        match self.from.read_line(&mut line)? {
            0 => Err("the peer has ended".into()),
            _ => Ok(()),
        }
    }

    fn pipes(&mut self) -> Result<()> {
        self.child.stdin.as_mut().unwrap().write_all(b".")?;
        self.line()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Prints the median and the 99th percentile of each way, in microseconds, and
/// the ratio to the pipes.
pub fn run(model: &str, rounds: usize) -> Result<()> {
    println!("cpus\tway\tmedian_us\tp99_us\tratio");
    for (place, cpus) in PLACES {
        // A thread of its own: it can be pinned, and the next one is free again.
        let pinned = std::thread::scope(|s| {
            s.spawn(|| {
                cpus.map_or(Ok(()), |c| pin(c[0])).map_err(|e| e.to_string())?;
                run_at(place, model, rounds).map_err(|e| e.to_string())
            })
            .join()
        });
        pinned.map_err(|_| "the measuring thread has died")??;
    }
    Ok(())
}

fn run_at(place: &str, model: &str, rounds: usize) -> Result<()> {
    let vb = VectorBoot::load(model)?;
    let mut ctl = OpenOptions::new().write(true).open(vb.dir().join("ctl"))?;
    let mut times: [Vec<Duration>; 3] = Default::default();
    while times[0].len() < rounds {
        for (way, times) in WAYS.iter().zip(&mut times) {
            // A peer is there only in its own turn: all sessions are asked.
            let mut peer = Peer::start(way, place, model)?;
            for i in 0..BLOCK + BLOCK / 10 {
                let begin = Instant::now();
                match *way {
                    "session" => ctl.write_all(b"interrupt 0xFF timeout=10s")?,
                    "futex" => Bell::ring(vb.control(), 0xff),
                    _ => peer.pipes()?,
                }
                if i >= BLOCK / 10 {
                    times.push(begin.elapsed()); // after a warm-up
                }
            }
        }
    }
    let us = |d: Duration| d.as_nanos() as f64 / 1000.0;
    let mut base = 0.0;
    for (way, t) in WAYS.iter().zip(&mut times) {
        t.sort();
        let (median, p99) = (us(t[t.len() / 2]), us(t[t.len() * 99 / 100]));
        base = if base == 0.0 { median } else { base };
        println!("{place}\t{way}\t{median:.1}\t{p99:.1}\t{:.2}", median / base);
    }
    Ok(())
}
