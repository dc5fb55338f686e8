//! Carries decisions out. The loop wakes on a new desired set, a verdict, a hint of Docker's, the end of a task, and every
//! reconcile interval; it looks at everything anew each time (level-triggered), and gives each workspace at most one task. A
//! hung Docker call holds up its own workspace only: listings, too, run beside the loop.

mod bring;
mod failure;
pub mod fence_watch;
pub mod host;
pub mod images;
mod listing;
mod probe;
mod ready;
mod refuse;
mod remove;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use carrel_common::id::{Pair, WorkspaceUid};
use carrel_common::model::{Container, DesiredItem, DesiredPair, DesiredSet, Verdict};
use carrel_common::telemetry;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use self::bring::{Bring, Outcome, SoFar};
use self::fence_watch::FencedOff;
use self::host::Host;
use self::listing::Lister;
use crate::fence::lease::Ground;
use crate::reconcile::fencing::{Fencing, fencing};
use crate::reconcile::{Action, Cause, Decisions, From, InFlight, Listing, Memory, Settled, View, diff};
use crate::runtime::{Phase, Runtime};

pub use self::listing::EngineState;

/// The desired set that holds.
#[derive(Debug, Clone, Default)]
pub struct Accepted {
    /// The set; `None` before the first.
    pub set: Option<Arc<DesiredSet>>,
    /// Whether it was accepted in the session that stands now.
    pub fresh: bool,
    /// When it was accepted, by the monotonic clock.
    pub taken_at: Duration,
}

/// Containers that no order names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphans {
    /// All of them, sorted by id.
    pub containers: Vec<Container>,
    /// Those whose stop the breaker holds back, by id.
    pub withheld: Vec<String>,
}

/// How the session and the driver are joined.
#[derive(Debug)]
pub struct Links {
    /// The set that holds: latest value, never a queue.
    pub accepted: watch::Receiver<Accepted>,
    /// Verdicts on orphans, by container.
    pub verdicts: mpsc::Receiver<Vec<(String, Verdict)>>,
    /// Containers that have to stop, as the share knows later ones.
    pub fenced: watch::Receiver<FencedOff>,
    /// Containers to report; `None` until the first listings have shown which.
    pub orphans: watch::Sender<Option<Orphans>>,
    /// What is known of the container engine.
    pub engine: watch::Sender<EngineState>,
    /// Stops that the breaker holds back.
    pub withheld: watch::Sender<usize>,
}

/// A daemon that goes down takes the programs with it a little before its connection breaks; exits of the last so long are
/// forgiven then. Docker's own shutdown takes up to 15 s.
const FORGIVEN_BEFORE_OUTAGE: Duration = Duration::from_secs(30);

/// The control plane takes an item off the set within this after it was told that it is gone.
const GONE_AGAIN: Duration = Duration::from_secs(5);

/// A task that died of a defect in the agent.
const PAUSE_AFTER_PANIC: Duration = Duration::from_secs(5);

type Done = (WorkspaceUid, Pair, Outcome);

struct Task {
    kind: InFlight,
    pair: Pair,
    cancel: CancellationToken,
    id: tokio::task::Id,
}

/// The loop's state.
struct Driver<R> {
    host: Arc<Host<R>>,
    links: Links,
    /// Whether workspaces may run, and what may never again.
    ground: watch::Receiver<Ground>,
    lister: Lister<R>,
    tasks: JoinSet<Done>,
    running: BTreeMap<WorkspaceUid, Task>,
    memory: BTreeMap<WorkspaceUid, Memory>,
    verdicts: BTreeMap<String, Verdict>,
    /// Containers found exited after an outage: not the program's fault.
    forgiven: BTreeSet<String>,
    listing: Option<Listing>,
    seen_before: BTreeSet<String>,
    /// The session that stands was given containers to report, or that there are none.
    reports: bool,
    /// When a workspace that was put off is due, by the monotonic clock.
    wake_at: Option<Duration>,
    /// What holds before a set has come.
    no_set: Arc<DesiredSet>,
}

