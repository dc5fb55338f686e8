//! Reports of activity, many in one statement. An activity write never touches the workspace row, and input does not even look at
//! it: the row of activity has the student's key, and of a workspace that runs all that its deadline is derived from.

mod row;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use carrel_common::id::{Generation, NodeId, StudentId, WorkspaceUid};
use carrel_common::model::{ActivityReport, Signal};
use sea_orm::prelude::Uuid;
use sea_orm::{ConnectionTrait, DbErr, QueryResult, Value};
use sqlx::Arguments as _;
use sqlx::postgres::{PgArguments, PgRow};
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
#[derive(Debug, Clone)]
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
    /// Nothing can be made of the workspace: it is told to who reported on it, and to nobody else. Input was recorded all the same.
    Unreadable(Arc<StoreError>),
}

impl Beaten {
    /// A row of which nothing can be made holds up nobody but itself.
    fn read(row: Result<Self>) -> Self {
        row.unwrap_or_else(|error| Self::Unreadable(Arc::new(error)))
    }
}

/// Settings under which [`RECORD`] comes to its rows in the order of students' keys: a nested loop whose outer side is what was
/// named, in that order. None of the other ways could be the quicker one for a batch anyway, but for a table of a few rows.
///
/// Planned once: to plan it anew for the values of each batch costs more than to run it for a small one, and finds the same.
pub(super) const SETTINGS: [(&str, &str); 5] = [
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
];

/// Writes in the order in which it names students, that of their keys ([`SETTINGS`]), as everybody locks these rows, so that two
/// batches cannot deadlock; to lock them first would write each twice, which is a third of the cost. `closed` and the generation
/// are checked on the row as the update found it, after whoever held it, so that activity is never recorded behind an idle stop's
/// back. A time later than the present one cannot come out, and none earlier than the recorded one replaces it; but one that lies
/// in the future is by a clock that was set back since, and says nothing of which is newer: then it is now. An age below zero is
/// none. What the answer needs of a workspace that runs is in the same row, as the update left it: a look at the workspace's own,
/// which is wide, would cost a tenth of all.
///
/// `closed < true` is `NOT closed`, but keeps away the index of what is open: planned on a night on which hardly anything is,
/// it would be read whole for each batch of the day after, and in the order of ids.
///
/// It may be made twice ([`super::kept`]), which does no harm: no time moves back, input counts from as much later as a new
/// connection takes, and what was closed in between is refused as all is that comes late.
static RECORD: LazyLock<String> = LazyLock::new(|| {
    format!(
        "
UPDATE workspace_activity a
SET lms_input_at = {},
    editor_input_at = {},
    keep_working_at = {},
    version = a.version + 1
FROM (
    SELECT beat.key COLLATE \"C\" AS key, beat.number, beat.generation AS told,
           CASE WHEN beat.lms >= 0 THEN statement_timestamp() - make_interval(secs => beat.lms) END AS lms_at,
           CASE WHEN beat.editor >= 0 THEN statement_timestamp() - make_interval(secs => beat.editor) END AS editor_at,
           CASE WHEN beat.keep >= 0 THEN statement_timestamp() - make_interval(secs => beat.keep) END AS keep_at
    FROM unnest($1::text[], $2::bigint[], $3::float8[], $4::float8[], $5::float8[])
        WITH ORDINALITY AS beat (key, generation, lms, editor, keep, number)
    OFFSET 0
) w WHERE a.student_key = w.key AND a.closed < true AND (w.told = 0 OR w.told = a.generation)
RETURNING {}",
        newer("a.lms_input_at", "w.lms_at"),
        newer("a.editor_input_at", "w.editor_at"),
        newer("a.keep_working_at", "w.keep_at"),
        row::RETURNED,
    )
});

/// The newer of two times, either of which may be none.
pub(super) fn newer(recorded: &str, at: &str) -> String {
    format!(
        "CASE WHEN {at} IS NOT NULL AND {recorded} > clock_timestamp() THEN clock_timestamp() ELSE greatest({recorded}, {at}) END"
    )
}

/// As [`RECORD`], for jobs, whose grant is decided outside: the row stays locked meanwhile.
const LOCK_JOBS: &str = "
FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS beat (key, generation, number)
     JOIN workspace_activity a ON a.student_key = beat.key
     JOIN workspaces w ON w.id = a.workspace_id
WHERE NOT a.closed AND (beat.generation = 0 OR beat.generation = a.generation)
ORDER BY a.student_key FOR UPDATE OF a";

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
    ORDER BY a.student_key FOR UPDATE OF a
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
SELECT a.student_key AS key, w.stop, a.closed, a.generation
FROM workspace_activity a JOIN workspaces w ON w.id = a.workspace_id
WHERE a.student_key = ANY ($1::text[])";

