//! The subcommands of the binary, one file each.

pub mod ca;
pub mod declare_restored;
pub mod migrate;
pub mod serve;
