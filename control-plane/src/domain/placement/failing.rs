//! Starts that fail: which are tried on another node, and when a node takes itself out.
//!
//! A failure is *proven* to be the node's when the same start comes up on another one. Only proven failures count against
//! a node, so an image that comes up nowhere, or a fleet that is overloaded everywhere, takes no node out.

use std::time::Duration;

use carrel_common::model::StatusReason;
use time::OffsetDateTime;

use super::fleet::{Ask, Fleet};
use super::line::Waiting;
use crate::domain::workspace::{State, Workspace};

/// Failures of this long ago and less count.
pub const FAILURES_COUNT_FOR: Duration = Duration::from_secs(600);

/// So many in a row, with no start that came up in between: chance does not do that to a node that is well.
const IN_A_ROW: i64 = 3;
/// So many within the time, when they are a third of its starts and more: every third student waits twice as long.
const AT_LEAST: i64 = 5;
/// Of the nodes that are ready, this share at most may be cordoned; one always may, where another is left.
const ONE_OF: usize = 3;

/// Whether a start that failed for this reason may come up on another node.
pub fn could_be_the_nodes_fault(reason: StatusReason) -> bool {
    match reason {
        StatusReason::StartTimeout
        | StatusReason::RuntimeError
        | StatusReason::StorageUnavailable
        | StatusReason::ImageUnavailable => true,
        // The program's own doing, or no start at all.
        StatusReason::CrashLoop
        | StatusReason::OutOfMemory
        | StatusReason::NoNodeReady
        | StatusReason::NoCapacity
        | StatusReason::ContainerHeld
        | StatusReason::PreviousStopping
        | StatusReason::PreviousHostUnreachable
        | StatusReason::QueueTimeout
        | StatusReason::StopTimeout
        | StatusReason::Restarting
        | StatusReason::NodeUnreachable
        | StatusReason::Deleting
        // The share knows a later start: that is so on every node.
        | StatusReason::StorageFenced => false,
    }
}

/// How often a start is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tries {
    /// On so many nodes at most.
    pub most_nodes: usize,
    /// No new one begins this long after the first.
    pub within: Duration,
}

impl Tries {
    /// Three nodes: a fleet on which three refuse is not well. Twice the longest start: one that took all its time on the
    /// first node gets a second, and nobody waits for a third.
    pub fn of(longest_start: Duration) -> Self {
        Self { most_nodes: 3, within: longest_start * 2 }
    }

    /// Whether a start that has failed where it is, for a reason that could be the node's fault, is tried on another.
    pub fn elsewhere(
        &self,
        workspace: &Workspace,
        reason: StatusReason,
        fleet: &Fleet,
        now: OffsetDateTime,
    ) -> bool {
        let is_a_start = workspace.state == State::Starting && workspace.ready_at.is_none();
        let Some(node) = workspace.node.filter(|_| is_a_start && could_be_the_nodes_fault(reason)) else {
            return false;
        };
        let (since, mut avoid) = match &workspace.attempts {
            Some(attempts) => (attempts.since, attempts.failed_on.clone()),
            None => (workspace.state_since, vec![]),
        };
        avoid.push(node);
        let waiting = Waiting::of(workspace);
        let ask = Ask { avoid: &avoid, ..waiting.ask() };
        // An image that could not be had here is asked of another node only where it is known to be.
        let having = reason == StatusReason::ImageUnavailable;
        avoid.len() < self.most_nodes && now < since + self.within && fleet.could_take_elsewhere(&ask, having)
    }
}

/// What is known of a node's starts within [`FAILURES_COUNT_FOR`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Record {
    /// Proven failures since the last start that came up.
    pub in_a_row: i64,
    /// Proven failures.
    pub failed: i64,
    /// Starts that came up.
    pub came_up: i64,
}

/// Whether a node is to take no more workspaces until an operator has looked at it. `ready` nodes are heard of and
/// healthy, and `cordoned` of them take nothing already.
pub fn cordons_itself(record: Record, ready: usize, cordoned: usize) -> bool {
    let keeps_failing = record.in_a_row >= IN_A_ROW
        || (record.failed >= AT_LEAST && record.failed.saturating_mul(2) >= record.came_up);
    let left = ready.saturating_sub(cordoned);
    keeps_failing && left > 1 && cordoned < (ready / ONE_OF).max(1)
}

#[cfg(test)]
mod tests {
    use carrel_common::id::{Generation, NodeId, WorkspaceUid};
    use carrel_common::model::{Resources, WorkspaceSpec};
    use time::macros::datetime;

    use super::*;
    use crate::domain::placement::{Candidate, Service, Strategy};
    use crate::domain::workspace::Event;

    const T0: OffsetDateTime = datetime!(2026-03-02 10:00:00 UTC);
    const NEED: Resources = Resources { cpu_millicores: 1000, memory_bytes: 1 << 30, pids: 512 };

    fn node(n: u128) -> NodeId {
        NodeId(uuid::Uuid::from_u128(n))
    }

