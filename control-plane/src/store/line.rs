//! Who waits for a place, and what tells them for how long.

use std::time::Duration;

use carrel_common::id::{CourseId, WorkspaceUid};
use carrel_common::image::canonical;
use carrel_common::model::StatusReason;
use sea_orm::{ConnectionTrait, QueryResult};
use time::OffsetDateTime;

use super::entity::value;
use super::error::{Result, StoreError};
use super::fleet::raw_course;
use super::orphans::HELD;
use super::readable::{readable, readable_by_name};
use super::{Store, sql};
use crate::domain::placement::{HeldContainer, Outlook, RELEASES_COUNT_FOR, Waiting};
use crate::domain::workspace::{Attempts, LONGEST_PURGE_PAUSE};

/// So many of the newest starts and stops tell what one takes.
const SAMPLE: i64 = 100;
/// So many of those that would be idle first are looked at.
const NEXT_IDLE: i64 = 500;
/// A stop takes at least this long in an estimate; until one is known, it is all that is known.
const SHORTEST_STOP: Duration = Duration::from_secs(1);

/// One who waits, and what it was told last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InLine {
    /// The one.
    pub waiting: Waiting,
    /// `status_reason` and `status_message` as they are.
    pub told: (Option<StatusReason>, String),
    /// It is not its turn, whoever comes before it: a container of its student still runs without an order.
    pub held: Option<HeldContainer>,
}

/// One of those that would be idle first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextIdle {
    /// The student.
    pub student: carrel_common::id::StudentId,
    /// The course.
    pub course: Option<CourseId>,
    /// What its idleness is counted from.
    pub basis_at: OffsetDateTime,
}

fn in_line(row: &QueryResult) -> Result<InLine> {
    let get = StoreError::sort("read the queue");
    let image: String = row.try_get("", "image").map_err(&get)?;
    let course: Option<String> = row.try_get("", "course_id").map_err(&get)?;
    let attempts: Option<serde_json::Value> = row.try_get("", "attempts").map_err(&get)?;
    let attempts: Option<Attempts> = attempts.map(|json| value("workspaces", json)).transpose()?;
    let reason: Option<serde_json::Value> = row.try_get("", "status_reason").map_err(&get)?;
    Ok(InLine {
        waiting: Waiting {
            uid: WorkspaceUid(row.try_get("", "id").map_err(&get)?),
            course: course.map(|course| value("workspaces", course.into())).transpose()?,
            since: row.try_get("", "since").map_err(&get)?,
            need: value("workspaces", row.try_get("", "resources").map_err(&get)?)?,
            image: canonical(&image),
            avoid: attempts.map(|attempts| attempts.failed_on).unwrap_or_default(),
        },
        told: (
            reason.map(|json| value("workspaces", json)).transpose()?,
            row.try_get("", "status_message").map_err(&get)?,
        ),
        held: None,
    })
}

