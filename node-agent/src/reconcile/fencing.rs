//! What runs although the share knows a later container of its student. PURE.
//!
//! This comes before everything else and needs no order, no session and no second listing: that another one was started later is
//! positive knowledge, and each moment in which both run can cost a student's work.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use carrel_common::id::WorkspaceUid;

use super::{Action, InFlight, Listing, Memory, Settled};
use crate::runtime::Phase;
use crate::storage::fence_file::Token;

/// What is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Fencing<'a> {
    /// Now, by the monotonic clock.
    pub now: Duration,
    /// The newest listing.
    pub listing: &'a Listing,
    /// Containers that gave way, with what the share has instead of theirs.
    pub fenced: &'a BTreeMap<String, Token>,
    /// What is being worked on.
    pub in_flight: &'a BTreeMap<WorkspaceUid, InFlight>,
    /// What is remembered.
    pub memory: &'a BTreeMap<WorkspaceUid, Memory>,
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fenced {
    /// To do now, sorted by workspace; at most one for each.
    pub actions: Vec<Action>,
    /// Another listing is wanted: the newest is from before a task ended.
    pub relist: bool,
    /// The earliest moment at which something put off is due.
    pub wake_at: Option<Duration>,
}

/// Stops what runs and is fenced, one container of a workspace at a time. A start under way is told to end first.
pub fn fencing(view: &Fencing<'_>) -> Fenced {
    let mut out = Fenced::default();
    let mut seen = BTreeSet::new();
    for found in view.listing.containers.iter().filter(|found| found.phase == Phase::Running) {
        let container = &found.container;
        let Some(later) = view.fenced.get(&container.container_id) else { continue };
        if !seen.insert(container.workspace) {
            continue;
        }
        match view.in_flight.get(&container.workspace) {
            Some(InFlight::Bring(_)) => {
                out.actions.push(Action::Cancel { workspace: container.workspace });
                continue;
            }
            Some(InFlight::Remove) => continue,
            None => {}
        }
        let memory = view.memory.get(&container.workspace);
        if let Some(Memory { settled: Settled::Retry { not_before }, .. }) = memory
            && *not_before > view.now
        {
            out.wake_at = Some(out.wake_at.map_or(*not_before, |at| at.min(*not_before)));
        } else if memory.is_some_and(|memory| memory.at >= view.listing.taken_at) {
            // That task may have stopped it.
            out.relist = true;
        } else {
            out.actions.push(Action::Fence { container: container.clone(), later: *later });
        }
    }
    out.actions.sort_by_key(Action::workspace);
    out
}

#[cfg(test)]
mod tests;
