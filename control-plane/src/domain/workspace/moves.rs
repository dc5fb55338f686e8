//! What the steps are made of: entering a state, beginning a generation, winding down, coming to rest, failing, deleting.

use carrel_common::id::Generation;
use carrel_common::model::{Stage, StatusReason, StopReason, WorkspaceSpec};
use time::OffsetDateTime;

use super::stays::purge_pause;
use super::{Attempts, Deletion, Desired, IdleEvidence, State, Stop, Workspace};
use crate::domain::behind::in_reach;
use crate::domain::event::{Actor, Entry};

impl Workspace {
    pub(super) fn enter(&mut self, state: State, now: OffsetDateTime) {
        self.state = state;
        self.state_since = now;
        self.status_reason = None;
        self.status_message.clear();
        self.pull_percent = 0;
        if !matches!(state, State::Pending | State::Starting) {
            self.stage = None;
        }
        if state != State::Running {
            self.endpoint = None;
        }
        if !state.wants_container() {
            self.warning = None;
        }
    }

    /// A new generation, in the queue.
    pub(super) fn begin(
        &mut self,
        spec: WorkspaceSpec,
        traceparent: String,
        actor: Actor,
        now: OffsetDateTime,
    ) -> Entry {
        self.enter(State::Pending, now);
        self.desired = Desired::Running;
        self.generation = self.generation.next();
        self.spec = spec;
        self.traceparent = traceparent;
        self.image_digest.clear();
        (self.stage, self.attempts) = (Some(Stage::Queued), None);
        self.force = false;
        self.started_at = Some(now);
        (self.ready_at, self.extended_until, self.resumed_at) = (None, None, None);
        if self.node.is_some() {
            self.status_reason = Some(StatusReason::PreviousStopping);
            self.status_message = "Starts as soon as the container before it is gone.".into();
        }
        Entry::new("workspace.requested", actor)
    }

    /// The same start, on another node, once this one has proven that nothing of it is left: until then a generation of its own
    /// keeps the two apart. Its place in the line and what it is made of stay.
    pub(super) fn try_elsewhere(
        &mut self,
        reason: StatusReason,
        message: String,
        now: OffsetDateTime,
    ) -> Vec<Entry> {
        let mut attempts =
            self.attempts.take().unwrap_or(Attempts { since: self.state_since, failed_on: vec![] });
        attempts.failed_on.extend(self.node);
        let entry = Entry::new("workspace.retried", Actor::ControlPlane)
            .because(reason)
            .with("message", message)
            .with("attempt", attempts.failed_on.len());
        let started_at = self.started_at;
        self.begin(self.spec.clone(), self.traceparent.clone(), Actor::ControlPlane, now);
        (self.started_at, self.attempts) = (started_at, Some(attempts));
        self.status_message = "It could not be started on its host, and is tried on another.".into();
        vec![entry]
    }

    /// A start was refused, as the share knows a container that was started later than the store does: a generation above that
    /// one, placed when the host has confirmed the end of this.
    pub(super) fn go_above(&mut self, latest: Generation, now: OffsetDateTime) -> Vec<Entry> {
        let fenced = Entry::new("workspace.fenced", Actor::Agent)
            .because(StatusReason::StorageFenced)
            .with("latest_generation", latest.0);
        // What nobody can have counted to is of an earlier incarnation, and below whatever follows all the same.
        if in_reach(latest.0, self.generation.0) {
            self.generation = self.generation.max(latest);
        }
        let (spec, traceparent) = (self.spec.clone(), self.traceparent.clone());
        vec![fenced, self.begin(spec, traceparent, Actor::ControlPlane, now)]
    }

    /// What runs now has its own spec in its placement; this one is for the generation that follows.
    pub(super) fn want_running(&mut self, spec: WorkspaceSpec, traceparent: String) -> Vec<Entry> {
        if self.desired == Desired::Running {
            return vec![];
        }
        self.desired = Desired::Running;
        (self.spec, self.traceparent) = (spec, traceparent);
        vec![Entry::new("workspace.requested", Actor::Caller).with("after", "STOPPING")]
    }

    /// Stops it where it is, to start again where there is room.
    pub(super) fn move_away(
        &mut self,
        message: String,
        evidence: Option<IdleEvidence>,
        spec: WorkspaceSpec,
        now: OffsetDateTime,
    ) -> Vec<Entry> {
        let mut log = self.wind_down(StopReason::Drain, false, message, evidence, now);
        (self.desired, self.spec) = (Desired::Running, spec);
        log.push(Entry::new("workspace.moved", Actor::ControlPlane).because(StopReason::Drain));
        log
    }

