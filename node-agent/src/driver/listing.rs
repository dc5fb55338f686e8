//! Keeps a listing of our containers: when to take one, whether Docker answers, and Docker's hints. One listing at a time, beside
//! the loop.

use std::sync::Arc;
use std::time::Duration;

use carrel_common::model::Container;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio::task::JoinSet;

use super::host::Host;
use crate::reconcile::Listing;
use crate::runtime::{EngineFacts, Found, Hint, Runtime, RuntimeError};

/// Hints come in swarms; one listing serves all of so long a time.
const GATHER: Duration = Duration::from_millis(20);

/// Between two listings that hints ask for: each costs the daemon a look at every container.
const GAP: Duration = Duration::from_millis(200);

/// A start that nobody waits for any more is found by a listing so long after it. Most are our own, which are known already: one
/// listing serves all of so long a time.
const STARTED: Duration = Duration::from_secs(1);

/// Docker is asked again after so long when it did not answer; doubled each time up to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// What is known of the container engine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineState {
    /// Who it is; `None` until it was reached.
    pub facts: Option<EngineFacts>,
    /// Why it cannot be used; `None`: it answers.
    pub problem: Option<String>,
    /// Our containers, by the last listing that worked.
    pub inventory: Vec<Container>,
    /// When that listing began, by the monotonic clock; `None` while Docker does not answer.
    pub listed_at: Option<Duration>,
    /// Another daemon answers than the node's: that is the problem.
    pub other_daemon: bool,
    /// When it was last asked with an answer or without, by the monotonic clock; `None` before the first time.
    pub asked_at: Option<Duration>,
}

/// What a listing led to.
pub(super) enum Outcome {
    /// The containers. `reconnected`: Docker had not answered before, or its connection had broken meanwhile.
    Listed { listing: Listing, reconnected: bool },
    /// Docker does not answer.
    Lost,
}

/// What a listing brought: who answered, when that was asked for, and the list.
struct Listed {
    facts: Option<EngineFacts>,
    listing: Result<Listing, RuntimeError>,
}

pub(super) struct Lister<R> {
    host: Arc<Host<R>>,
    work: JoinSet<Listed>,
    hints: Option<BoxStream<'static, Result<Hint, RuntimeError>>>,
    /// When to list next, by the monotonic clock.
    due: Duration,
    /// When the last listing began.
    begun: Duration,
    /// Docker answered the last time, and its events have not broken off since.
    connected: bool,
    backoff: Duration,
    facts: Option<EngineFacts>,
    problem: Option<String>,
    other_daemon: bool,
    asked_at: Option<Duration>,
}

impl<R: Runtime> Lister<R> {
    pub(super) fn new(host: Arc<Host<R>>) -> Self {
        let due = host.clock.monotonic();
        Self {
            host,
            work: JoinSet::new(),
            hints: None,
            due,
            begun: Duration::ZERO,
            connected: false,
            backoff: BACKOFF.0,
            facts: None,
            problem: None,
            other_daemon: false,
            asked_at: None,
        }
    }

    /// A new listing is wanted as soon as possible; one that is under way does not count, it may be from before.
    pub(super) fn soon(&mut self) {
        if self.connected {
            self.due = self.host.clock.monotonic();
        }
    }

    /// Writes what is known into `state`; whether that is news.
    pub(super) fn publish(&self, state: &mut EngineState, listing: Option<&Listing>) -> bool {
        let inventory = match listing {
            Some(listing) => listing.containers.iter().map(|found| found.container.clone()).collect(),
            None => std::mem::take(&mut state.inventory),
        };
        *state = EngineState {
            facts: self.facts.clone(),
            problem: self.problem.clone(),
            other_daemon: self.other_daemon,
            inventory,
            listed_at: listing.map(|listing| listing.taken_at),
            asked_at: self.asked_at,
        };
        true
    }

    /// Completes with the next listing. Cancel-safe: all state is kept between calls.
    pub(super) async fn next(&mut self) -> Outcome {
        loop {
            let now = self.host.clock.monotonic();
            let idle = self.work.is_empty();
            if idle && self.due <= now {
                self.begin(now);
                continue;
            }
            tokio::select! {
                Some(result) = self.work.join_next() => match result {
                    Ok(listed) => return self.ended(listed),
                    Err(error) => tracing::error!(%error, "a listing died; this is a defect of the agent"),
                },
                hint = next_hint(&mut self.hints) => self.hinted(hint),
                () = tokio::time::sleep(self.due.saturating_sub(now)), if idle => {}
            }
        }
    }

