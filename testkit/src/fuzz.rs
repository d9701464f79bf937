//! What fuzzing runs: functions of bytes that panic where the engine does something that it must not do.
//!
//! The targets of `fuzz/` call these under libFuzzer; the tests of this crate call them with the corpus and with a few
//! mutations of it. A function returns whatever the bytes are: garbage is refused by the engine, in an error.
//!
//! | target | the bytes are | must hold |
//! |---|---|---|
//! | `footer`, `header` | a record, and for the header what follows it | reads back as it was; names that are bounded |
//! | `image` | a file | every read is what the tables say; a write changes what it says and nothing else |
//! | `chain` | three files and a raw disk | nothing outside the folder is read |
//! | `operations` | operations on a volume, its snapshots and its size | the content is that of a plain vector |
//! | `journal` | a journal in a repository, or its records, one a line | nothing outside the folder changes |
//! | `plugin` | calls of the storage plugin, one a line | as with a journal; each call returns |

mod chain;
mod corpus;
mod image;
mod input;
mod journal;
mod mutate;
mod operations;
mod place;
mod plugin;
mod records;
mod seeds;

pub use chain::chain;
pub use corpus::{corpus, write_seeds};
pub use image::image;
pub use journal::{framed, journal};
pub use mutate::mutations;
pub use operations::operations;
pub use plugin::plugin;
pub use records::{footer, header};

/// A function to be fuzzed.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: that of its executable and of the folder of its corpus.
    pub name: &'static str,
    /// What is done with an input.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 7] = [
    Target { name: "footer", run: footer },
    Target { name: "header", run: header },
    Target { name: "image", run: image },
    Target { name: "chain", run: chain },
    Target { name: "operations", run: operations },
    Target { name: "journal", run: journal },
    Target { name: "plugin", run: plugin },
];

/// Looks an image's footers and header up and sets their checksums right, so that what is wrong with them is seen by the
/// checks behind; a file that ends without a footer gets that of its start.
fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes.len() < 1024 {
        return bytes;
    }
    if bytes.starts_with(b"conectix") {
        crate::seal(&mut bytes[..512], 64);
        let at = u64::from_be_bytes(bytes[16..24].try_into().expect("eight bytes"));
        let header = usize::try_from(at).ok().and_then(|at| bytes.get_mut(at..at.checked_add(1024)?));
        if let Some(header) = header {
            crate::seal(header, 36);
        }
    }
    let end = bytes.len() - 512;
    if bytes[end..].starts_with(b"conectix") {
        crate::seal(&mut bytes[end..], 64);
    }
    bytes
}
