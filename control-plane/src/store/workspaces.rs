//! Workspaces: find, list, make, forget.

use std::time::Duration;

use carrel_common::id::{CourseId, Generation, NodeId, StudentId, WorkspaceUid};
use sea_orm::entity::prelude::*;
use sea_orm::sea_query::{Expr, Func, SimpleExpr};
use sea_orm::{ConnectionTrait, ExprTrait as _, IntoActiveModel, QueryOrder, QuerySelect};
use time::OffsetDateTime;

use super::error::{Result, StoreError};
use super::readable::{page, readable_workspaces};
use super::{Store, Work, entity, sql};
use crate::domain::behind::REACH;
use crate::domain::workspace::{State, Stays, Workspace};

/// Which workspaces; empty fields do not restrict.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WorkspaceQuery {
    /// In one of these states.
    pub states: Vec<State>,
    /// On this node.
    pub node: Option<NodeId>,
    /// For this course.
    pub course: Option<CourseId>,
    /// Running without activity for longer.
    pub idle_longer_than: Option<Duration>,
    /// Only these, by `StudentId::key`.
    pub keys: Vec<String>,
    /// After this `StudentId::key`.
    pub after_key: Option<String>,
}

fn key_column() -> SimpleExpr {
    Func::lower(Expr::col((entity::Entity, entity::Column::StudentId))).into()
}

