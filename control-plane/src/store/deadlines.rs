//! What deadlines are derived from, of many workspaces at once.

use std::collections::HashMap;

use carrel_common::id::WorkspaceUid;
use sea_orm::ConnectionTrait;
use time::OffsetDateTime;

use super::activity::{ACTIVITY, activity, refuse};
use super::error::{Result, StoreError};
use super::{Store, Work, sql};
use crate::domain::activity::Activity;

/// Of what is open alone, which has an index: what is stopped costs nothing here. In one row, since a hundred thousand small ones
/// cost more than what is in them.
const VERSIONS: &str = "
SELECT clock_timestamp() AS now, coalesce(array_agg(workspace_id), '{}') AS ids, coalesce(array_agg(version), '{}') AS versions
FROM workspace_activity WHERE NOT closed";

impl Store {
    /// The version of each deadline that may move, and the database's time.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn deadline_versions(&self) -> Result<(HashMap<WorkspaceUid, i64>, OffsetDateTime)> {
        let sorted = StoreError::sort("read the versions of deadlines");
        let row = self.db.query_one_raw(sql(VERSIONS, [])).await.map_err(&sorted)?;
        let Some(row) = row else { return Ok((HashMap::new(), self.now().await?)) };
        let ids: Vec<sea_orm::prelude::Uuid> = row.try_get("", "ids").map_err(&sorted)?;
        let versions: Vec<i64> = row.try_get("", "versions").map_err(&sorted)?;
        let now = row.try_get("", "now").map_err(&sorted)?;
        Ok((ids.into_iter().map(WorkspaceUid).zip(versions).collect(), now))
    }
}

impl Work {
    /// Activity of several workspaces, not locked.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn activities(&mut self, uids: &[WorkspaceUid]) -> Result<HashMap<WorkspaceUid, Activity>> {
        let ids: Vec<_> = uids.iter().map(|uid| uid.0).collect();
        let query =
            format!("SELECT {ACTIVITY} FROM workspace_activity a WHERE a.workspace_id = ANY ($1::uuid[])");
        let rows = self.tx.query_all_raw(sql(&query, [ids.into()])).await;
        let rows = rows.map_err(StoreError::sort("read activity"))?;
        rows.iter()
            .map(|row| Ok((WorkspaceUid(refuse(row.try_get("", "workspace_id"))?), activity(row)?)))
            .collect()
    }
}
