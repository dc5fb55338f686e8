//! The narrow table that heartbeats write. An activity write never touches the workspace row.

use std::time::Duration;

use carrel_common::id::{CourseId, NodeId, StudentId, WorkspaceUid};
use carrel_common::model::Signal;
use sea_orm::{ConnectionTrait, QueryResult};
use time::OffsetDateTime;

use super::entity::value;
use super::error::{Result, StoreError};
use super::{Store, Work, sql};
use crate::domain::idle::Activity;
use crate::domain::workspace::{Stop, Warning, Workspace};

/// One report of activity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// Whose.
    pub student: StudentId,
    /// What kind.
    pub signal: Signal,
    /// How long ago.
    pub age: Duration,
}

/// What became of the reports of one student.
#[derive(Debug, Clone, PartialEq)]
pub enum Beaten {
    /// Committed; the workspace as far as its deadline needs it, and its activity.
    Recorded {
        /// The workspace.
        workspace: Box<Workspace>,
        /// Its activity, with this report.
        activity: Activity,
        /// The database's time.
        now: OffsetDateTime,
    },
    /// It is not meant to run; nothing was recorded.
    NotRunning {
        /// The last stop.
        stop: Option<Stop>,
    },
    /// There is none.
    NotFound,
}

/// What the idle loop needs to know of a running workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningRow {
    /// The workspace.
    pub uid: WorkspaceUid,
    /// Whose.
    pub student: StudentId,
    /// Of which course.
    pub course: Option<CourseId>,
    /// When it was ready.
    pub ready_at: OffsetDateTime,
    /// Latest of activity, readiness and the end of a silence.
    pub basis_at: OffsetDateTime,
    /// A warning is out.
    pub warned: bool,
    /// Where it is.
    pub node: Option<NodeId>,
}

pub(super) fn signal_name(signal: Signal) -> &'static str {
    match signal {
        Signal::LmsInput => "LMS_INPUT",
        Signal::EditorInput => "EDITOR_INPUT",
        Signal::KeepWorking => "KEEP_WORKING",
        Signal::Job => "JOB",
    }
}

pub(super) fn last(
    at: Option<OffsetDateTime>,
    signal: Option<String>,
) -> Result<Option<(OffsetDateTime, Signal)>> {
    let (Some(at), Some(signal)) = (at, signal) else { return Ok(None) };
    Ok(Some((at, value("workspace_activity", signal.into())?)))
}

/// Locks in the order of ids before it writes, so that two batches cannot deadlock; `NOT closed` is checked again on
/// the row as the lock found it, so that activity is never recorded behind an idle stop's back. A time later than the
/// present one cannot come out, and none earlier than the recorded one replaces it.
const RECORD: &str = r"
WITH beat AS (
    SELECT * FROM unnest($1::text[], $2::float8[], $3::text[]) AS b (key, age, signal)
), locked AS (
    SELECT a.workspace_id, beat.key, beat.age, beat.signal
    FROM beat JOIN workspaces w ON lower(w.student_id) = beat.key AND w.deleted_at IS NULL
              JOIN workspace_activity a ON a.workspace_id = w.id
    WHERE NOT a.closed
    ORDER BY a.workspace_id FOR UPDATE OF a
), recorded AS (
    UPDATE workspace_activity a
    SET last_active_at = greatest(a.last_active_at, clock_timestamp() - make_interval(secs => locked.age)),
        last_signal = CASE WHEN a.last_active_at IS NULL
                             OR clock_timestamp() - make_interval(secs => locked.age) >= a.last_active_at
                           THEN locked.signal ELSE a.last_signal END,
        lms_input_at = CASE locked.signal WHEN 'LMS_INPUT'
            THEN greatest(a.lms_input_at, clock_timestamp() - make_interval(secs => locked.age)) ELSE a.lms_input_at END,
        editor_input_at = CASE locked.signal WHEN 'EDITOR_INPUT'
            THEN greatest(a.editor_input_at, clock_timestamp() - make_interval(secs => locked.age)) ELSE a.editor_input_at END,
        keep_working_at = CASE locked.signal WHEN 'KEEP_WORKING'
            THEN greatest(a.keep_working_at, clock_timestamp() - make_interval(secs => locked.age)) ELSE a.keep_working_at END,
        version = a.version + 1
    FROM locked WHERE a.workspace_id = locked.workspace_id AND NOT a.closed
    RETURNING a.workspace_id, locked.key, a.last_active_at, a.last_signal, a.version
)
SELECT r.workspace_id, r.key, r.last_active_at, r.last_signal, r.version, clock_timestamp() AS now,
       w.state, w.course_id, w.node_id, w.ready_at, w.extended_until, w.resumed_at, w.warning
FROM recorded r JOIN workspaces w ON w.id = r.workspace_id";

/// Why those of a batch that were not recorded were not.
const REFUSED: &str = r"
SELECT lower(student_id) AS key, stop FROM workspaces WHERE lower(student_id) = ANY ($1::text[]) AND deleted_at IS NULL";

