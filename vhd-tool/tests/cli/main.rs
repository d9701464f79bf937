//! The program as its users meet it: a file of tests for each subcommand.

mod check;
mod clone;
mod coalesce;
mod compact;
mod compare;
mod contents;
mod convert;
mod create;
mod gc;
mod get;
mod help;
mod info;
mod life_cycle;
mod map;
mod options;
mod peers;
mod program;
mod read;
mod read_headers;
mod repair;
mod resize;
mod serve;
mod snapshot;
mod stream;
mod tree;
mod write;
