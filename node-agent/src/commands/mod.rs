//! The command line: one file a subcommand.

mod mark_share;
mod prober;
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
    /// Mark a share as this Carrel's, once for all hosts. Agents start nothing on a share without the mark.
    MarkShare(mark_share::MarkShare),
    /// Touches the share for the agent, which starts it.
    #[command(hide = true)]
    Prober,
}

/// Does what the command line says.
///
/// # Errors
/// When the agent cannot start or loses what it cannot do without.
pub fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Run(config) => run::run(*config),
        Command::Prober => {
            prober::serve();
            Ok(())
        }
        Command::MarkShare(asked) => mark_share::mark_share(&asked),
    }
}
