//! Finding a node for what waits.

use carrel_common::id::WorkspaceUid;
use carrel_common::model::Resources;
use time::OffsetDateTime;

use super::{App, AppError, Result};
use crate::domain::event::Entry;
use crate::domain::node::NodeState;
use crate::domain::placement::{self, NoPlace};
use crate::domain::workspace::{Event, State, Workspace};
use crate::store::{Locked, Work};

/// Tried in one go; the rest is tried in the next.
const BATCH: i64 = 200;

/// A purge moves files and runs nothing.
const NOTHING: Resources = Resources { cpu_millicores: 0, memory_bytes: 0, pids: 0 };

impl App {
    /// Places a workspace that has just been asked for, or has it wait; an error when no node could take it whatever
    /// becomes free, so that the caller hears of it.
    pub(super) async fn place(
        &self,
        work: &mut Work,
        workspace: Workspace,
        now: OffsetDateTime,
    ) -> Result<(Workspace, Vec<Entry>)> {
        let fair = !work.somebody_waits(workspace.uid, now).await?;
        match self.claim(work, &workspace, fair, now).await? {
            Ok(step) => Ok(step),
            Err(NoPlace::NoneReady) => Err(no_healthy_node(work).await?),
            Err(NoPlace::TooLarge) => {
                let Resources { cpu_millicores, memory_bytes, .. } = workspace.spec.resources;
                Err(AppError::LimitsBeyondNodes { cpu_millicores, memory_bytes })
            }
            Err(full @ NoPlace::Full { .. }) => {
                let (reason, message) = full.explain();
                Ok(workspace.apply(Event::Wait { reason, message }, now)?)
            }
        }
    }

    /// Chooses a node, locks it, looks again, and claims the place.
    async fn claim(
        &self,
        work: &mut Work,
        workspace: &Workspace,
        fair: bool,
        now: OffsetDateTime,
    ) -> Result<std::result::Result<(Workspace, Vec<Entry>), NoPlace>> {
        let need = if workspace.deletion.is_some() { NOTHING } else { workspace.spec.resources };
        let candidates = work.candidates(self.settings.limits).await?;
        let node = match placement::place(&need, &candidates) {
            Ok(_) if !fair => {
                return Ok(Err(NoPlace::Full { ready: candidates.iter().filter(|c| c.ready).count() }));
            }
            Ok(node) => node,
            Err(none) => return Ok(Err(none)),
        };
        let locked = work.lock_candidate(node, self.settings.limits).await?;
        if let Err(none) = placement::place(&need, locked.as_slice()) {
            return Ok(Err(none));
        }
        work.insert_placement(workspace, node).await?;
        Ok(Ok(workspace.apply(Event::Place { node }, now)?))
    }

    /// One pass over the queue; how many were placed.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn place_waiting(&self) -> Result<usize> {
        let mut placed = 0;
        for uid in self.store.waiting(BATCH).await? {
            match self.place_one(uid).await {
                Ok(true) => placed += 1,
                // The queue is in order: who comes later does not overtake.
                Ok(false) => break,
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(placed)
    }

    async fn place_one(&self, uid: WorkspaceUid) -> Result<bool> {
        let mut work = self.store.begin().await?;
        let Some(Locked { workspace: before, now, .. }) = work.lock(uid).await? else { return Ok(true) };
        let waits = before.state == State::Pending || before.deletion.is_some();
        if before.node.is_some() || before.deleted_at.is_some() || !waits {
            return Ok(true);
        }
        let (placed, (next, log)) = match self.claim(&mut work, &before, true, now).await? {
            Ok(step) => (true, step),
            Err(_) if before.deletion.is_some() => return Ok(true),
            Err(none) => {
                let (reason, message) = none.explain();
                (false, before.apply(Event::Wait { reason, message }, now)?)
            }
        };
        if next == before {
            return Ok(placed);
        }
        work.save(&before, next, log, now).await?;
        self.nudge.ring(&work.commit().await?);
        Ok(placed)
    }
}

/// Why nobody can take anything.
async fn no_healthy_node(work: &mut Work) -> Result<AppError> {
    let nodes = work.list_nodes().await?;
    let problem = nodes.iter().filter(|n| n.state == NodeState::Degraded).find_map(|n| n.problem());
    Ok(match problem {
        Some((reason, message)) => AppError::NoHealthyNode {
            // Docker comes back by itself; a share that is missing or closed wants an operator.
            passing: !reason.starts_with("STORAGE_"),
            message: format!("No host can take workspaces: {message}"),
            reason,
        },
        None => AppError::NoHealthyNode {
            reason: "NO_NODE_READY".into(),
            message: "No host is connected. Look at the node agents' logs.".into(),
            passing: true,
        },
    })
}
