//! Builds the parts and holds them together until the end. The only place that spawns.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use carrel_common::clock::SystemClock;
use carrel_common::id::ProcessId;
use carrel_common::serve;
use carrel_common::telemetry::{self, Telemetry, TelemetryConfig};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

use crate::config::Config;
use crate::driver::fence_watch::{FenceWatch, FencedOff};
use crate::driver::host::{Host, Kept, Limits};
use crate::driver::images::{self, Inbox};
use crate::driver::{self, Accepted, EngineState, Links};
use crate::enroll::{Identity, Obtain, Renewing};
use crate::facts::{self, HostFacts};
use crate::kernel;
use crate::metrics::Metrics;
use crate::reconcile::crash::Budget;
use crate::runtime::docker::Docker;
use crate::session::{self, Session};
use crate::storage::check::Expected;
use crate::storage::errand::Place;
use crate::storage::probe::Storage;
use crate::storage::prober::Prober;
use crate::witness::Witness;

/// Verdicts that may wait for the driver, which never waits for anything but its own tasks.
const VERDICTS_WAITING: usize = 16;

/// Parts get so long to end; a session says goodbye by closing its stream.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Runs the agent until `stop`. Stops no container, whatever ends it.
///
/// # Errors
/// When the configuration is refused, a port or the state directory cannot be used, the control plane refuses to enrol the node, or
/// one of the parts broke.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    config.validate()?;
    let telemetry = telemetry::init(TelemetryConfig {
        service: "node-agent",
        log_format: config.log_format,
        log_filter: config.log_filter.clone(),
        otlp_endpoint: config.otlp_endpoint.clone(),
    })?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), ?config, "node agent");
    // An agent in which one of them is missing looks well, and is not. They end with this future, too, should it be dropped.
    let mut parts = JoinSet::new();
    // Told to the parts only when it is known how the agent ends: none of them has ended by itself then.
    let ending = CancellationToken::new();
    let ended = live(&config, &telemetry, &mut parts, &stop, &ending).await;
    ending.cancel();
    let all_ended = async { while parts.join_next().await.is_some() {} };
    if tokio::time::timeout(SHUTDOWN, all_ended).await.is_err() {
        tracing::warn!("some parts did not end in time");
    }
    tracing::info!("the agent ends; containers run on");
    telemetry.shutdown().await;
    ended
}

/// Builds the parts, and lets them work until `stop`.
async fn live(
    config: &Config,
    telemetry: &Telemetry,
    parts: &mut JoinSet<()>,
    stop: &CancellationToken,
    ending: &CancellationToken,
) -> anyhow::Result<()> {
    let listen = &config.metrics_listen;
    let listener = TcpListener::bind(listen).await.with_context(|| format!("--metrics-listen {listen}"))?;
    let (routes, serving) = (routes(telemetry.clone()), ending.clone());
    parts.spawn(async move {
        if let Err(error) = serve::serve(listener, routes, serving).await {
            tracing::error!(%error, "the metrics port is lost");
        }
    });
    let (host, wanted, node) = tokio::select! {
        // Cancel-safe: an agent may be killed at any moment of its start.
        built = build(config) => built?,
        ended = until_one_ends(parts, stop) => return ended,
    };
    spawn_parts(config, host, wanted, node, parts, ending);
    until_one_ends(parts, stop).await
}

/// Until `stop`; that a part ends before is an error. Cancel-safe.
async fn until_one_ends(parts: &mut JoinSet<()>, stop: &CancellationToken) -> anyhow::Result<()> {
    let ended = tokio::select! {
        // Cancel-safe, both: the agent ends in either case, and a part that was not taken is there for the next call.
        () = stop.cancelled() => return Ok(()),
        Some(ended) = parts.join_next() => ended,
    };
    let error = broken(ended);
    tracing::error!("this agent ends: {error:#}");
    Err(error)
}

/// Of a part that ended before it was told to.
fn broken(ended: Result<(), JoinError>) -> anyhow::Error {
    match ended {
        Ok(()) => anyhow::anyhow!("a part of the agent ended by itself"),
        Err(error) => anyhow::Error::new(error).context("a part of the agent broke"),
    }
}

