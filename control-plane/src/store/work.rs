//! One transaction: what it has locked, what it changes, and whom to nudge once it is committed.

use std::collections::BTreeSet;

use carrel_common::id::{NodeId, WorkspaceUid};
use sea_orm::entity::prelude::*;
use sea_orm::{ConnectionTrait, IntoActiveModel, QuerySelect};
use time::OffsetDateTime;

use super::entity;
use super::error::{Result, StoreError};
use super::limited::Transaction;
use super::{Store, sql};
use crate::domain::activity::Activity;
use crate::domain::event::{Actor, Entry, Subject};
use crate::domain::reconcile;
use crate::domain::workspace::Workspace;

/// Whom a committed transaction concerns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// Nodes whose desired set has a new version.
    pub nodes: BTreeSet<NodeId>,
    /// Something was written to the event log.
    pub events: bool,
    /// A place may have become free, or somebody waits for one.
    pub queue: bool,
}

/// A workspace and its activity, both rows locked, and the database's time when that was so.
#[derive(Debug, Clone)]
pub struct Locked {
    /// The workspace.
    pub workspace: Workspace,
    /// Its activity.
    pub activity: Activity,
    /// The database's time.
    pub now: OffsetDateTime,
}

/// One transaction. Dropped without a commit it changes nothing.
#[derive(Debug)]
pub struct Work {
    pub(super) tx: Transaction,
    pub(super) touched: Touched,
}

impl Store {
    /// Begins a transaction.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn begin(&self) -> Result<Work> {
        let tx = self.db.begin().await.map_err(StoreError::sort("begin a transaction"))?;
        Ok(Work { tx, touched: Touched::default() })
    }
}

impl Work {
    /// Commits, and tells whom to nudge.
    ///
    /// # Errors
    /// When the database cannot be reached: then it is not known whether the change happened.
    pub async fn commit(self) -> Result<Touched> {
        // Node rows come last in the order of locks, and in the order of their ids. Without their keys: rows that name a node
        // (a start that failed there) hold its key in several transactions at once, none of which could have more of it.
        if !self.touched.nodes.is_empty() {
            let nodes: Vec<_> = self.touched.nodes.iter().map(|node| node.0).collect();
            self.tx
                .execute_raw(sql(
                    "WITH locked AS (SELECT id FROM nodes WHERE id = ANY ($1) ORDER BY id FOR NO KEY UPDATE)
                     UPDATE nodes SET desired_generation = desired_generation + 1 FROM locked WHERE nodes.id = locked.id",
                    [nodes.into()],
                ))
                .await
                .map_err(StoreError::sort("raise a desired set"))?;
        }
        self.tx.commit().await.map_err(StoreError::sort("commit"))?;
        Ok(self.touched)
    }

    /// A node's desired set has a new version with the commit, though nothing of it has changed.
    pub fn raise_set(&mut self, node: NodeId) {
        self.touched.nodes.insert(node);
    }