impl Store {
    /// The student's workspace, unless it is deleted.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn find_workspace(&self, student: &StudentId) -> Result<Option<Workspace>> {
        entity::Entity::find()
            .filter(key_column().eq(student.key()))
            .filter(entity::Column::DeletedAt.is_null())
            .one(&self.db)
            .await
            .map_err(StoreError::sort("find a workspace"))?
            .map(TryInto::try_into)
            .transpose()
    }

    /// Workspaces by their uid, deleted ones too, as far as they can be read.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn workspaces_by_uid(&self, uids: Vec<WorkspaceUid>) -> Result<Vec<Workspace>> {
        let found = entity::Entity::find()
            .filter(entity::Column::Id.is_in(uids.into_iter().map(|uid| uid.0)))
            .all(&self.db)
            .await
            .map_err(StoreError::sort("read workspaces"))?;
        Ok(readable_workspaces(found))
    }

    /// A page of workspaces in the order of their student's key, as far as they can be read, and the key that the next page
    /// comes after.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn list_workspaces(
        &self,
        query: &WorkspaceQuery,
        page_size: usize,
    ) -> Result<(Vec<Workspace>, Option<String>)> {
        let mut select = entity::Entity::find()
            .filter(entity::Column::DeletedAt.is_null())
            .order_by_asc(key_column())
            .limit(u64::try_from(page_size).unwrap_or(u64::MAX).saturating_add(1));
        if !query.states.is_empty() {
            select = select.filter(entity::Column::State.is_in(query.states.iter().map(|s| s.as_str())));
        }
        if let Some(node) = query.node {
            select = select.filter(entity::Column::NodeId.eq(node.0));
        }
        if let Some(course) = &query.course {
            select = select.filter(entity::Column::CourseId.eq(course.as_str()));
        }
        if !query.keys.is_empty() {
            select = select.filter(key_column().is_in(query.keys.iter().map(String::as_str)));
        }
        if let Some(after) = &query.after_key {
            select = select.filter(key_column().gt(after.as_str()));
        }
        if let Some(idle) = query.idle_longer_than {
            select = select.filter(entity::Column::State.eq(State::Running.as_str())).filter(Expr::cust_with_values(
                "EXISTS (SELECT 1 FROM workspace_activity a WHERE a.workspace_id = workspaces.id
                         AND greatest(a.lms_input_at, a.editor_input_at, a.keep_working_at, a.job_at, workspaces.ready_at)
                             < clock_timestamp() - make_interval(secs => $1))",
                [idle.as_secs_f64()],
            ));
        }
        let found = select.all(&self.db).await.map_err(StoreError::sort("list workspaces"))?;
        let (found, next) = page(found, page_size, |last| Some(last.student_id.to_ascii_lowercase()));
        Ok((readable_workspaces(found), next))
    }

    /// Workspaces that have been in a moving state for longer than is allowed.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn overdue(&self, stays: &Stays) -> Result<Vec<WorkspaceUid>> {
        // As `Workspace::longest_stay` has it; the transaction that ends a stay asks that again.
        self.uids(
            "SELECT id FROM workspaces, LATERAL (SELECT state_since + make_interval(secs => CASE
                 WHEN state = 'STOPPING' THEN $4
                 WHEN state = 'PENDING' OR stage = '\"QUEUED\"' THEN $1
                 WHEN stage = '\"PULLING\"' THEN $2 ELSE $3 END) AS over_at) AS stay
             WHERE state IN ('PENDING', 'STARTING', 'STOPPING') AND deleted_at IS NULL
             AND over_at < clock_timestamp() AND (SELECT behind_since IS NULL FROM restoration)
             -- A start is overdue by its node's silence about it, not by our own absence: the node was heard of since.
             AND (state <> 'STARTING' OR EXISTS (SELECT 1 FROM nodes n WHERE n.id = node_id AND n.last_heartbeat_at > over_at))
             ORDER BY state_since LIMIT 500",
            [stays.pending, stays.pulling, stays.starting, stays.stopping].map(|span| span.as_secs_f64().into()),
            "look for stays that are too long",
        )
        .await
    }

    /// Workspaces whose placement is on a node.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn workspaces_on(&self, node: NodeId) -> Result<Vec<WorkspaceUid>> {
        self.uids(
            "SELECT id FROM workspaces WHERE node_id = $1 ORDER BY id",
            [node.0.into()],
            "read a node's workspaces",
        )
        .await
    }

    /// Workspaces that start on a node.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn starting_on(&self, node: NodeId) -> Result<Vec<WorkspaceUid>> {
        self.uids(
            "SELECT id FROM workspaces WHERE node_id = $1 AND state = 'STARTING' ORDER BY id",
            [node.0.into()],
            "read what starts on a node",
        )
        .await
    }

    pub(super) async fn uids(
        &self,
        query: &str,
        values: impl IntoIterator<Item = sea_orm::Value>,
        operation: &'static str,
    ) -> Result<Vec<WorkspaceUid>> {
        let rows = self.db.query_all_raw(sql(query, values)).await.map_err(StoreError::sort(operation))?;
        rows.iter()
            .map(|row| row.try_get("", "id").map(WorkspaceUid))
            .collect::<std::result::Result<_, _>>()
            .map_err(StoreError::sort(operation))
    }
}

/// Arbitrary, but ours: the first half of the advisory locks of students.
const STUDENT_LOCK: i32 = 0x5ca1;