    pub(super) fn note_stop(
        &mut self,
        reason: StopReason,
        message: String,
        evidence: Option<IdleEvidence>,
        now: OffsetDateTime,
    ) {
        self.desired = Desired::Stopped;
        self.stop = Some(Stop { reason, at: now, exit_code: None, message, evidence });
    }

    /// Asks the node to stop the container.
    pub(super) fn wind_down(
        &mut self,
        reason: StopReason,
        force: bool,
        message: String,
        evidence: Option<IdleEvidence>,
        now: OffsetDateTime,
    ) -> Vec<Entry> {
        self.note_stop(reason, message, evidence, now);
        self.enter(State::Stopping, now);
        self.force = force;
        let actor = match reason {
            StopReason::Idle | StopReason::MaxLifetime => Actor::Policy,
            StopReason::Drain | StopReason::NodeLost => Actor::ControlPlane,
            StopReason::Operator => Actor::Operator,
            StopReason::User
            | StopReason::Oom
            | StopReason::Exited
            | StopReason::Deleted
            | StopReason::Storage
            | StopReason::StartFailed => Actor::Caller,
        };
        vec![Entry::new("workspace.stopping", actor).because(reason)]
    }

    /// Nothing runs any more.
    pub(super) fn rest(&mut self, actor: Actor, exit_code: Option<i32>, now: OffsetDateTime) -> Vec<Entry> {
        self.enter(State::Stopped, now);
        self.force = false;
        let mut entry = Entry::new("workspace.stopped", actor).with("exit_code", exit_code);
        if let Some(stop) = &mut self.stop {
            stop.exit_code = exit_code.or(stop.exit_code);
            entry = entry.because(stop.reason).with("message", stop.message.clone());
        }
        vec![entry]
    }

    pub(super) fn fail(
        &mut self,
        reason: StatusReason,
        exit_code: Option<i32>,
        message: String,
        actor: Actor,
        now: OffsetDateTime,
    ) -> Vec<Entry> {
        let stop_reason = match reason {
            StatusReason::CrashLoop => StopReason::Exited,
            StatusReason::OutOfMemory => StopReason::Oom,
            StatusReason::StorageUnavailable | StatusReason::StorageFenced => StopReason::Storage,
            _ => StopReason::StartFailed,
        };
        self.note_stop(stop_reason, message.clone(), None, now);
        if let Some(stop) = &mut self.stop {
            stop.exit_code = exit_code;
        }
        self.enter(State::Failed, now);
        self.status_reason = Some(reason);
        self.status_message = message.clone();
        vec![
            Entry::new("workspace.failed", actor)
                .because(reason)
                .with("exit_code", exit_code)
                .with("message", message),
        ]
    }

    pub(super) fn delete(&mut self, purge_files: bool, now: OffsetDateTime) -> Vec<Entry> {
        if self.deletion.is_some() && self.node.is_none() && !purge_files {
            // Nobody is moving the files at present: they stay where they are.
            return self.finish_delete(false, now);
        }
        if let Some(deletion) = &mut self.deletion {
            deletion.purge_files |= purge_files;
            return vec![];
        }
        self.deletion = Some(Deletion { purge_files, failures: 0, retry_at: None });
        let mut log = vec![Entry::new("workspace.deleting", Actor::Caller).with("purge_files", purge_files)];
        if self.node.is_none() && !purge_files {
            log.extend(self.finish_delete(false, now));
            return log;
        }
        if self.state == State::Stopping {
            self.desired = Desired::Stopped;
        } else {
            log.extend(self.wind_down(StopReason::Deleted, false, "Deleted.".into(), None, now));
        }
        self.status_reason = Some(StatusReason::Deleting);
        log
    }

    /// The files are where they were. Somebody has to mend the trash, or to say that they are to stay.
    pub(super) fn fail_purge(
        &mut self,
        deletion: Deletion,
        problem: String,
        now: OffsetDateTime,
    ) -> Vec<Entry> {
        let failures = deletion.failures.saturating_add(1);
        let retry_at = Some(now + purge_pause(failures));
        self.deletion = Some(Deletion { failures, retry_at, ..deletion });
        self.enter(State::Failed, now);
        self.status_reason = Some(StatusReason::Deleting);
        self.status_message =
            format!("Its files could not be moved to the trash, which is tried again: {problem}");
        let failed = Entry::new("workspace.purge_failed", Actor::Agent);
        vec![failed.with("message", problem).with("attempt", failures)]
    }

    pub(super) fn finish_delete(&mut self, purged: bool, now: OffsetDateTime) -> Vec<Entry> {
        self.note_stop(StopReason::Deleted, "Deleted.".into(), None, now);
        self.enter(State::Stopped, now);
        self.deleted_at = Some(now);
        vec![Entry::new("workspace.deleted", Actor::ControlPlane).with("purged", purged)]
    }
}