/// What the database answered to input that it committed.
#[derive(Debug)]
pub struct Written {
    rows: Vec<PgRow>,
    /// Which input the statement named first, second, and so on.
    order: Vec<usize>,
}

/// What became of those that a statement named, in its order; `None`: it was not recorded.
type Answers = Vec<Option<Beaten>>;

/// A place in what the statement named, which it counts from 1.
fn from_zero(number: i64) -> usize {
    usize::try_from(number - 1).unwrap_or(usize::MAX)
}

/// What became of a row that has [`ACTIVITY`] and [`CLOCKED`].
fn recorded(row: &QueryResult) -> Result<Beaten> {
    let (workspace, activity) = (Box::new(clocked(row)?), activity(row)?);
    Ok(Beaten::Recorded { workspace, activity, now: refuse(row.try_get("", "now"))? })
}

/// Why a row of [`REFUSED`] was not recorded.
fn why_refused(row: &QueryResult) -> Result<Beaten> {
    if !refuse(row.try_get("", "closed"))? {
        return Ok(Beaten::OtherGeneration { present: Generation(refuse(row.try_get("", "generation"))?) });
    }
    let stop: Option<serde_json::Value> = refuse(row.try_get("", "stop"))?;
    Ok(Beaten::NotRunning { stop: stop.map(|json| value("workspaces", json)).transpose()? })
}

fn keys(input: &[Input]) -> Vec<&str> {
    input.iter().map(|input| input.key.as_str()).collect()
}

fn texts(keys: &[&str]) -> Value {
    keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>().into()
}

fn numbers(generations: impl Iterator<Item = Option<Generation>>) -> Vec<i64> {
    generations.map(|generation| generation.map_or(0, |generation| generation.0)).collect()
}

impl Store {
    /// Records the input of several students, each named once, in one statement, and commits. What became of each is read
    /// from the answer ([`Store::what_became_of`]), which the next batch need not wait for.
    ///
    /// # Errors
    /// When the database cannot be reached: then it is not known whether they were recorded.
    pub async fn write_input(&self, input: &[Input]) -> Result<Written> {
        let refused = StoreError::sort("record activity");
        let mut order: Vec<usize> = (0..input.len()).collect();
        order.sort_unstable_by_key(|place| &input[*place].key);
        let named: Vec<&Input> = order.iter().map(|place| &input[*place]).collect();
        let ages = |signal| -> Vec<f64> {
            let age = |input: &&Input| input.ages.get(signal).map_or(-1.0, |age| age.as_secs_f64());
            named.iter().map(age).collect()
        };
        let mut arguments = PgArguments::default();
        let added = arguments
            .add(named.iter().map(|input| input.key.as_str()).collect::<Vec<_>>())
            .and_then(|()| arguments.add(numbers(named.iter().map(|input| input.generation))))
            .and_then(|()| arguments.add(ages(Signal::LmsInput)))
            .and_then(|()| arguments.add(ages(Signal::EditorInput)))
            .and_then(|()| arguments.add(ages(Signal::KeepWorking)));
        added.map_err(|error| refused(DbErr::Custom(error.to_string())))?;
        let rows = self.beats.rows(&RECORD, arguments).await.map_err(refused)?;
        Ok(Written { rows, order })
    }

    /// What became of input that was [written](Store::write_input), one answer for each, in order.
    ///
    /// # Errors
    /// When the database cannot be reached to look why some was not recorded.
    pub async fn what_became_of(&self, input: &[Input], written: &Written) -> Result<Vec<Beaten>> {
        let mut answers: Answers = vec![None; input.len()];
        let mut others = HashMap::new();
        for row in &written.rows {
            let Some(&place) = written.order.get(row::place(row)?) else { continue };
            let Some(answer) = answers.get_mut(place) else { continue };
            match row::read(row) {
                Ok(row::Recorded { copied: Some(workspace), activity, now, .. }) => {
                    *answer = Some(Beaten::Recorded { workspace: Box::new(workspace), activity, now });
                }
                Ok(other) => _ = others.insert(other.uid.0, (place, other)),
                Err(error) => *answer = Some(Beaten::read(Err(error))),
            }
        }
        self.read_others(&mut answers, others).await?;
        self.with_refused(answers, &keys(input)).await
    }

