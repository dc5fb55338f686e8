//! Which node takes a workspace: pure and deterministic.
//!
//! A placement is the best [`Score`] among the nodes that fit; the order of its fields is the policy.

use carrel_common::id::NodeId;
use carrel_common::model::{Resources, StatusReason};

/// A node as a placement sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// Heard of, and its Docker and storage are healthy.
    pub ready: bool,
    /// What it can hold, over-commit included.
    pub capacity: Resources,
    /// What its unreleased placements hold.
    pub allocated: Resources,
    /// Unreleased placements.
    pub count: i64,
    /// Placements at most.
    pub most: i64,
}

impl Candidate {
    fn fits(&self, need: &Resources) -> bool {
        self.count < self.most
            && self.allocated.cpu_millicores.saturating_add(need.cpu_millicores)
                <= self.capacity.cpu_millicores
            && self.allocated.memory_bytes.saturating_add(need.memory_bytes) <= self.capacity.memory_bytes
    }

    fn could_ever_fit(&self, need: &Resources) -> bool {
        need.cpu_millicores <= self.capacity.cpu_millicores && need.memory_bytes <= self.capacity.memory_bytes
    }
}

/// How well a node suits; the smallest is taken. Spread: the emptiest first, so that a lost node hurts few.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    /// Share of memory in use after the placement, in thousandths: memory is what runs out first.
    memory_permille: i64,
    /// Workspaces on it.
    count: i64,
    /// Last, so that equal nodes are taken in a fixed order.
    node: NodeId,
}

/// Why no node took it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPlace {
    /// No node is connected and healthy.
    NoneReady,
    /// Every node that is ready is full.
    Full {
        /// Nodes that are ready.
        ready: usize,
    },
    /// No node, ready or not, is large enough even when empty.
    TooLarge,
}

impl NoPlace {
    /// The reason shown while the workspace waits, and a sentence.
    pub fn explain(self) -> (StatusReason, String) {
        match self {
            Self::NoneReady => {
                (StatusReason::NoNodeReady, "Waits for a host: none is connected and healthy.".to_owned())
            }
            Self::Full { ready } => (
                StatusReason::NoCapacity,
                format!("Waits for a free place: {ready} of {ready} hosts are full."),
            ),
            Self::TooLarge => (
                StatusReason::NoCapacity,
                "Waits for a larger host: its limits are beyond every host there is.".to_owned(),
            ),
        }
    }
}

/// The node that takes a workspace that needs `need`.
///
/// # Errors
/// [`NoPlace`] says why none does.
pub fn place(need: &Resources, candidates: &[Candidate]) -> Result<NodeId, NoPlace> {
    if !candidates.is_empty() && !candidates.iter().any(|c| c.could_ever_fit(need)) {
        return Err(NoPlace::TooLarge);
    }
    let ready: Vec<_> = candidates.iter().filter(|c| c.ready).collect();
    if ready.is_empty() {
        return Err(NoPlace::NoneReady);
    }
    let score = |c: &Candidate| Score {
        memory_permille: c
            .allocated
            .memory_bytes
            .saturating_add(need.memory_bytes)
            .saturating_mul(1000)
            .checked_div(c.capacity.memory_bytes)
            .unwrap_or(i64::MAX),
        count: c.count,
        node: c.node,
    };
    ready
        .iter()
        .filter(|c| c.fits(need))
        .min_by_key(|c| score(c))
        .map(|c| c.node)
        .ok_or(NoPlace::Full { ready: ready.len() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NEED: Resources = Resources { cpu_millicores: 1000, memory_bytes: 1 << 30, pids: 512 };

    fn candidate(ready: bool, gib: i64, used: i64) -> Candidate {
        let all = |n: i64| Resources { cpu_millicores: n * 1000, memory_bytes: n << 30, pids: 0 };
        Candidate {
            node: NodeId::new(),
            ready,
            capacity: all(gib),
            allocated: all(used),
            count: used,
            most: 250,
        }
    }

    #[test]
    fn says_why_nobody_takes_it() {
        assert_eq!(place(&NEED, &[]), Err(NoPlace::NoneReady));
        assert_eq!(place(&NEED, &[candidate(false, 4, 0)]), Err(NoPlace::NoneReady));
        assert_eq!(place(&NEED, &[candidate(true, 4, 4)]), Err(NoPlace::Full { ready: 1 }));
        assert_eq!(place(&NEED, &[candidate(true, 0, 0)]), Err(NoPlace::TooLarge));
    }

    proptest! {
        #[test]
        fn a_placement_is_legal_and_nobody_is_emptier(
            nodes in proptest::collection::vec((any::<bool>(), 1_i64..9, 0_i64..9), 0..12)
        ) {
            let nodes: Vec<_> = nodes.into_iter().map(|(r, gib, used)| candidate(r, gib, used.min(gib))).collect();
            let legal: Vec<_> = nodes.iter().filter(|c| c.ready && c.fits(&NEED)).collect();
            match place(&NEED, &nodes) {
                Err(_) => prop_assert!(legal.is_empty()),
                Ok(node) => {
                    let share = |c: &Candidate| (c.allocated.memory_bytes + NEED.memory_bytes) * 1000 / c.capacity.memory_bytes;
                    let chosen = legal.iter().find(|c| c.node == node);
                    prop_assert!(chosen.is_some_and(|c| legal.iter().all(|other| share(c) <= share(other))));
                }
            }
        }
    }
}
