//! Giving a node up: what a replica watches, the transaction that decides, and what is left to do after it.

use std::time::Duration;

use carrel_common::id::{NodeId, WorkspaceUid};
use sea_orm::{ConnectionTrait, DbErr, QueryResult};

use super::entity::value;
use super::error::{Result, StoreError};
use super::readable::readable;
use super::{Store, Work, sql};
use crate::domain::lease::{Renewals, Seen};
use crate::domain::node::NodeState;

fn renewals(row: &QueryResult) -> std::result::Result<Renewals, DbErr> {
    Ok(Renewals {
        boot_epoch: row.try_get("", "boot_epoch")?,
        session_epoch: row.try_get("", "session_epoch")?,
        count: row.try_get("", "renewals")?,
    })
}

fn seen(row: &QueryResult) -> Result<Seen> {
    let get = StoreError::sort("watch the nodes");
    let state: String = row.try_get("", "state").map_err(&get)?;
    let promised: Option<f64> = row.try_get("", "leased_seconds").map_err(&get)?;
    Ok(Seen {
        node: NodeId(row.try_get("", "id").map_err(&get)?),
        state: value("nodes", state.into())?,
        renewals: renewals(row).map_err(&get)?,
        promised: promised.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
    })
}

impl Store {
    /// The renewals of all nodes that are not taken out, and the timeline of the database that says so: a standby that took over may lack the last of them.
    ///
    /// # Errors
    /// When the database cannot be reached, or is a standby.
    pub async fn watch_nodes(&self) -> Result<(String, Vec<Seen>)> {
        let operation = "watch the nodes";
        let rows = self
            .db
            .query_all_raw(sql(
                "SELECT t.timeline, n.id, n.state, n.boot_epoch, n.session_epoch, n.renewals, n.leased_seconds
                 FROM (SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) AS timeline) t LEFT JOIN nodes n ON n.removed_at IS NULL",
                [],
            ))
            .await
            .map_err(StoreError::sort(operation))?;
        let first = rows
            .first()
            .ok_or_else(|| StoreError::Corrupt { table: "nodes", problem: "no answer".into() })?;
        let timeline = first.try_get("", "timeline").map_err(StoreError::sort(operation))?;
        let is_node = |row: &&QueryResult| matches!(row.try_get::<Option<uuid::Uuid>>("", "id"), Ok(Some(_)));
        let nodes = rows.iter().filter(is_node).map(|row| (row.try_get("", "id").ok(), seen(row)));
        Ok((timeline, readable(nodes)))
    }

    /// A node's renewals and state; `None`: there is no such node, or it is taken out.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn node_renewals(&self, id: NodeId) -> Result<Option<(Renewals, NodeState)>> {
        let operation = "look at a node";
        let row = self
            .db
            .query_one_raw(sql(
                "SELECT boot_epoch, session_epoch, renewals, state FROM nodes WHERE id = $1 AND removed_at IS NULL",
                [id.0.into()],
            ))
            .await
            .map_err(StoreError::sort(operation))?;
        let Some(row) = row else { return Ok(None) };
        let state: String = row.try_get("", "state").map_err(StoreError::sort(operation))?;
        Ok(Some((renewals(&row).map_err(StoreError::sort(operation))?, value("nodes", state.into())?)))
    }

    /// Nodes that were given up and whose workspaces are not all moved or stopped yet.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn releasing_nodes(&self) -> Result<Vec<NodeId>> {
        let operation = "look for nodes that were given up";
        let rows = self
            .db
            .query_all_raw(sql("SELECT id FROM nodes WHERE releasing", []))
            .await
            .map_err(StoreError::sort(operation))?;
        rows.iter()
            .map(|row| row.try_get("", "id").map(NodeId))
            .collect::<std::result::Result<_, _>>()
            .map_err(StoreError::sort(operation))
    }

    /// Workspaces that a node still holds without a placement there: it was given up. In the order of their ids.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn stranded_on(&self, node: NodeId) -> Result<Vec<WorkspaceUid>> {
        self.uids(
            &format!("SELECT id FROM workspaces w WHERE {STRANDED} ORDER BY id"),
            [node.0.into()],
            "look for workspaces of a node that was given up",
        )
        .await
    }

    /// Nothing of a node that was given up is left to do.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn finish_release(&self, node: NodeId) -> Result<()> {
        self.db
            .execute_raw(sql(
                &format!(
                    "UPDATE nodes SET releasing = false
                     WHERE id = $1 AND releasing AND NOT EXISTS (SELECT 1 FROM workspaces w WHERE {STRANDED})"
                ),
                [node.0.into()],
            ))
            .await
            .map_err(StoreError::sort("finish with a node that was given up"))?;
        Ok(())
    }
}

