//! Nodes: sessions, heartbeats, silence, desired sets.

use carrel_common::id::{NodeId, WorkspaceUid};
use carrel_common::model::{DesiredPair, DesiredSet, Health, HeartbeatCount};

use super::enrolment::not_banned;
use super::node_admin::about;
use super::{App, AppError, Result, alone};
use crate::domain::behind::Evidence;
use crate::domain::event::{Actor, Entry};
use crate::domain::node::{Node, NodeState};
use crate::domain::reconcile::desired_item;
use crate::domain::workspace::Event;
use crate::store::{Locked, PlacedOn, Work};

/// What a heartbeat found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeartbeatOutcome {
    /// Committed: so many there have been.
    Committed(HeartbeatCount),
    /// Committed, and the node had been given up as silent: its agent has to tell everything anew.
    BackFromSilence(HeartbeatCount),
    /// Another session of the node took over.
    Superseded,
}

/// The set that an agent was sent last in a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentSet {
    /// Its version.
    pub pair: DesiredPair,
    /// Over its items.
    pub digest: String,
}

impl From<&DesiredSet> for SentSet {
    fn from(set: &DesiredSet) -> Self {
        Self { pair: set.pair, digest: set.digest.clone() }
    }
}

impl App {
    /// The stream of a session is over, by the agent's doing or the network's: an agent that was restarted may take its place.
    ///
    /// # Errors
    /// The database.
    pub async fn session_broke(&self, id: NodeId, session_epoch: i64) -> Result<()> {
        Ok(self.store.session_broke(id, session_epoch).await?)
    }

    /// How many stops that no order backs an agent holds back; 0: its breaker has let go.
    ///
    /// # Errors
    /// The database.
    pub async fn withhold(&self, id: NodeId, session_epoch: i64, stops: i32) -> Result<()> {
        let mut work = self.store.begin().await?;
        if !work.withhold(id, session_epoch, stops).await? {
            return Ok(());
        }
        let kind = if stops > 0 { "node.stops_withheld" } else { "node.stops_released" };
        work.append(about(id), Entry::new(kind, Actor::Agent).with("stops", stops)).await?;
        self.nudge.ring(&work.commit().await?);
        Ok(())
    }

    /// Commits a sign of life.
    ///
    /// # Errors
    /// [`AppError::NodeBanned`]; the database.
    pub async fn heartbeat_node(
        &self,
        id: NodeId,
        session_epoch: i64,
        docker: &Health,
        storage: &Health,
    ) -> Result<HeartbeatOutcome> {
        let mut work = self.store.begin().await?;
        let Some(before) = work.lock_node(id).await? else { return Ok(HeartbeatOutcome::Superseded) };
        not_banned(&before)?;
        let state = Node::heard_state(docker, storage);
        let renewed = work.renew_node(id, session_epoch, docker, storage, state).await?;
        let Some(count) = renewed else { return Ok(HeartbeatOutcome::Superseded) };
        if before.state != state {
            let (kind, problem) = match state {
                NodeState::Degraded => {
                    ("node.degraded", docker.problem.clone().or_else(|| storage.problem.clone()))
                }
                NodeState::Ready | NodeState::Unreachable | NodeState::Fenced => ("node.recovered", None),
            };
            let (reason, message) = problem.unwrap_or_default();
            let entry = Entry::new(kind, Actor::Agent).because(reason).with("message", message);
            work.append(about(id), entry).await?;
        }
        let mut touched = work.commit().await?;
        // A node that can take workspaces again is a free place.
        touched.queue |= before.state != state && state == NodeState::Ready;
        self.nudge.ring(&touched);
        let back = before.state == NodeState::Unreachable && before.last_heartbeat_at.is_some();
        Ok(if back { HeartbeatOutcome::BackFromSilence(count) } else { HeartbeatOutcome::Committed(count) })
    }

    /// The agent has had an ack in this session: its lease is counted by what this session promised.
    ///
    /// # Errors
    /// The database.
    pub async fn settle_lease(&self, id: NodeId, session_epoch: i64) -> Result<()> {
        let mut work = self.store.begin().await?;
        work.settle_lease(id, session_epoch, self.settings.lease.promised()).await?;
        self.nudge.ring(&work.commit().await?);
        Ok(())
    }

