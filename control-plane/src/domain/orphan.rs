//! What becomes of a container that no order names. Pure.
//!
//! It is stopped only with positive knowledge that its time is over: something later of the same student was placed or asked for,
//! or its own placement was released on the agent's proof. Else it is held, and told.
//!
//! A node is believed about what the store has placed on it, now or before: of such a student nothing is placed anywhere while the
//! container runs. What it tells of other students changes nothing but its own containers. Once only, when a node tells what it
//! runs to a store that was declared restored, a container is taken in that the store does not know: see [`may_take_in`].
//!
//! Two containers are told apart by their pairs (incarnation of the store, generation). One of an *earlier* incarnation that is
//! later than anything the store knows is what a restored copy has forgotten. The same of the *present* incarnation may mean that
//! the store itself has gone back in time; what proves that is a Hello, never such a report (see `behind`).

use std::cmp::Ordering;

use carrel_common::id::{NodeId, Pair};
use carrel_common::model::{Container, Verdict};

use super::behind::in_reach;
use super::reconcile::Placement;
use super::workspace::Workspace;

/// The reason of what a node tells of a student whom the store has never placed on it.
pub const NOT_OF_THIS_NODE: &str = "NOT_OF_THIS_NODE";

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
    /// The store has placed that student on the node that tells of the container, now or before.
    pub here: bool,
}

/// What a container is, by what the store knows of its student.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finding {
    /// Its time is over.
    Over(&'static str),
    /// Later than all that the store knows, and of an incarnation whose end the store may have lost.
    Forgotten,
    /// Anything else.
    Unclear(&'static str),
}

/// What becomes of `container`, which a node reports; and the stable reason.
pub fn judge(container: &Container, known: &Known<'_>) -> (Verdict, &'static str) {
    match find(container, known) {
        // It is stopped where it was found, which is nobody else's.
        Finding::Over(reason) => (Verdict::Stop, reason),
        Finding::Forgotten | Finding::Unclear(_) if !known.here => (Verdict::Hold, NOT_OF_THIS_NODE),
        Finding::Forgotten => (Verdict::Hold, "FORGOTTEN_BY_THE_STORE"),
        Finding::Unclear(reason) => (Verdict::Hold, reason),
    }
}

/// Whether a container is taken into a store that was declared restored, at the one moment when `node` tells what it runs: the
/// node has made it, and the store has forgotten it or never knew it. `settled`: what the store has placed of that student is on
/// another node, which has told since the declaration that it runs there. Of the two the first to tell is believed.
pub fn may_take_in(container: &Container, node: NodeId, known: &Known<'_>, settled: bool) -> bool {
    container.node == node && !settled && find(container, known) == Finding::Forgotten
}

fn find(container: &Container, known: &Known<'_>) -> Finding {
    let (pair, earlier) = (container.pair(), container.incarnation < known.incarnation);
    let later = match earlier && is_counted(container, known) {
        true => Finding::Forgotten,
        false => Finding::Unclear("LATER_THAN_THE_STORE"),
    };
    if container.incarnation > known.incarnation {
        return later;
    }
    let Some(desk) = known.desk else { return later };
    if let Some(placement) = known.placement {
        return match pair.cmp(&placement.pair()) {
            Ordering::Less => Finding::Over("GENERATION_SUPERSEDED"),
            Ordering::Equal => Finding::Unclear("ANOTHER_IS_PLACED"),
            // At most one placement is unreleased: that this one was made proves that the one the store knows is over.
            Ordering::Greater => later,
        };
    }
    if desk.deleted_at.is_some() && container.generation <= desk.generation {
        return Finding::Over("WORKSPACE_DELETED");
    }
    if known.newest.is_some_and(|newest| pair < newest) || container.generation < desk.generation {
        return Finding::Over("GENERATION_SUPERSEDED");
    }
    if known.newest == Some(pair) {
        return Finding::Over("PLACEMENT_RELEASED");
    }
    // Later than anything that was placed, and nothing that runs is known to be over.
    if earlier || container.generation > desk.generation { later } else { Finding::Unclear("NEVER_PLACED") }
}

/// Whether its desk can have come to this generation. From one that was made up no start could count on.
fn is_counted(container: &Container, known: &Known<'_>) -> bool {
    in_reach(container.generation.0, known.desk.map_or(0, |desk| desk.generation.0))
}

/// Whether an operator may have an orphan taken into the store: a container never takes the place of one that is placed,
/// of another desk, or of its own later generation; and nothing follows on a number that no Carrel has come to.
///
/// # Errors
/// Why not, as the end of a sentence.
pub fn may_adopt(container: &Container, known: &Known<'_>) -> Result<(), &'static str> {
    match known.desk {
        _ if known.placement.is_some() => {
            Err("another container of that student is placed; stop that workspace first")
        }
        _ if container.incarnation > known.incarnation || !is_counted(container, known) => {
            Err("no Carrel has counted to what its labels say; stop it")
        }
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
