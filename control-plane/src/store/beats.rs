//! Reports of activity, many in one statement. An activity write never touches the workspace row.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use carrel_common::id::{Generation, NodeId, StudentId, WorkspaceUid};
use carrel_common::model::{ActivityReport, Signal};
use sea_orm::{ConnectionTrait, QueryResult};
use time::OffsetDateTime;

use super::activity::{ACTIVITY, CLOCKED, activity, clocked, refuse};
use super::entity::value;
use super::error::{Result, StoreError};
use super::{Standing, Store, sql};
use crate::domain::activity::{Activity, Awake, BySignal};
use crate::domain::workspace::{Stop, Workspace};

/// One report of activity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// Whose.
    pub student: StudentId,
    /// Of which incarnation; `None`: of the present one.
    pub generation: Option<Generation>,
    /// What kind.
    pub signal: Signal,
    /// How long ago.
    pub age: Duration,
    /// With a job: how long it needs the workspace, from now.
    pub keep_awake: Duration,
}

/// Input of one student, put together from several reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Whose, by `StudentId::key`.
    pub key: String,
    /// Of which incarnation; `None`: of the present one.
    pub generation: Option<Generation>,
    /// How long ago the youngest of each signal was; that of a job is not looked at.
    pub ages: BySignal<Option<Duration>>,
}

/// A job that was declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Whose, by `StudentId::key`.
    pub key: String,
    /// Of which incarnation; `None`: of the present one.
    pub generation: Option<Generation>,
    /// How long ago it was declared.
    pub age: Duration,
    /// How long it needs the workspace, from now.
    pub keep_awake: Duration,
}

/// What became of a report.
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
    /// The incarnation that was reported on is not the present one; nothing was recorded.
    OtherGeneration {
        /// The present one.
        present: Generation,
    },
    /// There is none.
    NotFound,
}

/// Locks in the order of ids before it writes, so that two batches cannot deadlock; `closed` and the generation are
/// checked again on the row as the lock found it, so that activity is never recorded behind an idle stop's back. A time
/// later than the present one cannot come out, and none earlier than the recorded one replaces it; but one that lies in the
/// future is by a clock that was set back since, and says nothing of which is newer: then it is now. An age below zero is none. What the answer needs of the workspace is read on the way: a second look at its row would cost a tenth of all.
static RECORD: LazyLock<String> = LazyLock::new(|| {
    format!(
        "
WITH beat AS (
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::float8[], $4::float8[], $5::float8[])
        AS b (key, generation, lms, editor, keep)
), clock AS (
    SELECT clock_timestamp() AS now
), locked AS (
    SELECT {CLOCKED}, beat.key, beat.generation AS told,
           CASE WHEN beat.lms >= 0 THEN clock.now - make_interval(secs => beat.lms) END AS lms_at,
           CASE WHEN beat.editor >= 0 THEN clock.now - make_interval(secs => beat.editor) END AS editor_at,
           CASE WHEN beat.keep >= 0 THEN clock.now - make_interval(secs => beat.keep) END AS keep_at
    FROM beat CROSS JOIN clock
              JOIN workspaces w ON lower(w.student_id) = beat.key AND w.deleted_at IS NULL
              JOIN workspace_activity a ON a.workspace_id = w.id
    WHERE NOT a.closed AND (beat.generation = 0 OR beat.generation = a.generation)
    ORDER BY a.workspace_id FOR UPDATE OF a
)
UPDATE workspace_activity a
SET lms_input_at = {},
    editor_input_at = {},
    keep_working_at = {},
    version = a.version + 1
FROM locked w WHERE a.workspace_id = w.id AND NOT a.closed AND (w.told = 0 OR w.told = a.generation)
RETURNING w.key, clock_timestamp() AS now, {ACTIVITY}, {CLOCKED}",
        newer("a.lms_input_at", "w.lms_at"),
        newer("a.editor_input_at", "w.editor_at"),
        newer("a.keep_working_at", "w.keep_at"),
    )
});

/// The newer of two times, either of which may be none.
pub(super) fn newer(recorded: &str, at: &str) -> String {
    format!(
        "CASE WHEN {at} IS NOT NULL AND {recorded} > clock_timestamp() THEN clock_timestamp() ELSE greatest({recorded}, {at}) END"
    )
}