/// Runs until `stop`. Tasks that are under way are cut off then; their containers stay as they are.
pub async fn run<R: Runtime>(host: Arc<Host<R>>, links: Links, stop: CancellationToken) {
    let lister = Lister::new(Arc::clone(&host));
    let ground = host.lease.ground();
    let mut driver = Driver {
        host,
        links,
        ground,
        lister,
        tasks: JoinSet::new(),
        running: BTreeMap::new(),
        memory: BTreeMap::new(),
        verdicts: BTreeMap::new(),
        forgiven: BTreeSet::new(),
        listing: None,
        seen_before: BTreeSet::new(),
        reports: false,
        wake_at: None,
        no_set: Arc::new(DesiredSet::new(DesiredPair { incarnation: 0, generation: 0 }, Vec::new())),
    };
    while driver.once(&stop).await {}
}

impl<R: Runtime> Driver<R> {
    /// Waits for one reason to look, and looks. False at the end.
    async fn once(&mut self, stop: &CancellationToken) -> bool {
        let now = self.host.clock.monotonic();
        let due = self.wake_at.map_or(Duration::MAX, |at| at.saturating_sub(now));
        // Cancel-safe, all of them: channels and join sets lose nothing, the lister keeps its state between calls.
        tokio::select! {
            () = stop.cancelled() => return false,
            changed = self.links.accepted.changed() => {
                if changed.is_err() {
                    return false;
                }
                self.new_set();
            }
            // The lease holds again, has run out, or has run out over something that is there now.
            Ok(()) = self.ground.changed() => {}
            Some(verdicts) = self.links.verdicts.recv() => self.take_verdicts(verdicts),
            changed = self.links.fenced.changed() => {
                if changed.is_err() {
                    return false;
                }
                // One that runs may be newer than the listing.
                self.lister.soon();
            }
            Some(done) = self.tasks.join_next_with_id() => self.task_ended(done),
            found = self.lister.next() => self.listed(found),
            () = tokio::time::sleep(due) => self.wake_at = None,
        }
        self.look();
        true
    }

    /// A new set, or the end of a session. The cached listing serves the orders of a set at once; a new one finds what is in no
    /// order, and is what the next session begins with.
    fn new_set(&mut self) {
        self.links.accepted.mark_unchanged();
        self.lister.soon();
    }

    fn take_verdicts(&mut self, verdicts: Vec<(String, Verdict)>) {
        for (container, verdict) in verdicts {
            self.host.metrics.orphan(match verdict {
                Verdict::Stop | Verdict::StopByOrder => "stop",
                Verdict::Hold => "hold",
            });
            tracing::info!(container, ?verdict, "verdict on an orphan");
            self.verdicts.insert(container, verdict);
        }
    }

    fn task_ended(&mut self, done: Result<(tokio::task::Id, Done), tokio::task::JoinError>) {
        let now = self.host.clock.monotonic();
        let (workspace, pair, outcome) = match done {
            Ok((_, done)) => done,
            Err(error) => {
                let found = self.running.iter().find(|(_, task)| task.id == error.id());
                let Some((workspace, task)) = found.map(|(workspace, task)| (*workspace, task)) else {
                    return;
                };
                tracing::error!(workspace.id = %workspace, %error, "a task died; this is a defect of the agent");
                let not_before = now + PAUSE_AFTER_PANIC;
                (workspace, task.pair, Outcome::Settled(Settled::Retry { not_before }))
            }
        };
        self.running.remove(&workspace);
        let settled = match outcome {
            Outcome::Settled(settled) => settled,
            Outcome::Cancelled => Settled::Retry { not_before: now },
        };
        if matches!(settled, Settled::Retry { .. }) {
            self.lister.soon();
        }
        self.memory.insert(workspace, Memory { pair, at: now, settled });
    }

    fn listed(&mut self, found: listing::Outcome) {
        match found {
            listing::Outcome::Listed { listing, reconnected } => {
                if reconnected {
                    self.reconnected(&listing);
                }
                let before = self.listing.replace(listing);
                self.seen_before = match before {
                    Some(before) if !reconnected => ids(&before),
                    _ => BTreeSet::new(),
                };
                self.forget();
            }
            listing::Outcome::Lost => {
                self.forgive();
                self.listing = None;
            }
        }
        self.links.engine.send_if_modified(|state| self.lister.publish(state, self.listing.as_ref()));
    }

    fn forgive(&self) {
        let since = self.host.clock.monotonic().saturating_sub(FORGIVEN_BEFORE_OUTAGE);
        self.host.exits().forgive_since(since);
    }

