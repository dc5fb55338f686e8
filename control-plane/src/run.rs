//! The composition root: builds everything, wires it, and takes it down in order.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use carrel_common::clock::SystemClock;
use carrel_common::serve;
use carrel_common::telemetry::Telemetry;
use carrel_proto::v1::agent_service_server::AgentServiceServer;
use carrel_proto::v1::event_service_server::EventServiceServer;
use carrel_proto::v1::node_service_server::NodeServiceServer;
use carrel_proto::v1::policy_service_server::PolicyServiceServer;
use carrel_proto::v1::workspace_service_server::WorkspaceServiceServer;
use tokio::net::TcpListener;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::{
    App, AppError, Board, Heartbeats, LastReading, LogTails, Nudge, SharedReadiness, SharedRules, SharedState,
};
use crate::authority::{Authorities, Renewal};
use crate::config::ServeArgs;
use crate::domain::behind::StoreState;
use crate::grpc::{Agents, Events, Following, HealthTeller, Nodes, Policies, Workspaces};
use crate::http;
use crate::metrics::Metrics;
use crate::sessions::Sessions;
use crate::store::Store;
use crate::tasks;

/// The database is waited for this long at the start.
const DATABASE_PATIENCE: Duration = Duration::from_secs(60);
/// Everything has to be down this long after it was told to stop.
const SHUTDOWN: Duration = Duration::from_secs(15);
/// Load balancers get this long to see NOT_SERVING, and 503 of `/readyz`, before connections are refused.
const DEREGISTER: Duration = Duration::from_millis(200);

/// Serves until `stop` is cancelled.
///
/// # Errors
/// When the database has no current schema or stays away, an address is taken, or one of the loops or servers broke.
pub async fn run(args: ServeArgs, telemetry: Telemetry, stop: CancellationToken) -> anyhow::Result<()> {
    let store = Store::open(&args.database_url.0, args.database_connections)?;
    let authority = args.ca_dir.clone().map(open_authority).transpose()?;
    let (authorities, renewal) = authority.unzip();
    let state = wait_for_database(&store, &stop).await?;
    let cluster = state.cluster;

    let (nudge, idle_due) = Nudge::new();
    let (heartbeats, inbox) = Heartbeats::new();
    let settings = Arc::new(args.settings());
    let app = App {
        store: store.clone(),
        authorities: authorities.clone(),
        rules: SharedRules::new(settings.defaults.clone()),
        state: SharedState::new(state),
        settings,
        nudge,
        metrics: Metrics::default(),
        board: Board::default(),
        last_reading: LastReading::default(),
        heartbeats,
        log_tails: LogTails::default(),
    };

    // Before anything is decided: what was missed while nobody was up, and the policies.
    patiently(&stop, || app.pulse()).await?;
    app.metrics.store_behind(app.state.is_behind());
    // Not sooner: who is refused asks another replica, who is connected to one that says nothing waits for it.
    let listener = listen("--listen", args.listen).await?;
    let agent_listener = listen("--agent-listen", args.agent_listen).await?;

    // Two groups, of which the second ends after the first: callers, agents and loops, and what heartbeats are written by. A call
    // that is open may still hand in some.
    let (serving, writing) = (CancellationToken::new(), CancellationToken::new());
    // The loops and servers: a replica in which one of them is missing looks well, and is not. And what calls and sessions begin.
    let (mut parts, tasks) = (JoinSet::new(), TaskTracker::new());
    let readiness = SharedReadiness::default();
    let idle_stopper = tasks::IdleStopper::new(app.clone(), args.idle_sweep);
    parts.spawn(idle_stopper.run(idle_due, serving.clone()));
    parts.spawn(tasks::keep_pulse(app.clone(), serving.clone()));
    parts.spawn(tasks::watch_state(app.clone(), serving.clone()));
    parts.spawn(tasks::place_waiting(app.clone(), serving.clone()));
    parts.spawn(tasks::end_overdue(app.clone(), serving.clone()));
    parts.spawn(tasks::give_up_nodes(app.clone(), serving.clone()));
    parts.spawn(tasks::see_to_drains(app.clone(), serving.clone()));
    parts.spawn(tasks::hand_logs_over(app.clone(), tasks.clone(), serving.clone()));
    parts.spawn(tasks::watch_leases(app.clone(), serving.clone()));
    parts.spawn(tasks::release_lost(app.clone(), serving.clone()));
    parts.spawn(tasks::drop_old(app.clone(), serving.clone()));
    parts.spawn(tasks::watch_database(app.clone(), readiness.clone(), serving.clone()));
    let writer = app.clone();
    let writer_stop = writing.clone();
    parts.spawn(async move { writer.write_heartbeats(inbox, writer_stop).await });

    let (teller, health) = HealthTeller::new().await;
    let following = Following { stop: serving.clone() };
    let mut api = serve::reflection().context("the descriptors cannot be read")?;
    api = api
        .add_service(health)
        .add_service(EventServiceServer::new(Events::new(app.clone(), following.clone(), tasks.clone())))
        .add_service(PolicyServiceServer::new(Policies::new(app.clone())))
        .add_service(NodeServiceServer::new(Nodes::new(app.clone())));
    // Heartbeats are its calls.
    let workspaces = Workspaces::new(app.clone(), following.clone(), tasks.clone());
    let sessions = Sessions::new(app.clone(), serving.clone(), tasks.clone());
    let agents = tonic::service::Routes::new(AgentServiceServer::new(Agents::new(app.clone(), sessions)));
    let api = serve::router(api, http::routes(readiness.clone(), app.state.clone(), telemetry));
    let api = serve::Direct::new(WorkspaceServiceServer::new(workspaces), api);
    let agents = serve::router(agents, axum::Router::new());
    parts.spawn(report(serve::serve(listener, api, serving.clone()), "the API"));
    match &authorities {
        Some(authorities) => {
            let tls = serve::serve_tls(agent_listener, agents, authorities.listener(), serving.clone());
            parts.spawn(report(tls, "the agents' listener"));
        }
        None => {
            let plain = serve::serve(agent_listener, agents, serving.clone());
            parts.spawn(report(plain, "the agents' listener"));
        }
    }
    if let Some(renewal) = renewal {
        parts.spawn(tasks::keep_authority(renewal, serving.clone()));
    }
    parts.spawn(teller.run(readiness.subscribe(), serving.clone()));
    let tls = authorities.is_some();
    tracing::info!(listen = %args.listen, agent_listen = %args.agent_listen, tls, %cluster, "serving");

    let ended = tokio::select! {
        () = stop.cancelled() => Ok(()),
        // Cancel-safe: the process ends in either case.
        Some(ended) = parts.join_next() => Err(broken(ended)),
    };
    if let Err(error) = &ended {
        tracing::error!("this replica ends: {error:#}");
    }
    readiness.stop();
    tokio::time::sleep(DEREGISTER).await;
    serving.cancel();
    tasks.close();
    let all_ended = async {
        while parts.len() > 1 {
            parts.join_next().await;
        }
        tasks.wait().await;
        writing.cancel();
        while parts.join_next().await.is_some() {}
    };
    if tokio::time::timeout(SHUTDOWN, all_ended).await.is_err() {
        tracing::warn!("not everything ended in time");
    }
    store.close().await;
    ended
}

