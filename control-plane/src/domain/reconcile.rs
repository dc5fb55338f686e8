//! What a node is told to run, and what becomes of containers that nobody ordered.

use std::time::Duration;

use carrel_common::id::{Generation, NodeId, PlacementId, WorkspaceUid};
use carrel_common::model::{Container, DesiredItem, Run, StopReason, Verdict, WorkspaceSpec};

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

/// How old the newest activity is that an idle stop was decided on: a node that has seen younger refuses it.
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

/// What becomes of a container that no order names.
///
/// `known` is the student's workspace, or the tombstone of a deleted one. A container is stopped only with positive
/// knowledge that its generation is over; one the store knows nothing of is adopted unless something else of that
/// student is placed.
pub fn judge_orphan(
    container: &Container,
    known: Option<&Workspace>,
    placed: bool,
) -> (Verdict, &'static str) {
    match known {
        None => (Verdict::Adopt, "UNKNOWN_TO_THE_STORE"),
        Some(workspace) if workspace.deleted_at.is_some() && container.generation <= workspace.generation => {
            (Verdict::Stop, "WORKSPACE_DELETED")
        }
        Some(workspace) if container.generation < workspace.generation => {
            (Verdict::Stop, "GENERATION_SUPERSEDED")
        }
        Some(workspace) if container.generation == workspace.generation && !placed => {
            // The placement was released on proof, or never made: this generation is over.
            (Verdict::Stop, "PLACEMENT_RELEASED")
        }
        Some(workspace) if container.generation > workspace.generation && !placed => {
            (Verdict::Adopt, "NEWER_THAN_THE_STORE")
        }
        Some(_) => (Verdict::Hold, "ANOTHER_IS_PLACED"),
    }
}

/// Whether an operator may have an orphan taken into the store: a container never takes the place of one that is placed,
/// of another desk, or of its own later generation.
///
/// # Errors
/// Why not, as the end of a sentence.
pub fn may_adopt(container: &Container, known: Option<&Workspace>, placed: bool) -> Result<(), &'static str> {
    match known {
        _ if placed => Err("another container of that student is placed; stop that workspace first"),
        None => Ok(()),
        Some(workspace) if container.generation <= workspace.generation => {
            Err("its generation is over; start the workspace instead")
        }
        Some(workspace) if workspace.deleted_at.is_none() && workspace.uid != container.workspace => {
            Err("it is of another desk than the one the student has now")
        }
        Some(_) => Ok(()),
    }
}