    /// What was known before an outage is looked at again: programs may have ended and ports changed hands.
    fn reconnected(&mut self, listing: &Listing) {
        self.forgive();
        let exited = listing.containers.iter().filter(|found| found.phase == Phase::Exited);
        self.forgiven = exited.map(|found| found.container.container_id.clone()).collect();
        self.memory.retain(|_, memory| !matches!(memory.settled, Settled::Running { .. }));
    }

    /// Drops what is remembered of workspaces and containers that are no more.
    fn forget(&mut self) {
        let Some(listing) = &self.listing else { return };
        let present = ids(listing);
        self.verdicts.retain(|container, _| present.contains(container));
        self.forgiven.retain(|container| present.contains(container));
        let Some(set) = self.links.accepted.borrow().set.clone() else { return };
        let wanted = |workspace: &WorkspaceUid| set.items.iter().any(|item| item.workspace == *workspace);
        self.memory.retain(|workspace, memory| memory.at >= listing.taken_at || wanted(workspace));
        let exact =
            |workspace, pair| set.items.iter().any(|item| item.workspace == workspace && item.pair() == pair);
        self.host.reports.prune(exact);
        self.host.deadlines.keep(|workspace| wanted(&workspace));
        let containers = listing.containers.iter().map(|found| found.container.workspace);
        self.host.desks.only(containers.chain(set.items.iter().map(|item| item.workspace)).collect());
        // Gone stays in the set until the control plane has committed it; tell it again if it seems to have missed it.
        let now = self.host.clock.monotonic();
        let missed =
            |memory: &Memory| memory.settled == Settled::Gone && now.saturating_sub(memory.at) > GONE_AGAIN;
        let stopped = |workspace: WorkspaceUid, pair: Pair| {
            exact(workspace, pair) && self.memory.get(&workspace).is_some_and(missed)
        };
        self.host.reports.renew_acked(stopped);
    }

    /// Decides and starts what is to be done now.
    fn look(&mut self) {
        self.wake_at = None;
        self.fence();
        let Accepted { set, fresh, taken_at } = self.links.accepted.borrow().clone();
        // What a lease ran out over is removed before any set has come, too.
        let set = set.unwrap_or_else(|| Arc::clone(&self.no_set));
        let over = Arc::clone(&self.ground.borrow_and_update().over);
        let Some(listing) = &self.listing else { return };
        let in_flight = self.in_flight();
        let decisions = diff(&View {
            now: self.host.clock.monotonic(),
            set: &set,
            lease: self.host.lease.standing(),
            over: &over,
            session_fresh: fresh,
            listing,
            seen_before: &self.seen_before,
            in_flight: &in_flight,
            memory: &self.memory,
            verdicts: &self.verdicts,
        });
        let Decisions { actions, orphans: containers, partial, held, relist, withheld, wake_at } = decisions;
        self.wake_at = self.wake_at.into_iter().chain(wake_at).min();
        if relist {
            self.lister.soon();
        }
        self.host.metrics.held(held);
        let stops = withheld.len();
        let news = self.links.withheld.send_if_modified(|told| std::mem::replace(told, stops) != stops);
        if news && stops > 0 {
            self.host.metrics.withheld(stops);
            tracing::error!(
                stops,
                "so many stops without an order at once: none happens; an operator has to look"
            );
        }
        self.reports &= fresh;
        if fresh && !partial {
            let orphans = Some(Orphans { containers, withheld });
            let anew = !std::mem::replace(&mut self.reports, true);
            self.links.orphans.send_if_modified(|told| {
                let news = anew || *told != orphans;
                *told = orphans;
                news
            });
        }
        for action in actions {
            self.start(action, set.pair, taken_at);
        }
    }

    /// Stops what gave way, whatever else is known: it needs no order.
    fn fence(&mut self) {
        let Some(listing) = &self.listing else { return };
        let fenced = self.links.fenced.borrow().clone();
        if fenced.is_empty() {
            return;
        }
        let in_flight = self.in_flight();
        let now = self.host.clock.monotonic();
        let memory = &self.memory;
        let decided = fencing(&Fencing { now, listing, fenced: &fenced, in_flight: &in_flight, memory });
        self.wake_at = decided.wake_at;
        if decided.relist {
            self.lister.soon();
        }
        for action in decided.actions {
            self.start(action, DesiredPair { incarnation: 0, generation: 0 }, now);
        }
    }

