//! The narrow table that heartbeats write, and what deadlines are derived from.

use std::collections::HashMap;
use std::time::Duration;

use carrel_common::id::{Generation, NodeId, StudentId, WorkspaceUid};
use carrel_common::model::Signal;
use sea_orm::{ConnectionTrait, QueryResult};
use time::OffsetDateTime;

use super::beats::newer;
use super::entity::value;
use super::error::{Result, StoreError};
use super::nodes::HAS_TOLD;
use super::readable::readable;
use super::{Store, Work, sql};
use crate::domain::activity::{Acked, Activity, Awake, BySignal};
use crate::domain::workspace::{Warning, Workspace};

/// What is known of activity, of the table `a`.
pub(super) const ACTIVITY: &str = "
    a.workspace_id, a.lms_input_at, a.editor_input_at, a.keep_working_at, a.job_at, a.awake_until,
    a.awake_granted_seconds, a.acked_warning_at, a.warning_acked_at, a.version AS deadline_version";

/// What a deadline is derived from beside the activity, of the table `w`. Of a workspace that runs the row of activity has copies,
/// which the database keeps (the migration `one_lookup`): what is added here is added there.
pub(super) const CLOCKED: &str = "
    w.id, w.student_id, w.course_id, w.node_id, w.state, w.generation, w.ready_at, w.extended_until, w.resumed_at, w.warning";

/// The column of a signal.
fn column(signal: Signal) -> &'static str {
    match signal {
        Signal::LmsInput => "lms_input_at",
        Signal::EditorInput => "editor_input_at",
        Signal::KeepWorking => "keep_working_at",
        Signal::Job => "job_at",
    }
}

/// A century, in seconds.
const LIFETIME_WITHOUT_END: f64 = 3e9;

/// What a sweep has to look at: only the narrow rows of what is open are read, all else has an index. A statement of its own,
/// since the planner cannot know how few they are, and would read every workspace that runs.
const MAY_BE_DUE: &str = "
SELECT a.workspace_id AS id FROM workspace_activity a
WHERE NOT a.closed AND coalesce({seen} <= now() - make_interval(secs => $1), true)
UNION SELECT id FROM workspaces WHERE warning IS NOT NULL
UNION SELECT id FROM workspaces WHERE state = 'RUNNING' AND ready_at <= now() - make_interval(secs => $2)
UNION SELECT id FROM workspaces WHERE node_id = ANY ($3::uuid[])";

/// Younger than this everybody is left alone by a sweep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SweepLimits {
    /// The signals that count for everybody.
    pub counts: BySignal<bool>,
    /// From the basis of idleness.
    pub idle: Duration,
    /// From readiness; `None`: no lifetime ends.
    pub lifetime: Option<Duration>,
    /// Before the end of an extension or of a declared job.
    pub held: Duration,
    /// Nodes on which nobody is left alone.
    pub emptied: Vec<NodeId>,
}

pub(super) fn refuse<T>(result: std::result::Result<T, sea_orm::DbErr>) -> Result<T> {
    result.map_err(StoreError::sort("read activity"))
}

/// A column that may be NULL; read past `sea_orm`, which formats an error for each that is: most are, and heartbeats read many.
pub(super) fn nullable<T>(row: &QueryResult, column: &str) -> Result<Option<T>>
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    use sqlx::Row as _;
    let corrupt = |problem: String| StoreError::Corrupt { table: "workspaces", problem };
    let row = row.try_as_pg_row().ok_or_else(|| corrupt("the row is not of Postgres".into()))?;
    row.try_get(column).map_err(|error| corrupt(error.to_string()))
}

/// The activity of a row that has [`ACTIVITY`].
pub(super) fn activity(row: &QueryResult) -> Result<Activity> {
    let time = |column| nullable::<OffsetDateTime>(row, column);
    let granted: f64 = refuse(row.try_get("", "awake_granted_seconds"))?;
    let acked = match (time("acked_warning_at")?, time("warning_acked_at")?) {
        (Some(warned_at), Some(at)) => Some(Acked { warned_at, at }),
        _ => None,
    };
    Ok(Activity {
        seen: BySignal {
            lms_input: time("lms_input_at")?,
            editor_input: time("editor_input_at")?,
            keep_working: time("keep_working_at")?,
            job: time("job_at")?,
        },
        awake: Awake {
            until: time("awake_until")?,
            granted: Duration::try_from_secs_f64(granted).unwrap_or_default(),
        },
        acked,
        version: refuse(row.try_get("", "deadline_version"))?,
    })
}

