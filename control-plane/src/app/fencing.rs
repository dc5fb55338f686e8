//! Nodes that are given up, and what becomes of their workspaces.
//!
//! One transaction decides, on the node's row and its placements; after it nothing that the node still says counts. Its workspaces
//! follow one by one, each under its own locks, by whichever replica finds them: a replica that dies in between leaves the rest to
//! the next look.

use carrel_common::id::{NodeId, StudentId, WorkspaceUid};
use serde::{Deserialize, Serialize};

use super::node_admin::about;
use super::settle::settle;
use super::{App, AppError, Result, alone};
use crate::domain::activity::Activity;
use crate::domain::event::{Actor, Entry};
use crate::domain::lease::{Renewals, Seen};
use crate::domain::node::NodeState;
use crate::domain::workspace::{Event, State, Workspace};
use crate::store::Locked;

/// What became of the workspaces of a node that was given up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLoss {
    /// Somebody works in them: they are queued again.
    pub moved: Vec<StudentId>,
    /// They are stopped with `NODE_LOST`, and start on the next click.
    pub stopped: Vec<StudentId>,
}

/// Why a node is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why<'a> {
    /// Its lease ran out, and with it everything on it.
    LeaseOver,
    /// An operator says that it is dead, and why that is known.
    ConfirmedDead(&'a str),
}

impl App {
    /// One look at the nodes, for [`crate::domain::lease::Watcher`]: the database's timeline, and their renewals.
    ///
    /// # Errors
    /// The database.
    pub async fn watch_nodes(&self) -> Result<(String, Vec<Seen>)> {
        let (timeline, nodes) = self.store.watch_nodes().await?;
        for state in NodeState::ALL {
            self.metrics.nodes(state.as_str(), nodes.iter().filter(|seen| seen.state == state).count());
        }
        Ok((timeline, nodes))
    }

    /// Gives up a node that was seen to stand still for long enough; false when it has given a sign of life since.
    ///
    /// # Errors
    /// The database.
    pub async fn fence_node(&self, node: NodeId, observed: Renewals) -> Result<bool> {
        settle!(self.fence_once(node, observed, Why::LeaseOver))
    }

    async fn fence_once(&self, node: NodeId, observed: Renewals, why: Why<'_>) -> Result<bool> {
        let mut work = self.store.begin().await?;
        // A store that went back in time does not know what the node has done since.
        if work.state().await?.behind.is_some() {
            return Ok(false);
        }
        let Some(placements) = work.fence_node(node, observed).await? else { return Ok(false) };
        let (actor, reason, said) = match why {
            Why::LeaseOver => (Actor::ControlPlane, "LEASE_OVER", ""),
            Why::ConfirmedDead(said) => (Actor::Operator, "CONFIRMED_DEAD", said),
        };
        let entry =
            Entry::new("node.fenced", actor).because(reason).with("placements", placements).with("why", said);
        work.append(about(node), entry).await?;
        self.nudge.ring(&work.commit().await?);
        self.nudge.lost.notify_one();
        self.metrics.fenced(reason);
        tracing::error!(node.id = %node, reason, placements, "a node is given up; its workspaces are moved or stopped");
        Ok(true)
    }

    /// Tells that a node is not given up as so many others are silent at the same moment; whether that is news.
    ///
    /// # Errors
    /// The database.
    pub async fn hold_replacement(&self, node: NodeId) -> Result<bool> {
        let mut work = self.store.begin().await?;
        if !work.hold_replacement(node).await? {
            return Ok(false);
        }
        work.append(
            about(node),
            Entry::new("node.replacement_held", Actor::ControlPlane).because("TOO_MANY_SILENT"),
        )
        .await?;
        self.nudge.ring(&work.commit().await?);
        tracing::error!(
            node.id = %node,
            "many nodes are silent at once, which is more likely our own fault: nothing is moved until fewer are, or an operator \
             confirms a node dead"
        );
        Ok(true)
    }