    /// Records declared jobs, each student named once; `grant` says what each gets, on the row as it is locked. One answer for
    /// each, in order, after the commit; `None`, and nothing is recorded, when it is not `steady` then.
    ///
    /// # Errors
    /// When the database cannot be reached: then it is not known whether they were recorded.
    pub async fn record_jobs(
        &self,
        jobs: &[Job],
        steady: impl Fn(&Standing) -> bool,
        grant: impl Fn(&Job, &Workspace, &Activity, OffsetDateTime) -> Awake,
    ) -> Result<Option<Vec<Beaten>>> {
        let operation = "record declared jobs";
        let keys: Vec<&str> = jobs.iter().map(|job| job.key.as_str()).collect();
        let values = [texts(&keys), numbers(jobs.iter().map(|job| job.generation)).into()];
        let mut work = self.begin().await?;
        let lock = format!("SELECT beat.number, clock_timestamp() AS now, {ACTIVITY}, {CLOCKED} {LOCK_JOBS}");
        let rows = work.tx.query_all_raw(sql(&lock, values)).await.map_err(StoreError::sort(operation))?;
        // With the rows locked: what is granted is by this clock, or by none.
        if !steady(&work.standing().await?) {
            return Ok(None);
        }
        let mut answers: Answers = vec![None; jobs.len()];
        for row in &rows {
            let place = from_zero(refuse(row.try_get("", "number"))?);
            let (Some(job), Some(answer)) = (jobs.get(place), answers.get_mut(place)) else { continue };
            let locked = answer.insert(Beaten::read(recorded(row)));
            let Beaten::Recorded { workspace, activity, now } = locked else { continue };
            let awake = grant(job, workspace, activity, *now);
            *activity = Activity { awake, ..activity.with(Signal::Job, *now - job.age) };
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
        }
        work.commit().await?;
        self.with_refused(answers, &keys).await.map(Some)
    }

    /// Records what a node has seen of the workspaces that run there, each named once; those that carry a warning.
    ///
    /// # Errors
    /// When the database cannot be reached: then it is not known whether anything was recorded.
    pub async fn record_seen(&self, node: NodeId, seen: &[ActivityReport]) -> Result<Vec<WorkspaceUid>> {
        let ids: Vec<Uuid> = seen.iter().map(|report| report.workspace.0).collect();
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
        Ok(warned)
    }

    /// Adds to the answers those of what does not run, each named by its workspace: that is read, as it is by now. Of one that was
    /// deleted since it is told why nothing is recorded there.
    async fn read_others(
        &self,
        answers: &mut Answers,
        mut others: HashMap<Uuid, (usize, row::Recorded)>,
    ) -> Result<()> {
        if others.is_empty() {
            return Ok(());
        }
        let ids: Vec<Uuid> = others.keys().copied().collect();
        let query = format!(
            "SELECT {CLOCKED} FROM workspaces w WHERE w.id = ANY ($1::uuid[]) AND w.deleted_at IS NULL"
        );
        let rows = self.db.query_all_raw(sql(&query, [ids.into()])).await;
        for row in &rows.map_err(StoreError::sort("read workspaces that do not run"))? {
            let other = others.remove(&refuse(row.try_get::<Uuid>("", "id"))?);
            let Some((place, row::Recorded { activity, now, .. })) = other else { continue };
            let read = clocked(row).map(|workspace| Beaten::Recorded {
                workspace: Box::new(workspace),
                activity,
                now,
            });
            if let Some(answer) = answers.get_mut(place) {
                *answer = Some(Beaten::read(read));
            }
        }
        Ok(())
    }

    /// Adds to the answers those that were not recorded, with why.
    async fn with_refused(&self, mut answers: Answers, keys: &[&str]) -> Result<Vec<Beaten>> {
        let refused: Vec<&str> =
            answers.iter().zip(keys).filter(|(answer, _)| answer.is_none()).map(|(_, key)| *key).collect();
        if refused.is_empty() {
            return Ok(answers.into_iter().flatten().collect());
        }
        let rows = self
            .db
            .query_all_raw(sql(REFUSED, [texts(&refused)]))
            .await
            .map_err(StoreError::sort("look why activity was not recorded"))?;
        for row in &rows {
            let key: String = refuse(row.try_get("", "key"))?;
            let place =
                keys.iter().zip(&answers).position(|(known, answer)| **known == key && answer.is_none());
            if let Some(answer) = place.and_then(|place| answers.get_mut(place)) {
                *answer = Some(Beaten::read(why_refused(row)));
            }
        }
        Ok(answers.into_iter().map(|answer| answer.unwrap_or(Beaten::NotFound)).collect())
    }
}
