//! Starts that failed and may have been the node's fault, and starts that came up.

use carrel_common::id::{NodeId, WorkspaceUid};
use carrel_common::model::StatusReason;
use sea_orm::ConnectionTrait;

use super::error::{Result, StoreError};
use super::{Work, sql};
use crate::domain::placement::{FAILURES_COUNT_FOR, Record};

/// Arbitrary, but ours: the advisory lock that nodes are judged under.
const JUDGEMENT_LOCK: i64 = 0x6361_7272_656e;

/// A start that failed on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blamed {
    /// The workspace.
    pub workspace: WorkspaceUid,
    /// The node.
    pub node: NodeId,
    /// Why.
    pub reason: StatusReason,
}

impl Work {
    /// Notes a start that failed. After the locks of workspaces: it locks the node's key.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn start_failed(&mut self, blamed: &Blamed) -> Result<()> {
        let reason = serde_json::to_value(blamed.reason).ok();
        let reason = reason.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default();
        self.tx
            .execute_raw(sql(
                "INSERT INTO start_failures (node_id, workspace_id, reason) VALUES ($1, $2, $3)",
                [blamed.node.0.into(), blamed.workspace.0.into(), reason.into()],
            ))
            .await
            .map_err(StoreError::sort("note a failed start"))?;
        Ok(())
    }

    /// Notes that starts have come up on a node: its own failures are over, and those of the same starts on other nodes
    /// are proven to be theirs. Those nodes. Of an earlier start of the same workspace nothing is proven: what it met may have been
    /// the same on every node, and mended since.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn starts_came_up(&mut self, node: NodeId, workspaces: &[WorkspaceUid]) -> Result<Vec<NodeId>> {
        let sorted = StoreError::sort("note starts that came up");
        let uids: Vec<_> = workspaces.iter().map(|uid| uid.0).collect();
        let rows = self
            .tx
            .query_all_raw(sql(
                // Each failure is locked before any is changed, in one order: of two nodes on which starts come up at one moment that
                // had failed on the other, none waits for what the other holds.
                "WITH up AS (
                     UPDATE placements SET ready_at = clock_timestamp()
                     WHERE workspace_id = ANY ($2) AND released_at IS NULL AND ready_at IS NULL
                 ), told AS (
                     SELECT f.id, f.node_id = $1 AS own FROM start_failures f
                     WHERE (f.node_id = $1 AND NOT f.over)
                        OR (f.workspace_id = ANY ($2) AND NOT f.proven AND f.node_id <> $1
                            AND f.at >= (SELECT w.started_at FROM workspaces w WHERE w.id = f.workspace_id))
                     ORDER BY f.id FOR UPDATE OF f
                 ), noted AS (
                     UPDATE start_failures f SET over = f.over OR told.own, proven = f.proven OR NOT told.own
                     FROM told WHERE f.id = told.id RETURNING f.node_id, told.own
                 )
                 SELECT DISTINCT node_id FROM noted WHERE NOT own ORDER BY node_id",
                [node.0.into(), uids.into()],
            ))
            .await
            .map_err(&sorted)?;
        rows.iter().map(|row| row.try_get("", "node_id").map(NodeId).map_err(&sorted)).collect()
    }

    /// Forgets the failures of a node: an operator has looked at it.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn forgive_node(&mut self, node: NodeId) -> Result<()> {
        self.tx
            .execute_raw(sql("DELETE FROM start_failures WHERE node_id = $1", [node.0.into()]))
            .await
            .map_err(StoreError::sort("forget failed starts"))?;
        Ok(())
    }

    /// Nobody else judges nodes until this transaction ends: of two at one moment, each would count on the node that the other takes
    /// out. Before any row is locked: whoever waits for this holds nothing that the other needs.
    ///
    /// # Errors
    /// When the database cannot be reached, or the lock is not had in time.
    pub async fn judge_alone(&mut self) -> Result<()> {
        self.tx
            .execute_raw(sql("SELECT pg_advisory_xact_lock($1)", [JUDGEMENT_LOCK.into()]))
            .await
            .map_err(StoreError::sort("judge nodes"))?;
        Ok(())
    }

    /// How many nodes are heard of and healthy, and how many of them are cordoned.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn nodes_in_service(&mut self) -> Result<(usize, usize)> {
        let sorted = StoreError::sort("count the nodes");
        let row = self
            .tx
            .query_one_raw(sql(
                "SELECT count(*) AS ready, count(cordon_reason) AS cordoned FROM nodes
                 WHERE state = 'READY' AND removed_at IS NULL",
                [],
            ))
            .await
            .map_err(&sorted)?
            .ok_or(StoreError::Conflict { operation: "count the nodes" })?;
        let count = |name: &str| -> Result<usize> {
            Ok(usize::try_from(row.try_get::<i64>("", name).map_err(&sorted)?).unwrap_or_default())
        };
        Ok((count("ready")?, count("cordoned")?))
    }

    /// What is known of a node's starts of late.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn start_record(&mut self, node: NodeId) -> Result<Record> {
        let sorted = StoreError::sort("count failed starts");
        let row = self
            .tx
            .query_one_raw(sql(
                "SELECT count(*) FILTER (WHERE NOT over) AS in_a_row, count(*) AS failed,
                        (SELECT count(*) FROM placements
                         WHERE node_id = $1 AND ready_at > clock_timestamp() - make_interval(secs => $2)) AS came_up
                 FROM start_failures
                 WHERE node_id = $1 AND proven AND at > clock_timestamp() - make_interval(secs => $2)",
                [node.0.into(), FAILURES_COUNT_FOR.as_secs_f64().into()],
            ))
            .await
            .map_err(&sorted)?
            .ok_or(StoreError::Conflict { operation: "count failed starts" })?;
        Ok(Record {
            in_a_row: row.try_get("", "in_a_row").map_err(&sorted)?,
            failed: row.try_get("", "failed").map_err(&sorted)?,
            came_up: row.try_get("", "came_up").map_err(&sorted)?,
        })
    }
}
