//! Signs of life, and what becomes of times that are kept when there was none or the database's clock was set.
//!
//! Nothing that lasts for a span (a job, an extension) is recorded between a step and the sign of life that accounts for it,
//! so here all of them are by the clock as it was. Activity is: what lies in the future is by the clock as it was, and all
//! else may stay as it is, since [`super::beats`] lets nothing of the future stand against what comes after.

use std::time::Duration;

use sea_orm::{ConnectionTrait, QueryResult, Statement};
use time::OffsetDateTime;
use tokio::time::Instant;

use super::error::{Result, StoreError};
use super::rules::NEXT_VERSION;
use super::{Store, Work, sql};
use crate::domain::idle::LONGEST_PAUSE;
use crate::domain::pulse::{Pulse, Reading};

/// In the order of locks, by $1 seconds back, as is all below.
const SET_BACK: [&str; 8] = [
    LOCK_MOVED,
    MOVE_JOBS,
    "UPDATE workspace_activity SET
            lms_input_at = CASE WHEN lms_input_at > $2 THEN least(lms_input_at + make_interval(secs => $1), $2) ELSE lms_input_at END,
            editor_input_at =
                CASE WHEN editor_input_at > $2 THEN least(editor_input_at + make_interval(secs => $1), $2) ELSE editor_input_at END,
            keep_working_at =
                CASE WHEN keep_working_at > $2 THEN least(keep_working_at + make_interval(secs => $1), $2) ELSE keep_working_at END,
            job_at = CASE WHEN job_at > $2 THEN least(job_at + make_interval(secs => $1), $2) ELSE job_at END,
            acked_warning_at = CASE WHEN acked_warning_at > $2 THEN $2 ELSE acked_warning_at END,
            warning_acked_at = CASE WHEN warning_acked_at > $2 THEN $2 ELSE warning_acked_at END
     WHERE greatest(lms_input_at, editor_input_at, keep_working_at, job_at, acked_warning_at) > $2",
    MOVE_EXTENSIONS,
    "UPDATE workspaces SET
            state_since = CASE WHEN state_since > $2 THEN least(state_since + make_interval(secs => $1), $2) ELSE state_since END,
            ready_at = CASE WHEN ready_at > $2 THEN least(ready_at + make_interval(secs => $1), $2) ELSE ready_at END,
            started_at = CASE WHEN started_at > $2 THEN least(started_at + make_interval(secs => $1), $2) ELSE started_at END,
            resumed_at = CASE WHEN resumed_at > $2 THEN least(resumed_at + make_interval(secs => $1), $2) ELSE resumed_at END,
            version = version + 1
     WHERE deleted_at IS NULL AND (state_since > $2 OR ready_at > $2 OR resumed_at > $2)",
    "UPDATE nodes SET last_heartbeat_at = least(last_heartbeat_at, $2) WHERE last_heartbeat_at > $2",
    MOVE_DRAINS,
    // One that lies in the future moves back with the activity about it; where it is not sure to, it may be longer, never
    // shorter. Of a step forward that is taken back, what is left is a pause: what is taken back is taken of the step first, so
    // that of the pause no more is a step than it is long. And no lead goes on through a step.
    "WITH over AS (
         DELETE FROM pauses WHERE to_at > $2 AND from_at <= $2::timestamptz - interval '3 s' AND to_at + make_interval(secs => $1) <= from_at
     ), moved AS (
         UPDATE pauses SET to_at = to_at + make_interval(secs => $1), from_at =
                CASE WHEN from_at > $2::timestamptz - interval '3 s' THEN from_at + make_interval(secs => $1) ELSE from_at END,
                set_forward_seconds = CASE WHEN from_at > $2::timestamptz - interval '3 s' THEN set_forward_seconds
                                           ELSE greatest(set_forward_seconds + $1, 0) END
         WHERE to_at > $2 AND (from_at > $2::timestamptz - interval '3 s' OR to_at + make_interval(secs => $1) > from_at)
     )
     INSERT INTO pauses (from_at, to_at) VALUES ($2, $2)",
];

/// The activity rows of all that is moved, those of workspaces too, into which the database copies their times: in the order in
/// which everybody locks several. What was being written meanwhile may match only later: should that lead to a deadlock, it is a
/// conflict, and the next pulse accounts for the same time.
const LOCK_MOVED: &str = "
    SELECT 1 AS one FROM workspace_activity a JOIN workspaces w ON w.id = a.workspace_id
     WHERE greatest(a.awake_until, w.extended_until) > $2::timestamptz - make_interval(secs => greatest($1::float8, 0))
        OR greatest(a.lms_input_at, a.editor_input_at, a.keep_working_at, a.job_at, a.acked_warning_at, w.ready_at, w.resumed_at) > $2
     ORDER BY a.student_key FOR UPDATE OF a";

/// Jobs last for a span from when they were declared, so they move with the clock.
const MOVE_JOBS: &str = "
    UPDATE workspace_activity SET awake_until = awake_until + make_interval(secs => $1), version = version + 1
     WHERE awake_until > $2::timestamptz - make_interval(secs => greatest($1, 0))";

