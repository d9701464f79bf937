//! The program under the name `vhd-util`, as xapi's storage manager meets it: a file of tests for each command.

mod program;
mod set;
