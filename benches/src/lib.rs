//! Inputs of benchmarks, and what is measured of a process.
//!
//! ```text
//!   benches/*.rs   criterion: one operation of the libraries each        cargo bench
//!   compare        vhd-tool and its peers, in turn and in one run        cargo build --release && benches/compare
//!     ├─ make-input      makes a Shape in a folder
//!     └─ measure-chain   times what a command line cannot: single reads, opening
//! ```
//!
//! Both measure the same inputs, and these depend on nothing but the [`Shape`] and its count.

mod image;
mod memory;
mod random;
mod shape;

pub use image::{copy_sparse, create_base, create_child, write_random};
pub use memory::resident;
pub use random::Random;
pub use shape::{PAGE, Shape, layered, pages_with_data, scattered};
