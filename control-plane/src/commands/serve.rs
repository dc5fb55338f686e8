//! `control-plane serve`.

use anyhow::Context as _;
use carrel_common::telemetry::{self, TelemetryConfig};
use tokio_util::sync::CancellationToken;

use crate::config::ServeArgs;
use crate::run;

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When the configuration, the database or an address cannot be used.
pub async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    args.check()?;
    let telemetry = telemetry::init(TelemetryConfig {
        service: "control-plane",
        log_format: args.log_format,
        log_filter: args.log.clone(),
        otlp_endpoint: args.otlp_endpoint.clone(),
    })?;
    tracing::info!(config = ?args, "effective configuration");
    let stop = CancellationToken::new();
    let signalled = stop.clone();
    let served = tokio::select! {
        // Not raced to an end: the signal only cancels `stop`, and then serving ends by itself.
        served = run::run(args, telemetry.clone(), stop) => served,
        never = cancel_on_signal(signalled) => never,
    };
    telemetry.shutdown().await;
    served
}

/// Cancels at the first SIGTERM or SIGINT; never returns but for an error.
async fn cancel_on_signal(stop: CancellationToken) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be caught")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be caught")?;
    tokio::select! {
        // Cancel-safe: either signal means the same.
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("told to stop");
    stop.cancel();
    std::future::pending().await
}
