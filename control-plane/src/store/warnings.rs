//! Warnings of many workspaces in one transaction: locked, written and logged by a few statements, however many they are.

use std::collections::HashMap;

use carrel_common::id::WorkspaceUid;
use sea_orm::ConnectionTrait;
use sea_orm::entity::prelude::*;
use time::OffsetDateTime;

use super::activity::{ACTIVITY, activity};
use super::batch::Change;
use super::entity::{self, json};
use super::error::{Result, StoreError};
use super::work::told;
use super::{Locked, Work, sql};

/// Only rows that nobody has changed since they were read.
const WRITE: &str = "
UPDATE workspaces w SET warning = nullif(t.warning, '')::jsonb, version = t.version + 1, updated_at = $4
FROM unnest($1::uuid[], $2::bigint[], $3::text[]) AS t (id, version, warning)
WHERE w.id = t.id AND w.version = t.version";

impl Work {
    /// Locks those workspaces that nobody else holds, as [`Work::lock_many`] does. Who asks for many must not wait for one. All have the time at which the last was locked.
    ///
    /// # Errors
    /// When the database cannot be reached, or a row means nothing.
    pub async fn lock_free(&mut self, uids: &[WorkspaceUid]) -> Result<Vec<Locked>> {
        let sorted = StoreError::sort("lock workspaces");
        let ids: Vec<Uuid> = uids.iter().map(|uid| uid.0).collect();
        let query = format!(
            "SELECT {ACTIVITY} FROM workspace_activity a WHERE a.workspace_id = ANY ($1::uuid[])
             ORDER BY a.student_key FOR UPDATE SKIP LOCKED"
        );
        let rows = self.tx.query_all_raw(sql(&query, [ids.into()])).await.map_err(&sorted)?;
        let mut activities = HashMap::with_capacity(rows.len());
        for row in &rows {
            let id: Uuid = row.try_get("", "workspace_id").map_err(&sorted)?;
            activities.insert(id, activity(row)?);
        }
        let held: Vec<Uuid> = activities.keys().copied().collect();
        let query = sql(
            "SELECT * FROM workspaces WHERE id = ANY ($1::uuid[]) ORDER BY id FOR UPDATE SKIP LOCKED",
            [held.into()],
        );
        let models = entity::Entity::find().from_raw_sql(query).all(&self.tx).await.map_err(&sorted)?;
        let now = self.now().await?;
        let locked = models.into_iter().filter_map(|model| Some((activities.remove(&model.id)?, model)));
        locked.map(|(activity, model)| Ok(Locked { workspace: model.try_into()?, activity, now })).collect()
    }

    /// Those of some workspaces that there are.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn known(&mut self, uids: &[WorkspaceUid]) -> Result<Vec<WorkspaceUid>> {
        let sorted = StoreError::sort("look for workspaces");
        let ids: Vec<Uuid> = uids.iter().map(|uid| uid.0).collect();
        let query = sql("SELECT id FROM workspaces WHERE id = ANY ($1::uuid[])", [ids.into()]);
        let rows = self.tx.query_all_raw(query).await.map_err(&sorted)?;
        let ids = rows.iter().map(|row| row.try_get("", "id").map(WorkspaceUid));
        ids.collect::<std::result::Result<_, _>>().map_err(sorted)
    }

    /// As [`Work::save`], for changes of locked workspaces in which a warning was given or withdrawn and nothing else.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a row is no longer the one that was read.
    pub async fn save_warnings(&mut self, changes: Vec<Change>, now: OffsetDateTime) -> Result<()> {
        let operation = "write warnings";
        if changes.is_empty() {
            return Ok(());
        }
        let (mut ids, mut versions, mut warnings) = (vec![], vec![], vec![]);
        let mut log = Vec::with_capacity(changes.len());
        for Change { before, mut after, log: entries } in changes {
            after.version = before.version.saturating_add(1);
            ids.push(before.uid.0);
            versions.push(before.version);
            let warning = after.warning.as_ref().map(|warning| json("workspaces", warning)).transpose()?;
            warnings.push(warning.map_or_else(String::new, |warning| warning.to_string()));
            log.extend(told(&before, &after, entries));
        }
        let count = u64::try_from(ids.len()).unwrap_or(u64::MAX);
        let values = [ids.into(), versions.into(), warnings.into(), now.into()];
        let done = self.tx.execute_raw(sql(WRITE, values)).await.map_err(StoreError::sort(operation))?;
        if done.rows_affected() != count {
            return Err(StoreError::Conflict { operation });
        }
        self.append_many(log).await
    }
}
