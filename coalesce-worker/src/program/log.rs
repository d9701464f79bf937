//! Where the daemon's log goes: standard error, for people or for programs.

use std::io::{self, IsTerminal};

use clap::ValueEnum;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

/// How the log looks.
#[derive(Debug, clap::Args)]
pub(super) struct Log {
    /// How a line of the log looks
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Text)]
    log_format: Format,
    /// The least that is logged: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", env = "RUST_LOG", default_value = "info")]
    log_level: Targets,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Text,
    Json,
}

impl Log {
    /// Has everything logged from now on.
    pub(super) fn start(&self) {
        let layer = fmt::layer().with_writer(io::stderr).with_target(false);
        let layer: Box<dyn Layer<Registry> + Send + Sync> = match self.log_format {
            Format::Text => Box::new(layer.with_ansi(io::stderr().is_terminal())),
            Format::Json => Box::new(layer.json().flatten_event(true)),
        };
        tracing_subscriber::registry().with(layer.with_filter(self.log_level.clone())).init();
    }
}
