//! Many workspaces in one transaction: each step is as with one, the statements are not.

use carrel_common::id::{NodeId, PlacementId, WorkspaceUid};
use carrel_common::model::Resources;
use sea_orm::{ConnectionTrait, EntityTrait as _};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

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

/// A place that a workspace is to have.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// The workspace.
    pub workspace: WorkspaceUid,
    /// Where.
    pub node: NodeId,
    /// What it holds there.
    pub resources: Resources,
}

/// Whether all that became of a workspace is where it stands and what is said of it, as when its turn in line comes. The other
/// columns are the wider ones, and stay as they are.
fn is_a_turn(before: &Workspace, after: &Workspace) -> bool {
    let turned = Workspace {
        state: after.state,
        state_since: after.state_since,
        status_reason: after.status_reason,
        status_message: after.status_message.clone(),
        stage: after.stage,
        node: after.node,
        last_node: after.last_node,
        ..before.clone()
    };
    turned == *after && before.open_for_activity() == after.open_for_activity()
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
        // One value for all of them: with one for each, Postgres reads the whole table rather than the index.
        let models = entity::Entity::find()
            .from_raw_sql(sql(
                "SELECT * FROM workspaces WHERE id = ANY ($1) ORDER BY id FOR UPDATE",
                [ids.into()],
            ))
            .all(&self.tx)
            .await
            .map_err(&sorted)?;
        let now = self.now().await?;
        Ok((readable_workspaces(models), now))
    }

    /// Writes what steps made of locked workspaces, as [`Work::save`] does with one.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a row is no longer the one that was read.
    pub async fn save_many(&mut self, changes: Vec<Change>, now: OffsetDateTime) -> Result<()> {
        let operation = "write workspaces";
        let (mut rows, mut log) = (Vec::with_capacity(changes.len()), Vec::with_capacity(changes.len()));
        for Change { before, mut after, log: entries } in changes {
            if before == after {
                continue;
            }
            if !is_a_turn(&before, &after) {
                self.save(&before, after, entries, now).await?;
                continue;
            }
            after.version = before.version.saturating_add(1);
            rows.push(json!({
                "id": after.uid, "read": before.version, "version": after.version, "state": after.state,
                "state_since": after.state_since.format(&Rfc3339).map_err(|e| StoreError::Corrupt { table: "workspaces", problem: e.to_string() })?,
                "status_reason": after.status_reason, "status_message": after.status_message, "stage": after.stage,
                "node_id": after.node, "last_node_id": after.last_node,
            }));
            self.note(&before, &after);
            log.extend(told(&before, &after, entries));
        }
        if rows.is_empty() {
            return Ok(());
        }
        let count = u64::try_from(rows.len()).unwrap_or(u64::MAX);
        let done = self
            .tx
            .execute_raw(sql(
                "UPDATE workspaces w
                 SET version = c.version, state = c.state, state_since = c.state_since, status_reason = c.status_reason,
                     status_message = c.status_message, stage = c.stage, node_id = c.node_id,
                     last_node_id = c.last_node_id, updated_at = $2
                 FROM jsonb_to_recordset($1) AS c (id uuid, read bigint, version bigint, state text,
                      state_since timestamptz, status_reason jsonb, status_message text, stage jsonb, node_id uuid,
                      last_node_id uuid)
                 WHERE w.id = c.id AND w.version = c.read",
                [serde_json::Value::Array(rows).into(), now.into()],
            ))
            .await
            .map_err(StoreError::sort(operation))?;
        if done.rows_affected() != count {
            return Err(StoreError::Conflict { operation });
        }
        self.append_many(log).await
    }

    /// Claims the places that saved workspaces are to have, each on its node. What they are made of is in their rows. The database
    /// refuses a second unreleased claim of a workspace.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a workspace has a placement already.
    pub async fn insert_placements(&mut self, claims: &[Claim]) -> Result<()> {
        let each = |column: fn(&Claim) -> i64| claims.iter().map(column).collect::<Vec<_>>();
        let ids: Vec<_> = claims.iter().map(|_| PlacementId::new().0).collect();
        let workspaces: Vec<_> = claims.iter().map(|claim| claim.workspace.0).collect();
        let nodes: Vec<_> = claims.iter().map(|claim| claim.node.0).collect();
        let cpu = each(|claim| claim.resources.cpu_millicores);
        let memory = each(|claim| claim.resources.memory_bytes);
        self.tx
            .execute_raw(sql(
                "INSERT INTO placements (id, workspace_id, node_id, generation, spec, cpu_millicores, memory_bytes, incarnation)
                 SELECT c.id, c.workspace, c.node, w.generation, w.spec, c.cpu, c.memory, cluster.incarnation
                 FROM cluster, unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::bigint[], $5::bigint[])
                      AS c (id, workspace, node, cpu, memory),
                      LATERAL (SELECT generation, spec FROM workspaces WHERE id = c.workspace OFFSET 0) w",
                [ids.into(), workspaces.into(), nodes.into(), cpu.into(), memory.into()],
            ))
            .await
            .map_err(StoreError::sort("claim places"))?;
        self.touched.nodes.extend(claims.iter().map(|claim| claim.node));
        Ok(())
    }
}