/// What the parts are made of.
async fn build(config: &Config) -> anyhow::Result<(Arc<Host<Docker>>, Inbox, Node)> {
    let clock = Arc::new(SystemClock::new());
    let metrics = Metrics::new();
    let host_facts = tokio::task::spawn_blocking(facts::gather).await?.context("facts of this host")?;
    tokio::task::spawn_blocking(kernel::tell_low_limits).await?;
    let docker =
        Docker::new(config.docker_host.clone(), config.docker_timeout, clock.clone(), metrics.clone());
    let endpoints =
        config.control_plane.iter().map(|url| session::endpoint(url)).collect::<Result<Vec<_>, _>>();
    let endpoints = endpoints.context("--control-plane")?;
    let entry = config.entry()?;
    let told = config.told();
    let obtain = Obtain {
        entry: &entry,
        state_dir: &config.state_dir,
        endpoints: &endpoints,
        runtime: &docker,
        host: &host_facts,
        told: &told,
        clock: &*clock,
    };
    let identity = obtain.obtain().await?;
    let scope = identity.scope();
    tracing::info!(node.id = %scope.node, cluster = %scope.cluster, "identity");

    let base = std::path::absolute(&config.workspace_base_path)
        .with_context(|| format!("WORKSPACE_BASE_PATH {}", config.workspace_base_path.display()))?;
    let expected = Expected { kind: config.storage, cluster: scope.cluster };
    let place = Place { base, expected, writer: scope.node.to_string() };
    let prober = Prober::new(config.prober.clone());
    let storage = Storage::new(place, prober, config.storage_timeout, clock.clone());
    let limits = Limits {
        start_concurrency: usize::from(config.start_concurrency),
        budget: Budget { restarts: usize::from(config.crash_budget), window: config.crash_window },
        reconcile_interval: config.reconcile_interval,
        fence_file_interval: config.fence_file_interval,
        docker_timeout: config.docker_timeout,
    };
    let state_dir = real_path(&config.state_dir).context("--state-dir")?;
    let (boot_id, its_clock) = (host_facts.boot_id.clone(), Arc::clone(&clock));
    let kept = tokio::task::spawn_blocking(move || Kept::open(&state_dir, &boot_id, its_clock)).await?;
    let kept = kept.context("the lease's files below --state-dir")?;
    let (host, wanted) = Host::new(docker, storage, kept, metrics, clock, scope, limits);
    let state_dir = config.state_dir.clone();
    let witness = tokio::task::spawn_blocking(move || Witness::open(&state_dir, scope)).await?;
    host.belongs_to(&witness.testimony().docker_id);
    let node = Node { identity, facts: host_facts, endpoints, witness: Arc::new(witness) };
    Ok((Arc::new(host), wanted, node))
}

/// Who the node is, and what it has been told.
struct Node {
    identity: Identity,
    facts: HostFacts,
    endpoints: Vec<Endpoint>,
    witness: Arc<Witness>,
}

fn spawn_parts(
    config: &Config,
    host: Arc<Host<Docker>>,
    wanted: Inbox,
    node: Node,
    parts: &mut JoinSet<()>,
    stop: &CancellationToken,
) {
    let (accepted, from_session) = watch::channel(Accepted::default());
    let (verdicts, from_verdicts) = mpsc::channel(VERDICTS_WAITING);
    let (orphans, from_orphans) = watch::channel(None);
    let (engine, from_engine) = watch::channel(EngineState::default());
    let (fenced, from_fences) = watch::channel(FencedOff::default());
    let fences = FenceWatch::new(Arc::clone(&host), from_engine.clone(), from_session.clone(), fenced);
    let (withheld, from_withheld) = watch::channel(0);
    let links = Links {
        accepted: from_session,
        verdicts: from_verdicts,
        fenced: from_fences,
        orphans,
        engine,
        withheld,
    };
    let Node { identity, facts, endpoints, witness } = node;
    let (newest, identity) = watch::channel(Arc::new(identity));
    let renewing = Renewing {
        identity: newest,
        endpoints: endpoints.clone(),
        state_dir: config.state_dir.clone(),
        clock: Arc::clone(&host.clock),
        metrics: host.metrics.clone(),
    };
    parts.spawn(renewing.run(stop.clone()));
    parts.spawn(images::run(Arc::clone(&host), wanted, stop.clone()));
    let session = Session {
        host: Arc::clone(&host),
        identity,
        endpoints,
        host_facts: facts,
        told: config.told(),
        accepted,
        verdicts,
        orphans: from_orphans,
        engine: from_engine,
        withheld: from_withheld,
        witness: Arc::clone(&witness),
        process: ProcessId::new(),
    };
    let (desks, clock) = (Arc::clone(&host.desks), Arc::clone(&host.clock));
    parts.spawn(desks.watch(move || clock.monotonic(), stop.clone()));
    let (logs, clock) = (host.saved_logs.clone(), Arc::clone(&host.clock));
    parts.spawn(logs.keep_tidy(move || clock.now(), stop.clone()));
    let watched = Arc::clone(&host);
    let [for_storage, for_fences, for_driver, for_session] = std::array::from_fn(|_| stop.clone());
    parts.spawn(async move { watched.storage.watch(for_storage).await });
    parts.spawn(Arc::clone(&host.lease).keep(host.metrics.clone(), stop.clone()));
    parts.spawn(fences.run(for_fences));
    let for_witness = stop.clone();
    parts.spawn(async move { witness.keep(for_witness).await });
    parts.spawn(driver::run(host, links, for_driver));
    parts.spawn(session.run(for_session));
}

/// `/metrics` and `/healthz`; the latter says only that the process lives: what it finds is in its heartbeats.
fn routes(telemetry: Telemetry) -> Router {
    Router::new()
        .route("/metrics", get(move || async move { telemetry.metrics_text() }))
        .route("/healthz", get(|| async { (StatusCode::OK, "ok\n") }))
}

/// A path without links and dots, as far as it exists: Docker takes no other as a mount's source.
fn real_path(path: &Path) -> std::io::Result<std::path::PathBuf> {
    let absolute = std::path::absolute(path)?;
    Ok(std::fs::canonicalize(&absolute).unwrap_or(absolute))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_ends_before_the_stop_is_an_error_and_one_that_ends_with_it_is_not() {
        let (mut parts, stop, ending) = (JoinSet::new(), CancellationToken::new(), CancellationToken::new());
        let part = ending.clone();
        parts.spawn(async move { part.cancelled().await });
        parts.spawn(async {});
        let ended = until_one_ends(&mut parts, &stop).await.expect_err("one has ended");
        assert_eq!(ended.to_string(), "a part of the agent ended by itself");
        stop.cancel();
        until_one_ends(&mut parts, &stop).await.expect("the other goes on until it is told to end");
    }
}
