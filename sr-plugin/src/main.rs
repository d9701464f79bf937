//! xapi's storage plugin for VHD repositories: not built yet.
//!
//! The crate holds the place. It will translate the SMAPIv3 volume interface onto `coalesce-worker` and `vhd-core`;
//! until then the program says so and fails, so that nobody takes it for a plugin.

use std::process::ExitCode;

fn main() -> ExitCode {
    eprintln!("sr-plugin: the volume interface is not implemented yet; see CHANGELOG.md for what is");
    ExitCode::FAILURE
}
