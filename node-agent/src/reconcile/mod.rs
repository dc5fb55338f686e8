//! What is to be done with what was found. PURE: values in, values out, `now` an argument; no async, no IO.
//!
//! `diff` holds the accepted desired set against a listing of our containers and what this process remembers, and says what to
//! do: the table "What an agent does with what it finds" of the design. It is sorted, can be asked again at any time, and says
//! nothing more once its own result is in place. Nothing is ever done to a container that is not named by an order, not known to
//! be superseded, and has no verdict of the control plane.

pub mod crash;
pub mod fencing;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use carrel_common::id::{Pair, WorkspaceUid};
use carrel_common::model::{Container, DesiredItem, DesiredPair, DesiredSet, Run, Verdict};

use crate::fence::lease::Standing;
use crate::runtime::{Found, Phase};
use crate::storage::fence_file::Token;

/// All of our containers at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// When the listing was *asked for*, by the agent's monotonic clock: it knows nothing of what was done later.
    pub taken_at: Duration,
    /// The containers.
    pub containers: Vec<Found>,
}

/// How a workspace was left by the last task that worked on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// The editor in this container answered.
    Running {
        /// Docker's id.
        container_id: String,
    },
    /// Given up and reported; not tried again as this pair.
    Failed,
    /// Removed and reported; never started again as this pair.
    Gone,
    /// Its idle stop was refused and reported: nothing is done until another set says what follows.
    Refused {
        /// The set that ordered the stop.
        pair: DesiredPair,
    },
    /// Could not be finished for a passing reason.
    Retry {
        /// Not before this moment of the monotonic clock.
        not_before: Duration,
    },
}

/// What this process remembers of a workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// The container it is about.
    pub pair: Pair,
    /// When the task ended, by the monotonic clock.
    pub at: Duration,
    /// How it was left.
    pub settled: Settled,
}

/// A task that works on a workspace at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InFlight {
    /// It brings up the container of this pair.
    Bring(Pair),
    /// It removes containers.
    Remove,
}

/// What a container is brought up from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// None exists.
    Nothing,
    /// It was made and never started.
    Created(String),
    /// It runs; whether it answers is not known to this process.
    Running(String),
    /// Its program has ended.
    Exited(String),
}

/// Why containers are cleared away without an order that names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A higher pair of the workspace is wanted here.
    Superseded,
    /// The control plane says its generation is over.
    Orphan,
    /// The lease ran out over it.
    Fenced,
}

/// Something to do, for one workspace; at most one at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make the item's container run and answer.
    Bring {
        /// The order.
        item: DesiredItem,
        /// What is there.
        from: From,
    },
    /// Remove every container of this and lower pairs, then report it gone.
    Stop {
        /// The order.
        item: DesiredItem,
    },
    /// Remove these containers.
    Clear {
        /// Their workspace.
        workspace: WorkspaceUid,
        /// Why.
        cause: Cause,
        /// The containers, sorted by id.
        containers: Vec<Container>,
    },
    /// Stop this container at once and report it: the share knows a later one of its student.
    Fence {
        /// The container.
        container: Container,
        /// What the share has.
        later: Token,
    },
    /// The task in flight works for an order that is over: it is to end at its next safe point.
    Cancel {
        /// Its workspace.
        workspace: WorkspaceUid,
    },
}

impl Action {
    /// The workspace it is about.
    pub fn workspace(&self) -> WorkspaceUid {
        match self {
            Self::Bring { item, .. } | Self::Stop { item } => item.workspace,
            Self::Clear { workspace, .. } | Self::Cancel { workspace } => *workspace,
            Self::Fence { container, .. } => container.workspace,
        }
    }
}

