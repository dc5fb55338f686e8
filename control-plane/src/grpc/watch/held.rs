//! Who passes the filter of a watch as far as its reader knows: they are told when they no longer do, and nobody else is.

use std::collections::HashSet;

use carrel_common::id::WorkspaceUid;

/// The workspaces that a reader may hold to pass its filter.
#[derive(Debug)]
pub(super) enum Held {
    /// These: all of them were told in this watch.
    Only(HashSet<WorkspaceUid>),
    /// All but these: what a watch that is resumed had told before is not known, so of each it is told once that it does not pass.
    AllBut(HashSet<WorkspaceUid>),
}

impl Held {
    /// It passes, and the reader is told so.
    pub(super) fn insert(&mut self, uid: WorkspaceUid) {
        match self {
            Self::Only(held) => _ = held.insert(uid),
            Self::AllBut(let_go) => _ = let_go.remove(&uid),
        }
    }

    /// It does not pass; whether the reader is to be told.
    pub(super) fn remove(&mut self, uid: WorkspaceUid) -> bool {
        match self {
            Self::Only(held) => held.remove(&uid),
            Self::AllBut(let_go) => let_go.insert(uid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(n: u128) -> WorkspaceUid {
        WorkspaceUid(uuid::Uuid::from_u128(n))
    }

    #[test]
    fn after_a_snapshot_only_who_was_told_leaves_and_once() {
        let mut held = Held::Only(HashSet::new());
        held.insert(uid(1));
        assert_eq!([1, 1, 2].map(|n| held.remove(uid(n))), [true, false, false]);
        held.insert(uid(1));
        assert!(held.remove(uid(1)), "it had come back");
    }

    #[test]
    fn when_resumed_everybody_leaves_but_once() {
        let mut held = Held::AllBut(HashSet::new());
        assert_eq!([1, 1, 2].map(|n| held.remove(uid(n))), [true, false, true]);
        held.insert(uid(1));
        assert!(held.remove(uid(1)), "it had come back");
    }
}
