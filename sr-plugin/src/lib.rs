//! xapi's storage plugin for VHD repositories: the volume interface of SMAPIv3, API 5.0, and XenAPI extensions.
//!
//! ```text
//!   Interface.method (argv[0])
//!     call ──▶ Method: arguments of JSON or of words
//!       interface::{plugin, sr, volume}
//!         ├─ Host      settings, and which repositories are attached: forgotten when the host restarts
//!         ├─ Sr        an attached repository: a folder of images
//!         │    ├─ Metadata   KEY.vhd.json beside KEY.vhd: name, description, keys
//!         │    ├─ tracking   KEY.vhd.cbt: which blocks each snapshot has frozen; KEY.vhd.held: which one held whose data is gone
//!         │    ├─ trees      .sr.trees: which volumes may share data, a hint
//!         │    └─ Locked     one call at a time changes something; a killed one is finished by the next
//!         ├─ coalesce_worker::Repository   snapshot, revert, compose, resize, delete: journaled
//!         └─ worker    is woken when something is left to merge
//! ```
//!
//! Everything about a volume is in the repository's folder and shares the fate of its data: copied elsewhere, all of it is
//! there; restored from an old copy, all of it is as old. The toolstack is never asked.

mod blocks;
pub mod call;
mod change;
pub mod extension;
pub mod failure;
pub mod host;
pub mod install;
pub mod interface;
mod log;
mod metadata;
pub mod method;
mod place;
mod probe;
mod sr;
mod store;
mod tracking;
mod trees;
pub mod wire;
mod worker;