/// Of a loop or server that ended before it was told to.
fn broken(ended: Result<(), JoinError>) -> anyhow::Error {
    match ended {
        Ok(()) => anyhow::anyhow!("a loop or server ended by itself"),
        Err(error) => anyhow::Error::new(error).context("a loop or server broke"),
    }
}

fn open_authority(dir: std::path::PathBuf) -> anyhow::Result<(Authorities, Renewal)> {
    let opened = Authorities::open(dir, Arc::new(SystemClock::new()));
    opened.context("--ca-dir cannot be used; `control-plane ca init` makes an authority")
}

async fn listen(flag: &str, address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{flag} {address} cannot be used; is another control plane running there?"))
}

async fn report(served: impl Future<Output = std::io::Result<()>>, what: &str) {
    if let Err(error) = served.await {
        tracing::error!(%error, "{what} failed");
    }
}

/// How the store stands, once the database is up; a schema that is not ours is an error at once.
async fn wait_for_database(store: &Store, stop: &CancellationToken) -> anyhow::Result<StoreState> {
    let found = patiently(stop, || async {
        if !store.schema_is_current().await? {
            return Ok(None);
        }
        Ok(Some(store.state().await?))
    });
    found.await?.context("the database's schema is not up to date; run `control-plane migrate` first")
}

/// Tries again for a while what fails because the database is away: it may be restarted at any moment of our start.
async fn patiently<T, F: Future<Output = Result<T, AppError>>>(
    stop: &CancellationToken,
    mut attempt: impl FnMut() -> F,
) -> anyhow::Result<T> {
    let began = tokio::time::Instant::now();
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) if !error.is_passing() || began.elapsed() > DATABASE_PATIENCE => {
                return Err(error).context("--database-url cannot be used");
            }
            Err(error) => tracing::warn!(%error, "waiting for the database"),
        }
        tokio::select! {
            // Cancel-safe: nothing is under way.
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            () = stop.cancelled() => anyhow::bail!("told to stop while waiting for the database"),
        }
    }
}
