//! One executable for all methods: what it is called by says which is meant.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sr_plugin::host::Settings;
use sr_plugin::{call, extension, install, interface};

/// xapi's storage plugin for repositories of VHD images
///
/// Called by the name of a method, as installed, it does what that says: `Volume.stat --help` tells how. The same here:
/// `sr-plugin Volume.stat DBG SR KEY`.
#[derive(Debug, Parser)]
#[command(version, subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Install(Install),
    /// List the methods
    Methods,
}

/// Make the plugin's folder for xapi's storage daemon, or replace it: ROOT/volume/org.xen.xapi.storage.vhd
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  sr-plugin install /usr/libexec/xapi-storage-script --extensions /etc/xapi.d/extensions")]
struct Install {
    /// The daemon's root
    root: PathBuf,
    /// Install the XenAPI extensions into this folder
    #[arg(long, value_name = "DIR")]
    extensions: Option<PathBuf>,
    /// Record attached repositories, and mount devices, beneath this folder; it must be empty after the host has started
    #[arg(long, value_name = "DIR", default_value = "/run/sr-plugin")]
    state: PathBuf,
    /// Where the worker of the host listens
    #[arg(long, value_name = "PATH", default_value = "/run/coalesce-worker/socket")]
    worker_socket: PathBuf,
    /// Start this program for repositories that no worker looks after [default: coalesce-worker beside this program]
    #[arg(long, value_name = "PROGRAM", conflicts_with = "no_worker")]
    worker: Option<PathBuf>,
    /// Start no worker
    #[arg(long)]
    no_worker: bool,
}

fn main() -> ExitCode {
    let mut words = env::args_os();
    let called = words.next().unwrap_or_default();
    let name = Path::new(&called).file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let words: Vec<String> = match words.map(OsString::into_string).collect() {
        Ok(words) => words,
        Err(word) => {
            call::complain(&format!("usage: {name} --help\n{name}: error: {word:?} is no text"));
            return 2.into();
        }
    };
    if let Some(extension) = extension::extension(&name) {
        return extension::call(extension, &words);
    }
    if let Some(method) = interface::method(&name) {
        return call::call(method, &words);
    }
    if let Some(method) = words.first().and_then(|word| interface::method(word)) {
        return call::call(method, &words[1..]);
    }
    match Cli::parse().command {
        Command::Install(install) => run_install(&install),
        Command::Methods => {
            interface::methods().for_each(|method| call::print(&format!("{:<28} {}\n", method.name, method.about)));
            ExitCode::SUCCESS
        }
    }
}

fn run_install(args: &Install) -> ExitCode {
    let beside =
        || env::current_exe().ok().map(|exe| exe.with_file_name("coalesce-worker")).filter(|path| path.is_file());
    let settings = Settings {
        state: args.state.clone(),
        worker_socket: args.worker_socket.clone(),
        worker: if args.no_worker { None } else { args.worker.clone().or_else(beside) },
    };
    match install::install(&args.root, &settings, args.extensions.as_deref()) {
        Ok(folder) => {
            call::print(&format!("installed {}\n", folder.display()));
            ExitCode::SUCCESS
        }
        Err(failure) => {
            call::complain(&format!("error: {failure}"));
            5.into()
        }
    }
}
