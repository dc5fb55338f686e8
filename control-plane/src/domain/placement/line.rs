//! The queue: who is next in line, and how far one pass over it gets.
//!
//! **Between courses** the next place goes to the course that holds the fewest, so that one class cannot starve another:
//! of another course that holds `d` places, at most `max(0, h + r - d)` are before the `r`-th in line of a course that
//! holds `h`. **Within a course** whoever came first is first. No state is kept for it: what a course holds is in the
//! database, and when one of its workspaces leaves, it is the course's turn again.
//!
//! A smaller workspace may overtake one that does not fit, but not for ever: when that has waited for [`OVERTAKEN_FOR`],
//! what becomes free on the node that comes nearest to having a place for it is kept for it; of those that it may go to, where a
//! start is tried again. One node, so that a course of large workspaces does not stop the others.

use std::collections::BTreeMap;
use std::time::Duration;

use carrel_common::id::{CourseId, NodeId, WorkspaceUid};
use carrel_common::image::canonical;
use carrel_common::model::Resources;
use time::OffsetDateTime;

use super::fleet::{Ask, Fleet};
use super::no_place::NoPlace;
use crate::domain::workspace::Workspace;

/// Long enough that a full fleet still serves small ones, short enough that a large one starts within a coffee.
pub const OVERTAKEN_FOR: Duration = Duration::from_secs(60);

const NOTHING: Resources = Resources { cpu_millicores: 0, memory_bytes: 0, pids: 0 };

/// A workspace that waits for a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Which.
    pub uid: WorkspaceUid,
    /// Its course.
    pub course: Option<CourseId>,
    /// When its start was asked for.
    pub since: OffsetDateTime,
    /// What it needs.
    pub need: Resources,
    /// Its image, canonical.
    pub image: String,
    /// Nodes on which this start has failed.
    pub avoid: Vec<NodeId>,
}

impl Waiting {
    /// What a workspace waits for: a place for its next generation, or somebody who moves its files away.
    pub fn of(workspace: &Workspace) -> Self {
        // A purge moves files and runs nothing.
        let purge = workspace.deletion.is_some();
        Self {
            uid: workspace.uid,
            course: workspace.course.clone(),
            since: workspace.started_at.unwrap_or(workspace.state_since),
            need: if purge { NOTHING } else { workspace.spec.resources },
            image: canonical(&workspace.spec.image),
            avoid: workspace.attempts.as_ref().map(|attempts| attempts.failed_on.clone()).unwrap_or_default(),
        }
    }

    /// As a placement is asked for it.
    pub fn ask(&self) -> Ask<'_> {
        Ask { need: self.need, image: &self.image, course: self.course.as_ref(), avoid: &self.avoid }
    }
}

/// Places that each course holds; those without a course are one course.
pub type Held = BTreeMap<Option<CourseId>, i64>;

/// Brings those who wait into the order in which they are served.
pub fn in_line(waiting: &mut [Waiting], held: &Held) {
    waiting.sort_by_key(|w| (w.since, w.uid));
    let mut served: Held = held.clone();
    let mut turns = BTreeMap::new();
    for w in waiting.iter() {
        let count = served.entry(w.course.clone()).or_default();
        *count += 1;
        turns.insert(w.uid, *count);
    }
    // A course that holds `h` has its next turns at `h + 1`, `h + 2`, …: the fewest first, then who came first.
    waiting.sort_by_cached_key(|w| (turns.get(&w.uid).copied(), w.since, w.uid));
}

/// What a pass makes of one who waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Which.
    pub uid: WorkspaceUid,
    /// The node that takes it, or why none does.
    pub outcome: Result<NodeId, NoPlace>,
}

/// One pass over the line, in its order; what is placed is taken from the fleet.
pub fn plan(line: &[Waiting], fleet: &mut Fleet, now: OffsetDateTime) -> Vec<Turn> {
    // Room only shrinks during a pass: what needs the same as one that found none finds none either.
    let mut unmet: Vec<(Resources, NoPlace)> = Vec::new();
    let mut kept = false;
    let turn = |w: &Waiting| {
        let anywhere = w.avoid.is_empty();
        let known = unmet.iter().find(|(need, _)| anywhere && *need == w.need).map(|(_, why)| why.clone());
        let is_first = known.is_none();
        let outcome = known.map_or_else(|| fleet.take(&w.ask()), Err);
        if let Err(why @ (NoPlace::Full { .. } | NoPlace::NotItsTurn)) = &outcome {
            if anywhere && is_first {
                unmet.push((w.need, why.clone()));
            }
            // It may be behind one that came later and needs the same: of a course that holds fewer.
            if !kept && now - w.since >= OVERTAKEN_FOR {
                kept = fleet.keep_for(&w.ask());
            }
        }
        Turn { uid: w.uid, outcome }
    };
    line.iter().map(turn).collect()
}

#[cfg(test)]
mod tests;