    fn fleet(nodes: u128) -> Fleet {
        let candidate = |n| Candidate {
            node: node(n),
            service: Service::Ready,
            zone: String::new(),
            capacity: Resources { memory_bytes: 8 << 30, cpu_millicores: 8000, pids: 0 },
            processors: 8000,
            allocated: NEED,
            count: 1,
            most: 250,
            starting: 0,
            failures: 0,
            images: if n == 2 { vec!["desk:1".into()] } else { vec![] },
        };
        Fleet::new(Strategy::Spread, (1..=nodes).map(candidate).collect(), [])
    }

    /// A start on node 1 that began at T0.
    fn starting(image: &str) -> Workspace {
        let spec = WorkspaceSpec {
            image: image.into(),
            resources: NEED,
            probe_port: 8080,
            probe_path: "/healthz".into(),
        };
        let new = Workspace::new(
            WorkspaceUid(uuid::Uuid::nil()),
            "ada".parse().expect("valid"),
            Generation(0),
            spec.clone(),
            T0,
        );
        let start = Event::Start { course: None, spec, traceparent: String::new() };
        let (pending, _) = new.apply(start, T0).expect("legal");
        pending.apply(Event::Place { node: node(1) }, T0).expect("legal").0
    }

    /// It failed, its node let go of it, and node `n` has it.
    fn moved(w: &Workspace, n: u128) -> Workspace {
        use crate::domain::workspace::Report;
        let again = Event::TryElsewhere { reason: StatusReason::RuntimeError, message: String::new() };
        let gone = Event::Report(Report::Gone { purge: Ok(false), exit_code: None });
        [again, gone, Event::Place { node: node(n) }]
            .into_iter()
            .fold(w.clone(), |w, event| w.apply(event, T0).expect("legal").0)
    }

    const TRIES: Tries = Tries { most_nodes: 3, within: Duration::from_secs(240) };

    #[test]
    fn a_start_is_tried_on_three_nodes_and_no_more() {
        let refused = StatusReason::RuntimeError;
        let first = starting("desk:1");
        assert!(TRIES.elsewhere(&first, refused, &fleet(8), T0));
        let second = moved(&first, 2);
        assert!(TRIES.elsewhere(&second, refused, &fleet(8), T0));
        assert!(!TRIES.elsewhere(&moved(&second, 3), refused, &fleet(8), T0));
        assert!(!TRIES.elsewhere(&first, refused, &fleet(1), T0), "there is no other node");
        assert!(!TRIES.elsewhere(&second, refused, &fleet(2), T0), "it has failed on both");
    }

    #[test]
    fn one_that_took_its_time_twice_is_not_tried_a_third_time() {
        let (late, w) = (StatusReason::StartTimeout, starting("desk:1"));
        let at = |seconds| T0 + time::Duration::seconds(seconds);
        assert!(TRIES.elsewhere(&w, late, &fleet(8), at(125)));
        assert!(!TRIES.elsewhere(&moved(&w, 2), late, &fleet(8), at(255)));
    }

    #[test]
    fn a_program_that_crashes_is_not_tried_elsewhere() {
        for reason in [StatusReason::CrashLoop, StatusReason::OutOfMemory] {
            assert!(!TRIES.elsewhere(&starting("desk:1"), reason, &fleet(8), T0));
        }
    }

    #[test]
    fn an_image_that_cannot_be_had_is_asked_of_a_node_that_has_it_and_of_no_other() {
        let missing = StatusReason::ImageUnavailable;
        assert!(TRIES.elsewhere(&starting("desk:1"), missing, &fleet(2), T0));
        assert!(!TRIES.elsewhere(&starting("desk:2"), missing, &fleet(8), T0));
    }

    #[test]
    fn a_workspace_that_has_been_ready_is_not_moved_for_a_failure() {
        let up =
            crate::domain::workspace::Report::Running { endpoint: "h:1".into(), image_digest: String::new() };
        let (w, _) = starting("desk:1").apply(Event::Report(up), T0).expect("legal");
        assert!(!TRIES.elsewhere(&w, StatusReason::RuntimeError, &fleet(8), T0));
    }

    #[test]
    fn three_proven_failures_in_a_row_take_a_node_out_and_so_do_five_that_are_a_third() {
        let of = |in_a_row, failed, came_up| cordons_itself(Record { in_a_row, failed, came_up }, 8, 0);
        assert!(!of(2, 2, 0));
        assert!(of(3, 3, 100));
        assert!(of(0, 5, 10));
        assert!(!of(0, 5, 11));
        assert!(!of(0, 4, 0));
    }

    #[test]
    fn a_third_of_the_nodes_at_most_take_themselves_out_and_never_the_last() {
        let failing = Record { in_a_row: 9, failed: 9, came_up: 0 };
        for (ready, cordoned, may) in [
            (1, 0, false),
            (2, 0, true),
            (2, 1, false),
            (3, 1, false),
            (8, 1, true),
            (8, 2, false),
            (9, 2, true),
        ] {
            assert_eq!(cordons_itself(failing, ready, cordoned), may, "{cordoned} of {ready}");
        }
    }
}
