//! When a silent node is given up, so that its workspaces may run elsewhere.
//!
//! The node ends everything by itself F + S after it sent the last heartbeat that was acked. Here nobody knows when that was, and
//! clocks of two machines are never compared: each replica watches each node's counter of renewals by its own monotonic clock. A
//! counter that this replica has itself seen stand still for F + S + M belongs to a node on which nothing runs any more, whatever
//! it thinks of the time. What the replica did not see counts as nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use carrel_common::id::NodeId;

use super::node::NodeState;

/// How long a node may run without an ack, and how long it is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTerms {
    /// F: a node ends everything this long after it sent the last heartbeat that was acked.
    pub fence_after: Duration,
    /// S: how long that may take.
    pub stop_budget: Duration,
    /// M: for clocks that run at other rates, and hosts that are slow.
    pub margin: Duration,
    /// How long a node is seen to stand still before it is given up.
    pub replace_after: Duration,
}

impl LeaseTerms {
    /// F + S: after this nothing runs on a node that gets no ack.
    pub fn promised(&self) -> Duration {
        self.fence_after.saturating_add(self.stop_budget)
    }

    /// Nothing may be moved earlier: F + S + M.
    pub fn shortest_replace_after(&self) -> Duration {
        self.promised().saturating_add(self.margin)
    }
}

/// What changes with each sign of life that is committed, and in no other way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Renewals {
    /// Rises with each start of the agent.
    pub boot_epoch: i64,
    /// Rises with each session.
    pub session_epoch: i64,
    /// Rises with each heartbeat.
    pub count: i64,
}

/// A node as one look at the database found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The node.
    pub node: NodeId,
    /// What it amounted to when it was last judged.
    pub state: NodeState,
    /// Its renewals.
    pub renewals: Renewals,
    /// F + S as its agent was told; `None`: it was never told, and nothing is known of when it would end anything.
    pub promised: Option<Duration>,
}

/// What follows from a look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Nodes to give up, each as long as its renewals are still these.
    pub due: Vec<(NodeId, Renewals)>,
    /// Nodes that would be, but for so many others that are silent at the same moment.
    pub held: Vec<NodeId>,
}

/// A replica that was away for longer than this, or its database, has not watched.
pub const LONGEST_GAP: Duration = Duration::from_secs(15);

/// So many nodes silent at once, and more than this share of all, are more likely our own fault: replacements wait.
const OUTAGE: (usize, usize) = (3, 30);

/// Whether so many of so many nodes are silent that it is our fault until proved otherwise.
pub fn is_outage(silent: usize, of: usize) -> bool {
    let (nodes, percent) = OUTAGE;
    silent >= nodes && silent * 100 > of * percent
}

/// What one replica has seen.
#[derive(Debug)]
pub struct Watcher {
    terms: LeaseTerms,
    /// When it last looked, and at which timeline of the database: another one may have lost what was committed.
    last: Option<(Duration, String)>,
    /// Each node's renewals, and since when they have been seen to be these.
    still: BTreeMap<NodeId, (Renewals, Duration)>,
}

impl Watcher {
    /// A replica that has seen nothing.
    pub fn new(terms: LeaseTerms) -> Self {
        Self { terms, last: None, still: BTreeMap::new() }
    }

    /// Takes a look into account: what the database had said by `now`, the replica's monotonic clock when the answer was there.
    pub fn take(&mut self, now: Duration, timeline: &str, nodes: &[Seen]) -> Findings {
        let watched = self
            .last
            .take()
            .is_some_and(|(at, before)| now.saturating_sub(at) <= LONGEST_GAP && before == timeline);
        self.last = Some((now, timeline.to_owned()));
        let before = std::mem::take(&mut self.still);
        for seen in nodes {
            let since = before.get(&seen.node).filter(|(renewals, _)| watched && *renewals == seen.renewals);
            self.still.insert(seen.node, (seen.renewals, since.map_or(now, |(_, since)| *since)));
        }
        // One that has never had a session runs nothing. Another may, though it has not beaten: a restored store takes in what its
        // Hello tells.
        let counted = nodes.iter().filter(|seen| seen.state != NodeState::Fenced && seen.promised.is_some());
        let silent = counted.clone().filter(|seen| seen.state == NodeState::Unreachable);
        let due = silent.clone().filter(|seen| self.is_due(now, seen));
        if is_outage(silent.clone().count(), counted.count()) {
            return Findings { held: due.map(|seen| seen.node).collect(), ..Findings::default() };
        }
        Findings { due: due.map(|seen| (seen.node, seen.renewals)).collect(), ..Findings::default() }
    }

    fn is_due(&self, now: Duration, seen: &Seen) -> bool {
        let (Some(promised), Some((_, since))) = (seen.promised, self.still.get(&seen.node)) else {
            return false;
        };
        // What the agent was told counts, whatever this replica is told now.
        let wait = self.terms.replace_after.max(promised.saturating_add(self.terms.margin));
        now.saturating_sub(*since) >= wait
    }
}

#[cfg(test)]
mod tests;