/// A workspace of which nothing else is known: no deadline needs what it runs.
pub(super) fn bare(uid: WorkspaceUid, student: StudentId, generation: Generation) -> Workspace {
    let spec = carrel_common::model::WorkspaceSpec {
        image: String::new(),
        resources: carrel_common::model::Resources { cpu_millicores: 0, memory_bytes: 0, pids: 0 },
        probe_port: 0,
        probe_path: String::new(),
    };
    Workspace::new(uid, student, generation, spec, OffsetDateTime::UNIX_EPOCH)
}

/// The workspace of a row that has [`CLOCKED`], as far as its deadline is derived from it; the rest of it does not matter here.
pub(super) fn clocked(row: &QueryResult) -> Result<Workspace> {
    let uid = WorkspaceUid(refuse(row.try_get("", "id"))?);
    let student = value("workspaces", refuse(row.try_get::<String>("", "student_id"))?.into())?;
    let generation = Generation(refuse(row.try_get("", "generation"))?);
    let mut workspace = bare(uid, student, generation);
    workspace.state = value("workspaces", refuse(row.try_get::<String>("", "state"))?.into())?;
    let course: Option<String> = nullable(row, "course_id")?;
    workspace.course = course.map(|course| value("workspaces", course.into())).transpose()?;
    workspace.node = nullable(row, "node_id")?.map(NodeId);
    workspace.ready_at = nullable(row, "ready_at")?;
    workspace.extended_until = nullable(row, "extended_until")?;
    workspace.resumed_at = nullable(row, "resumed_at")?;
    let warning: Option<serde_json::Value> = nullable(row, "warning")?;
    workspace.warning = warning.map(|json| value::<Warning>("workspaces", json)).transpose()?;
    Ok(workspace)
}

/// What is known of a workspace's activity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Known {
    /// As it was recorded.
    pub activity: Activity,
    /// Whether its node has told all that it saw.
    pub heard: bool,
}

impl Store {
    /// What is known of the activity of several workspaces, and the database's time. A node has told if it was heard of `told_within`.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn activities(
        &self,
        uids: Vec<WorkspaceUid>,
        told_within: Duration,
    ) -> Result<(HashMap<WorkspaceUid, Known>, OffsetDateTime)> {
        let ids: Vec<sea_orm::prelude::Uuid> = uids.into_iter().map(|uid| uid.0).collect();
        let rows = self
            .db
            .query_all_raw(sql(
                &format!(
                    "SELECT clock.now, {ACTIVITY}, coalesce({HAS_TOLD}, false) AS heard
                     FROM (SELECT clock_timestamp() AS now) clock
                     LEFT JOIN workspace_activity a ON a.workspace_id = ANY ($1::uuid[])
                     LEFT JOIN workspaces w ON w.id = a.workspace_id LEFT JOIN nodes ON nodes.id = w.node_id"
                ),
                [ids.into(), told_within.as_secs_f64().into()],
            ))
            .await
            .map_err(StoreError::sort("read activity"))?;
        let mut found = HashMap::new();
        let mut now = OffsetDateTime::UNIX_EPOCH;
        for row in &rows {
            now = refuse(row.try_get("", "now"))?;
            if let Some(id) = refuse(row.try_get::<Option<sea_orm::prelude::Uuid>>("", "workspace_id"))? {
                let heard = refuse(row.try_get("", "heard"))?;
                found.insert(WorkspaceUid(id), Known { activity: activity(row)?, heard });
            }
        }
        Ok((found, now))
    }

    /// Running workspaces that a warning or a stop may be due for, each as far as its deadline is derived from it, and the
    /// database's time. Of stopped workspaces nothing is read.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn running_for(
        &self,
        limits: SweepLimits,
    ) -> Result<(Vec<(Workspace, Activity)>, OffsetDateTime)> {
        let sorted = StoreError::sort("look for idle workspaces");
        let counted: Vec<String> = Signal::ALL
            .into_iter()
            .filter(|signal| *limits.counts.get(*signal))
            .map(|signal| format!("a.{}", column(signal)))
            .collect();
        let seen = match counted.is_empty() {
            true => "NULL::timestamptz".to_owned(),
            false => format!("greatest({})", counted.join(", ")),
        };
        let lifetime = limits.lifetime.map_or(LIFETIME_WITHOUT_END, |span| span.as_secs_f64());
        let emptied: Vec<sea_orm::prelude::Uuid> = limits.emptied.into_iter().map(|node| node.0).collect();
        let values = [limits.idle.as_secs_f64().into(), lifetime.into(), emptied.into()];
        let query = MAY_BE_DUE.replace("{seen}", &seen);
        let rows = self.db.query_all_raw(sql(&query, values.clone())).await.map_err(&sorted)?;
        let ids = rows.iter().map(|row| row.try_get("", "id"));
        let ids: Vec<sea_orm::prelude::Uuid> = ids.collect::<std::result::Result<_, _>>().map_err(&sorted)?;
        if ids.is_empty() {
            return Ok((vec![], self.now().await?));
        }
        let held =
            if limits.counts.job { "greatest(w.extended_until, a.awake_until)" } else { "w.extended_until" };
        let query = format!(
            "SELECT {ACTIVITY}, {CLOCKED} FROM workspaces w JOIN workspace_activity a ON a.workspace_id = w.id
             WHERE w.id = ANY ($5::uuid[]) AND w.state = 'RUNNING' AND w.ready_at IS NOT NULL
               AND (w.warning IS NOT NULL OR w.node_id = ANY ($3::uuid[]) OR w.ready_at <= now() - make_interval(secs => $2)
                    OR (greatest(w.ready_at, w.resumed_at, {seen}) <= now() - make_interval(secs => $1)
                        AND coalesce({held} <= now() + make_interval(secs => $4), true)))"
        );
        let values = values.into_iter().chain([limits.held.as_secs_f64().into(), ids.into()]);
        let rows = self.db.query_all_raw(sql(&query, values)).await.map_err(&sorted)?;
        let read = |row: &QueryResult| Ok((clocked(row)?, activity(row)?));
        let found = readable(rows.iter().map(|row| (row.try_get("", "id").ok(), read(row))));
        Ok((found, self.now().await?))
    }
}

