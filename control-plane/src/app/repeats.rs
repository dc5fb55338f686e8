//! Reports that repeat what is known. A new session tells everything anew, and after a restart of the control plane a whole fleet
//! does so at once: nearly all of it has been told before, and is found so in one look instead of a lock for each.

use std::collections::HashMap;

use carrel_common::id::NodeId;
use carrel_common::model::{Observation, Observed};
use time::OffsetDateTime;

use super::{App, Result};
use crate::domain::reconcile::Placement;
use crate::domain::workspace::{Event, Report, State, Workspace};

/// Fewer reports are sooner looked at one by one.
const WORTH_A_LOOK: usize = 8;

impl App {
    /// The reports of `batch` that may change something. What is left out counts as committed at the moment of the look: it said
    /// then what the store already held.
    pub(super) async fn without_repeats<'a>(
        &self,
        node: NodeId,
        mut batch: Vec<&'a Observation>,
    ) -> Result<Vec<&'a Observation>> {
        if batch.len() < WORTH_A_LOOK {
            return Ok(batch);
        }
        let Some(found) = self.store.placements_on(node).await? else { return Ok(batch) };
        let placed: HashMap<_, _> = found.placed.into_iter().map(|pair| (pair.1.uid, pair)).collect();
        batch.retain(|seen| {
            placed.get(&seen.workspace).is_none_or(|(placement, desk)| !is_repeat(placement, desk, seen))
        });
        Ok(batch)
    }
}

/// Whether the desk runs, by the store as by the report, and nothing about it is new.
fn is_repeat(placement: &Placement, desk: &Workspace, seen: &Observation) -> bool {
    let Observed::Running { endpoint } = &seen.state else { return false };
    let of_this_time = seen.incarnation == 0 || seen.incarnation == placement.incarnation;
    let the_present_one = seen.generation == placement.generation && seen.generation == desk.generation;
    if desk.state != State::Running || !of_this_time || !the_present_one {
        return false;
    }
    let report = Report::Running { endpoint: endpoint.clone(), image_digest: seen.image_digest.clone() };
    // Any time will do: what changes nothing leaves no time either.
    let applied = desk.apply(Event::Report(report), OffsetDateTime::UNIX_EPOCH);
    applied.is_ok_and(|(next, log)| next == *desk && log.is_empty())
}
