//! Beside a tapdisk that serves a guest: commands as the storage manager gives them, and what the guest's disk holds then.

mod beside;
mod guest;
mod relink;
mod resize;
mod set;
