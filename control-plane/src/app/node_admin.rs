//! What an operator can do with a node.

use carrel_common::id::NodeId;

use super::settle::settle;
use super::workspaces::{keep_answer, replay};
use super::{App, AppError, Call, NodeLoss, Result};
use crate::domain::event::{Actor, Entry, Subject};
use crate::domain::node::Node;
use crate::store::{NodeLoad, Work};

/// Shown as the cordon's reason when the operator gave none.
const NO_REASON: &str = "by an operator";

pub(super) fn about(node: NodeId) -> Subject {
    Subject { workspace: None, node: Some(node) }
}

/// What may still write on a locked node: unreleased placements, and containers that no order names and that keep their student waiting.
pub(super) async fn left_on(work: &mut Work, node: NodeId) -> Result<i64> {
    Ok(work.unreleased_on(node).await? + work.held_on(node).await?)
}

impl App {
    /// A page of nodes, and the id to ask for the next with.
    ///
    /// # Errors
    /// The database.
    pub async fn nodes(
        &self,
        after: Option<NodeId>,
        removed_too: bool,
        page_size: usize,
    ) -> Result<(Vec<NodeLoad>, Option<NodeId>)> {
        Ok(self.store.node_loads(self.settings.limits, after, removed_too, page_size).await?)
    }

    /// One node.
    ///
    /// # Errors
    /// [`AppError::NodeNotFound`]; the database.
    pub async fn node(&self, id: NodeId) -> Result<NodeLoad> {
        self.store.node_load(self.settings.limits, id).await?.ok_or(AppError::NodeNotFound(id))
    }

