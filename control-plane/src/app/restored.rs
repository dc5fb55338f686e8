//! What a node runs, taken into a store that was declared restored: all of it is adopted, and what is not there is not started.
//!
//! Done once for each node and incarnation, at the first Hello whose inventory is what Docker answered; until then the node gets no
//! orders. The copy may have on the node what has ended since, and may not have what was started since; so nothing is ordered by the
//! copy alone. It is the only moment when a node is believed about what the store has never placed on it: the copy cannot know
//! better. What another node has told since that it runs is not taken from it.
//!
//! It may take long, and a node that waits too long says Hello once more. So each step asks whether the session is still the
//! node's: what an earlier Hello has not told would else be taken for what is missing.

use carrel_common::id::NodeId;
use carrel_common::model::Container;

use super::greeting::Greeting;
use super::node_admin::about;
use super::nodes::still_told_by;
use super::orphans::{Known, keep};
use super::settle::settle;
use super::{App, Result, alone};
use crate::domain::event::{Actor, Entry};
use crate::domain::orphan::may_take_in;
use crate::domain::reconcile::Placement;
use crate::store::Locked;

impl App {
    /// Takes what a node runs into the store, if it is waited for; false when it has to be waited for on.
    pub(super) async fn take_stock(
        &self,
        node: NodeId,
        session_epoch: i64,
        greeting: &Greeting,
    ) -> Result<bool> {
        let session = (node, session_epoch);
        if !self.store.begin().await?.awaits(node).await? {
            return Ok(true);
        }
        if !greeting.current {
            return Ok(false);
        }
        let mut containers: Vec<&Container> = greeting.containers.iter().collect();
        // The latest of a desk first: it decides about the others.
        containers.sort_by_key(|container| (container.workspace, std::cmp::Reverse(container.pair())));
        let (mut adopted, mut missing) = (0_i64, 0_i64);
        for container in containers {
            match settle!(self.take_in(session, container)) {
                Ok(taken) => adopted += i64::from(taken),
                // It stays as it is and is told as an orphan: one odd container must not keep the node without orders.
                Err(error) if !error.concerns_all() => {
                    tracing::error!(%error, student.id = %container.student, container = container.container_id, "not adopted");
                }
                Err(error) => return Err(error),
            }
        }
        let placements = self.store.placements_on(node).await?;
        for (placement, _) in placements.map(|found| found.placed).unwrap_or_default() {
            let is_there = |c: &Container| c.workspace == placement.workspace && c.pair() == placement.pair();
            if !greeting.containers.iter().any(is_there) {
                missing += i64::from(alone(placement.workspace, settle!(self.miss(session, &placement)))?);
            }
        }
        let mut work = self.store.begin().await?;
        work.lock_node(node).await?;
        still_told_by(&mut work, session).await?;
        work.has_told(node).await?;
        let entry =
            Entry::new("node.adopted", Actor::ControlPlane).with("adopted", adopted).with("missing", missing);
        work.append(about(node), entry).await?;
        self.nudge.ring(&work.commit().await?);
        tracing::warn!(node.id = %node, adopted, missing, "what the node runs is in the restored store");
        Ok(true)
    }

    /// One container: confirmed where the copy has it, or adopted. What is over, or another's, is left to the rules for orphans.
    async fn take_in(&self, session: (NodeId, i64), container: &Container) -> Result<bool> {
        let (mut work, node) = (self.store.begin().await?, session.0);
        let known = Known::of(&mut work, node, container).await?;
        still_told_by(&mut work, session).await?;
        let confirmed = known.placement.as_ref().filter(|placement| {
            placement.node == node
                && placement.workspace == container.workspace
                && placement.pair() == container.pair()
        });
        if let (Some(placement), Some(before)) = (confirmed, &known.desk) {
            let now = work.now().await?;
            // What does not run proves no place: if it runs on another host by now, that one is believed.
            if container.running {
                work.confirm_placement(placement.id).await?;
            }
            let (next, log) = before.confirmed(container, now);
            work.save(before, next, log, now).await?;
            self.nudge.ring(&work.commit().await?);
            return Ok(true);
        }
        let elsewhere = known.placement.as_ref().filter(|placement| placement.node != node);
        let settled = match elsewhere {
            Some(placement) => work.is_settled(placement.id).await?,
            None => false,
        };
        if !may_take_in(container, node, &known.rules(), settled) {
            if container.running {
                // Whatever the copy says of it, it may be writing: until it is gone its student is not placed beside it.
                keep(&mut work, node, container, &known, true, false).await?;
                self.nudge.ring(&work.commit().await?);
            }
            return Ok(false);
        }
        self.adopt(&mut work, node, container, &known).await?;
        work.watch_again(node).await?;
        self.nudge.ring(&work.commit().await?);
        Ok(true)
    }

    /// A placement of the copy whose container is not there: its desk does not run on this node any more. What was placed since the
    /// declaration is no news of the copy: the node has yet to be told of it.
    async fn miss(&self, session: (NodeId, i64), placement: &Placement) -> Result<bool> {
        let mut work = self.store.begin().await?;
        let Some(Locked { workspace: before, now, .. }) = work.lock(placement.workspace).await? else {
            return Ok(false);
        };
        still_told_by(&mut work, session).await?;
        let present = work.find_placement(before.uid).await?;
        if present.is_none_or(|present| present.id != placement.id) || work.is_settled(placement.id).await? {
            return Ok(false);
        }
        let (next, log) = before.missing(now)?;
        let changed = next != before;
        work.save(&before, next, log, now).await?;
        self.nudge.ring(&work.commit().await?);
        Ok(changed)
    }
}