/// As the first part of [`RECORD`], for jobs, whose grant is decided outside: the row stays locked meanwhile.
const LOCK_JOBS: &str = "
FROM unnest($1::text[], $2::bigint[]) AS beat (key, generation)
     JOIN workspaces w ON lower(w.student_id) = beat.key AND w.deleted_at IS NULL
     JOIN workspace_activity a ON a.workspace_id = w.id
WHERE NOT a.closed AND (beat.generation = 0 OR beat.generation = a.generation)
ORDER BY a.workspace_id FOR UPDATE OF a";

/// As [`RECORD`], of what a node has seen in its own containers: whatever it says of others is not recorded. Tells those that
/// carry a warning.
static RECORD_SEEN: LazyLock<String> = LazyLock::new(|| {
    format!(
        "
WITH clock AS (
    SELECT clock_timestamp() AS now
), locked AS (
    SELECT a.workspace_id, clock.now - make_interval(secs => seen.age) AS at, seen.generation, w.warning IS NOT NULL AS warned
    FROM unnest($2::uuid[], $3::bigint[], $4::float8[]) AS seen (id, generation, age) CROSS JOIN clock
         JOIN workspaces w ON w.id = seen.id AND w.node_id = $1
         JOIN workspace_activity a ON a.workspace_id = w.id
    WHERE NOT a.closed AND a.generation = seen.generation
    ORDER BY a.workspace_id FOR UPDATE OF a
)
UPDATE workspace_activity a SET editor_input_at = {}, version = a.version + 1
FROM locked WHERE a.workspace_id = locked.workspace_id AND NOT a.closed AND a.generation = locked.generation
      AND coalesce(a.editor_input_at < locked.at OR a.editor_input_at > clock_timestamp(), true)
RETURNING a.workspace_id, locked.warned",
        newer("a.editor_input_at", "locked.at")
    )
});

/// Why those that were not recorded were not.
const REFUSED: &str = "
SELECT lower(w.student_id) AS key, w.stop, a.closed, a.generation
FROM workspaces w JOIN workspace_activity a ON a.workspace_id = w.id
WHERE lower(w.student_id) = ANY ($1::text[]) AND w.deleted_at IS NULL";

fn recorded(row: &QueryResult) -> Result<(String, Beaten)> {
    let (workspace, activity) = (Box::new(clocked(row)?), activity(row)?);
    let now = refuse(row.try_get("", "now"))?;
    Ok((refuse(row.try_get("", "key"))?, Beaten::Recorded { workspace, activity, now }))
}

fn numbers(generations: impl Iterator<Item = Option<Generation>>) -> Vec<i64> {
    generations.map(|generation| generation.map_or(0, |generation| generation.0)).collect()
}

impl Store {
    /// Records the input of several students, each named once, in one statement; answers by `StudentId::key` after the
    /// commit.
    ///
    /// # Errors
    /// When the database cannot be reached: then it is not known whether they were recorded.
    pub async fn record_input(&self, input: &[Input]) -> Result<HashMap<String, Beaten>> {
        let keys: Vec<String> = input.iter().map(|input| input.key.clone()).collect();
        let ages = |signal| -> Vec<f64> {
            let age = |input: &Input| input.ages.get(signal).map_or(-1.0, |age| age.as_secs_f64());
            input.iter().map(age).collect()
        };
        let values = [
            keys.clone().into(),
            numbers(input.iter().map(|input| input.generation)).into(),
            ages(Signal::LmsInput).into(),
            ages(Signal::EditorInput).into(),
            ages(Signal::KeepWorking).into(),
        ];
        let rows =
            self.db.query_all_raw(sql(&RECORD, values)).await.map_err(StoreError::sort("record activity"))?;
        let answers = rows.iter().map(recorded).collect::<Result<HashMap<_, _>>>()?;
        self.with_refused(answers, keys).await
    }

