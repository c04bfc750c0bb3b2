//! The runtime as a program: looks at a model, serves as its session, measures.

mod pingpong;

use std::collections::HashSet;
use std::error::Error;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::thread;

use vector_boot::{fitness, Bell, Request, Session, VectorBoot};

const USAGE: &str = "usage: vector_boot layout MODEL     where its tensors are, as layout.tsv
       vector_boot stats MODEL      counters of the mount
       vector_boot session DIR      answer interrupts of a model, or of all below a directory in models/
       vector_boot session --futex MODEL     the same through the control page
       vector_boot pingpong MODEL [ROUNDS]   measure interrupt to answer against two pipes
MODEL is a file in geometry_os_v7/output, a directory in vector_boot/models, or vector_boot for the active one";

/// The opcode that asks for a fitness.
const EVALUATE: u32 = 0xff;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["layout", model] => layout(model),
        ["stats", model] => stats(model),
        ["session", "--futex", model] => serve_bell(model),
        ["session", dir] => serve(dir),
        ["pingpong", model] => pingpong::run(model, 2000),
        ["pingpong", model, rounds] => rounds.parse().map_err(Into::into).and_then(|n| pingpong::run(model, n)),
        ["pingpong-peer", way, place, model] => pingpong::peer(way, place, model),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(1);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vector_boot: {e}");
            ExitCode::from(2)
        }
    }
}

fn layout(model: &str) -> Result<()> {
    println!("name\ttype\tshape\toffset\tnbytes");
    for t in VectorBoot::load(model)?.gguf().tensors.iter() {
        let shape: Vec<String> = t.ne.iter().rev().map(u64::to_string).collect();
        println!("{}\t{}\t{}\t{}\t{}", t.name, vector_boot::type_name(t.kind), shape.join("x"), t.offset, t.nbytes);
    }
    Ok(())
}

fn stats(model: &str) -> Result<()> {
    for (name, value) in VectorBoot::load(model)?.get_stats()? {
        println!("{name} {value}");
    }
    Ok(())
}

/// Serves every model below a directory, also those that are loaded later.
fn serve(dir: &str) -> Result<()> {
    let dir = fs::canonicalize(dir)?;
    let (mount, _) = split(&dir)?;
    let events = BufReader::new(File::open(format!("{mount}/vector_boot/events"))?); // before looking: nothing is missed
    let served = Arc::new(Mutex::new(HashSet::new()));
    serve_new(&dir, &served);
    for line in events.lines() {
        if line?.contains("\"event\":\"load\"") {
            serve_new(&dir, &served);
        }
    }
    Ok(())
}

/// Starts a thread for every model that has none yet.
fn serve_new(dir: &Path, served: &Arc<Mutex<HashSet<PathBuf>>>) {
    if !dir.join("session").exists() {
        for e in fs::read_dir(dir).into_iter().flatten().flatten() {
            serve_new(&e.path(), served);
        }
        return;
    }
    let (dir, served) = (dir.to_path_buf(), served.clone());
    if !served.lock().unwrap().insert(dir.clone()) {
        return;
    }
    thread::spawn(move || {
        let ended = serve_model(&dir);
        served.lock().unwrap().remove(&dir);
        match ended {
            Ok(()) => serve_new(&dir, &served), // removed; it may be there again already
            Err(e) => eprintln!("vector_boot: {}: {e}", dir.display()),
        }
    });
}

/// Answers until the model is removed.
fn serve_model(dir: &Path) -> Result<()> {
    let mut session = Session::attach(dir)?;
    let mut vb = VectorBoot::load(dir)?;
    println!("{}: attached", split(dir)?.1);
    while let Some((n, request)) = session.wait()? {
        answer(&mut vb, &request)?;
        session.ack(n)?;
    }
    Ok(())
}

/// Answers through the control page.
fn serve_bell(model: &str) -> Result<()> {
    let page = VectorBoot::load(model)?;
    let mut vb = VectorBoot::load(model)?;
    let mut bell = Bell::new(page.control());
    println!("{}: attached", split(vb.dir())?.1);
    loop {
        let request = bell.wait();
        answer(&mut vb, &request)?;
        bell.ack();
    }
}

/// Does what is asked. The fitness is written before the request is acknowledged.
fn answer(vb: &mut VectorBoot, request: &Request) -> Result<()> {
    let (mount, p) = split(vb.dir())?;
    match request {
        Request::Generation(g) => println!("{p}: generation {g}"),
        Request::Interrupt(EVALUATE) => {
            let answers = format!("{mount}/geometry_os_v7/output/fitness");
            let Ok(text) = fs::read(format!("{answers}/text")) else {
                println!("{p}: interrupt 0xff: no text to evaluate");
                return Ok(());
            };
            let (generation, fitness) = vb.consistent(|g| fitness(g, &text))?;
            let fitness = fitness?;
            let file = PathBuf::from(format!("{answers}/{}.json", p.trim_end_matches(".gguf")));
            fs::create_dir_all(file.parent().unwrap())?;
            File::create(&file)?
                .write_all(format!("{{\"generation\": {generation}, \"fitness\": {fitness}}}\n").as_bytes())?;
            println!("{p}: interrupt 0xff: fitness {fitness:.6} of generation {generation}");
        }
        Request::Interrupt(op) => println!("{p}: interrupt {op:#x}"),
    }
    Ok(())
}

/// Splits MNT/vector_boot/models/P; P is empty for models itself.
fn split(dir: &Path) -> Result<(String, String)> {
    let text = dir.to_str().ok_or("a name is not UTF-8")?;
    let (mount, p) = text.split_once("/vector_boot/models").ok_or("this is not below vector_boot/models")?;
    Ok((mount.into(), p.trim_start_matches('/').into()))
}