    /// Moves or stops what nodes that were given up held; how many workspaces that concerned.
    ///
    /// # Errors
    /// The database.
    pub async fn release_lost(&self) -> Result<usize> {
        let mut concerned = 0;
        if self.store.state().await?.behind.is_some() {
            return Ok(concerned);
        }
        for node in self.store.releasing_nodes().await? {
            concerned += alone(node, self.release_of(node).await)?;
        }
        Ok(concerned)
    }

    async fn release_of(&self, node: NodeId) -> Result<usize> {
        let mut concerned = 0;
        for uid in self.store.stranded_on(node).await? {
            concerned += usize::from(alone(uid, settle!(self.lose(uid, node)))?);
        }
        self.store.finish_release(node).await?;
        Ok(concerned)
    }

    /// False when the workspace was not there any more: another replica was faster.
    async fn lose(&self, uid: WorkspaceUid, node: NodeId) -> Result<bool> {
        let mut work = self.store.begin().await?;
        let Some(Locked { workspace: before, activity, now }) = work.lock(uid).await? else {
            return Ok(false);
        };
        if before.node != Some(node) || work.find_placement(uid).await?.is_some() {
            return Ok(false);
        }
        let (next, log) = before.apply(self.node_lost(&before, &activity, now), now)?;
        let after = work.save(&before, next, log, now).await?;
        self.nudge.ring(&work.commit().await?);
        self.note(&before, &after);
        Ok(true)
    }

    /// What the loss of its node means for a workspace.
    pub(super) fn node_lost(
        &self,
        workspace: &Workspace,
        activity: &Activity,
        now: time::OffsetDateTime,
    ) -> Event {
        let rules = self.rules.get();
        let policy = rules.times(workspace);
        let look = rules.look(&policy, workspace, activity, now);
        Event::NodeLost { in_use: look.is_in_use() }
    }

    /// The operator's word that a node is dead and will not write again: gives it up at once. With `validate_only` it says what would
    /// become of its workspaces, and does nothing.
    ///
    /// # Errors
    /// [`AppError::StoreBehind`], [`AppError::NodeNotFound`], [`AppError::NodeStillHeard`]; the database.
    pub async fn confirm_node_dead(&self, node: NodeId, why: &str, validate_only: bool) -> Result<NodeLoss> {
        self.refuse_while_behind(&mut self.store.begin().await?).await?;
        let (renewals, state) = self.store.node_renewals(node).await?.ok_or(AppError::NodeNotFound(node))?;
        match state {
            NodeState::Ready | NodeState::Degraded => return Err(AppError::NodeStillHeard(node)),
            NodeState::Unreachable | NodeState::Fenced => {}
        }
        let loss = self.loss_of(node).await?;
        if validate_only {
            return Ok(loss);
        }
        if state == NodeState::Unreachable
            && !settle!(self.fence_once(node, renewals, Why::ConfirmedDead(why)))?
            && self.store.node_renewals(node).await?.is_none_or(|(_, state)| state != NodeState::Fenced)
        {
            // It spoke at this very moment.
            return Err(AppError::NodeStillHeard(node));
        }
        self.release_of(node).await?;
        Ok(loss)
    }

    /// What would become of the workspaces of a node.
    async fn loss_of(&self, node: NodeId) -> Result<NodeLoss> {
        let uids = self.store.workspaces_on(node).await?;
        let (activities, now) = self.store.activities(uids.clone(), self.settings.told_within()).await?;
        let mut loss = NodeLoss::default();
        for workspace in self.store.workspaces_by_uid(uids).await? {
            let known = activities.get(&workspace.uid).copied().unwrap_or_default();
            let (after, _) = workspace.apply(self.node_lost(&workspace, &known.activity, now), now)?;
            loss.note(&after);
        }
        loss.moved.sort();
        loss.stopped.sort();
        Ok(loss)
    }
}

impl NodeLoss {
    fn note(&mut self, after: &Workspace) {
        match after.state {
            State::Pending => self.moved.push(after.student.clone()),
            _ if after
                .stop
                .as_ref()
                .is_some_and(|stop| stop.reason == carrel_common::model::StopReason::NodeLost) =>
            {
                self.stopped.push(after.student.clone());
            }
            // On its way out already: a stop, a delete, a failure that its host had not cleared away.
            _ => {}
        }
    }
}
