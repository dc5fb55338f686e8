//! The event log: written in the transaction of the change, read so that nothing that commits late is missed.

use std::fmt;
use std::str::FromStr;

use carrel_common::id::{NodeId, WorkspaceUid};
use sea_orm::{ConnectionTrait, Statement, Value};
use time::OffsetDateTime;

use super::error::{Result, StoreError};
use super::{Store, Work, column, sql};
use crate::domain::event::{Entry, Subject};

/// A place in the log. Events are read in the order of (transaction, id), and only below the oldest open transaction:
/// by id alone a reader that has seen 2 would never get 1, committed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    /// The transaction that wrote it.
    pub xid: i64,
    /// Its id.
    pub id: i64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.xid, self.id)
    }
}

impl FromStr for Position {
    type Err = ();
    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        let (xid, id) = text.split_once('.').ok_or(())?;
        Ok(Self { xid: xid.parse().map_err(|_| ())?, id: id.parse().map_err(|_| ())? })
    }
}

/// One event, as it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredEvent {
    /// Where it stands.
    pub position: Position,
    /// When, by the database's clock.
    pub at: OffsetDateTime,
    /// What.
    pub kind: String,
    /// Of which workspace.
    pub workspace: Option<WorkspaceUid>,
    /// Of which student.
    pub student: Option<String>,
    /// Of which node.
    pub node: Option<NodeId>,
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// More.
    pub data: serde_json::Value,
}

/// Which events; empty fields do not restrict.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventQuery {
    /// Of one of these kinds.
    pub kinds: Vec<String>,
    /// Of the student with this key.
    pub student_key: Option<String>,
    /// Of this node.
    pub node: Option<NodeId>,
    /// Newest first.
    pub newest_first: bool,
    /// After this one, in the order asked for.
    pub after: Option<Position>,
}

/// Only the predicates that are asked for, so that each query finds its index: the log is long, its end is what is read.
fn query(asked: &EventQuery, limit: i64) -> Statement {
    let mut values: Vec<Value> = Vec::new();
    let mut wanted = vec!["xid < pg_snapshot_xmin(pg_current_snapshot())::text::bigint".to_owned()];
    let mut bind = |value: Value| {
        values.push(value);
        format!("${}", values.len())
    };
    if let Some(key) = &asked.student_key {
        wanted.push(format!("student_id IS NOT NULL AND lower(student_id) = {}", bind(key.clone().into())));
    }
    if let Some(node) = asked.node {
        wanted.push(format!("node_id = {}", bind(node.0.into())));
    }
    if !asked.kinds.is_empty() {
        wanted.push(format!("kind = ANY ({}::text[])", bind(asked.kinds.clone().into())));
    }
    let (compare, order) = if asked.newest_first { ("<", "DESC") } else { (">", "ASC") };
    if let Some(Position { xid, id }) = asked.after {
        wanted.push(format!("(xid, id) {compare} ({}, {})", bind(xid.into()), bind(id.into())));
    }
    let limit = bind(limit.into());
    let text = format!(
        "SELECT xid, id, at, kind, workspace_id, student_id, node_id, actor, reason, data FROM events
         WHERE {} ORDER BY xid {order}, id {order} LIMIT {limit}",
        wanted.join(" AND ")
    );
    sql(&text, values)
}

