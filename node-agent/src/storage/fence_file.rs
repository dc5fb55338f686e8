//! Who may write a student's files: the verdict on the fence file. PURE.
//!
//! The file holds the pair (incarnation, generation) and the placement of the container that was started last. Before a start an
//! agent writes it and reads it back, and reads it again while the container runs. Nothing here locks: two agents may write in
//! any order, and a write may arrive late. What makes it safe is that the last word is always read by both: the one that finds
//! something later than its own stops, the one that finds something earlier says its own again.

use carrel_common::id::{Pair, PlacementId};
use serde::{Deserialize, Serialize};

/// What names one container of a student, on the share as in its labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Token {
    /// Its place among the containers of the student.
    #[serde(flatten)]
    pub pair: Pair,
    /// The placement it was made for; `None` for a container that is older than that label.
    pub placement: Option<PlacementId>,
}

/// What a reader does about what it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The file names this very container: it may run.
    Ours,
    /// Nothing, or an earlier container: say our own, and read again.
    Write,
    /// A later container, or another one of the same pair: this one is not to be started, and to be stopped.
    Fenced(Token),
}

/// What the reader that runs or starts `own` does about `found`; `None`: there is no file.
pub fn verdict(own: &Token, found: Option<&Token>) -> Verdict {
    let Some(found) = found else { return Verdict::Write };
    match found.pair.cmp(&own.pair) {
        std::cmp::Ordering::Less => Verdict::Write,
        std::cmp::Ordering::Greater => Verdict::Fenced(*found),
        std::cmp::Ordering::Equal => match (own.placement, found.placement) {
            (Some(ours), Some(theirs)) if ours != theirs => Verdict::Fenced(*found),
            (Some(_), None) => Verdict::Write,
            (Some(_) | None, _) => Verdict::Ours,
        },
    }
}

#[cfg(test)]
mod tests;
