//! The command line: one file a subcommand.

mod fence;
mod mark_share;
mod prober;
mod run;

use std::io;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

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
    /// Watch the agent's lease from a process of its own, and end every workspace of this host when it runs out.
    Fence(fence::FenceArgs),
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
        Command::Fence(args) => fence::run(args),
        Command::Prober => {
            prober::serve();
            Ok(())
        }
        Command::MarkShare(asked) => mark_share::mark_share(&asked),
    }
}

/// Cancels `stop` at SIGTERM or SIGINT, and waits for the work to end.
async fn until_signalled<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> io::Result<T> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::pin!(work);
    // Cancel-safe: the work is pinned and goes on below.
    tokio::select! {
        ended = &mut work => return Ok(ended),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.cancel();
    Ok(work.await)
}
