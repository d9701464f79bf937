//! How data moves, as options.

use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::transfer::CopyMethod;

/// How data moves.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Moving {
    /// Share blocks where the file system can (reflink), let a server copy (copy-file-range), or read and write
    #[arg(long, value_name = "METHOD", default_value_t = CopyMethod::Auto, value_parser = copy_method())]
    pub copy_method: CopyMethod,
    /// Leave holes where data is all zeros
    #[arg(long)]
    pub detect_zeroes: bool,
}

fn copy_method() -> impl TypedValueParser<Value = CopyMethod> {
    PossibleValuesParser::new(CopyMethod::ALL.map(CopyMethod::name)).try_map(|name| name.parse::<CopyMethod>())
}
