//! Unpacks golden images: `golden FOLDER NAME…`.

use std::path::Path;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((folder, names)) = arguments.split_first() else {
        eprintln!("usage: golden FOLDER NAME...");
        std::process::exit(2);
    };
    testkit::golden::unpack_into(Path::new(folder), &names.iter().map(String::as_str).collect::<Vec<_>>());
}
