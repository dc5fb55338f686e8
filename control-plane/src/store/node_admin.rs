//! Nodes as operators see them: what they hold, and how they are taken in and out of service.

use carrel_common::id::NodeId;
use carrel_common::model::Resources;
use sea_orm::prelude::Uuid;
use sea_orm::sea_query::Expr;
use sea_orm::{ConnectionTrait, EntityTrait as _, QueryFilter as _, QueryResult};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::entity;
use super::error::{Result, StoreError};
use super::fleet::CandidateLimits;
use super::nodes::node;
use super::readable::{page, readable, readable_workspaces};
use super::{Store, Work, sql};
use crate::domain::node::{Node, NodeState};
use crate::domain::placement::FAILURES_COUNT_FOR;
use crate::domain::workspace::Workspace;

/// A node with what it holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeLoad {
    /// The node.
    pub node: Node,
    /// What it can hold, over-commit included.
    pub capacity: Resources,
    /// What its unreleased placements hold.
    pub allocated: Resources,
    /// Unreleased placements.
    pub count: i64,
    /// The images on it, sorted.
    #[serde(default)]
    pub images: Vec<String>,
    /// Starts that failed there lately and may have been its fault.
    #[serde(default)]
    pub start_failures: i64,
}

/// The first parameter of [`LOADS`]: how long failures count, in seconds.
fn failures_since() -> sea_orm::Value {
    FAILURES_COUNT_FOR.as_secs_f64().into()
}

/// Nothing bounds the sum of pids as room bounds the others, so it is cut at what a bigint holds.
const LOADS: &str = "
SELECT n.*, coalesce(p.cpu, 0)::bigint AS cpu, coalesce(p.memory, 0)::bigint AS memory,
       least(coalesce(p.pids, 0), 9223372036854775807)::bigint AS pids, coalesce(p.count, 0) AS count, coalesce(i.images, '{}') AS images,
       (SELECT count(*) FROM start_failures f
        WHERE f.node_id = n.id AND f.at > clock_timestamp() - make_interval(secs => $1)) AS start_failures
FROM nodes n LEFT JOIN node_images i ON i.node_id = n.id LEFT JOIN LATERAL (
    SELECT sum(cpu_millicores) AS cpu, sum(memory_bytes) AS memory,
           sum((spec->'resources'->>'pids')::bigint) AS pids, count(*) AS count
    FROM placements WHERE released_at IS NULL AND node_id = n.id
) p ON true";

fn load(row: &QueryResult, limits: CandidateLimits) -> Result<NodeLoad> {
    let get = StoreError::sort("read the nodes");
    let node = node(row)?;
    Ok(NodeLoad {
        capacity: limits.capacity(&node.facts),
        allocated: Resources {
            cpu_millicores: row.try_get("", "cpu").map_err(&get)?,
            memory_bytes: row.try_get("", "memory").map_err(&get)?,
            pids: row.try_get("", "pids").map_err(&get)?,
        },
        count: row.try_get("", "count").map_err(&get)?,
        images: row.try_get("", "images").map_err(&get)?,
        start_failures: row.try_get("", "start_failures").map_err(&get)?,
        node,
    })
}

impl Store {
    /// A page of nodes in the order of their ids, after one, as far as they can be read, and the id that the next page comes after.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn node_loads(
        &self,
        limits: CandidateLimits,
        after: Option<NodeId>,
        removed_too: bool,
        page_size: usize,
    ) -> Result<(Vec<NodeLoad>, Option<NodeId>)> {
        let limit = i64::try_from(page_size).unwrap_or(i64::MAX).saturating_add(1);
        let query = format!(
            "{LOADS} WHERE ($2::uuid IS NULL OR n.id > $2) AND (n.removed_at IS NULL OR $3) ORDER BY n.id LIMIT $4"
        );
        let values = [failures_since(), after.map(|id| id.0).into(), removed_too.into(), limit.into()];
        let rows =
            self.db.query_all_raw(sql(&query, values)).await.map_err(StoreError::sort("list nodes"))?;
        let id = |row: &QueryResult| row.try_get::<Uuid>("", "id").ok();
        let (rows, next) = page(rows, page_size, id);
        Ok((readable(rows.iter().map(|row| (id(row), load(row, limits)))), next.map(NodeId)))
    }

    /// One node.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn node_load(&self, limits: CandidateLimits, id: NodeId) -> Result<Option<NodeLoad>> {
        let query = format!("{LOADS} WHERE n.id = $2");
        let row = self.db.query_one_raw(sql(&query, [failures_since(), id.0.into()])).await;
        row.map_err(StoreError::sort("find a node"))?.map(|row| load(&row, limits)).transpose()
    }

    /// Nodes that are being emptied and are not empty yet.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn draining_nodes(&self) -> Result<Vec<NodeId>> {
        let operation = "look for drains";
        let rows = self
            .db
            .query_all_raw(sql(
                "SELECT id FROM nodes
                 WHERE drain_deadline_at IS NOT NULL AND drained_at IS NULL AND removed_at IS NULL ORDER BY id",
                [],
            ))
            .await
            .map_err(StoreError::sort(operation))?;
        let ids = rows.iter().map(|row| row.try_get("", "id").map(NodeId));
        ids.collect::<std::result::Result<_, _>>().map_err(StoreError::sort(operation))
    }
}

