// Copies a file in one write, as std::fs::write does it.
fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    std::fs::write(&args[2], std::fs::read(&args[1])?)
}
