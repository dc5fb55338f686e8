//! Claims of workspaces on nodes.

use std::collections::HashMap;
use std::time::Duration;

use carrel_common::id::{Generation, NodeId, PlacementId, StudentId, WorkspaceUid};
use carrel_common::model::{DesiredPair, Resources, WorkspaceSpec};
use sea_orm::{ConnectionTrait, QueryResult};

use super::entity::{json, value};
use super::error::{Result, StoreError};
use super::readable::{readable, readable_workspaces};
use super::{Store, Work, sql};
use crate::domain::reconcile::Placement;
use crate::domain::workspace::Workspace;

fn read(row: &QueryResult) -> Result<Placement> {
    let get = StoreError::sort("read placements");
    Ok(Placement {
        id: PlacementId(row.try_get("", "placement_id").map_err(&get)?),
        workspace: WorkspaceUid(row.try_get("", "workspace_id").map_err(&get)?),
        node: NodeId(row.try_get("", "node_id").map_err(&get)?),
        generation: Generation(row.try_get("", "generation").map_err(&get)?),
        incarnation: row.try_get("", "incarnation").map_err(&get)?,
        spec: value::<WorkspaceSpec>("placements", row.try_get("", "spec").map_err(&get)?)?,
    })
}

/// How the orders of a node stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrdersState {
    /// Version of its desired set.
    pub pair: DesiredPair,
    /// No set may be sent: the store is behind, or the node has not told yet what it runs since it was declared restored.
    pub held: bool,
}

/// What is placed on a node, all of one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct PlacedOn {
    /// How its orders stand.
    pub orders: OrdersState,
    /// The unreleased placements, with their workspaces, as far as they can be read.
    pub placed: Vec<(Placement, Workspace)>,
    /// That is all of them.
    pub whole: bool,
}

const ORDERS: &str = "
SELECT c.incarnation, n.desired_generation, r.behind_since IS NOT NULL OR n.id = ANY (r.awaited_nodes) AS held
FROM cluster c, restoration r, nodes n WHERE n.id = $1 AND n.removed_at IS NULL AND n.banned_at IS NULL";

async fn orders(connection: &impl ConnectionTrait, node: NodeId) -> Result<Option<OrdersState>> {
    let sorted = StoreError::sort("read the version of a desired set");
    let row = connection.query_one_raw(sql(ORDERS, [node.0.into()])).await.map_err(&sorted)?;
    let read = |row: QueryResult| -> std::result::Result<_, sea_orm::DbErr> {
        let (incarnation, generation) =
            (row.try_get("", "incarnation")?, row.try_get("", "desired_generation")?);
        Ok(OrdersState { pair: DesiredPair { incarnation, generation }, held: row.try_get("", "held")? })
    };
    row.map(read).transpose().map_err(sorted)
}

impl Store {
    /// What is placed on a node, and how its orders stand; `None` when it was banned, or taken out.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn placements_on(&self, node: NodeId) -> Result<Option<PlacedOn>> {
        use sea_orm::{EntityTrait as _, QueryFilter as _};
        let operation = "read a node's desired set";
        let tx = self.db.begin_snapshot().await.map_err(StoreError::sort(operation))?;
        let Some(orders) = orders(&tx, node).await? else { return Ok(None) };
        let rows = tx
            .query_all_raw(sql(
                "SELECT id AS placement_id, workspace_id, node_id, generation, incarnation, spec FROM placements
                 WHERE node_id = $1 AND released_at IS NULL",
                [node.0.into()],
            ))
            .await
            .map_err(StoreError::sort(operation))?;
        let placements = readable(rows.iter().map(|row| (row.try_get("", "workspace_id").ok(), read(row))));
        let ids: Vec<_> = placements.iter().map(|p| p.workspace.0).collect();
        let models = super::entity::Entity::find()
            .filter(sea_orm::ColumnTrait::is_in(&super::entity::Column::Id, ids))
            .all(&tx)
            .await
            .map_err(StoreError::sort(operation))?;
        tx.commit().await.map_err(StoreError::sort(operation))?;
        let workspaces = readable_workspaces(models).into_iter().map(|workspace| (workspace.uid, workspace));
        let mut workspaces: HashMap<_, _> = workspaces.collect();
        let with_workspace = |p: Placement| workspaces.remove(&p.workspace).map(|workspace| (p, workspace));
        let placed: Vec<_> = placements.into_iter().filter_map(with_workspace).collect();
        let whole = placed.len() == rows.len();
        Ok(Some(PlacedOn { orders, placed, whole }))
    }

    /// A version for a set of a node that is not whole. No whole set ever has it, and the next that is read has a later one.
    /// `None`: the node's set is not at `known` any more.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn version_of_part(&self, node: NodeId, known: DesiredPair) -> Result<Option<DesiredPair>> {
        let sorted = StoreError::sort("name a part of a desired set");
        let row = self
            .db
            .query_one_raw(sql(
                "UPDATE nodes SET desired_generation = desired_generation + 2 WHERE id = $1 AND desired_generation = $2
                 RETURNING desired_generation - 1 AS generation",
                [node.0.into(), known.generation.into()],
            ))
            .await
            .map_err(&sorted)?;
        let generation = row.map(|row| row.try_get("", "generation")).transpose().map_err(&sorted)?;
        Ok(generation.map(|generation| DesiredPair { generation, ..known }))
    }

    /// How a node's orders stand; `None` when the node was banned, or taken out.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn orders_state(&self, node: NodeId) -> Result<Option<OrdersState>> {
        orders(&self.db, node).await
    }
}