/// The same of extensions.
const MOVE_EXTENSIONS: &str = "
    UPDATE workspaces SET extended_until = extended_until + make_interval(secs => $1), version = version + 1
     WHERE deleted_at IS NULL AND extended_until > $2::timestamptz - make_interval(secs => greatest($1, 0))";

/// The same of the ends of drains; but an outage moves none: a host is to be empty when its operator said.
const MOVE_DRAINS: &str = "
    UPDATE nodes SET drain_deadline_at = drain_deadline_at + make_interval(secs => $1)
     WHERE drain_deadline_at > $2::timestamptz - make_interval(secs => greatest($1, 0))";

/// A start, a stop or a wait is not too long because nobody could tell of its end, or because the clock was set: moved by $1
/// seconds, unless it began within the last $3, by the clock as it is now.
const MOVE_STAYS: &str = "
    UPDATE workspaces SET state_since = least(state_since + make_interval(secs => $1), $2), version = version + 1
     WHERE deleted_at IS NULL AND state IN ('PENDING', 'STARTING', 'STOPPING')
       AND state_since < $2::timestamptz - make_interval(secs => $3)";

/// Nor is a node silent because nobody could hear it.
const MOVE_HEARTBEATS: &str = "
    UPDATE nodes SET last_heartbeat_at = least(last_heartbeat_at + make_interval(secs => $1), $2) WHERE last_heartbeat_at < $2";

impl Store {
    /// A sign of life of this replica, and how it read the clock; `before`: how it did at its last one. When none was given for
    /// longer than `tolerance`, by anybody, or the clock was set forward meanwhile, that time is recorded as a pause; when
    /// the clock was set back, times that lie in the future move back with it.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn take_pulse(&self, tolerance: Duration, before: Option<Reading>) -> Result<(Pulse, Reading)> {
        let mut work = self.begin().await?;
        let (alive_at, clock) = work.alive_at().await?;
        let now = clock.shown;
        let silence = now - alive_at;
        let set_forward = before.map_or(time::Duration::ZERO, |before| clock.set_forward_since(&before));
        let pulse = Pulse::of(silence, set_forward, tolerance);
        let by = silence.as_seconds_f64();
        match pulse {
            Pulse::Steady => {}
            Pulse::Missed { set_forward, .. } => {
                let stepped = set_forward.as_secs_f64();
                work.write(
                    "INSERT INTO pauses (from_at, to_at, set_forward_seconds) VALUES ($1, $2, $3)",
                    [alive_at.into(), now.into(), stepped.into()],
                )
                .await?;
                let stood_still = (by - stepped).clamp(0.0, LONGEST_PAUSE.as_secs_f64()) + stepped;
                work.write(LOCK_MOVED, [stood_still.into(), now.into()]).await?;
                work.write(MOVE_JOBS, [stood_still.into(), now.into()]).await?;
                work.write(MOVE_EXTENSIONS, [stood_still.into(), now.into()]).await?;
                work.write(MOVE_STAYS, [by.into(), now.into(), tolerance.as_secs_f64().into()]).await?;
                work.write(MOVE_HEARTBEATS, [by.into(), now.into()]).await?;
                work.write(MOVE_DRAINS, [stepped.into(), now.into()]).await?;
            }
            Pulse::SetBack(_) => {
                for statement in SET_BACK {
                    work.write(statement, [by.into(), now.into()]).await?;
                }
            }
        }
        if pulse != Pulse::Steady {
            // Whatever was seen meanwhile is told first, then something may be decided.
            work.write("UPDATE nodes SET told = false WHERE told", []).await?;
        }
        let version = if pulse == Pulse::Steady { "rules_version" } else { NEXT_VERSION };
        work.write(&format!("UPDATE cluster SET alive_at = $1, rules_version = {version}"), [now.into()])
            .await?;
        work.commit().await?;
        Ok((pulse, clock))
    }
}

/// The row of the cluster, with the database's clock as `now`, and how that was read.
pub(super) async fn with_clock(
    connection: &impl ConnectionTrait,
    statement: Statement,
    operation: &'static str,
) -> Result<(QueryResult, Reading)> {
    let asked = Instant::now().into_std();
    let row = connection.query_one_raw(statement).await.map_err(StoreError::sort(operation))?;
    let answered = Instant::now().into_std();
    let row = row.ok_or_else(|| StoreError::Corrupt { table: "cluster", problem: "it has no row".into() })?;
    let shown = row.try_get("", "now").map_err(StoreError::sort(operation))?;
    Ok((row, Reading { shown, asked, answered }))
}

impl Work {
    /// The last sign of life of any replica, locked, and the clock.
    async fn alive_at(&mut self) -> Result<(OffsetDateTime, Reading)> {
        let locked = sql("SELECT alive_at, clock_timestamp() AS now FROM cluster FOR UPDATE", []);
        let (row, clock) = with_clock(&self.tx, locked, OPERATION).await?;
        Ok((row.try_get("", "alive_at").map_err(StoreError::sort(OPERATION))?, clock))
    }

    async fn write<const N: usize>(&mut self, statement: &str, values: [sea_orm::Value; N]) -> Result<()> {
        self.tx.execute_raw(sql(statement, values)).await.map_err(StoreError::sort(OPERATION))?;
        Ok(())
    }
}

const OPERATION: &str = "take the pulse";