fn refuse<T>(result: std::result::Result<T, sea_orm::DbErr>) -> Result<T> {
    result.map_err(StoreError::sort("read activity"))
}

fn recorded(row: &QueryResult, beat: &Beat) -> Result<(String, Beaten)> {
    let now = refuse(row.try_get("", "now"))?;
    // Only what the deadline is derived from; the rest of the row does not matter here.
    let spec = carrel_common::model::WorkspaceSpec {
        image: String::new(),
        resources: carrel_common::model::Resources { cpu_millicores: 0, memory_bytes: 0, pids: 0 },
        probe_port: 0,
        probe_path: String::new(),
    };
    let uid = WorkspaceUid(refuse(row.try_get("", "workspace_id"))?);
    let mut workspace =
        Workspace::new(uid, beat.student.clone(), carrel_common::id::Generation(0), spec, now);
    workspace.state = value("workspaces", refuse(row.try_get::<String>("", "state"))?.into())?;
    let course: Option<String> = refuse(row.try_get("", "course_id"))?;
    workspace.course = course.map(|course| value("workspaces", course.into())).transpose()?;
    workspace.node = refuse(row.try_get::<Option<sea_orm::prelude::Uuid>>("", "node_id"))?.map(NodeId);
    workspace.ready_at = refuse(row.try_get("", "ready_at"))?;
    workspace.extended_until = refuse(row.try_get("", "extended_until"))?;
    workspace.resumed_at = refuse(row.try_get("", "resumed_at"))?;
    let warning: Option<serde_json::Value> = refuse(row.try_get("", "warning"))?;
    workspace.warning = warning.map(|json| value::<Warning>("workspaces", json)).transpose()?;
    let activity = Activity {
        last: last(refuse(row.try_get("", "last_active_at"))?, refuse(row.try_get("", "last_signal"))?)?,
        version: refuse(row.try_get("", "version"))?,
    };
    let key = refuse(row.try_get("", "key"))?;
    Ok((key, Beaten::Recorded { workspace: Box::new(workspace), activity, now }))
}

impl Store {
    /// Records one report for each of several students, at most one a student, in one statement; answers by
    /// `StudentId::key` after the commit.
    ///
    /// # Errors
    /// When the database cannot be reached: then it is not known whether they were recorded.
    pub async fn record_beats(&self, beats: &[Beat]) -> Result<Vec<(String, Beaten)>> {
        let operation = "record activity";
        let keys: Vec<String> = beats.iter().map(|beat| beat.student.key()).collect();
        let ages: Vec<f64> = beats.iter().map(|beat| beat.age.as_secs_f64()).collect();
        let signals: Vec<String> = beats.iter().map(|beat| signal_name(beat.signal).to_owned()).collect();
        let rows = self
            .db
            .query_all_raw(sql(RECORD, [keys.into(), ages.into(), signals.into()]))
            .await
            .map_err(StoreError::sort(operation))?;
        let mut answers = Vec::with_capacity(beats.len());
        let by_key: std::collections::HashMap<_, _> =
            beats.iter().map(|beat| (beat.student.key(), beat)).collect();
        for row in &rows {
            let key: String = refuse(row.try_get("", "key"))?;
            if let Some(beat) = by_key.get(&key) {
                answers.push(recorded(row, beat)?);
            }
        }
        let done: std::collections::HashSet<_> = answers.iter().map(|(key, _)| key.clone()).collect();
        let refused: Vec<String> = by_key.into_keys().filter(|key| !done.contains(key)).collect();
        if refused.is_empty() {
            return Ok(answers);
        }
        let rows = self
            .db
            .query_all_raw(sql(REFUSED, [refused.clone().into()]))
            .await
            .map_err(StoreError::sort(operation))?;
        let mut there = std::collections::HashMap::new();
        for row in &rows {
            let stop: Option<serde_json::Value> = refuse(row.try_get("", "stop"))?;
            let stop = stop.map(|json| value::<Stop>("workspaces", json)).transpose()?;
            there.insert(refuse(row.try_get::<String>("", "key"))?, stop);
        }
        answers.extend(refused.into_iter().map(|key| {
            let beaten = match there.remove(&key) {
                Some(stop) => Beaten::NotRunning { stop },
                None => Beaten::NotFound,
            };
            (key, beaten)
        }));
        Ok(answers)
    }