impl Work {
    /// Claims a place that holds so much. The database refuses a second unreleased claim of the same workspace.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the workspace has a placement already.
    pub async fn insert_placement(
        &mut self,
        workspace: &Workspace,
        node: NodeId,
        holds: Resources,
    ) -> Result<PlacementId> {
        let id = PlacementId::new();
        self.insert_placement_as(id, None, workspace, (node, holds)).await?;
        Ok(id)
    }

    /// Claims the place of what runs already, under the name and the incarnation of the store that its labels tell; `None` is
    /// the present incarnation.
    ///
    /// # Errors
    /// As [`Work::insert_placement`].
    pub async fn insert_placement_as(
        &mut self,
        id: PlacementId,
        incarnation: Option<i64>,
        workspace: &Workspace,
        (node, holds): (NodeId, Resources),
    ) -> Result<()> {
        self.tx
            .execute_raw(sql(
                "INSERT INTO placements
                     (id, workspace_id, node_id, generation, spec, cpu_millicores, memory_bytes, incarnation, confirmed_in)
                 SELECT $1, $2, $3, $4, $5, $6, $7, coalesce($8, c.incarnation), c.incarnation FROM cluster c",
                [
                    id.0.into(),
                    workspace.uid.0.into(),
                    node.0.into(),
                    workspace.generation.0.into(),
                    json("placements", &workspace.spec)?.into(),
                    holds.cpu_millicores.into(),
                    holds.memory_bytes.into(),
                    incarnation.into(),
                ],
            ))
            .await
            .map_err(StoreError::sort("claim a place"))?;
        self.touched.nodes.insert(node);
        Ok(())
    }

    /// Whether a placement of this name was ever made.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn placement_is_known(&mut self, id: PlacementId) -> Result<bool> {
        let row = self
            .tx
            .query_one_raw(sql("SELECT 1 AS one FROM placements WHERE id = $1", [id.0.into()]))
            .await
            .map_err(StoreError::sort("find a placement"))?;
        Ok(row.is_some())
    }

    /// Whether a student was ever placed on a node, as far as that is kept.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn was_placed_on(&mut self, node: NodeId, student: &StudentId) -> Result<bool> {
        let row = self
            .tx
            .query_one_raw(sql(
                "SELECT 1 FROM workspaces w JOIN placements p ON p.workspace_id = w.id AND p.node_id = $1
                 WHERE lower(w.student_id) = $2 LIMIT 1",
                [node.0.into(), student.key().into()],
            ))
            .await
            .map_err(StoreError::sort("look whether a student was placed on a node"))?;
        Ok(row.is_some())
    }

    /// The unreleased placement of a workspace.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn find_placement(&mut self, workspace: WorkspaceUid) -> Result<Option<Placement>> {
        let row = self
            .tx
            .query_one_raw(sql(
                "SELECT id AS placement_id, workspace_id, node_id, generation, incarnation, spec FROM placements
                 WHERE workspace_id = $1 AND released_at IS NULL",
                [workspace.0.into()],
            ))
            .await
            .map_err(StoreError::sort("find a placement"))?;
        row.map(|row| read(&row)).transpose()
    }

    /// Ends a claim, on the agent's proof; with how long the stop took, when there was one: estimates are made of it. One
    /// statement: the database looks at the node again for a row that one transaction writes twice, and its lock of the
    /// node's key stands in the way of all others that end a claim there.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn release_placement(
        &mut self,
        placement: &Placement,
        stop_took: Option<Duration>,
    ) -> Result<()> {
        self.tx
            .execute_raw(sql(
                "UPDATE placements SET released_at = clock_timestamp(), stop_seconds = coalesce($2, stop_seconds)
                 WHERE id = $1 AND released_at IS NULL",
                [placement.id.0.into(), stop_took.map(|took| took.as_secs_f64()).into()],
            ))
            .await
            .map_err(StoreError::sort("release a placement"))?;
        self.touched.nodes.insert(placement.node);
        self.touched.queue = true;
        Ok(())
    }
}
