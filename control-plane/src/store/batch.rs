//! Many workspaces in one transaction: each step is as with one, the statements are not.

use carrel_common::id::{NodeId, PlacementId, WorkspaceUid};
use carrel_common::model::Resources;
use sea_orm::{ConnectionTrait, EntityTrait as _};
use time::OffsetDateTime;

use super::error::{Result, StoreError};
use super::readable::readable_workspaces;
use super::work::told;
use super::{Work, column, entity, sql};
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
    /// Locks workspaces as [`Work::lock`] does: all activity rows first, in the order of their students' keys, then the workspaces in that
    /// of their ids; those that are gone, or cannot be read, are left out. And the database's time.
    ///
    /// # Errors
    /// When the database cannot be reached, or the locks are not had in time.
    pub async fn lock_many(&mut self, uids: &[WorkspaceUid]) -> Result<(Vec<Workspace>, OffsetDateTime)> {
        let sorted = StoreError::sort("lock workspaces");
        let ids: Vec<_> = uids.iter().map(|uid| uid.0).collect();
        self.tx
            .execute_raw(sql(
                "SELECT 1 AS one FROM workspace_activity WHERE workspace_id = ANY ($1) ORDER BY student_key FOR UPDATE",
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
        let (mut turns, mut log) = (Vec::with_capacity(changes.len()), Vec::with_capacity(changes.len()));
        for Change { before, mut after, log: entries } in changes {
            if before == after {
                continue;
            }
            if !is_a_turn(&before, &after) {
                self.save(&before, after, entries, now).await?;
                continue;
            }
            after.version = before.version.saturating_add(1);
            self.note(&before, &after);
            log.extend(told(&before, &after, entries));
            turns.push((before.version, after));
        }
        if turns.is_empty() {
            return Ok(());
        }
        let count = u64::try_from(turns.len()).unwrap_or(u64::MAX);
        let of = &turns[..];
        let reasons: Vec<_> = of
            .iter()
            .map(|(_, after)| entity::json("workspaces", &after.status_reason))
            .collect::<Result<_>>()?;
        let stages: Vec<_> =
            of.iter().map(|(_, after)| entity::json("workspaces", &after.stage)).collect::<Result<_>>()?;
        let text = |node: Option<NodeId>| node.map_or_else(String::new, |node| node.to_string());
        let done = self
            .tx
            .execute_raw(sql(
                "UPDATE workspaces w
                 SET version = c.version, state = c.state, state_since = c.state_since,
                     status_reason = nullif(c.status_reason, 'null'), status_message = c.status_message,
                     stage = nullif(c.stage, 'null'), node_id = nullif(c.node_id, '')::uuid,
                     last_node_id = nullif(c.last_node_id, '')::uuid, updated_at = $1
                 FROM unnest($2::uuid[], $3::bigint[], $4::bigint[], $5::text[], $6::timestamptz[], $7::jsonb[], $8::text[],
                             $9::jsonb[], $10::text[], $11::text[])
                      AS c (id, read, version, state, state_since, status_reason, status_message, stage, node_id, last_node_id)
                 WHERE w.id = c.id AND w.version = c.read",
                [
                    now.into(),
                    column(of, |(_, after)| after.uid.0),
                    column(of, |(read, _)| *read),
                    column(of, |(_, after)| after.version),
                    column(of, |(_, after)| after.state.as_str().to_owned()),
                    column(of, |(_, after)| after.state_since),
                    column(&reasons, Clone::clone),
                    column(of, |(_, after)| after.status_message.clone()),
                    column(&stages, Clone::clone),
                    column(of, |(_, after)| text(after.node)),
                    column(of, |(_, after)| text(after.last_node)),
                ],
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
        self.tx
            .execute_raw(sql(
                "INSERT INTO placements (id, workspace_id, node_id, generation, spec, cpu_millicores, memory_bytes, incarnation)
                 SELECT c.id, c.workspace, c.node, w.generation, w.spec, c.cpu, c.memory, cluster.incarnation
                 FROM cluster, unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::bigint[], $5::bigint[])
                      AS c (id, workspace, node, cpu, memory),
                      LATERAL (SELECT generation, spec FROM workspaces WHERE id = c.workspace OFFSET 0) w",
                [
                    column(claims, |_| PlacementId::new().0),
                    column(claims, |claim| claim.workspace.0),
                    column(claims, |claim| claim.node.0),
                    column(claims, |claim| claim.resources.cpu_millicores),
                    column(claims, |claim| claim.resources.memory_bytes),
                ],
            ))
            .await
            .map_err(StoreError::sort("claim places"))?;
        self.touched.nodes.extend(claims.iter().map(|claim| claim.node));
        Ok(())
    }
}
