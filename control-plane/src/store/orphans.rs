//! Containers that no order names, as the nodes last reported them.

use std::collections::HashMap;

use carrel_common::id::{Generation, NodeId, PlacementId, WorkspaceUid};
use carrel_common::model::{Container, Verdict};
use sea_orm::{ConnectionTrait, QueryResult};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::entity::{json, value};
use super::error::{Result, StoreError};
use super::{Store, Work, sql};
use crate::domain::placement::HeldContainer;

/// A container that was left alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orphan {
    /// Where it is.
    pub node: NodeId,
    /// What its labels say.
    pub container: Container,
    /// Why it was left alone: stable, for programs.
    pub reason: String,
    /// When it was first reported.
    #[serde(with = "time::serde::rfc3339")]
    pub first_seen_at: OffsetDateTime,
}

/// How an orphan was judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// What is to be done.
    pub verdict: Verdict,
    /// Why: stable.
    pub reason: &'static str,
    /// The store has placed its student on the node.
    pub own: bool,
    /// It is to be stopped, and the node holds that back.
    pub withheld: bool,
}

/// The reason when the node holds the stop of an orphan back.
pub const WITHHELD: &str = "STOP_WITHHELD";

/// Those that wait for an operator. A stop that is under way is none.
const OPEN: &str = "SELECT * FROM orphans WHERE resolution IS NULL AND (verdict = 'HOLD' OR withheld)";

/// What a second container of the same student would write beside: all that runs and that no order names, whatever was said of it, on a
/// node where the store has placed that student: of others a node keeps nobody waiting. What an
/// operator, or the store itself, has stopped runs until it is no longer reported. A node that was given up had ended everything
/// by its lease, or is dead by an operator's word. From the few orphans to their workspaces, never the other way round.
pub(super) const HELD: &str = "
SELECT w.id, o.node_id, o.container_id, n.facts ->> 'hostname' AS hostname
FROM orphans o
JOIN nodes n ON n.id = o.node_id AND n.removed_at IS NULL AND n.state <> 'FENCED'
CROSS JOIN LATERAL (
    SELECT id FROM workspaces WHERE lower(student_id) = lower(o.student_id) AND deleted_at IS NULL OFFSET 0
) w
WHERE o.running AND o.own
ORDER BY o.node_id, o.container_id";

fn held_containers(rows: &[QueryResult]) -> Result<HashMap<WorkspaceUid, HeldContainer>> {
    let get = StoreError::sort("look for containers that were left alone");
    let mut held = HashMap::new();
    for row in rows {
        let container = HeldContainer {
            node: NodeId(row.try_get("", "node_id").map_err(&get)?),
            hostname: row.try_get("", "hostname").map_err(&get)?,
            container_id: row.try_get("", "container_id").map_err(&get)?,
        };
        held.entry(WorkspaceUid(row.try_get("", "id").map_err(&get)?)).or_insert(container);
    }
    Ok(held)
}

fn orphan(row: &QueryResult) -> Result<Orphan> {
    let get = StoreError::sort("read orphans");
    let student: String = row.try_get("", "student_id").map_err(&get)?;
    let withheld: bool = row.try_get("", "withheld").map_err(&get)?;
    let placement: Option<_> = row.try_get("", "placement_id").map_err(&get)?;
    let spec: Option<_> = row.try_get("", "spec").map_err(&get)?;
    Ok(Orphan {
        node: NodeId(row.try_get("", "node_id").map_err(&get)?),
        container: Container {
            container_id: row.try_get("", "container_id").map_err(&get)?,
            workspace: WorkspaceUid(row.try_get("", "workspace_id").map_err(&get)?),
            student: value("orphans", student.into())?,
            generation: Generation(row.try_get("", "generation").map_err(&get)?),
            incarnation: row.try_get("", "incarnation").map_err(&get)?,
            node: NodeId(row.try_get("", "made_by").map_err(&get)?),
            running: row.try_get("", "running").map_err(&get)?,
            placement: placement.map(PlacementId),
            spec: spec.map(|spec| value("orphans", spec)).transpose()?,
        },
        reason: if withheld { WITHHELD.to_owned() } else { row.try_get("", "reason").map_err(&get)? },
        first_seen_at: row.try_get("", "first_seen_at").map_err(&get)?,
    })
}