impl Store {
    /// Up to `limit` events.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn list_events(&self, asked: &EventQuery, limit: i64) -> Result<Vec<StoredEvent>> {
        let rows = self
            .db
            .query_all_raw(query(asked, limit))
            .await
            .map_err(StoreError::sort("read the event log"))?;
        let read = |row: &sea_orm::QueryResult| -> std::result::Result<_, sea_orm::DbErr> {
            Ok(StoredEvent {
                position: Position { xid: row.try_get("", "xid")?, id: row.try_get("", "id")? },
                at: row.try_get("", "at")?,
                kind: row.try_get("", "kind")?,
                workspace: row
                    .try_get::<Option<sea_orm::prelude::Uuid>>("", "workspace_id")?
                    .map(WorkspaceUid),
                student: row.try_get("", "student_id")?,
                node: row.try_get::<Option<sea_orm::prelude::Uuid>>("", "node_id")?.map(NodeId),
                actor: row.try_get("", "actor")?,
                reason: row.try_get("", "reason")?,
                data: row.try_get("", "data")?,
            })
        };
        rows.iter()
            .map(read)
            .collect::<std::result::Result<_, _>>()
            .map_err(StoreError::sort("read the event log"))
    }

    /// The place after which only events come that are not visible yet.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn events_tail(&self) -> Result<Position> {
        let row = self
            .db
            .query_one_raw(sql("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS xid", []))
            .await
            .map_err(StoreError::sort("find the end of the event log"))?;
        let xid = row.and_then(|row| row.try_get("", "xid").ok()).unwrap_or_default();
        Ok(Position { xid, id: 0 })
    }

    /// The last event that was dropped for its age: a reader that stands before it has missed something.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn events_pruned(&self) -> Result<Option<Position>> {
        let row = self
            .db
            .query_one_raw(sql("SELECT pruned_position FROM cluster", []))
            .await
            .map_err(StoreError::sort("read how far the event log goes back"))?;
        Ok(row
            .and_then(|row| row.try_get::<String>("", "pruned_position").ok())
            .and_then(|text| text.parse().ok()))
    }
}

impl Work {
    /// Appends many to the log, in this order.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn append_many(&mut self, entries: Vec<(Subject, Entry)>) -> Result<()> {
        let of = &entries[..];
        let workspace = |(subject, _): &(Subject, _)| {
            subject.workspace.as_ref().map_or_else(String::new, |(uid, _)| uid.to_string())
        };
        let student = |(subject, _): &(Subject, _)| {
            subject.workspace.as_ref().map_or_else(String::new, |(_, student)| student.to_string())
        };
        let node =
            |(subject, _): &(Subject, _)| subject.node.map_or_else(String::new, |node| node.to_string());
        self.tx
            .execute_raw(sql(
                "INSERT INTO events (kind, workspace_id, student_id, node_id, actor, reason, data)
                 SELECT kind, nullif(workspace, '')::uuid, nullif(student, ''), nullif(node, '')::uuid, actor, reason, data
                 FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::jsonb[])
                      AS e (kind, workspace, student, node, actor, reason, data)",
                [
                    column(of, |(_, entry)| entry.kind.to_owned()),
                    column(of, workspace),
                    column(of, student),
                    column(of, node),
                    column(of, |(_, entry)| entry.actor.as_str().to_owned()),
                    column(of, |(_, entry)| entry.reason.clone()),
                    column(of, |(_, entry)| serde_json::Value::Object(entry.data.clone())),
                ],
            ))
            .await
            .map_err(StoreError::sort("append to the event log"))?;
        self.touched.events = true;
        Ok(())
    }

    /// Appends to the log.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn append(&mut self, subject: Subject, entry: Entry) -> Result<()> {
        let (uid, student) = match subject.workspace {
            Some((uid, student)) => (Some(uid.0), Some(student.to_string())),
            None => (None, None),
        };
        self.tx
            .execute_raw(sql(
                "INSERT INTO events (kind, workspace_id, student_id, node_id, actor, reason, data)
                 VALUES ($1, $2, $3, $4, $5, $6, $7)",
                [
                    entry.kind.into(),
                    uid.into(),
                    student.into(),
                    subject.node.map(|node| node.0).into(),
                    entry.actor.as_str().into(),
                    entry.reason.into(),
                    serde_json::Value::Object(entry.data).into(),
                ],
            ))
            .await
            .map_err(StoreError::sort("append to the event log"))?;
        self.touched.events = true;
        Ok(())
    }
}