    /// The database's time, on this transaction's connection: one that waited for another connection could wait for
    /// itself.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn now(&mut self) -> Result<OffsetDateTime> {
        super::time_of(&self.tx).await
    }

    /// Locks a workspace: its activity row first, so that a heartbeat either came before and is seen, or comes after
    /// and is refused.
    ///
    /// # Errors
    /// When the database cannot be reached, or the lock is not had in time.
    pub async fn lock(&mut self, uid: WorkspaceUid) -> Result<Option<Locked>> {
        let operation = "lock a workspace";
        let row = self
            .tx
            .query_one_raw(sql(
                &format!(
                    "SELECT {} FROM workspace_activity a WHERE a.workspace_id = $1 FOR UPDATE",
                    super::activity::ACTIVITY
                ),
                [uid.0.into()],
            ))
            .await
            .map_err(StoreError::sort(operation))?;
        let Some(row) = row else { return Ok(None) };
        let activity = super::activity::activity(&row)?;
        let model = entity::Entity::find_by_id(uid.0)
            .lock_exclusive()
            .one(&self.tx)
            .await
            .map_err(StoreError::sort(operation))?;
        let Some(model) = model else { return Ok(None) };
        let now = self.now().await?;
        Ok(Some(Locked { workspace: model.try_into()?, activity, now }))
    }

    /// Writes what a step made of a locked workspace, and its log. A step that changed nothing writes nothing.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the row is no longer the one that was read.
    pub async fn save(
        &mut self,
        before: &Workspace,
        mut after: Workspace,
        log: Vec<Entry>,
        now: OffsetDateTime,
    ) -> Result<Workspace> {
        if *before == after {
            return Ok(after);
        }
        after.version = before.version.saturating_add(1);
        after.updated_at = now;
        let row = entity::Model::try_from(&after)?.into_active_model().reset_all();
        let changed = entity::Entity::update_many()
            .set(row)
            .filter(entity::Column::Id.eq(after.uid.0))
            .filter(entity::Column::Version.eq(before.version))
            .exec(&self.tx)
            .await
            .map_err(StoreError::sort("write a workspace"))?;
        if changed.rows_affected != 1 {
            return Err(StoreError::Conflict { operation: "write a workspace" });
        }
        if before.open_for_activity() != after.open_for_activity() || before.generation != after.generation {
            self.open_or_close(before, &after).await?;
        }
        self.note(before, &after);
        self.append_many(told(before, &after, log)).await?;
        Ok(after)
    }

    /// Whom a change concerns.
    pub(super) fn note(&mut self, before: &Workspace, after: &Workspace) {
        if !reconcile::same_order(before, after) {
            self.touched.nodes.extend(before.node.into_iter().chain(after.node));
        }
        self.touched.queue |= before.node.is_some() && after.node.is_none();
        self.touched.queue |= after.node.is_none() && after.reconciling();
    }

    /// What is done from here on can be taken back by [`Work::take_back`], locks included.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn try_out(&mut self) -> Result<()> {
        self.tx.execute_unprepared("SAVEPOINT tried").await.map_err(StoreError::sort("set a savepoint"))?;
        Ok(())
    }

    /// Takes back what was done since [`Work::try_out`], and lets go of what was locked since.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn take_back(&mut self) -> Result<()> {
        let back = "ROLLBACK TO SAVEPOINT tried";
        self.tx.execute_unprepared(back).await.map_err(StoreError::sort("go back to a savepoint"))?;
        Ok(())
    }

    /// The row that every heartbeat meets says whether activity counts, and of which generation; each begins with none.
    async fn open_or_close(&mut self, before: &Workspace, after: &Workspace) -> Result<()> {
        let anew = match before.generation == after.generation {
            true => "",
            false => {
                ", lms_input_at = NULL, editor_input_at = NULL, keep_working_at = NULL, job_at = NULL, awake_until = NULL,
                 awake_granted_seconds = 0"
            }
        };
        self.tx
            .execute_raw(sql(
                &format!(
                    "UPDATE workspace_activity SET closed = $2, generation = $3, version = version + 1{anew}
                     WHERE workspace_id = $1"
                ),
                [after.uid.0.into(), (!after.open_for_activity()).into(), after.generation.0.into()],
            ))
            .await
            .map_err(StoreError::sort("open or close a workspace for activity"))?;
        Ok(())
    }
}

/// What the log tells of a change, each entry with its subject; a change that tells nothing tells so.
pub(super) fn told(before: &Workspace, after: &Workspace, log: Vec<Entry>) -> Vec<(Subject, Entry)> {
    let log = if log.is_empty() { vec![Entry::new("workspace.updated", Actor::ControlPlane)] } else { log };
    let tell = |entry: Entry| {
        let entry = entry.with("generation", after.generation.0).with("version", after.version);
        let node = after.node.or(before.node);
        (Subject { workspace: Some((after.uid, after.student.clone())), node }, entry)
    };
    log.into_iter().map(tell).collect()
}