impl Store {
    /// Up to `limit` orphans that wait for an operator, in the order of node and container, after one.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn list_orphans(
        &self,
        node: Option<NodeId>,
        after: Option<(NodeId, String)>,
        limit: i64,
    ) -> Result<Vec<Orphan>> {
        let (after_node, after_container) = after.map(|(node, id)| (node.0, id)).unzip();
        let rows = self
            .db
            .query_all_raw(sql(
                &format!(
                    "{OPEN} AND ($1::uuid IS NULL OR node_id = $1)
                     AND ($2::uuid IS NULL OR (node_id, container_id COLLATE \"C\") > ($2, $3))
                     ORDER BY node_id, container_id COLLATE \"C\" LIMIT $4"
                ),
                [node.map(|id| id.0).into(), after_node.into(), after_container.into(), limit.into()],
            ))
            .await
            .map_err(StoreError::sort("list orphans"))?;
        rows.iter().map(orphan).collect()
    }

    /// Workspaces that may not be placed, each with a container of its student that still runs somewhere without an order.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn held_containers(&self) -> Result<HashMap<WorkspaceUid, HeldContainer>> {
        let rows = self.db.query_all_raw(sql(HELD, [])).await;
        held_containers(&rows.map_err(StoreError::sort("look for containers that were left alone"))?)
    }

    /// Containers on a node that an operator wants stopped.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn orphans_to_stop(&self, node: NodeId) -> Result<Vec<String>> {
        let operation = "read what operators said of orphans";
        let rows = self
            .db
            .query_all_raw(sql(
                "SELECT container_id FROM orphans WHERE node_id = $1 AND resolution = 'STOP' ORDER BY container_id",
                [node.0.into()],
            ))
            .await
            .map_err(StoreError::sort(operation))?;
        let ids = rows.iter().map(|row| row.try_get("", "container_id"));
        ids.collect::<std::result::Result<_, _>>().map_err(StoreError::sort(operation))
    }
}

