//! Images as streams: written and read front to back, with no seek, as they go through pipes and sockets.
//!
//! ```text
//!   footer │ header │ BAT │ locator texts │ gap │ bitmap, data │ bitmap, data │ … │ footer
//! ```
//!
//! [`StreamLayout`] gives every block its place before the first byte is written, from nothing but the list of blocks.
//! [`StreamReader`] takes the blocks as they lie in the file, whatever their order on the disk.

mod error;
mod fixed;
mod input;
mod layout;
mod read;
mod table;

pub use error::{LayoutError, StreamError, StreamFault};
pub use input::Silence;
pub use layout::StreamLayout;
pub use read::{StreamEnd, StreamReader, StreamedBlock};
