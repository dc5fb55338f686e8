//! The binary `control-plane`.

use clap::Parser as _;
use control_plane::commands;
use control_plane::config::{Cli, Command};

/// A short call makes some hundred small allocations: this one takes half the time of glibc's for them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Ca(command) => commands::ca::ca(&command),
        Command::Serve(args) => commands::serve::serve(*args).await,
        Command::Migrate(args) => commands::migrate::migrate(&args).await,
        Command::DeclareRestored(args) => commands::declare_restored::declare_restored(&args).await,
    }
}
