//! What a caller can do with a workspace.

use std::time::Duration;

use carrel_common::id::{CourseId, RequestId, StudentId, WorkspaceUid};
use carrel_common::model::{Signal, StopReason};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::failing::Outcomes;
use super::settle::settle;
use super::{App, AppError, IdleView, Result, WorkspaceView, alone};
use crate::domain::event::{Actor, Entry};
use crate::domain::workspace::{Event, Step, Workspace};
use crate::store::{Known, Locked, Replay, StoreError, Work, WorkspaceQuery};

/// What identifies a call, so that repeating it has one effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Name of the RPC.
    pub rpc: &'static str,
    /// Given by the caller.
    pub request_id: Option<RequestId>,
    /// The content, in a form that is equal exactly when the content is.
    pub fingerprint: String,
}

/// How long an extension is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Until a time.
    Until(OffsetDateTime),
    /// From now.
    By(Duration),
}

/// What an extension came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extended {
    /// The deadline that follows.
    pub idle: IdleView,
    /// No idle stop before.
    #[serde(with = "time::serde::rfc3339")]
    pub until: OffsetDateTime,
    /// That is less than was asked for.
    pub clamped: bool,
}

impl App {
    /// Starts a student's workspace, making it on first use.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn start(
        &self,
        call: &Call,
        student: &StudentId,
        course: Option<&CourseId>,
    ) -> Result<WorkspaceView> {
        let workspace = settle!(self.start_once(call, student, course))?;
        self.view_one_lately(workspace).await
    }

    async fn start_once(
        &self,
        call: &Call,
        student: &StudentId,
        course: Option<&CourseId>,
    ) -> Result<Workspace> {
        let mut work = self.store.begin().await?;
        if let Some(answer) = replay(&mut work, call).await? {
            return Ok(answer);
        }
        let rules = self.rules_unless_behind(&mut work).await?;
        let spec = rules.book.spec(course, student);
        let now = OffsetDateTime::UNIX_EPOCH; // A new row; the first step sets its times.
        let make =
            Workspace::new(WorkspaceUid::new(), student.clone(), carrel_common::id::Generation(0), spec, now);
        let uid = work.find_or_make(make).await?;
        let locked = work.lock(uid).await?.ok_or_else(|| AppError::WorkspaceNotFound(student.clone()))?;
        let Locked { workspace: before, now, .. } = locked;
        if before.student != *student {
            return Err(AppError::DiffersInCase { given: student.clone(), existing: before.student });
        }
        let traceparent = carrel_common::telemetry::current_traceparent();
        let spec = rules.book.spec(course.or(before.course.as_ref()), student);
        let (mut next, mut log) =
            before.apply(Event::Start { course: course.cloned(), spec, traceparent }, now)?;
        if before.created_at == OffsetDateTime::UNIX_EPOCH {
            (next.created_at, next.updated_at) = (now, now);
        }
        let begins = next.generation != before.generation;
        if !begins && before.open_for_activity() {
            work.touch(uid, Signal::KeepWorking, now).await?;
            if before.warning.is_some() {
                self.nudge.look_at(uid, now);
            }
        }
        if begins && next.node.is_none() {
            let (placed, more) = self.place(&mut work, next, now).await?;
            (next, log) = (placed, [log, more].concat());
        }
        let after = work.save(&before, next, log, now).await?;
        self.finish(work, call, after).await
    }

    /// Stops a workspace.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn stop(
        &self,
        call: &Call,
        student: &StudentId,
        force: bool,
        why: &str,
    ) -> Result<WorkspaceView> {
        let message =
            if why.is_empty() { "Stopped on request.".to_owned() } else { format!("Stopped: {why}") };
        self.change(call, student, |locked| {
            let stop =
                Event::Stop { reason: StopReason::User, force, message: message.clone(), evidence: None };
            let (next, mut log) = locked.workspace.apply(stop, locked.now)?;
            log = log.into_iter().map(|entry| entry.with("why", why)).collect();
            Ok((next, log))
        })
        .await
    }

    /// Stops a workspace and starts it again as a new generation.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn restart(&self, call: &Call, student: &StudentId) -> Result<WorkspaceView> {
        let traceparent = carrel_common::telemetry::current_traceparent();
        self.refresh_rules().await?;
        let rules = self.rules.get();
        self.change(call, student, |locked| {
            let spec = rules.book.spec(locked.workspace.course.as_ref(), student);
            let restart = Event::Restart { spec, traceparent: traceparent.clone() };
            Ok(locked.workspace.apply(restart, locked.now)?)
        })
        .await
    }

    /// Stops a workspace and forgets it.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn delete(
        &self,
        call: &Call,
        student: &StudentId,
        etag: &str,
        purge_files: bool,
    ) -> Result<WorkspaceView> {
        self.change(call, student, |locked| {
            let present = locked.workspace.etag();
            if !etag.is_empty() && etag != present {
                return Err(AppError::StaleEtag { given: etag.to_owned(), present });
            }
            Ok(locked.workspace.apply(Event::Delete { purge_files }, locked.now)?)
        })
        .await
    }

    /// One step of a workspace that exists.
    async fn change(
        &self,
        call: &Call,
        student: &StudentId,
        step: impl Fn(&Locked) -> Result<Step>,
    ) -> Result<WorkspaceView> {
        let once = || async {
            let mut work = self.store.begin().await?;
            if let Some(answer) = replay(&mut work, call).await? {
                return Ok(answer);
            }
            self.refuse_while_behind(&mut work).await?;
            let missing = || AppError::WorkspaceNotFound(student.clone());
            let uid = work.find_uid(student).await?.ok_or_else(missing)?;
            let locked =
                work.lock(uid).await?.filter(|l| l.workspace.deleted_at.is_none()).ok_or_else(missing)?;
            let (next, log) = step(&locked)?;
            let after = work.save(&locked.workspace, next, log, locked.now).await?;
            self.finish(work, call, after).await
        };
        let workspace = settle!(once())?;
        self.view_one(workspace).await
    }

    /// Keeps the answer, commits, nudges.
    async fn finish(&self, mut work: Work, call: &Call, after: Workspace) -> Result<Workspace> {
        keep_answer(&mut work, call, &after).await?;
        self.nudge.ring(&work.commit().await?);
        Ok(after)
    }

    /// Keeps a workspace from its idle stop for longer. What was granted before is never shortened.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn extend(
        &self,
        call: &Call,
        student: &StudentId,
        extent: Extent,
        why: &str,
    ) -> Result<Extended> {
        let once = || async {
            // What was granted before moves with a clock that was set, before anything is granted by it as it is now: else the
            // later of both would be one of the clock that was.
            self.pulse().await?;
            let mut work = self.store.begin().await?;
            let missing = || AppError::WorkspaceNotFound(student.clone());
            if let Some(answer) = replay(&mut work, call).await? {
                return Ok(answer);
            }
            let uid = work.find_uid(student).await?.ok_or_else(missing)?;
            let Locked { workspace: before, mut activity, now } =
                work.lock(uid).await?.ok_or_else(missing)?;
            if !before.open_for_activity() {
                return Err(AppError::NotRunning {
                    state: Some(before.state),
                    stop: before.stop.map(Box::new),
                });
            }
            let wanted = match extent {
                Extent::Until(at) => at,
                Extent::By(span) => now + span,
            };
            self.refuse_while_behind(&mut work).await?;
            let Some(rules) = self.rules_in(&mut work).await? else { return Err(clock_was_set()) };
            if wanted <= now {
                return Err(AppError::ExtensionPast { until: wanted, now });
            }
            let policy = rules.times(&before);
            let (granted, _) = rules.look(&policy, &before, &activity, now).grant(wanted);
            let until = before.extended_until.map_or(granted, |known| known.max(granted));
            let clamped = until < wanted;
            let next = Workspace { extended_until: Some(until), ..before.clone() };
            let entry = Entry::new("workspace.extended", Actor::Caller)
                .with("until_time", rfc3339(until))
                .with("clamped", clamped)
                .with("why", why);
            let mut after = next;
            if before != after {
                work.raise_deadline_version(uid).await?;
                activity.version += 1;
                after = work.save(&before, after, vec![entry], now).await?;
            }
            let node = after.node.into_iter().collect();
            let heard = !work.nodes_that_have_told(node, self.settings.told_within()).await?.is_empty();
            let idle = IdleView::of(&rules, &after, &Known { activity, heard }, now);
            let answer = Extended { idle, until, clamped };
            keep_answer(&mut work, call, &answer).await?;
            self.nudge.ring(&work.commit().await?);
            // A warning that was out no longer holds.
            self.nudge.look_at(uid, now);
            Ok(answer)
        };
        settle!(once())
    }

    /// One workspace.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn get(&self, student: &StudentId) -> Result<WorkspaceView> {
        let found = self.store.find_workspace(student).await?;
        let workspace = found.ok_or_else(|| AppError::WorkspaceNotFound(student.clone()))?;
        self.view_one(workspace).await
    }

    /// A page of workspaces, and the key to ask for the next with.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn list(
        &self,
        query: &WorkspaceQuery,
        page_size: usize,
    ) -> Result<(Vec<WorkspaceView>, Option<String>)> {
        let (found, next) = self.store.list_workspaces(query, page_size).await?;
        Ok((self.view(found).await?, next))
    }

    /// Ends the stays that are too long; how many.
    ///
    /// # Errors
    /// The database.
    pub async fn end_all_overdue(&self) -> Result<usize> {
        let mut ended = 0;
        for uid in self.store.overdue(&self.settings.stays).await? {
            ended += usize::from(alone(uid, self.end_overdue(uid).await)?);
        }
        Ok(ended)
    }

    /// Ends a stay that is too long; false when it is not, or nothing may be decided.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn end_overdue(&self, uid: WorkspaceUid) -> Result<bool> {
        let mut work = self.store.begin().await?;
        let Some(Locked { workspace: before, now, .. }) = work.lock(uid).await? else { return Ok(false) };
        let Some(longest) = before.longest_stay(&self.settings.stays) else { return Ok(false) };
        if now < before.state_since + longest {
            return Ok(false);
        }
        // The clock may have been set, or nobody could tell of its end: the next sign of life moves its beginning.
        if self.rules_in(&mut work).await?.is_none() {
            return Ok(false);
        }
        let mut outcomes = Outcomes::default();
        let event = self.end_or_elsewhere(&mut work, &before, Event::Overdue, now, &mut outcomes).await?;
        let (next, log) = before.apply(event, now)?;
        tracing::warn!(workspace.id = %before.uid, generation = before.generation.0, state = before.state.as_str(), "a stay was too long");
        work.save(&before, next, log, now).await?;
        outcomes.note(&mut work, before.node).await?;
        self.nudge.ring(&work.commit().await?);
        Ok(true)
    }
}

/// It was set since the last sign of life; after the next the same again may well succeed.
pub(super) fn clock_was_set() -> AppError {
    StoreError::Conflict { operation: "grant time by the database's clock" }.into()
}

/// The answer that was given to the same call before.
pub(super) async fn replay<T: DeserializeOwned>(work: &mut Work, call: &Call) -> Result<Option<T>> {
    let Some(id) = call.request_id else { return Ok(None) };
    match work.reserve(call.rpc, id, &call.fingerprint).await? {
        Replay::New => Ok(None),
        Replay::Answered(answer) => Ok(Some(*answer)),
        Replay::OtherContent => Err(AppError::RequestIdReused),
    }
}

/// Keeps what a call is answered with, for when it is made again.
pub(super) async fn keep_answer<T: Serialize>(work: &mut Work, call: &Call, answer: &T) -> Result<()> {
    if let Some(id) = call.request_id {
        work.answer(call.rpc, id, &call.fingerprint, answer).await?;
    }
    Ok(())
}

pub(super) fn rfc3339(at: OffsetDateTime) -> String {
    at.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}