impl Work {
    /// One node with what it holds, as this transaction sees it.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn node_load(&mut self, limits: CandidateLimits, id: NodeId) -> Result<Option<NodeLoad>> {
        let query = format!("{LOADS} WHERE n.id = $2");
        let row = self.tx.query_one_raw(sql(&query, [failures_since(), id.0.into()])).await;
        row.map_err(StoreError::sort("find a node"))?.map(|row| load(&row, limits)).transpose()
    }

    /// Has nothing placed on a locked node any more.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn cordon_node(&mut self, id: NodeId, reason: &str) -> Result<()> {
        self.tx
            .execute_raw(sql(
                "UPDATE nodes SET cordon_reason = $2 WHERE id = $1",
                [id.0.into(), reason.into()],
            ))
            .await
            .map_err(StoreError::sort("cordon a node"))?;
        Ok(())
    }

    /// Unreleased placements on a node.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn unreleased_on(&mut self, id: NodeId) -> Result<i64> {
        let operation = "count a node's placements";
        let row = self
            .tx
            .query_one_raw(sql(
                "SELECT count(*) AS count FROM placements WHERE node_id = $1 AND released_at IS NULL",
                [id.0.into()],
            ))
            .await
            .map_err(StoreError::sort(operation))?
            .ok_or(StoreError::Conflict { operation })?;
        row.try_get("", "count").map_err(StoreError::sort(operation))
    }

    /// The workspaces whose unreleased placement is on a node.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn placed_on(&mut self, id: NodeId) -> Result<Vec<Workspace>> {
        let models = entity::Entity::find()
            .filter(Expr::cust_with_values(
                "workspaces.id IN (SELECT workspace_id FROM placements WHERE node_id = $1 AND released_at IS NULL)",
                [id.0],
            ))
            .all(&self.tx)
            .await
            .map_err(StoreError::sort("read a node's workspaces"))?;
        Ok(readable_workspaces(models))
    }

    /// Begins the drain of a locked node, or gives it another deadline. `forced`: also in an exam.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn drain_node(
        &mut self,
        id: NodeId,
        deadline_at: OffsetDateTime,
        forced: bool,
        reason: &str,
    ) -> Result<()> {
        self.tx
            .execute_raw(sql(
                "UPDATE nodes SET drain_deadline_at = $2, drain_forced = $3, drain_reason = $4, drained_at = NULL
                 WHERE id = $1",
                [id.0.into(), deadline_at.into(), forced.into(), reason.into()],
            ))
            .await
            .map_err(StoreError::sort("drain a node"))?;
        Ok(())
    }

    /// Notes that a locked node is empty after its drain.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn note_drained(&mut self, id: NodeId) -> Result<()> {
        self.tx
            .execute_raw(sql("UPDATE nodes SET drained_at = clock_timestamp() WHERE id = $1", [id.0.into()]))
            .await
            .map_err(StoreError::sort("note that a node is drained"))?;
        Ok(())
    }

    /// A node is not empty, whatever was noted: its drain goes on until it is. Written in any case, so that who finds it empty at this
    /// moment was before, or finds what is placed here.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn drains_again(&mut self, id: NodeId) -> Result<()> {
        self.tx
            .execute_raw(sql("UPDATE nodes SET drained_at = NULL WHERE id = $1", [id.0.into()]))
            .await
            .map_err(StoreError::sort("note that a node is not empty"))?;
        Ok(())
    }

    /// Bans a locked node: its session ends, and as it is never heard again it is silent from now on, and given up as silent ones are.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn ban_node(&mut self, id: NodeId) -> Result<()> {
        self.tx
            .execute_raw(sql(
                "UPDATE nodes SET banned_at = clock_timestamp(), session_epoch = session_epoch + 1, agent_connected = false,
                        replacement_held = false, state = CASE state WHEN $2 THEN state ELSE $3 END
                 WHERE id = $1",
                [id.0.into(), NodeState::Fenced.as_str().into(), NodeState::Unreachable.as_str().into()],
            ))
            .await
            .map_err(StoreError::sort("ban a node"))?;
        self.touched.nodes.insert(id);
        Ok(())
    }

    /// Takes a locked node out for good: its session ends, and what was left alone on it is no longer ours to know.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn remove_node(&mut self, id: NodeId) -> Result<()> {
        for statement in [
            "UPDATE nodes SET removed_at = clock_timestamp(), session_epoch = session_epoch + 1 WHERE id = $1",
            "DELETE FROM orphans WHERE node_id = $1",
        ] {
            self.tx
                .execute_raw(sql(statement, [id.0.into()]))
                .await
                .map_err(StoreError::sort("remove a node"))?;
        }
        self.touched.nodes.insert(id);
        Ok(())
    }

    /// Has workspaces placed on a locked node again, and ends its drain.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn uncordon_node(&mut self, id: NodeId) -> Result<()> {
        self.tx
            .execute_raw(sql(
                "UPDATE nodes SET cordon_reason = NULL, drain_deadline_at = NULL, drain_reason = NULL, drained_at = NULL
                 WHERE id = $1",
                [id.0.into()],
            ))
            .await
            .map_err(StoreError::sort("uncordon a node"))?;
        self.touched.queue = true;
        Ok(())
    }
}
