//! `node-agent run`

use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// Runs until SIGTERM or SIGINT.
pub(super) fn run(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let stop = CancellationToken::new();
    let agent = crate::run::run(config, stop.clone());
    let result = runtime.block_on(async { super::until_signalled(&stop, agent).await? });
    // A thread that hangs on the share must not keep the process.
    runtime.shutdown_background();
    result
}