    /// The desired set of a node, as its agent is told it after it was sent another; `None`: that was the same.
    ///
    /// What cannot be read is left out. To the agent that is a container that no order names: it goes on, and is stopped by nobody's
    /// word, since nothing can be made of its row there either. Such a set has a version of its own, as agents refuse a set that
    /// says something else under a version that they know: once the row can be read, by this replica or another, all is
    /// ordered as before.
    ///
    /// # Errors
    /// [`AppError::NodeBanned`] when it was banned, or taken out, [`AppError::InventoryAwaited`] while nothing may be ordered there; the
    /// database.
    pub async fn desired_set(&self, node: NodeId, sent: Option<&SentSet>) -> Result<Option<DesiredSet>> {
        let found = self.store.placements_on(node).await?;
        let PlacedOn { orders, placed, whole } = found.ok_or(AppError::NodeBanned(node))?;
        if orders.held {
            return Err(AppError::InventoryAwaited(node));
        }
        let now = self.store.now().await?;
        let items = placed.iter().map(|(p, w)| desired_item(p, w, self.settings.orders, now)).collect();
        let set = DesiredSet::new(orders.pair, items);
        if whole {
            return Ok(Some(set).filter(|set| sent.is_none_or(|sent| sent.pair != set.pair)));
        }
        // The version after that of a part is all that followed it.
        let follows =
            |sent: &SentSet| DesiredPair { generation: sent.pair.generation + 1, ..sent.pair } == set.pair;
        if sent.is_some_and(|sent| sent.digest == set.digest && follows(sent)) {
            return Ok(None);
        }
        let pair = self.store.version_of_part(node, set.pair).await?;
        // Somebody has changed the set since: that is sent, at the next look.
        Ok(pair.map(|pair| DesiredSet { pair, ..set }))
    }

    /// The agent has refused the set that was `offered`: in a session with the store of that `incarnation` it had accepted a later
    /// one, which the store has forgotten; or the same one with other content, as from a replica of another version. Then the next
    /// version follows, of what the store says now: without a set that counts the agent would leave alone for good what needs one.
    ///
    /// # Errors
    /// The database.
    pub async fn set_refused(
        &self,
        node: NodeId,
        (offered, accepted): (DesiredPair, DesiredPair),
        incarnation: i64,
    ) -> Result<()> {
        let mut work = self.store.begin().await?;
        match Evidence::of_refusal(offered, accepted) {
            Some(evidence) => self.note_behind(&mut work, node, &evidence, incarnation, 0).await?,
            None => work.raise_set(node),
        }
        self.nudge.ring(&work.commit().await?);
        Ok(())
    }

    /// Marks a node that has not been heard of, or is banned and will not be, and what it holds; how many workspaces that concerned.
    ///
    /// # Errors
    /// The database.
    pub async fn give_up_node(&self, id: NodeId) -> Result<usize> {
        let mut work = self.store.begin().await?;
        let Some(node) = work.lock_node(id).await? else { return Ok(0) };
        let now = work.now().await?;
        let heard = node.last_heartbeat_at.is_some_and(|at| now < at + self.settings.unreachable_after);
        if heard && node.banned_at.is_none() || node.state == NodeState::Fenced {
            return Ok(0);
        }
        // The clock may have been set, or nobody could hear it: the next sign of life moves what it is measured by.
        if self.rules_in(&mut work).await?.is_none() {
            return Ok(0);
        }
        if node.state != NodeState::Unreachable {
            work.mark_unreachable(id).await?;
            work.append(about(id), Entry::new("node.unreachable", Actor::ControlPlane)).await?;
            tracing::warn!(node.id = %id, hostname = node.facts.hostname, "node is silent");
        }
        self.nudge.ring(&work.commit().await?);
        let mut concerned = 0;
        for uid in self.store.workspaces_on(id).await? {
            concerned += usize::from(alone(uid, self.note_silence(uid, id, node.session_epoch).await)?);
        }
        Ok(concerned)
    }

    /// What the silence of its node since that session means for a workspace; whether it means anything.
    async fn note_silence(&self, uid: WorkspaceUid, node: NodeId, session_epoch: i64) -> Result<bool> {
        let mut work = self.store.begin().await?;
        let Some(Locked { workspace: before, now, .. }) = work.lock(uid).await? else { return Ok(false) };
        if before.node != Some(node) {
            return Ok(false);
        }
        // It may have been heard of meanwhile, and have told that this one runs: then nobody would tell so again. Its row is
        // locked, so that whoever hears of it after this finds it silent, and has it tell everything anew.
        let now_is = work.lock_node(node).await?;
        if now_is.is_none_or(|it| it.state != NodeState::Unreachable || it.session_epoch != session_epoch) {
            return Ok(false);
        }
        let (next, log) = before.apply(Event::NodeSilent, now)?;
        if next == before {
            return Ok(false);
        }
        work.save(&before, next, log, now).await?;
        self.nudge.ring(&work.commit().await?);
        Ok(true)
    }
}

/// Refuses what a session of a node tells that another one has taken over from: it would undo what the new one told. Asked with all
/// locked that it is about: what a newer session told of that is seen here, or waits for this commit.
pub(super) async fn still_told_by(work: &mut Work, (node, session_epoch): (NodeId, i64)) -> Result<()> {
    match work.session_is_current(node, session_epoch).await? {
        true => Ok(()),
        false => Err(AppError::SessionSuperseded(node)),
    }
}
