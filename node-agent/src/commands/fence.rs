//! `node-agent fence`

use std::path::PathBuf;

use carrel_common::telemetry::{self, LogFormat, TelemetryConfig};
use clap::Args;
use tokio_util::sync::CancellationToken;

use crate::fence::process;

/// Flags of `fence`.
#[derive(Debug, Args)]
pub(super) struct FenceArgs {
    /// The agent's state directory: its lease is in `fence/` below it.
    #[arg(long, env = "CARREL_STATE_DIR", default_value = "/var/lib/carrel-agent")]
    state_dir: PathBuf,
    /// How a log line looks: text or json.
    #[arg(long, env = "CARREL_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// Which log lines there are, in the form of RUST_LOG.
    #[arg(long = "log", env = "CARREL_LOG", default_value = "info")]
    log_filter: String,
}

/// Runs until SIGTERM or SIGINT. One thread: it has to work on a host that can make no more.
pub(super) fn run(args: FenceArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        telemetry::init(TelemetryConfig {
            service: "node-fence",
            log_format: args.log_format,
            log_filter: args.log_filter,
            otlp_endpoint: None,
        })?;
        let stop = CancellationToken::new();
        super::until_signalled(&stop, process::run(&args.state_dir, stop.clone())).await??;
        Ok(())
    })
}