    /// Activity of several workspaces, and the database's time.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn activities(
        &self,
        uids: Vec<WorkspaceUid>,
    ) -> Result<(std::collections::HashMap<WorkspaceUid, Activity>, OffsetDateTime)> {
        let ids: Vec<sea_orm::prelude::Uuid> = uids.into_iter().map(|uid| uid.0).collect();
        let rows = self
            .db
            .query_all_raw(sql(
                "SELECT n.now, a.workspace_id, a.last_active_at, a.last_signal, a.version
                 FROM (SELECT clock_timestamp() AS now) n
                 LEFT JOIN workspace_activity a ON a.workspace_id = ANY ($1::uuid[])",
                [ids.into()],
            ))
            .await
            .map_err(StoreError::sort("read activity"))?;
        let mut found = std::collections::HashMap::new();
        let mut now = OffsetDateTime::UNIX_EPOCH;
        for row in &rows {
            now = refuse(row.try_get("", "now"))?;
            let Some(id) = refuse(row.try_get::<Option<sea_orm::prelude::Uuid>>("", "workspace_id"))? else {
                continue;
            };
            let last =
                last(refuse(row.try_get("", "last_active_at"))?, refuse(row.try_get("", "last_signal"))?)?;
            found.insert(WorkspaceUid(id), Activity { last, version: refuse(row.try_get("", "version"))? });
        }
        Ok((found, now))
    }

    /// Activity of one workspace, when each kind of signal was last seen, and the database's time.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn signals(
        &self,
        uid: WorkspaceUid,
    ) -> Result<(Activity, Vec<(&'static str, Option<OffsetDateTime>)>, OffsetDateTime)> {
        let operation = "read activity";
        let row = self
            .db
            .query_one_raw(sql(
                "SELECT clock_timestamp() AS now, last_active_at, last_signal, version, lms_input_at, editor_input_at,
                        keep_working_at FROM workspace_activity WHERE workspace_id = $1",
                [uid.0.into()],
            ))
            .await
            .map_err(StoreError::sort(operation))?
            .ok_or(StoreError::Conflict { operation })?;
        let last = last(refuse(row.try_get("", "last_active_at"))?, refuse(row.try_get("", "last_signal"))?)?;
        let activity = Activity { last, version: refuse(row.try_get("", "version"))? };
        let mut signals = Vec::new();
        for (name, column) in [
            ("LMS_INPUT", "lms_input_at"),
            ("EDITOR_INPUT", "editor_input_at"),
            ("KEEP_WORKING", "keep_working_at"),
        ] {
            signals.push((name, refuse(row.try_get("", column))?));
        }
        Ok((activity, signals, refuse(row.try_get("", "now"))?))
    }

    /// Running workspaces whose basis of idleness is `idle` old, or that have been ready for `lifetime`, or that carry a
    /// warning, or that are on one of the nodes `emptied`; and the database's time. Stopped workspaces cost nothing here.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn running_for(
        &self,
        idle: Duration,
        lifetime: Option<Duration>,
        emptied: Vec<NodeId>,
    ) -> Result<(Vec<RunningRow>, OffsetDateTime)> {
        let emptied: Vec<_> = emptied.into_iter().map(|node| node.0).collect();
        let rows = self
            .db
            .query_all_raw(sql(
                "SELECT w.id, w.student_id, w.course_id, w.node_id, w.warning IS NOT NULL AS warned, w.ready_at,
                        greatest(w.ready_at, w.resumed_at, a.last_active_at) AS basis_at
                 FROM workspaces w JOIN workspace_activity a ON a.workspace_id = w.id
                 WHERE w.state = 'RUNNING' AND w.ready_at IS NOT NULL
                   AND (w.warning IS NOT NULL OR w.node_id = ANY ($3::uuid[]) OR w.ready_at <= clock_timestamp() - make_interval(secs => $2)
                        OR greatest(w.ready_at, w.resumed_at, a.last_active_at)
                           <= clock_timestamp() - make_interval(secs => $1))",
                // A century: a lifetime that never ends.
                [
                    idle.as_secs_f64().into(),
                    lifetime.map_or(3e9, |span| span.as_secs_f64()).into(),
                    emptied.into(),
                ],
            ))
            .await
            .map_err(StoreError::sort("look for idle workspaces"))?;
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            let course: Option<String> = refuse(row.try_get("", "course_id"))?;
            found.push(RunningRow {
                uid: WorkspaceUid(refuse(row.try_get("", "id"))?),
                student: value("workspaces", refuse(row.try_get::<String>("", "student_id"))?.into())?,
                course: course.map(|course| value("workspaces", course.into())).transpose()?,
                basis_at: refuse(row.try_get("", "basis_at"))?,
                ready_at: refuse(row.try_get("", "ready_at"))?,
                warned: refuse(row.try_get("", "warned"))?,
                node: refuse(row.try_get::<Option<sea_orm::prelude::Uuid>>("", "node_id"))?.map(NodeId),
            });
        }
        Ok((found, self.now().await?))
    }
}

impl Work {
    /// Records activity of a workspace that is locked, as part of this transaction.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn touch(&mut self, uid: WorkspaceUid, signal: Signal, now: OffsetDateTime) -> Result<()> {
        self.tx
            .execute_raw(sql(
                "UPDATE workspace_activity SET last_active_at = greatest(last_active_at, $2), last_signal = $3,
                        keep_working_at = CASE $3 WHEN 'KEEP_WORKING' THEN greatest(keep_working_at, $2) ELSE keep_working_at END,
                        version = version + 1 WHERE workspace_id = $1",
                [uid.0.into(), now.into(), signal_name(signal).into()],
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