impl Work {
    /// Locks a student who may have no workspace, to the end of the transaction: as long as there is no row to lock, none is made by
    /// anybody else.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn lock_student(&self, student: &StudentId) -> Result<()> {
        self.tx
            .execute_raw(sql(
                "SELECT pg_advisory_xact_lock($1, hashtext($2))",
                [STUDENT_LOCK.into(), student.key().into()],
            ))
            .await
            .map_err(StoreError::sort("lock a student"))?;
        Ok(())
    }

    /// The uid of the student's workspace; made, stopped and with the generation that a deleted one or a held container has, when
    /// there is none.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn find_or_make(&mut self, make: Workspace) -> Result<WorkspaceUid> {
        let operation = "make a workspace";
        let key = make.student.key();
        let found = |tx| async move {
            entity::Entity::find()
                .filter(key_column().eq(key.clone()))
                .filter(entity::Column::DeletedAt.is_null())
                .one(tx)
                .await
                .map_err(StoreError::sort(operation))
        };
        if let Some(model) = found.clone()(&self.tx).await? {
            return Ok(WorkspaceUid(model.id));
        }
        self.lock_student(&make.student).await?;
        let last = self
            .tx
            .query_one_raw(sql(
                // Also above a container that is held: a lower one would look as if the store had forgotten that. Of workspaces there
                // are but tombstones; said so, these are found by their index.
                "WITH gone AS (SELECT max(generation) AS generation FROM workspaces
                               WHERE lower(student_id) = $1 AND deleted_at IS NOT NULL)
                 SELECT max(known.generation) AS generation
                 FROM gone, (SELECT generation FROM gone
                             UNION ALL SELECT generation FROM orphans WHERE own AND lower(student_id) = $1) AS known
                 WHERE known.generation <= $2 + coalesce(gone.generation, 0)",
                [make.student.key().into(), REACH.into()],
            ))
            .await
            .map_err(StoreError::sort(operation))?
            .and_then(|row| row.try_get::<Option<i64>>("", "generation").ok().flatten())
            .unwrap_or(0);
        let make = Workspace { generation: make.generation.max(Generation(last)), ..make };
        let row = entity::Model::try_from(&make)?.into_active_model();
        // Two first starts at once: the second one waits for the first, and then finds its workspace.
        let made = entity::Entity::insert(row)
            .on_conflict_do_nothing()
            .exec_without_returning(&self.tx)
            .await
            .map_err(StoreError::sort(operation))?;
        let made = matches!(made, sea_orm::TryInsertResult::Inserted(rows) if rows > 0);
        if !made {
            return found(&self.tx)
                .await?
                .map(|model| WorkspaceUid(model.id))
                .ok_or(StoreError::Conflict { operation });
        }
        self.tx
            .execute_raw(sql(
                "INSERT INTO workspace_activity (workspace_id) VALUES ($1)",
                [make.uid.0.into()],
            ))
            .await
            .map_err(StoreError::sort(operation))?;
        // The new row carries the generation on; the tombstones have served.
        self.tx
            .execute_raw(sql(
                "DELETE FROM workspaces WHERE lower(student_id) = $1 AND deleted_at IS NOT NULL",
                [make.student.key().into()],
            ))
            .await
            .map_err(StoreError::sort(operation))?;
        Ok(make.uid)
    }

    /// The uid of the student's workspace, unless it is deleted.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn find_uid(&mut self, student: &StudentId) -> Result<Option<WorkspaceUid>> {
        let row = self
            .tx
            .query_one_raw(sql(
                "SELECT id FROM workspaces WHERE lower(student_id) = $1 AND deleted_at IS NULL",
                [student.key().into()],
            ))
            .await
            .map_err(StoreError::sort("find a workspace"))?;
        Ok(row.and_then(|row| row.try_get("", "id").ok()).map(WorkspaceUid))
    }

    /// The newest tombstone of a student.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn find_tombstone(&mut self, student: &StudentId) -> Result<Option<Workspace>> {
        entity::Entity::find()
            .filter(key_column().eq(student.key()))
            .filter(entity::Column::DeletedAt.is_not_null())
            .order_by_desc(entity::Column::Generation)
            .one(&self.tx)
            .await
            .map_err(StoreError::sort("find a tombstone"))?
            .map(TryInto::try_into)
            .transpose()
    }

    /// Whether anybody waits for a place, other than `uid`. Who waits for the end of another container is not in line.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn somebody_waits(&mut self, uid: WorkspaceUid, before: OffsetDateTime) -> Result<bool> {
        let row = self
            .tx
            .query_one_raw(sql(
                "SELECT EXISTS (SELECT 1 FROM workspaces WHERE state = 'PENDING' AND node_id IS NULL
                                AND deleted_at IS NULL AND id <> $1 AND started_at < $2
                                AND status_reason IS DISTINCT FROM '\"CONTAINER_HELD\"') AS waits",
                [uid.0.into(), before.into()],
            ))
            .await
            .map_err(StoreError::sort("look at the queue"))?;
        Ok(row.and_then(|row| row.try_get("", "waits").ok()).unwrap_or(false))
    }
}