impl Store {
    /// Workspaces that wait for a place, the longest first; those whose earlier container still has to go are left out.
    /// And the database's time.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn waiting(&self) -> Result<(Vec<InLine>, OffsetDateTime)> {
        let rows = self
            .db
            .query_all_raw(sql(
                "SELECT id, course_id, coalesce(started_at, state_since) AS since, spec -> 'resources' AS resources,
                        spec ->> 'image' AS image, attempts, status_reason, status_message
                 FROM workspaces WHERE state = 'PENDING' AND node_id IS NULL AND deleted_at IS NULL
                 ORDER BY started_at, id",
                [],
            ))
            .await
            .map_err(StoreError::sort("read the queue"))?;
        let mut line = readable(rows.iter().map(|row| (row.try_get("", "id").ok(), in_line(row))));
        if !line.is_empty() {
            let mut held = self.held_containers().await?;
            line.iter_mut().for_each(|one| one.held = held.remove(&one.waiting.uid));
        }
        Ok((line, self.now().await?))
    }

    /// Places that each course holds.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn held(&self) -> Result<crate::domain::placement::Held> {
        let get = StoreError::sort("count the places of courses");
        let rows = self
            .db
            .query_all_raw(sql(
                "SELECT course_id, count(*) AS count FROM workspaces WHERE node_id IS NOT NULL GROUP BY course_id",
                [],
            ))
            .await
            .map_err(&get)?;
        let read = |row: &QueryResult| -> Result<(Option<CourseId>, i64)> {
            let course: Option<String> = row.try_get("", "course_id").map_err(&get)?;
            let course = course.map(|course| value("workspaces", course.into())).transpose()?;
            Ok((course, row.try_get("", "count").map_err(&get)?))
        };
        Ok(readable_by_name(rows.iter().map(|row| (raw_course(row), read(row)))).into_iter().collect())
    }

    /// Deleted workspaces whose files a node has yet to move away, but those that rest after a failure or wait for a held container:
    /// however many they are, who comes behind them has a turn.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn purges_waiting(&self, limit: i64) -> Result<Vec<WorkspaceUid>> {
        self.uids(
            // As `Deletion::rests` has it; the transaction that places one asks that again, as it asks for held containers.
            &format!(
                "SELECT id FROM workspaces, (SELECT clock_timestamp() AS now) AS clock
                 WHERE deletion IS NOT NULL AND node_id IS NULL AND deleted_at IS NULL
                 AND coalesce((deletion->>'retry_at')::timestamptz NOT BETWEEN clock.now AND clock.now + make_interval(secs => $2), true)
                 AND id NOT IN (SELECT id FROM ({HELD}) AS held)
                 ORDER BY id LIMIT $1"
            ),
            [limit.into(), LONGEST_PURGE_PAUSE.as_secs_f64().into()],
            "read the purges",
        )
        .await
    }

    /// What starts, stops and releases were like lately; without the deadlines.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn outlook(&self) -> Result<Outlook> {
        let get = StoreError::sort("look at how long things took");
        let row = self
            .db
            .query_one_raw(sql(
                "SELECT (SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY took) FROM (
                            SELECT extract(epoch FROM ready_at - created_at)::float8 AS took FROM placements
                            WHERE ready_at > clock_timestamp() - make_interval(secs => $1)
                            ORDER BY ready_at DESC LIMIT $2) AS starts) AS start,
                        (SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY stop_seconds) FROM (
                            SELECT stop_seconds FROM placements
                            WHERE released_at > clock_timestamp() - make_interval(secs => $1)
                              AND stop_seconds IS NOT NULL
                            ORDER BY released_at DESC LIMIT $2) AS stops) AS stop,
                        (SELECT count(*) FROM placements
                         WHERE released_at > clock_timestamp() - make_interval(secs => $1)) AS released,
                        (SELECT count(*) FROM workspaces WHERE state = 'STOPPING' AND node_id IS NOT NULL) AS stopping",
                [RELEASES_COUNT_FOR.as_secs_f64().into(), SAMPLE.into()],
            ))
            .await
            .map_err(&get)?
            .ok_or(StoreError::Conflict { operation: "look at how long things took" })?;
        let count = |name: &str| -> Result<usize> {
            Ok(usize::try_from(row.try_get::<i64>("", name).map_err(&get)?).unwrap_or_default())
        };
        let span = |name: &str| -> Result<Option<Duration>> {
            let seconds: Option<f64> = row.try_get("", name).map_err(&get)?;
            Ok(seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()))
        };
        Ok(Outlook {
            start: span("start")?,
            stop: span("stop")?.unwrap_or_default().max(SHORTEST_STOP),
            stopping: count("stopping")?,
            released: count("released")?,
            deadlines: vec![],
        })
    }

    /// Running workspaces in the order in which they would be idle, were all timeouts equal; those that were extended are
    /// left out.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn next_idle(&self) -> Result<Vec<NextIdle>> {
        let get = StoreError::sort("look for who would be idle first");
        let rows = self
            .db
            .query_all_raw(sql(
                "SELECT w.id, w.student_id, w.course_id, greatest(w.ready_at, w.resumed_at, a.lms_input_at, a.editor_input_at, a.keep_working_at)
                            AS basis_at
                 FROM workspaces w JOIN workspace_activity a ON a.workspace_id = w.id
                 WHERE w.state = 'RUNNING' AND w.ready_at IS NOT NULL AND w.extended_until IS NULL
                 ORDER BY basis_at LIMIT $1",
                [NEXT_IDLE.into()],
            ))
            .await
            .map_err(&get)?;
        let read = |row: &QueryResult| {
            let student: String = row.try_get("", "student_id").map_err(&get)?;
            let course: Option<String> = row.try_get("", "course_id").map_err(&get)?;
            Ok(NextIdle {
                student: value("workspaces", student.into())?,
                course: course.map(|course| value("workspaces", course.into())).transpose()?,
                basis_at: row.try_get("", "basis_at").map_err(&get)?,
            })
        };
        Ok(readable(rows.iter().map(|row| (row.try_get("", "id").ok(), read(row)))))
    }
}