    /// Places nothing there any more.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn cordon(&self, call: &Call, id: NodeId, why: &str) -> Result<NodeLoad> {
        settle!(self.cordon_once(call, id, why))
    }

    async fn cordon_once(&self, call: &Call, id: NodeId, why: &str) -> Result<NodeLoad> {
        let mut work = self.store.begin().await?;
        if let Some(answer) = replay(&mut work, call).await? {
            return Ok(answer);
        }
        let node = self.lock_present(&mut work, id).await?;
        if node.cordon.is_none() {
            work.cordon_node(id, if why.is_empty() { NO_REASON } else { why }).await?;
            let entry = Entry::new("node.cordoned", Actor::Operator).with("why", why);
            work.append(about(id), entry).await?;
        }
        self.finish_node(work, call, id).await
    }

    /// Places there again, and ends a drain.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn uncordon(&self, call: &Call, id: NodeId, why: &str) -> Result<NodeLoad> {
        settle!(self.uncordon_once(call, id, why))
    }

    async fn uncordon_once(&self, call: &Call, id: NodeId, why: &str) -> Result<NodeLoad> {
        let mut work = self.store.begin().await?;
        if let Some(answer) = replay(&mut work, call).await? {
            return Ok(answer);
        }
        // The rules come before the node in the order of locks, and a drain is one of them.
        work.change_rules().await?;
        let node = self.lock_present(&mut work, id).await?;
        if node.cordon.is_some() {
            work.uncordon_node(id).await?;
            work.forgive_node(id).await?;
            let entry = Entry::new("node.uncordoned", Actor::Operator)
                .with("why", why)
                .with("drain_ended", node.drain.is_some());
            work.append(about(id), entry).await?;
        }
        let answer = self.finish_node(work, call, id).await?;
        // Warnings of a drain no longer hold.
        self.refresh_rules().await?;
        Ok(answer)
    }

    /// Takes a node out for good, and bans it.
    ///
    /// # Errors
    /// [`AppError::NodeNotEmpty`], [`AppError::InventoryAwaited`], and the rest of [`AppError`].
    pub async fn remove_node(
        &self,
        call: &Call,
        id: NodeId,
        why: &str,
        validate_only: bool,
    ) -> Result<NodeLoad> {
        settle!(self.remove_node_once(call, id, why, (false, validate_only)))
    }

    /// Has nothing count that is said in a node's name, whatever is on it and however the store stands: at once taken out when it is
    /// known to be empty, else silent from now on, and given up by its lease as silent nodes are.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn ban_node(
        &self,
        call: &Call,
        id: NodeId,
        why: &str,
        validate_only: bool,
    ) -> Result<NodeLoad> {
        settle!(self.remove_node_once(call, id, why, (true, validate_only)))
    }

    async fn remove_node_once(
        &self,
        call: &Call,
        id: NodeId,
        why: &str,
        (force, validate_only): (bool, bool),
    ) -> Result<NodeLoad> {
        let mut work = self.store.begin().await?;
        if let Some(answer) = replay(&mut work, call).await? {
            return Ok(answer);
        }
        if !force {
            self.refuse_while_behind(&mut work).await?;
        }
        work.change_rules().await?;
        let node = work.lock_node(id).await?.ok_or(AppError::NodeNotFound(id))?;
        // Its lease runs on after the ban: what was left alone there could still write.
        let remaining = left_on(&mut work, id).await?;
        if remaining > 0 && !force {
            return Err(AppError::NodeNotEmpty { node: id, remaining });
        }
        // Taken out, it would be waited for no longer, and what it has yet to tell of could start elsewhere beside it.
        let awaited = work.has_yet_to_tell(id).await?;
        if awaited && !force {
            return Err(AppError::InventoryAwaited(id));
        }
        // While the store is behind it does not know what is there.
        let unknown = awaited || force && work.state().await?.behind.is_some();
        let done = match (node.removed_at, node.banned_at) {
            (None, _) if remaining == 0 && !unknown => {
                work.remove_node(id).await?;
                Some("node.removed")
            }
            (None, None) => {
                work.ban_node(id).await?;
                Some("node.banned")
            }
            (Some(_), _) | (None, Some(_)) => None,
        };
        if let Some(kind) = done {
            let entry = Entry::new(kind, Actor::Operator)
                .with("hostname", node.facts.hostname.as_str())
                .with("why", why);
            work.append(about(id), entry).await?;
        }
        if validate_only {
            // As it would be: nothing of it is committed.
            return self.load(&mut work, id).await;
        }
        let answer = self.finish_node(work, call, id).await?;
        if let Some(kind) = done {
            tracing::info!(node.id = %id, hostname = node.facts.hostname, remaining, "{kind}");
        }
        Ok(answer)
    }

    /// An operator's word that a node is dead: what it held goes elsewhere at once, or stops. The node as it is then, and what became,
    /// or with `validate_only` would become, of its workspaces.
    ///
    /// # Errors
    /// [`AppError::NodeStillHeard`], and the rest of [`AppError`].
    pub async fn confirm_dead(
        &self,
        call: &Call,
        id: NodeId,
        why: &str,
        validate_only: bool,
    ) -> Result<(NodeLoad, NodeLoss)> {
        // Many transactions, so none is held open over them: a call that is repeated while they go on does the same once more.
        let answered = replay(&mut self.store.begin().await?, call).await?;
        let loss = match answered {
            Some(loss) => loss,
            None if self.node(id).await?.node.removed_at.is_some() => return Err(AppError::NodeRemoved(id)),
            None => {
                let loss = self.confirm_node_dead(id, why, validate_only).await?;
                let mut work = self.store.begin().await?;
                if !validate_only && replay::<NodeLoss>(&mut work, call).await?.is_none() {
                    keep_answer(&mut work, call, &loss).await?;
                    work.commit().await?;
                }
                loss
            }
        };
        Ok((self.node(id).await?, loss))
    }

    /// A node that is not taken out, locked.
    pub(super) async fn lock_present(&self, work: &mut Work, id: NodeId) -> Result<Node> {
        let node = work.lock_node(id).await?.ok_or(AppError::NodeNotFound(id))?;
        if node.removed_at.is_some() {
            return Err(AppError::NodeRemoved(id));
        }
        Ok(node)
    }

    /// A node with what it holds, as a transaction sees it.
    pub(super) async fn load(&self, work: &mut Work, id: NodeId) -> Result<NodeLoad> {
        work.node_load(self.settings.limits, id).await?.ok_or(AppError::NodeNotFound(id))
    }

    /// Keeps the node as the answer, commits, nudges.
    async fn finish_node(&self, mut work: Work, call: &Call, id: NodeId) -> Result<NodeLoad> {
        let answer = self.load(&mut work, id).await?;
        keep_answer(&mut work, call, &answer).await?;
        self.nudge.ring(&work.commit().await?);
        Ok(answer)
    }
}