    fn in_flight(&self) -> BTreeMap<WorkspaceUid, InFlight> {
        self.running.iter().map(|(workspace, task)| (*workspace, task.kind)).collect()
    }

    /// `taken_at`: when the set was accepted that the action is for; `ordered` is its pair.
    fn start(&mut self, action: Action, ordered: DesiredPair, taken_at: Duration) {
        let host = Arc::clone(&self.host);
        let cancel = CancellationToken::new();
        let (workspace, pair, kind, task) = match action {
            Action::Cancel { workspace } => {
                if let Some(task) = self.running.get(&workspace) {
                    task.cancel.cancel();
                }
                return;
            }
            Action::Bring { item, from } => {
                let (workspace, pair) = (item.workspace, item.pair());
                let forgiven = match &from {
                    From::Exited(id) => self.forgiven.remove(id),
                    From::Nothing | From::Created(_) | From::Running(_) => false,
                };
                let span = span_of(&item, &from, host.scope.node);
                let (cancel, accepted) = (cancel.clone(), self.links.accepted.clone());
                let task = async move {
                    let so_far = SoFar::default();
                    let bring = Bring { host: &host, item, cancel, accepted, forgiven, so_far };
                    (workspace, pair, bring.run(from).await)
                };
                let task = self.tasks.spawn(task.instrument(span));
                (workspace, pair, InFlight::Bring(pair), task)
            }
            Action::Stop { item } => {
                let (workspace, pair) = (item.workspace, item.pair());
                let span = tracing::info_span!("workspace.stop", workspace.id = %workspace, generation = %pair.generation, node.id = %host.scope.node);
                telemetry::set_parent(&span, &item.traceparent);
                let task = async move {
                    let settled = match refuse::idle_stop(&host, &item, taken_at, ordered).await {
                        Some(refused) => refused,
                        None => remove::stop(&host, &item).await,
                    };
                    (workspace, pair, Outcome::Settled(settled))
                };
                (workspace, pair, InFlight::Remove, self.tasks.spawn(task.instrument(span)))
            }
            Action::Clear { workspace, cause, containers } => {
                let Some(pair) = containers.iter().map(Container::pair).max() else { return };
                let span = tracing::info_span!("workspace.clear", workspace.id = %workspace, generation = %pair.generation, node.id = %host.scope.node);
                match cause {
                    Cause::Superseded => {}
                    Cause::Orphan => {
                        tracing::warn!(parent: &span, "removing an orphan by the control plane's word")
                    }
                    Cause::Fenced => tracing::warn!(parent: &span, "removing what the lease ran out over"),
                }
                let task = async move {
                    let settled = remove::clear(&host, workspace, cause, &containers).await;
                    (workspace, pair, Outcome::Settled(settled))
                };
                (workspace, pair, InFlight::Remove, self.tasks.spawn(task.instrument(span)))
            }
            Action::Fence { container, later } => {
                let (workspace, pair) = (container.workspace, container.pair());
                let span = tracing::info_span!("workspace.fence", workspace.id = %workspace, generation = %pair.generation, node.id = %host.scope.node);
                let task = async move {
                    let settled = remove::fence(&host, &container, later).await;
                    (workspace, pair, Outcome::Settled(settled))
                };
                (workspace, pair, InFlight::Remove, self.tasks.spawn(task.instrument(span)))
            }
        };
        self.running.insert(workspace, Task { kind, pair, cancel, id: task.id() });
    }
}

fn ids(listing: &Listing) -> BTreeSet<String> {
    listing.containers.iter().map(|found| found.container.container_id.clone()).collect()
}

/// A start is part of the trace of the request that caused it; what follows later is a trace of its own.
fn span_of(item: &DesiredItem, from: &From, node: carrel_common::id::NodeId) -> tracing::Span {
    let (workspace, generation) = (item.workspace, item.generation);
    match from {
        From::Nothing | From::Created(_) => {
            let span = tracing::info_span!(
                "workspace.start", workspace.id = %workspace, %generation, node.id = %node, student.id = %item.student
            );
            telemetry::set_parent(&span, &item.traceparent);
            span
        }
        From::Running(_) => {
            tracing::info_span!("workspace.adopt", workspace.id = %workspace, %generation, node.id = %node)
        }
        From::Exited(_) => {
            tracing::info_span!("workspace.restart", workspace.id = %workspace, %generation, node.id = %node)
        }
    }
}

#[cfg(test)]
mod tests;