    fn begin(&mut self, now: Duration) {
        self.begun = now;
        self.due = now + self.host.limits.reconcile_interval;
        if self.hints.is_none() {
            // Before the listing, so that nothing falls between.
            self.hints = Some(self.host.runtime.hints(self.host.scope.cluster));
        }
        let (host, first) = (Arc::clone(&self.host), !self.connected);
        // Nothing can have been started by this process yet.
        let nothing_made = self.facts.is_none();
        self.work.spawn(async move {
            let facts = match first {
                false => None,
                true => match host.runtime.facts().await {
                    Ok(facts) => Some(facts),
                    Err(error) => return Listed { facts: None, listing: Err(error) },
                },
            };
            let listing = list(&host, facts.as_ref(), nothing_made).await;
            Listed { facts, listing }
        });
    }

    fn ended(&mut self, listed: Listed) -> Outcome {
        let now = self.host.clock.monotonic();
        self.asked_at = Some(now);
        let Listed { facts, listing } = listed;
        self.other_daemon = matches!(listing, Err(RuntimeError::OtherDaemon { .. }));
        match listing {
            Ok(listing) => {
                let reconnected = facts.is_some();
                if let Some(facts) = facts {
                    tracing::info!(
                        id = facts.id,
                        version = facts.version,
                        containers = listing.containers.len(),
                        "Docker answers"
                    );
                    self.facts = Some(facts);
                    // A break of the events since then is a reason to reconnect once more.
                    self.connected = self.hints.is_some();
                    if !self.connected {
                        self.due = now;
                    }
                }
                self.problem = None;
                self.backoff = BACKOFF.0;
                Outcome::Listed { listing, reconnected }
            }
            Err(error) => {
                if self.other_daemon {
                    // The control plane is told who answers, and refuses it.
                    self.facts = facts;
                }
                if self.problem.is_none() {
                    tracing::error!(%error, "Docker does not answer; nothing is decided until it does");
                    self.host.metrics.outage();
                }
                self.connected = false;
                self.problem = Some(error.to_string());
                self.due = now + self.backoff;
                self.backoff = (self.backoff * 2).min(BACKOFF.1);
                Outcome::Lost
            }
        }
    }

    fn hinted(&mut self, hint: Option<Result<Hint, RuntimeError>>) {
        let now = self.host.clock.monotonic();
        match hint {
            Some(Ok(hint)) => {
                let wait = if matches!(hint, Hint::Started(_)) { STARTED } else { GATHER };
                // Nobody listening is fine.
                let _ = self.host.hints.send(hint);
                self.due = self.due.min((now + wait).max(self.begun + GAP));
            }
            Some(Err(_)) | None => {
                // The daemon went away, or restarted: a full look, as after an outage.
                self.hints = None;
                if std::mem::take(&mut self.connected) {
                    self.due = now;
                }
            }
        }
    }
}

/// Whoever started them, they end with this host's lease.
async fn end_with_lease<R: Runtime>(host: &Host<R>, containers: &[Found], all: bool) {
    let ids = containers.iter().map(|found| found.container.container_id.clone()).collect();
    let lease = Arc::clone(&host.lease);
    match tokio::task::spawn_blocking(move || lease.found(&ids, all)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::error!(%error, "containers are not on the fence's list: only the agent would end them")
        }
        Err(error) => {
            tracing::error!(%error, "the fence's list was not written; this is a defect of the agent")
        }
    }
}

/// The containers; asked as a whole when it is not known who answers.
async fn list<R: Runtime>(
    host: &Host<R>,
    facts: Option<&EngineFacts>,
    nothing_made: bool,
) -> Result<Listing, RuntimeError> {
    if let Some(facts) = facts {
        host.check_daemon(&facts.id)?;
        ensure_network(host).await?;
    }
    let taken_at = host.clock.monotonic();
    let containers = host.runtime.list(host.scope.cluster, None).await?;
    end_with_lease(host, &containers, nothing_made).await;
    Ok(Listing { taken_at, containers })
}

/// A network that cannot be had is no reason to be blind: what runs is seen, and a start will say what is wrong.
async fn ensure_network<R: Runtime>(host: &Host<R>) -> Result<(), RuntimeError> {
    match host.runtime.ensure_network(host.scope).await {
        Err(error) if !error.result_unknown() => {
            tracing::error!(%error, network = host.scope.network(), "the workspaces' network cannot be had");
            Ok(())
        }
        other => other,
    }
}

/// Never, without a stream.
async fn next_hint(
    hints: &mut Option<BoxStream<'static, Result<Hint, RuntimeError>>>,
) -> Option<Result<Hint, RuntimeError>> {
    match hints {
        Some(hints) => hints.next().await,
        None => std::future::pending().await,
    }
}
