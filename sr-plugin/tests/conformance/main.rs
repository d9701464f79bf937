//! The plugin as its callers meet it: every method as the contract of SMAPIv3 has it, by the installed executables.

mod arguments;
mod contract;
mod devices;
mod errors;
mod extensions;
mod hostile;
mod human;
mod input;
mod installation;
mod metadata;
mod mounts;
mod places;
mod plugin;
mod repositories;
mod scene;
mod surroundings;
mod wire;
