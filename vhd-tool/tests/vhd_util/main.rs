//! The program under the name `vhd-util`, as xapi's storage manager meets it: a file of tests for each command.

mod coalesce;
mod crash;
mod create;
mod devices;
mod key;
mod life_cycle;
mod modify;
mod program;
mod query;
mod scan;
mod set;
mod snapshot;
mod volume_group;
