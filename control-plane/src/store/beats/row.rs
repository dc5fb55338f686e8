//! A row of [`super::RECORD`]. Heartbeats read many, so it is read by position, past `sea_orm` and past the names of columns.

use std::time::Duration;

use carrel_common::id::{Generation, NodeId, WorkspaceUid};
use sea_orm::prelude::{Json, Uuid};
use sqlx::Row as _;
use sqlx::postgres::{PgRow, Postgres};
use time::OffsetDateTime;

use super::super::activity::bare;
use super::super::entity::value;
use super::super::error::{Result, StoreError};
use crate::domain::activity::{Acked, Activity, Awake, BySignal};
use crate::domain::workspace::{State, Warning, Workspace};

/// What is returned, in the order in which [`place`] and [`read`] take it.
pub(super) const RETURNED: &str = "
    w.number, a.workspace_id, clock_timestamp(),
    a.lms_input_at, a.editor_input_at, a.keep_working_at, a.job_at, a.awake_until, a.awake_granted_seconds,
    a.acked_warning_at, a.warning_acked_at, a.version,
    a.running, a.student_key, a.generation, a.course_id, a.node_id, a.ready_at, a.extended_until, a.resumed_at, a.warning";

/// What a row says.
#[derive(Debug)]
pub(super) struct Recorded {
    /// Of which workspace.
    pub(super) uid: WorkspaceUid,
    /// The workspace as far as its deadline needs it, by the copies; `None` when it does not run, and so has none.
    pub(super) copied: Option<Workspace>,
    /// Its activity.
    pub(super) activity: Activity,
    /// The database's time.
    pub(super) now: OffsetDateTime,
}

/// The columns of a row, one after the other.
struct Columns<'r> {
    row: &'r PgRow,
    next: usize,
}

impl Columns<'_> {
    fn take<T>(&mut self) -> Result<T>
    where
        T: for<'r> sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>,
    {
        let corrupt = |error: sqlx::Error| StoreError::Corrupt {
            table: "workspace_activity",
            problem: error.to_string(),
        };
        let value = self.row.try_get(self.next).map_err(corrupt)?;
        self.next += 1;
        Ok(value)
    }
}

/// Its place in what the statement named, counted from 0.
pub(super) fn place(row: &PgRow) -> Result<usize> {
    Columns { row, next: 0 }.take().map(super::from_zero)
}

/// All else.
pub(super) fn read(row: &PgRow) -> Result<Recorded> {
    let mut columns = Columns { row, next: 1 };
    let uid = WorkspaceUid(columns.take()?);
    let now = columns.take()?;
    let activity = activity(&mut columns)?;
    let copied = if columns.take()? { Some(workspace(uid, &mut columns)?) } else { None };
    Ok(Recorded { uid, copied, activity, now })
}

fn activity(columns: &mut Columns<'_>) -> Result<Activity> {
    let seen = BySignal {
        lms_input: columns.take()?,
        editor_input: columns.take()?,
        keep_working: columns.take()?,
        job: columns.take()?,
    };
    let (until, granted) = (columns.take()?, columns.take()?);
    let awake = Awake { until, granted: Duration::try_from_secs_f64(granted).unwrap_or_default() };
    let acked = match (columns.take()?, columns.take()?) {
        (Some(warned_at), Some(at)) => Some(Acked { warned_at, at }),
        _ => None,
    };
    Ok(Activity { seen, awake, acked, version: columns.take()? })
}

/// Known by the key of its student, which names that as well as the spelling does.
fn workspace(uid: WorkspaceUid, columns: &mut Columns<'_>) -> Result<Workspace> {
    let student = value("workspace_activity", columns.take::<String>()?.into())?;
    let mut workspace = bare(uid, student, Generation(columns.take()?));
    workspace.state = State::Running;
    let course: Option<String> = columns.take()?;
    workspace.course = course.map(|course| value("workspace_activity", course.into())).transpose()?;
    workspace.node = columns.take::<Option<Uuid>>()?.map(NodeId);
    workspace.ready_at = columns.take()?;
    workspace.extended_until = columns.take()?;
    workspace.resumed_at = columns.take()?;
    let warning: Option<Json> = columns.take()?;
    workspace.warning = warning.map(|warning| value::<Warning>("workspace_activity", warning)).transpose()?;
    Ok(workspace)
}
