//! A status as numbers, for those who collect them.

mod prometheus;
mod rrd;

pub use prometheus::{prometheus_text, write_prometheus};
pub use rrd::RrdFile;
