//! Makes a chain to be measured: `make-input SHAPE FOLDER COUNT`, and prints its images, base first.

use std::path::Path;
use std::process::ExitCode;

use benches::Shape;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, folder, count] = &arguments[..] else { return usage() };
    let shape = Shape::NAMED.iter().find(|(known, _)| known == name);
    let (Some((_, shape)), Ok(count @ 1..)) = (shape, count.parse()) else { return usage() };
    for path in shape.make(Path::new(folder), count) {
        println!("{}", path.display());
    }
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    let names: Vec<&str> = Shape::NAMED.iter().map(|(name, _)| *name).collect();
    eprintln!("usage: make-input SHAPE FOLDER COUNT\n  SHAPE is one of {}", names.join(", "));
    ExitCode::from(2)
}
