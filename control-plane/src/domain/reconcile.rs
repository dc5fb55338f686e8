//! What a node is told to run.

use std::time::Duration;

use carrel_common::id::{Generation, NodeId, Pair, PlacementId, WorkspaceUid};
use carrel_common::model::{DesiredItem, Run, StopReason, WorkspaceSpec};

use time::OffsetDateTime;

use super::workspace::Workspace;

/// A workspace's claim on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Identity.
    pub id: PlacementId,
    /// The workspace.
    pub workspace: WorkspaceUid,
    /// The node.
    pub node: NodeId,
    /// The incarnation of the container it was made for.
    pub generation: Generation,
    /// The incarnation of the store it was made in.
    pub incarnation: i64,
    /// What that incarnation is made of.
    pub spec: WorkspaceSpec,
}

impl Placement {
    /// The place in time of its container.
    pub fn pair(&self) -> Pair {
        Pair { incarnation: self.incarnation, generation: self.generation }
    }
}

/// Times that go into an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrderTimes {
    /// How long a start may take before the agent gives up.
    pub start_timeout: Duration,
    /// Between SIGTERM and SIGKILL.
    pub stop_grace: Duration,
}

/// The order for a placement: run while the workspace wants this very generation to, else stop. `now`: when it is sent.
pub fn desired_item(
    placement: &Placement,
    workspace: &Workspace,
    times: OrderTimes,
    now: OffsetDateTime,
) -> DesiredItem {
    let wanted = workspace.generation == placement.generation && workspace.state.wants_container();
    let run = if wanted {
        Run::Running { start_timeout: times.start_timeout }
    } else {
        Run::Stopped {
            reason: workspace.stop.as_ref().map_or(StopReason::User, |stop| stop.reason),
            grace: if workspace.force { Duration::ZERO } else { times.stop_grace },
            purge_files: workspace.deletion.is_some_and(|deletion| deletion.purge_files),
        }
    };
    DesiredItem {
        workspace: workspace.uid,
        student: workspace.student.clone(),
        generation: placement.generation,
        incarnation: placement.incarnation,
        placement: placement.id,
        spec: placement.spec.clone(),
        run,
        traceparent: workspace.traceparent.clone(),
        idle_basis_age: idle_basis_age(placement, workspace, now),
    }
}

/// How long ago it is what the timeout of an idle stop was counted from: a node that has seen younger activity refuses it.
fn idle_basis_age(placement: &Placement, workspace: &Workspace, now: OffsetDateTime) -> Option<Duration> {
    let evidence = workspace.stop.as_ref()?.evidence.as_ref()?;
    let refusable = workspace.is_refusable() && workspace.generation == placement.generation;
    let after = evidence.refusable_after.filter(|_| refusable)?;
    Some(Duration::try_from(now - after).unwrap_or_default())
}

/// Whether two states of a workspace give a node the same order.
pub fn same_order(before: &Workspace, after: &Workspace) -> bool {
    before.node == after.node
        && before.generation == after.generation
        && before.state.wants_container() == after.state.wants_container()
        && before.force == after.force
        && before.deletion == after.deletion
        && (after.state.wants_container()
            || before.stop.as_ref().map(|s| s.reason) == after.stop.as_ref().map(|s| s.reason))
}
