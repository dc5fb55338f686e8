//! What becomes of a container that no order names. Pure.
//!
//! It is stopped only with positive knowledge that its time is over: something later of the same student was placed or asked for,
//! or its own placement was released on the agent's proof. One that may be in use and that the store has no place for is adopted,
//! so that it cannot outlive the idle timeout. Else it is held, and told.
//!
//! Two containers are told apart by their pairs (incarnation of the store, generation). One of an *earlier* incarnation that is
//! later than anything the store knows is what a restored copy has forgotten: it is adopted. The same of the *present* incarnation
//! means that the store itself has gone back in time (see `behind`): it is held until an operator has declared that.

use std::cmp::Ordering;

use carrel_common::id::{NodeId, Pair};
use carrel_common::model::{Container, Verdict};

use super::reconcile::Placement;
use super::workspace::Workspace;

/// The reason of what shows that the store itself has gone back in time.
pub const LATER_THAN_THE_STORE: &str = "LATER_THAN_THE_STORE";

/// What the store knows of a container's student.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// The store's incarnation.
    pub incarnation: i64,
    /// The student's desk, or the newest tombstone of a deleted one.
    pub desk: Option<&'a Workspace>,
    /// The desk's unreleased placement.
    pub placement: Option<&'a Placement>,
    /// The latest pair of that desk that was ever placed, as far as it is still kept; released or not.
    pub newest: Option<Pair>,
}

/// What becomes of `container`, which the agent of `node` has found; and the stable reason.
pub fn judge(container: &Container, node: NodeId, known: &Known<'_>) -> (Verdict, &'static str) {
    match in_time(container, known) {
        (Verdict::Adopt, _) if container.node != node => (Verdict::Hold, "MADE_BY_ANOTHER_NODE"),
        judged => judged,
    }
}

fn in_time(container: &Container, known: &Known<'_>) -> (Verdict, &'static str) {
    let (pair, earlier) = (container.pair(), container.incarnation < known.incarnation);
    if container.incarnation > known.incarnation {
        return (Verdict::Hold, LATER_THAN_THE_STORE);
    }
    let Some(desk) = known.desk else { return (Verdict::Adopt, "UNKNOWN_TO_THE_STORE") };
    if let Some(placement) = known.placement {
        return match pair.cmp(&placement.pair()) {
            Ordering::Less => (Verdict::Stop, "GENERATION_SUPERSEDED"),
            Ordering::Equal => (Verdict::Hold, "ANOTHER_IS_PLACED"),
            // At most one placement is unreleased: that this one was made proves that the one the store knows is over.
            Ordering::Greater if earlier => (Verdict::Adopt, "FORGOTTEN_BY_THE_STORE"),
            Ordering::Greater => (Verdict::Hold, LATER_THAN_THE_STORE),
        };
    }
    if desk.deleted_at.is_some() && container.generation <= desk.generation {
        return (Verdict::Stop, "WORKSPACE_DELETED");
    }
    if known.newest.is_some_and(|newest| pair < newest) || container.generation < desk.generation {
        return (Verdict::Stop, "GENERATION_SUPERSEDED");
    }
    if known.newest == Some(pair) {
        return (Verdict::Stop, "PLACEMENT_RELEASED");
    }
    // Later than anything that was placed, and nothing that runs is known to be over.
    match (earlier, container.generation > desk.generation) {
        (true, _) => (Verdict::Adopt, "FORGOTTEN_BY_THE_STORE"),
        (false, true) => (Verdict::Hold, LATER_THAN_THE_STORE),
        (false, false) => (Verdict::Hold, "NEVER_PLACED"),
    }
}

/// Whether an operator may have an orphan taken into the store: a container never takes the place of one that is placed,
/// of another desk, or of its own later generation.
///
/// # Errors
/// Why not, as the end of a sentence.
pub fn may_adopt(container: &Container, desk: Option<&Workspace>, placed: bool) -> Result<(), &'static str> {
    match desk {
        _ if placed => Err("another container of that student is placed; stop that workspace first"),
        None => Ok(()),
        Some(desk) if container.generation <= desk.generation => {
            Err("its generation is over; start the workspace instead")
        }
        Some(desk) if desk.deleted_at.is_none() && desk.uid != container.workspace => {
            Err("it is of another desk than the one the student has now")
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