impl Work {
    /// As [`Store::held_containers`]. Who judges a container locks its student's workspace first, or the student, so of a locked workspace
    /// this stays true until the end of the transaction.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn held_containers(&mut self) -> Result<HashMap<WorkspaceUid, HeldContainer>> {
        let rows = self.tx.query_all_raw(sql(HELD, [])).await;
        held_containers(&rows.map_err(StoreError::sort("look for containers that were left alone"))?)
    }

    /// Containers on a node, not given up, that run and keep their student waiting.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn held_on(&mut self, node: NodeId) -> Result<i64> {
        let operation = "count the containers that were left alone on a node";
        let row = self
            .tx
            .query_one_raw(sql(
                "SELECT count(*) AS count FROM orphans o JOIN nodes n ON n.id = o.node_id
                 WHERE o.node_id = $1 AND o.running AND o.own AND n.state <> 'FENCED'",
                [node.0.into()],
            ))
            .await
            .map_err(StoreError::sort(operation))?
            .ok_or(StoreError::Conflict { operation })?;
        row.try_get("", "count").map_err(StoreError::sort(operation))
    }

    /// Forgets the orphans of a node that are not among `reported`; of those, the ones that were to be stopped, and why.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn forget_orphans_but(
        &mut self,
        node: NodeId,
        reported: Vec<String>,
    ) -> Result<Vec<(Container, String)>> {
        let sorted = StoreError::sort("forget orphans");
        let rows = self
            .tx
            .query_all_raw(sql(
                "DELETE FROM orphans WHERE node_id = $1 AND container_id <> ALL ($2::text[])
                 RETURNING *, resolution = 'STOP' AS by_order, verdict = 'STOP' OR resolution = 'STOP' AS stopped",
                [node.0.into(), reported.into()],
            ))
            .await
            .map_err(&sorted)?;
        self.touched.queue |= !rows.is_empty();
        let mut stopped = Vec::new();
        for row in &rows {
            let by_order: Option<bool> = row.try_get("", "by_order").map_err(&sorted)?;
            let was_to_stop: Option<bool> = row.try_get("", "stopped").map_err(&sorted)?;
            if was_to_stop != Some(true) {
                continue;
            }
            let reason = match by_order {
                Some(true) => "OPERATOR".to_owned(),
                Some(false) | None => row.try_get("", "reason").map_err(&sorted)?,
            };
            stopped.push((orphan(row)?.container, reason));
        }
        Ok(stopped)
    }

    /// Whether an operator wants a container stopped.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn is_to_stop(&mut self, node: NodeId, container_id: &str) -> Result<bool> {
        let row = self
            .tx
            .query_one_raw(sql(
                "SELECT 1 FROM orphans WHERE node_id = $1 AND container_id = $2 AND resolution = 'STOP'",
                [node.0.into(), container_id.into()],
            ))
            .await
            .map_err(StoreError::sort("read what an operator said of an orphan"))?;
        Ok(row.is_some())
    }

    /// Keeps an orphan as it was reported and judged; whether that is news.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn keep_orphan(&mut self, node: NodeId, container: &Container, kept: &Kept) -> Result<bool> {
        let operation = "keep an orphan";
        let Kept { verdict, reason, own, withheld } = *kept;
        let verdict = if verdict == Verdict::Hold { "HOLD" } else { "STOP" };
        let Container {
            container_id,
            workspace,
            student,
            generation,
            incarnation,
            node: made_by,
            running,
            placement,
            spec,
        } = container;
        let spec = spec.as_ref().map(|spec| json("orphans", spec)).transpose()?;
        let row = self
            .tx
            .query_one_raw(sql(
                "WITH known AS (SELECT verdict, reason, withheld FROM orphans WHERE node_id = $1 AND container_id = $2)
                 INSERT INTO orphans (node_id, container_id, workspace_id, student_id, generation, incarnation,
                                           made_by, placement_id, running, verdict, reason, spec, own, withheld)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
                 ON CONFLICT (node_id, container_id) DO UPDATE
                 SET running = $9, verdict = $10, reason = $11, spec = $12, own = orphans.own OR $13, withheld = $14
                 RETURNING NOT EXISTS (SELECT 1 FROM known WHERE (verdict, reason, withheld) = ($10, $11, $14)) AS news",
                [
                    node.0.into(),
                    container_id.as_str().into(),
                    workspace.0.into(),
                    student.as_str().into(),
                    generation.0.into(),
                    (*incarnation).into(),
                    made_by.0.into(),
                    placement.map(|id| id.0).into(),
                    (*running).into(),
                    verdict.into(),
                    reason.into(),
                    spec.into(),
                    own.into(),
                    withheld.into(),
                ],
            ))
            .await
            .map_err(StoreError::sort(operation))?
            .ok_or(StoreError::Conflict { operation })?;
        row.try_get("", "news").map_err(StoreError::sort(operation))
    }

    /// An orphan that waits for an operator.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn find_orphan(&mut self, node: NodeId, container_id: &str) -> Result<Option<Orphan>> {
        self.one_orphan(node, container_id, "").await
    }

    /// As [`Work::find_orphan`], locked.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn lock_orphan(&mut self, node: NodeId, container_id: &str) -> Result<Option<Orphan>> {
        self.one_orphan(node, container_id, "FOR UPDATE").await
    }

    async fn one_orphan(
        &mut self,
        node: NodeId,
        container_id: &str,
        lock: &'static str,
    ) -> Result<Option<Orphan>> {
        let query = format!("{OPEN} AND node_id = $1 AND container_id = $2 {lock}");
        let row = self.tx.query_one_raw(sql(&query, [node.0.into(), container_id.into()])).await;
        row.map_err(StoreError::sort("find an orphan"))?.map(|row| orphan(&row)).transpose()
    }

    /// Has the node stop a locked orphan.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn stop_orphan(&mut self, node: NodeId, container_id: &str) -> Result<()> {
        self.tx
            .execute_raw(sql(
                "UPDATE orphans SET resolution = 'STOP' WHERE node_id = $1 AND container_id = $2",
                [node.0.into(), container_id.into()],
            ))
            .await
            .map_err(StoreError::sort("resolve an orphan"))?;
        self.touched.nodes.insert(node);
        Ok(())
    }

    /// Forgets an orphan: it has been taken into the store.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn forget_orphan(&mut self, node: NodeId, container_id: &str) -> Result<()> {
        self.tx
            .execute_raw(sql(
                "DELETE FROM orphans WHERE node_id = $1 AND container_id = $2",
                [node.0.into(), container_id.into()],
            ))
            .await
            .map_err(StoreError::sort("forget an orphan"))?;
        Ok(())
    }
}