/// What `diff` looks at.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Now, by the monotonic clock.
    pub now: Duration,
    /// The accepted desired set.
    pub set: &'a DesiredSet,
    /// Whether workspaces may run on this host: nothing is started without a lease.
    pub lease: Standing,
    /// Containers that a lease has run out over.
    pub over: &'a BTreeSet<String>,
    /// Whether a set was accepted in the session that stands now: before, nothing is destroyed without an order.
    pub session_fresh: bool,
    /// The newest listing.
    pub listing: &'a Listing,
    /// Containers that the listing before had as well.
    pub seen_before: &'a BTreeSet<String>,
    /// What is being worked on.
    pub in_flight: &'a BTreeMap<WorkspaceUid, InFlight>,
    /// What is remembered.
    pub memory: &'a BTreeMap<WorkspaceUid, Memory>,
    /// Verdicts on orphans, by container.
    pub verdicts: &'a BTreeMap<String, Verdict>,
}

impl View<'_> {
    fn says(&self, found: &Found, verdict: Verdict) -> bool {
        self.verdicts.get(&found.container.container_id) == Some(&verdict)
    }

    /// What was reported once is reported until it is gone, whatever is being done with it.
    fn report_on<'a>(&self, containers: impl IntoIterator<Item = &'a &'a Found>, out: &mut Decisions) {
        let told = |found: &&&Found| self.verdicts.contains_key(&found.container.container_id);
        let told = containers.into_iter().filter(told);
        out.orphans.extend(told.map(|found| found.container.clone()));
    }
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decisions {
    /// To do now, sorted by workspace.
    pub actions: Vec<Action>,
    /// To report to the control plane: in no item, of a higher pair than known, or made of another spec; also what is being stopped.
    /// Sorted by id.
    pub orphans: Vec<Container>,
    /// Some were not in the listing before, and are not among `orphans` yet: that is no whole report.
    pub partial: bool,
    /// Of those, how many are left alone although an item names their workspace.
    pub held: usize,
    /// Whether another listing would allow more: it may follow at once.
    pub relist: bool,
    /// Orphans whose stop the breaker holds back, by id, sorted; none when it did not trip.
    pub withheld: Vec<String>,
    /// The earliest moment at which something put off is due.
    pub wake_at: Option<Duration>,
}

/// Stops that no order backs: at most this many at once, or this share of the node's workspaces, whichever is more.
const BREAKER: (usize, usize) = (3, 5);

/// What is to be done.
pub fn diff(view: &View<'_>) -> Decisions {
    let mut found: BTreeMap<WorkspaceUid, Vec<&Found>> = BTreeMap::new();
    for container in &view.listing.containers {
        found.entry(container.container.workspace).or_default().push(container);
    }
    let workspaces = found.len();
    let mut out = Decisions::default();
    let mut unnamed = view.in_flight.clone();
    for item in &view.set.items {
        unnamed.remove(&item.workspace);
        let containers = found.remove(&item.workspace).unwrap_or_default();
        one(view, item, &containers, &mut out);
    }
    if view.session_fresh {
        // Of an earlier session: the place may be another's by now.
        unnamed.retain(|_, task| matches!(task, InFlight::Bring(_)));
        out.actions.extend(unnamed.into_keys().map(|workspace| Action::Cancel { workspace }));
    }
    orphans(view, workspaces, &found, &mut out);
    out.actions.sort_by_key(Action::workspace);
    out.orphans.sort_by(|a, b| a.container_id.cmp(&b.container_id));
    out.withheld.sort();
    out
}

/// Whether activity refuses an idle stop: seen at `seen_at`, where the decision knew of none younger than `basis_age`, as of
/// `taken_at` when the order came.
pub fn refuses(seen_at: Duration, basis_age: Duration, taken_at: Duration) -> bool {
    seen_at + basis_age > taken_at
}

