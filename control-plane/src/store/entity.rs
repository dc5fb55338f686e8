//! The row of a workspace, and its way to a domain value and back. Private to the store.

use carrel_common::id::{Generation, NodeId, WorkspaceUid};
use sea_orm::entity::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;

use super::error::StoreError;
use crate::domain::workspace::Workspace;

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "workspaces")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub student_id: String,
    pub course_id: Option<String>,
    pub state: String,
    pub state_since: OffsetDateTime,
    pub desired: String,
    pub generation: i64,
    pub version: i64,
    pub status_reason: Option<Json>,
    pub status_message: String,
    pub stage: Option<Json>,
    pub pull_percent: i16,
    pub attempts: Option<Json>,
    pub node_id: Option<Uuid>,
    pub last_node_id: Option<Uuid>,
    pub spec: Json,
    pub image_digest: String,
    pub endpoint: Option<String>,
    pub stop: Option<Json>,
    pub force: bool,
    pub warning: Option<Json>,
    pub extended_until: Option<OffsetDateTime>,
    pub resumed_at: Option<OffsetDateTime>,
    pub deletion: Option<Json>,
    pub deleted_at: Option<OffsetDateTime>,
    pub created_at: OffsetDateTime,
    pub started_at: Option<OffsetDateTime>,
    pub ready_at: Option<OffsetDateTime>,
    pub updated_at: OffsetDateTime,
    pub traceparent: String,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

pub(super) fn json<T: Serialize>(table: &'static str, value: &T) -> Result<Json, StoreError> {
    serde_json::to_value(value).map_err(|e| StoreError::Corrupt { table, problem: e.to_string() })
}

pub(super) fn value<T: DeserializeOwned>(table: &'static str, json: Json) -> Result<T, StoreError> {
    serde_json::from_value(json).map_err(|e| StoreError::Corrupt { table, problem: e.to_string() })
}

fn maybe_json<T: Serialize>(value: Option<&T>) -> Result<Option<Json>, StoreError> {
    value.map(|value| json("workspaces", value)).transpose()
}

fn maybe<T: DeserializeOwned>(json: Option<Json>) -> Result<Option<T>, StoreError> {
    json.map(|json| value("workspaces", json)).transpose()
}

fn name<T: DeserializeOwned>(text: String) -> Result<T, StoreError> {
    value("workspaces", Json::String(text))
}

impl TryFrom<Model> for Workspace {
    type Error = StoreError;
    fn try_from(row: Model) -> Result<Self, StoreError> {
        Ok(Self {
            uid: WorkspaceUid(row.id),
            student: name(row.student_id)?,
            course: row.course_id.map(name).transpose()?,
            state: name(row.state)?,
            state_since: row.state_since,
            desired: name(row.desired)?,
            generation: Generation(row.generation),
            version: row.version,
            status_reason: maybe(row.status_reason)?,
            status_message: row.status_message,
            stage: maybe(row.stage)?,
            pull_percent: u8::try_from(row.pull_percent).unwrap_or_default(),
            attempts: maybe(row.attempts)?,
            node: row.node_id.map(NodeId),
            last_node: row.last_node_id.map(NodeId),
            spec: value("workspaces", row.spec)?,
            image_digest: row.image_digest,
            endpoint: row.endpoint,
            stop: maybe(row.stop)?,
            force: row.force,
            warning: maybe(row.warning)?,
            extended_until: row.extended_until,
            resumed_at: row.resumed_at,
            deletion: maybe(row.deletion)?,
            deleted_at: row.deleted_at,
            created_at: row.created_at,
            started_at: row.started_at,
            ready_at: row.ready_at,
            updated_at: row.updated_at,
            traceparent: row.traceparent,
        })
    }
}

impl TryFrom<&Workspace> for Model {
    type Error = StoreError;
    fn try_from(w: &Workspace) -> Result<Self, StoreError> {
        let desired = json("workspaces", &w.desired)?;
        Ok(Self {
            id: w.uid.0,
            student_id: w.student.to_string(),
            course_id: w.course.as_ref().map(ToString::to_string),
            state: w.state.as_str().to_owned(),
            state_since: w.state_since,
            desired: desired.as_str().unwrap_or_default().to_owned(),
            generation: w.generation.0,
            version: w.version,
            status_reason: maybe_json(w.status_reason.as_ref())?,
            status_message: w.status_message.clone(),
            stage: maybe_json(w.stage.as_ref())?,
            pull_percent: i16::from(w.pull_percent),
            attempts: maybe_json(w.attempts.as_ref())?,
            node_id: w.node.map(|node| node.0),
            last_node_id: w.last_node.map(|node| node.0),
            spec: json("workspaces", &w.spec)?,
            image_digest: w.image_digest.clone(),
            endpoint: w.endpoint.clone(),
            stop: maybe_json(w.stop.as_ref())?,
            force: w.force,
            warning: maybe_json(w.warning.as_ref())?,
            extended_until: w.extended_until,
            resumed_at: w.resumed_at,
            deletion: maybe_json(w.deletion.as_ref())?,
            deleted_at: w.deleted_at,
            created_at: w.created_at,
            started_at: w.started_at,
            ready_at: w.ready_at,
            updated_at: w.updated_at,
            traceparent: w.traceparent.clone(),
        })
    }
}