/// Of the workspace `w`: held by the node `$1`, without an unreleased placement.
const STRANDED: &str = "w.node_id = $1 AND NOT EXISTS (
    SELECT 1 FROM placements p WHERE p.workspace_id = w.id AND p.released_at IS NULL)";

impl Work {
    /// A session of a locked node was promised to last this long without an ack. What an earlier one was promised holds until its
    /// agent has had an ack in this one.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn promise_lease(&mut self, id: NodeId, promised: Duration) -> Result<()> {
        self.tx
            .execute_raw(sql(
                "UPDATE nodes SET leased_seconds = greatest(leased_seconds, $2) WHERE id = $1",
                [id.0.into(), promised.as_secs_f64().into()],
            ))
            .await
            .map_err(StoreError::sort("promise a lease"))?;
        Ok(())
    }

    /// The agent has had an ack in this session: what earlier ones were promised is over.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn settle_lease(&mut self, id: NodeId, session_epoch: i64, promised: Duration) -> Result<()> {
        self.tx
            .execute_raw(sql(
                "UPDATE nodes SET leased_seconds = $3 WHERE id = $1 AND session_epoch = $2",
                [id.0.into(), session_epoch.into(), promised.as_secs_f64().into()],
            ))
            .await
            .map_err(StoreError::sort("settle a lease"))?;
        Ok(())
    }

    /// Gives a silent node up, and releases its placements: only while its renewals are still those observed. Its session is over; none
    /// of its heartbeats and reports count any more. How many placements it had; `None`: it gave a sign of life, and nothing is changed.
    ///
    /// # Errors
    /// When the database cannot be reached, or the locks are not had in time.
    pub async fn fence_node(&mut self, id: NodeId, observed: Renewals) -> Result<Option<u64>> {
        let operation = "give a node up";
        // Node rows come last in the order of locks, so the placements are locked before. None is added meanwhile: nothing is placed on a
        // node that is silent; what is adopted there waits for the node's row, or is released below.
        self.tx
            .execute_raw(sql(
                "SELECT 1 FROM placements WHERE node_id = $1 AND released_at IS NULL ORDER BY id FOR UPDATE",
                [id.0.into()],
            ))
            .await
            .map_err(StoreError::sort(operation))?;
        let fenced = self
            .tx
            .execute_raw(sql(
                "UPDATE nodes SET state = $5, fenced_at = clock_timestamp(), session_epoch = session_epoch + 1, releasing = true,
                        replacement_held = false
                 WHERE id = $1 AND boot_epoch = $2 AND session_epoch = $3 AND renewals = $4 AND state = $6",
                [
                    id.0.into(),
                    observed.boot_epoch.into(),
                    observed.session_epoch.into(),
                    observed.count.into(),
                    NodeState::Fenced.as_str().into(),
                    NodeState::Unreachable.as_str().into(),
                ],
            ))
            .await
            .map_err(StoreError::sort(operation))?;
        if fenced.rows_affected() != 1 {
            return Ok(None);
        }
        let released = self
            .tx
            .execute_raw(sql(
                "UPDATE placements SET released_at = clock_timestamp() WHERE node_id = $1 AND released_at IS NULL",
                [id.0.into()],
            ))
            .await
            .map_err(StoreError::sort(operation))?;
        // It runs nothing any more, whatever the store knew of it.
        self.has_told(id).await?;
        Ok(Some(released.rows_affected()))
    }

    /// A node that was given up holds something again: until it gives a sign of life it is silent, and is given up as others are.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn watch_again(&mut self, id: NodeId) -> Result<()> {
        self.tx
            .execute_raw(sql(
                "UPDATE nodes SET state = $2 WHERE id = $1 AND state = $3",
                [id.0.into(), NodeState::Unreachable.as_str().into(), NodeState::Fenced.as_str().into()],
            ))
            .await
            .map_err(StoreError::sort("watch a node again"))?;
        Ok(())
    }

    /// Notes that a node is not given up as so many others are silent, too; whether that is news.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn hold_replacement(&mut self, id: NodeId) -> Result<bool> {
        let done = self
            .tx
            .execute_raw(sql(
                "UPDATE nodes SET replacement_held = true WHERE id = $1 AND state = $2 AND NOT replacement_held",
                [id.0.into(), NodeState::Unreachable.as_str().into()],
            ))
            .await
            .map_err(StoreError::sort("hold a replacement back"))?;
        Ok(done.rows_affected() == 1)
    }
}