/// In the order of students' keys, as every batch of activity rows is locked. The first ack of a warning is the one that counts; one of
/// an older warning, late, undoes nothing. It moves the deadline, so whoever follows that is told.
const ACK: &str = "
WITH locked AS (
    SELECT a.workspace_id, t.warned_at
    FROM unnest($1::uuid[], $2::timestamptz[]) AS t (id, warned_at) JOIN workspace_activity a ON a.workspace_id = t.id
    WHERE coalesce(a.acked_warning_at < t.warned_at, true)
    ORDER BY a.student_key FOR UPDATE OF a
)
UPDATE workspace_activity a
SET acked_warning_at = locked.warned_at, warning_acked_at = clock_timestamp(), version = a.version + 1
FROM locked WHERE a.workspace_id = locked.workspace_id AND coalesce(a.acked_warning_at < locked.warned_at, true)";

impl Store {
    /// What runs on a node, each as far as its deadline is derived from it, and the database's time.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn running_on(&self, node: NodeId) -> Result<(Vec<(Workspace, Activity)>, OffsetDateTime)> {
        let rows = self
            .db
            .query_all_raw(sql(
                &format!(
                    "SELECT {ACTIVITY}, {CLOCKED} FROM workspaces w JOIN workspace_activity a ON a.workspace_id = w.id
                     WHERE w.node_id = $1 AND w.state = 'RUNNING' AND w.desired = 'RUNNING'"
                ),
                [node.0.into()],
            ))
            .await
            .map_err(StoreError::sort("read what runs on a node"))?;
        let read = |row: &QueryResult| Ok((clocked(row)?, activity(row)?));
        let found = readable(rows.iter().map(|row| (row.try_get("", "id").ok(), read(row))));
        Ok((found, self.now().await?))
    }

    /// Records that warnings, each named by when it was given, have arrived at their node's session.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn ack_warnings(&self, warnings: &[(WorkspaceUid, OffsetDateTime)]) -> Result<()> {
        let ids: Vec<sea_orm::prelude::Uuid> = warnings.iter().map(|(uid, _)| uid.0).collect();
        let given: Vec<OffsetDateTime> = warnings.iter().map(|(_, at)| *at).collect();
        self.db
            .execute_raw(sql(ACK, [ids.into(), given.into()]))
            .await
            .map_err(StoreError::sort("record that warnings have arrived"))?;
        Ok(())
    }
}

impl Work {
    /// Records activity of a workspace that is locked, as part of this transaction.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn touch(&mut self, uid: WorkspaceUid, signal: Signal, at: OffsetDateTime) -> Result<()> {
        let (column, newer) = (column(signal), newer(column(signal), "$2"));
        self.tx
            .execute_raw(sql(
                &format!(
                    "UPDATE workspace_activity SET {column} = {newer}, version = version + 1 WHERE workspace_id = $1"
                ),
                [uid.0.into(), at.into()],
            ))
            .await
            .map_err(StoreError::sort("record activity"))?;
        Ok(())
    }

    /// Raises the version of a locked workspace's deadline without activity: an extension.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn raise_deadline_version(&mut self, uid: WorkspaceUid) -> Result<()> {
        self.tx
            .execute_raw(sql(
                "UPDATE workspace_activity SET version = version + 1 WHERE workspace_id = $1",
                [uid.0.into()],
            ))
            .await
            .map_err(StoreError::sort("raise a deadline's version"))?;
        Ok(())
    }
}