    /// Records declared jobs, each student named once; `grant` says what each gets, on the row as it is locked. Answers by
    /// `StudentId::key` after the commit; `None`, and nothing is recorded, when it is not `steady` then.
    ///
    /// # Errors
    /// When the database cannot be reached: then it is not known whether they were recorded.
    pub async fn record_jobs(
        &self,
        jobs: &[Job],
        steady: impl Fn(&Standing) -> bool,
        grant: impl Fn(&Job, &Workspace, &Activity, OffsetDateTime) -> Awake,
    ) -> Result<Option<HashMap<String, Beaten>>> {
        let operation = "record declared jobs";
        let keys: Vec<String> = jobs.iter().map(|job| job.key.clone()).collect();
        let by_key: HashMap<&str, &Job> = jobs.iter().map(|job| (job.key.as_str(), job)).collect();
        let values = [keys.clone().into(), numbers(jobs.iter().map(|job| job.generation)).into()];
        let mut work = self.begin().await?;
        let lock = format!("SELECT beat.key, clock_timestamp() AS now, {ACTIVITY}, {CLOCKED} {LOCK_JOBS}");
        let rows = work.tx.query_all_raw(sql(&lock, values)).await.map_err(StoreError::sort(operation))?;
        // With the rows locked: what is granted is by this clock, or by none.
        if !steady(&work.standing().await?) {
            return Ok(None);
        }
        let mut answers = HashMap::new();
        for row in &rows {
            let (key, Beaten::Recorded { workspace, activity, now }) = recorded(row)? else { continue };
            let Some(job) = by_key.get(key.as_str()) else { continue };
            let awake = grant(job, &workspace, &activity, now);
            let activity = Activity { awake, ..activity.with(Signal::Job, now - job.age) };
            work.tx
                .execute_raw(sql(
                    "UPDATE workspace_activity SET job_at = $2, awake_until = $3, awake_granted_seconds = $4, version = $5
                     WHERE workspace_id = $1",
                    [
                        workspace.uid.0.into(),
                        activity.seen.job.into(),
                        awake.until.into(),
                        awake.granted.as_secs_f64().into(),
                        activity.version.into(),
                    ],
                ))
                .await
                .map_err(StoreError::sort(operation))?;
            answers.insert(key, Beaten::Recorded { workspace, activity, now });
        }
        work.commit().await?;
        self.with_refused(answers, keys).await.map(Some)
    }

    /// Records what a node has seen of the workspaces that run there, each named once; those that carry a warning, and the
    /// database's time.
    ///
    /// # Errors
    /// When the database cannot be reached: then it is not known whether anything was recorded.
    pub async fn record_seen(
        &self,
        node: NodeId,
        seen: &[ActivityReport],
    ) -> Result<(Vec<WorkspaceUid>, OffsetDateTime)> {
        let ids: Vec<sea_orm::prelude::Uuid> = seen.iter().map(|report| report.workspace.0).collect();
        let generations: Vec<i64> = seen.iter().map(|report| report.generation.0).collect();
        let ages: Vec<f64> = seen.iter().map(|report| report.age.as_secs_f64()).collect();
        let rows = self
            .db
            .query_all_raw(sql(&RECORD_SEEN, [node.0.into(), ids.into(), generations.into(), ages.into()]))
            .await
            .map_err(StoreError::sort("record what a node has seen"))?;
        let mut warned = Vec::new();
        for row in &rows {
            if refuse(row.try_get("", "warned"))? {
                warned.push(WorkspaceUid(refuse(row.try_get("", "workspace_id"))?));
            }
        }
        Ok((warned, self.now().await?))
    }

    /// Adds to the answers those that were not recorded, with why.
    async fn with_refused(
        &self,
        mut answers: HashMap<String, Beaten>,
        keys: Vec<String>,
    ) -> Result<HashMap<String, Beaten>> {
        let refused: Vec<String> = keys.into_iter().filter(|key| !answers.contains_key(key)).collect();
        if refused.is_empty() {
            return Ok(answers);
        }
        let rows = self
            .db
            .query_all_raw(sql(REFUSED, [refused.clone().into()]))
            .await
            .map_err(StoreError::sort("look why activity was not recorded"))?;
        for row in &rows {
            let beaten = if refuse(row.try_get("", "closed"))? {
                let stop: Option<serde_json::Value> = refuse(row.try_get("", "stop"))?;
                Beaten::NotRunning { stop: stop.map(|json| value("workspaces", json)).transpose()? }
            } else {
                Beaten::OtherGeneration { present: Generation(refuse(row.try_get("", "generation"))?) }
            };
            answers.insert(refuse(row.try_get("", "key"))?, beaten);
        }
        for key in refused {
            answers.entry(key).or_insert(Beaten::NotFound);
        }
        Ok(answers)
    }
}
