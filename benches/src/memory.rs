//! The memory of this process.

use vhd_core::ByteCount;

/// Tells how much memory this process has in RAM.
///
/// # Panics
/// Where `/proc/self/status` does not tell.
pub fn resident() -> ByteCount {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc is mounted");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel counts memory");
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("the kernel counts in kB");
    ByteCount(kibibytes * 1024)
}