fn one(view: &View<'_>, item: &DesiredItem, containers: &[&Found], out: &mut Decisions) {
    let stopped = matches!(item.run, Run::Stopped { .. });
    let no_order = |found: &&&Found| {
        let (pair, ordered) = (found.container.pair(), item.pair());
        pair > ordered || (pair == ordered && !stopped && found.spec_digest != item.spec.digest())
    };
    if let Some(task) = view.in_flight.get(&item.workspace) {
        let fenced = view.lease == Standing::Over || containers.iter().any(|found| is_over(view, found));
        if matches!(task, InFlight::Bring(pair) if stopped || fenced || *pair != item.pair()) {
            out.actions.push(Action::Cancel { workspace: item.workspace });
        }
        view.report_on(containers.iter().filter(no_order), out);
        return;
    }
    let memory = view.memory.get(&item.workspace);
    // A listing from before the last task ended may show what is gone, and what was made is not in it.
    let stale = memory.is_some_and(|memory| memory.at >= view.listing.taken_at);
    let beyond = |found: &&&Found| found.container.pair() > item.pair();
    let held: Vec<_> = containers.iter().filter(beyond).collect();
    if !stale && !held.is_empty() {
        // The store went back in time, or this set did: nothing of this workspace is touched.
        hold(view, item.workspace, &held, out);
        return;
    }
    if stale {
        view.report_on(containers.iter().filter(no_order), out);
    }
    if put_off(view, memory.filter(|memory| memory.pair == item.pair()), out) {
        return;
    }
    let known = memory.filter(|memory| memory.pair == item.pair()).map(|memory| &memory.settled);
    if stopped && known == Some(&Settled::Refused { pair: view.set.pair }) {
        return;
    }
    if stopped && known != Some(&Settled::Gone) {
        out.actions.push(Action::Stop { item: item.clone() });
        return;
    }
    if stale {
        let finished = matches!(known, Some(Settled::Running { .. } | Settled::Failed | Settled::Gone));
        out.relist |= !finished;
        return;
    }
    if stopped {
        if !containers.is_empty() {
            out.actions.push(Action::Stop { item: item.clone() });
        }
        return;
    }
    let over: Vec<&&Found> = containers.iter().filter(|found| is_over(view, found)).collect();
    if !over.is_empty() {
        out.actions.push(clear(item.workspace, Cause::Fenced, &over));
        return;
    }
    let (same, older): (Vec<&&Found>, Vec<&&Found>) =
        containers.iter().partition(|found| found.container.pair() == item.pair());
    if !older.is_empty() {
        clear_when_sure(view, item.workspace, Cause::Superseded, &older, out);
        return;
    }
    bring(view, item, &same, known, out);
}

/// Whether it is not yet time to try again what did not work.
fn put_off(view: &View<'_>, memory: Option<&Memory>, out: &mut Decisions) -> bool {
    let Some(Memory { settled: Settled::Retry { not_before }, .. }) = memory else { return false };
    if *not_before <= view.now {
        return false;
    }
    out.wake_at = Some(out.wake_at.map_or(*not_before, |at| at.min(*not_before)));
    true
}

/// Whether a lease has run out over a container: it never runs again, whatever is ordered.
fn is_over(view: &View<'_>, found: &Found) -> bool {
    view.over.contains(&found.container.container_id)
}

/// Leaves containers alone that no order accounts for, and reports them; but those that an operator wants stopped go.
fn hold(view: &View<'_>, workspace: WorkspaceUid, held: &[&&Found], out: &mut Decisions) {
    let (ordered, left): (Vec<&&Found>, Vec<&&Found>) =
        held.iter().copied().partition(|found| view.says(found, Verdict::StopByOrder));
    if !ordered.is_empty() {
        clear_when_sure(view, workspace, Cause::Orphan, &ordered, out);
    }
    out.held += left.len();
    out.orphans.extend(held.iter().map(|found| found.container.clone()));
}

