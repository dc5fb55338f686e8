//! Many workspaces in one transaction: each step is as with one, the statements are not.

use carrel_common::id::{NodeId, PlacementId, WorkspaceUid};
use sea_orm::entity::prelude::*;
use sea_orm::sea_query::OnConflict;
use sea_orm::{ConnectionTrait, IntoActiveModel, Iterable as _, QueryOrder as _, QuerySelect as _};
use serde_json::json;
use time::OffsetDateTime;

use super::error::{Result, StoreError};
use super::readable::readable_workspaces;
use super::work::told;
use super::{Work, entity, sql};
use crate::domain::event::Entry;
use crate::domain::workspace::Workspace;

/// What a step made of a locked workspace.
#[derive(Debug, Clone)]
pub struct Change {
    /// As it was read.
    pub before: Workspace,
    /// As it is to be.
    pub after: Workspace,
    /// What is told of it.
    pub log: Vec<Entry>,
}

impl Work {
    /// Locks workspaces as [`Work::lock`] does, in the order of their ids; those that are gone, or cannot be read, are left out. And the
    /// database's time.
    ///
    /// # Errors
    /// When the database cannot be reached, or the locks are not had in time.
    pub async fn lock_many(&mut self, uids: &[WorkspaceUid]) -> Result<(Vec<Workspace>, OffsetDateTime)> {
        let sorted = StoreError::sort("lock workspaces");
        let ids: Vec<_> = uids.iter().map(|uid| uid.0).collect();
        self.tx
            .execute_raw(sql(
                "SELECT 1 AS one FROM workspace_activity WHERE workspace_id = ANY ($1) ORDER BY workspace_id FOR UPDATE",
                [ids.clone().into()],
            ))
            .await
            .map_err(&sorted)?;
        let models = entity::Entity::find()
            .filter(entity::Column::Id.is_in(ids))
            .order_by_asc(entity::Column::Id)
            .lock_exclusive()
            .all(&self.tx)
            .await
            .map_err(&sorted)?;
        let now = self.now().await?;
        Ok((readable_workspaces(models), now))
    }

    /// Writes what steps made of locked workspaces, as [`Work::save`] does with one. Steps that open or close a workspace
    /// for activity are not for this.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a row is no longer the one that was read.
    pub async fn save_many(&mut self, changes: Vec<Change>, now: OffsetDateTime) -> Result<()> {
        let operation = "write workspaces";
        let changes: Vec<_> = changes.into_iter().filter(|change| change.before != change.after).collect();
        if changes.is_empty() {
            return Ok(());
        }
        let (mut rows, mut log) = (Vec::with_capacity(changes.len()), Vec::with_capacity(changes.len()));
        for Change { before, mut after, log: entries } in changes {
            after.version = before.version.saturating_add(1);
            after.updated_at = now;
            rows.push(entity::Model::try_from(&after)?.into_active_model().reset_all());
            self.note(&before, &after);
            log.extend(told(&before, &after, entries));
        }
        let count = u64::try_from(rows.len()).unwrap_or(u64::MAX);
        let mut columns: Vec<_> = entity::Column::iter().collect();
        columns.retain(|column| !matches!(column, entity::Column::Id));
        // The rows exist and are locked: this is an update of many, by the version that was read.
        let mut update = OnConflict::column(entity::Column::Id);
        update
            .update_columns(columns)
            .action_and_where(Expr::cust("workspaces.version + 1 = excluded.version"));
        let done = entity::Entity::insert_many(rows)
            .on_conflict(update)
            .exec_without_returning(&self.tx)
            .await
            .map_err(StoreError::sort(operation))?;
        if done != count {
            return Err(StoreError::Conflict { operation });
        }
        self.append_many(log).await
    }

    /// Claims places, each on its node. The database refuses a second unreleased claim of a workspace.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a workspace has a placement already.
    pub async fn insert_placements(&mut self, claims: &[(&Workspace, NodeId)]) -> Result<()> {
        let rows: Vec<_> = claims
            .iter()
            .map(|(workspace, node)| {
                json!({
                    "id": PlacementId::new().0, "workspace_id": workspace.uid.0, "node_id": node.0,
                    "generation": workspace.generation.0, "spec": workspace.spec,
                    "cpu_millicores": workspace.spec.resources.cpu_millicores,
                    "memory_bytes": workspace.spec.resources.memory_bytes,
                })
            })
            .collect();
        self.tx
            .execute_raw(sql(
                "INSERT INTO placements (id, workspace_id, node_id, generation, spec, cpu_millicores, memory_bytes, incarnation)
                 SELECT c.*, cluster.incarnation FROM cluster, jsonb_to_recordset($1) AS c (id uuid, workspace_id uuid,
                        node_id uuid, generation bigint, spec jsonb, cpu_millicores bigint, memory_bytes bigint)",
                [serde_json::Value::Array(rows).into()],
            ))
            .await
            .map_err(StoreError::sort("claim places"))?;
        self.touched.nodes.extend(claims.iter().map(|(_, node)| *node));
        Ok(())
    }
}
