//! `node-agent run`

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// Runs until SIGTERM or SIGINT.
pub(super) fn run(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stop = CancellationToken::new();
        let agent = crate::run::run(config, stop.clone());
        tokio::pin!(agent);
        // Cancel-safe: the agent is pinned and goes on below.
        tokio::select! {
            ended = &mut agent => return ended,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
        agent.await
    });
    // A thread that hangs on the share must not keep the process.
    runtime.shutdown_background();
    result
}