fn bring(
    view: &View<'_>,
    item: &DesiredItem,
    same: &[&&Found],
    known: Option<&Settled>,
    out: &mut Decisions,
) {
    if matches!(known, Some(Settled::Failed | Settled::Gone)) {
        return;
    }
    // Two of one pair cannot be made by us, as they share a name; if somebody made one, the one that runs is it.
    let best = same.iter().max_by(|a, b| {
        let running = |found: &Found| found.phase == Phase::Running;
        running(a).cmp(&running(b)).then(b.container.container_id.cmp(&a.container.container_id))
    });
    // A start needs the word of this session: what was ordered in the one before may have been given to another host since.
    let may_start = view.lease == Standing::Leased && view.session_fresh;
    let Some(found) = best else {
        if may_start {
            out.actions.push(Action::Bring { item: item.clone(), from: From::Nothing });
        }
        return;
    };
    if found.spec_digest != item.spec.digest() {
        hold(view, item.workspace, &[*found], out);
        return;
    }
    let id = found.container.container_id.clone();
    let from = match found.phase {
        Phase::Created => From::Created(id),
        Phase::Exited => From::Exited(id),
        Phase::Running if known == Some(&Settled::Running { container_id: id.clone() }) => return,
        Phase::Running => From::Running(id),
    };
    // What runs already is taken over without a lease, too: it is the lease's end that stops it.
    let allowed = match from {
        From::Running(_) => view.lease != Standing::Over,
        From::Nothing | From::Created(_) | From::Exited(_) => may_start,
    };
    if allowed {
        out.actions.push(Action::Bring { item: item.clone(), from });
    }
}

fn clear(workspace: WorkspaceUid, cause: Cause, which: &[&&Found]) -> Action {
    let mut containers: Vec<_> = which.iter().map(|found| found.container.clone()).collect();
    containers.sort_by(|a, b| a.container_id.cmp(&b.container_id));
    Action::Clear { workspace, cause, containers }
}

/// In a session that stands, and when two listings agree.
fn clear_when_sure(
    view: &View<'_>,
    workspace: WorkspaceUid,
    cause: Cause,
    which: &[&&Found],
    out: &mut Decisions,
) {
    let twice = |found: &Found| view.seen_before.contains(&found.container.container_id);
    if !view.session_fresh {
        return;
    }
    if !which.iter().all(|found| twice(found)) {
        out.relist = true;
        return;
    }
    out.actions.push(clear(workspace, cause, which));
}

fn orphans(
    view: &View<'_>,
    workspaces: usize,
    found: &BTreeMap<WorkspaceUid, Vec<&Found>>,
    out: &mut Decisions,
) {
    let mut over = Vec::new();
    for (workspace, containers) in found {
        let memory = view.memory.get(workspace);
        let stale = memory.is_some_and(|memory| memory.at >= view.listing.taken_at);
        if stale || view.in_flight.contains_key(workspace) || put_off(view, memory, out) {
            view.report_on(containers, out);
            continue;
        }
        let fenced: Vec<&&Found> = containers.iter().filter(|found| is_over(view, found)).collect();
        if !fenced.is_empty() {
            out.actions.push(clear(*workspace, Cause::Fenced, &fenced));
            view.report_on(containers, out);
            continue;
        }
        if !view.session_fresh {
            continue;
        }
        let (seen, new): (Vec<&Found>, Vec<&Found>) =
            containers.iter().partition(|found| view.seen_before.contains(&found.container.container_id));
        out.relist |= !new.is_empty();
        out.partial |= !new.is_empty();
        out.orphans.extend(seen.iter().map(|found| found.container.clone()));
        let says = |verdict| move |found: &&Found| view.says(found, verdict);
        let (ordered, rest): (Vec<&Found>, Vec<&Found>) =
            seen.into_iter().partition(says(Verdict::StopByOrder));
        let stop: Vec<&Found> = rest.into_iter().filter(says(Verdict::Stop)).collect();
        // One action for a workspace at a time: what else is to go of it goes next.
        if !ordered.is_empty() {
            out.actions.push(clear(*workspace, Cause::Orphan, &ordered.iter().collect::<Vec<_>>()));
        } else if !stop.is_empty() {
            over.push((clear(*workspace, Cause::Orphan, &stop.iter().collect::<Vec<_>>()), stop));
        }
    }
    let (few, share) = BREAKER;
    if over.len() > few.max(workspaces / share) {
        // An operator has to see them.
        let stops = over.into_iter().flat_map(|(_, stop)| stop);
        out.withheld.extend(stops.map(|found| found.container.container_id.clone()));
    } else {
        out.actions.extend(over.into_iter().map(|(action, _)| action));
    }
}
