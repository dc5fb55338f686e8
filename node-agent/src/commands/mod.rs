//! The command line: one file a subcommand.

mod run;

use clap::{Parser, Subcommand};

use crate::config::Config;

/// Carrel's agent on a Docker host.
#[derive(Debug, Parser)]
#[command(name = "node-agent", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent until SIGTERM or SIGINT; containers run on afterwards.
    Run(Box<Config>),
}

/// Does what the command line says.
///
/// # Errors
/// When the agent cannot start or loses what it cannot do without.
pub fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Run(config) => run::run(*config),
    }
}
