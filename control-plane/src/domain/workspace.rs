//! The life of a workspace: every legal step, and nothing else.
//!
//! `Workspace::apply(event, now)` is the whole state machine. The API and the policies write what should be
//! (`Start`, `Stop`, `Restart`, `Delete`), the agents write what is (`Report`), the clock ends every stay that is too
//! long (`Overdue`). A step that means nothing in a state is an [`IllegalTransition`], never a guess.
//!
//! The one idea: **a placement is over only on proof**. `node` stays set until the agent has confirmed that nothing of
//! that generation runs (`Report::Gone`), whatever the state says meanwhile.

use carrel_common::id::{CourseId, Generation, NodeId, StudentId, WorkspaceUid};
use carrel_common::model::{Signal, Stage, StatusReason, StopReason, WorkspaceSpec};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::event::{Actor, Entry};

/// Where a workspace is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum State {
    /// No container.
    Stopped,
    /// Waits for a place.
    Pending,
    /// Placed; the editor does not answer yet.
    Starting,
    /// The editor answers.
    Running,
    /// Being stopped and removed.
    Stopping,
    /// Could not start or stop, or crashed too often.
    Failed,
    /// The node is silent.
    Unreachable,
}

impl State {
    /// All of them, in the order of the documentation.
    pub const ALL: [Self; 7] = [
        Self::Stopped,
        Self::Pending,
        Self::Starting,
        Self::Running,
        Self::Stopping,
        Self::Failed,
        Self::Unreachable,
    ];

    /// As stored and as in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "STOPPED",
            Self::Pending => "PENDING",
            Self::Starting => "STARTING",
            Self::Running => "RUNNING",
            Self::Stopping => "STOPPING",
            Self::Failed => "FAILED",
            Self::Unreachable => "UNREACHABLE",
        }
    }

    /// Whether the node that holds the workspace should have a running container for it.
    pub fn wants_container(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Unreachable)
    }
}

/// What the API and the policies want.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Desired {
    /// No container.
    Stopped,
    /// A container that answers.
    Running,
}

/// How and why a workspace was stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Who or what.
    pub reason: StopReason,
    /// When it was decided.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Exit code of the program, when known.
    pub exit_code: Option<i32>,
    /// One sentence for the student.
    pub message: String,
    /// For an idle stop: what it was decided on.
    pub evidence: Option<IdleEvidence>,
}

/// What an idle stop was decided on, as it was at the decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdleEvidence {
    /// The newest activity that counted.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_active_at: Option<OffsetDateTime>,
    /// Its signal.
    pub last_signal: Option<Signal>,
    /// What the timeout was counted from.
    #[serde(with = "time::serde::rfc3339")]
    pub basis_at: OffsetDateTime,
    /// The timeout in force.
    pub idle_timeout: std::time::Duration,
    /// The deadline that passed.
    #[serde(with = "time::serde::rfc3339")]
    pub deadline_at: OffsetDateTime,
    /// When the warning went out.
    #[serde(with = "time::serde::rfc3339")]
    pub warned_at: OffsetDateTime,
    /// When it was decided.
    #[serde(with = "time::serde::rfc3339")]
    pub decided_at: OffsetDateTime,
}

/// A warning that is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// When it was given.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// The deadline, before the lead is considered, that it speaks of; any other deadline withdraws it.
    #[serde(with = "time::serde::rfc3339")]
    pub nominal_deadline: OffsetDateTime,
    /// `deadline_version` that it speaks of.
    pub version: i64,
}

/// A delete under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// The files go to the trash once the container is gone.
    pub purge_files: bool,
}

/// One student's desk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workspace {
    /// Identity.
    pub uid: WorkspaceUid,
    /// The student.
    pub student: StudentId,
    /// The course it was last started for.
    pub course: Option<CourseId>,
    /// Observed.
    pub state: State,
    /// Since when; what the longest stays are counted from.
    #[serde(with = "time::serde::rfc3339")]
    pub state_since: OffsetDateTime,
    /// Wanted.
    pub desired: Desired,
    /// Incarnation of the container; 0 before the first start.
    pub generation: Generation,
    /// Rises with each change; the store writes only where it is still the one read.
    pub version: i64,
    /// Why it is in its state.
    pub status_reason: Option<StatusReason>,
    /// One sentence for the student; empty when there is nothing to say.
    pub status_message: String,
    /// How far a start is.
    pub stage: Option<Stage>,
    /// The node of the unreleased placement.
    pub node: Option<NodeId>,
    /// The node that held it last, for its logs.
    pub last_node: Option<NodeId>,
    /// What the generation is made of.
    pub spec: WorkspaceSpec,
    /// Image id as resolved on the node; empty before.
    pub image_digest: String,
    /// host:port of the editor.
    pub endpoint: Option<String>,
    /// The last stop.
    pub stop: Option<Stop>,
    /// The stop under way is without grace.
    pub force: bool,
    /// The idle warning that is out.
    pub warning: Option<Warning>,
    /// No idle stop before.
    #[serde(with = "time::serde::rfc3339::option")]
    pub extended_until: Option<OffsetDateTime>,
    /// When its signals could be seen again after the node was silent; counts as a basis of idleness.
    #[serde(with = "time::serde::rfc3339::option")]
    pub resumed_at: Option<OffsetDateTime>,
    /// A delete under way.
    pub deletion: Option<Deletion>,
    /// When the delete was done.
    #[serde(with = "time::serde::rfc3339::option")]
    pub deleted_at: Option<OffsetDateTime>,
    /// When the desk was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When this generation was asked for.
    #[serde(with = "time::serde::rfc3339::option")]
    pub started_at: Option<OffsetDateTime>,
    /// When its editor first answered.
    #[serde(with = "time::serde::rfc3339::option")]
    pub ready_at: Option<OffsetDateTime>,
    /// When it last changed.
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
    /// Trace context of the request that caused this generation; empty when there was none.
    pub traceparent: String,
}

/// What an agent reports of the present generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// On its way up.
    Starting(Stage),
    /// The editor answers.
    Running {
        /// host:port.
        endpoint: String,
        /// Image id.
        image_digest: String,
    },
    /// Its program ended and is restarted.
    Restarting {
        /// Exit code.
        exit_code: Option<i32>,
        /// One sentence.
        message: String,
    },
    /// Given up.
    Failed {
        /// Why.
        reason: StatusReason,
        /// Exit code.
        exit_code: Option<i32>,
        /// One sentence.
        message: String,
    },
    /// Nothing of this generation, or of the older one that held the placement, runs or will run.
    Gone {
        /// The files were moved to the trash.
        purged: bool,
        /// Exit code of the program, when it was seen.
        exit_code: Option<i32>,
    },
}

/// What can happen to a workspace.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A caller wants it to run.
    Start {
        /// The course it is for.
        course: Option<CourseId>,
        /// What a new generation is made of.
        spec: WorkspaceSpec,
        /// Trace context of the call.
        traceparent: String,
    },
    /// Somebody or a policy wants it stopped.
    Stop {
        /// Who.
        reason: StopReason,
        /// Without grace.
        force: bool,
        /// One sentence for the student.
        message: String,
        /// For an idle stop.
        evidence: Option<IdleEvidence>,
    },
    /// A caller wants a new generation.
    Restart {
        /// What the new generation is made of.
        spec: WorkspaceSpec,
        /// Trace context of the call.
        traceparent: String,
    },
    /// A caller wants it gone.
    Delete {
        /// The files go to the trash.
        purge_files: bool,
    },
    /// A node took it.
    Place {
        /// The node.
        node: NodeId,
    },
    /// No node took it, and why.
    Wait {
        /// What it waits for.
        reason: StatusReason,
        /// One sentence.
        message: String,
    },
    /// The agent's word.
    Report(Report),
    /// The node is silent.
    NodeSilent,
    /// It has been in its state for longer than is allowed.
    Overdue,
}

/// A step that means nothing in the state the workspace is in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IllegalTransition {
    /// The event cannot happen in this state.
    #[error("{event} means nothing to a workspace that is {}", state.as_str())]
    NotInThisState {
        /// Its state.
        state: State,
        /// The event.
        event: &'static str,
    },
    /// It is being deleted.
    #[error("the workspace is being deleted")]
    Deleting,
}

/// The workspace after a step, and what the log says of it. Equal to the one before: nothing happened.
pub type Step = (Workspace, Vec<Entry>);

impl Workspace {
    /// A desk that has never been started. `generation` continues from a deleted one of the same student.
    pub fn new(
        uid: WorkspaceUid,
        student: StudentId,
        generation: Generation,
        spec: WorkspaceSpec,
        now: OffsetDateTime,
    ) -> Self {
        Self {
            uid,
            student,
            course: None,
            state: State::Stopped,
            state_since: now,
            desired: Desired::Stopped,
            generation,
            version: 1,
            status_reason: None,
            status_message: String::new(),
            stage: None,
            node: None,
            last_node: None,
            spec,
            image_digest: String::new(),
            endpoint: None,
            stop: None,
            force: false,
            warning: None,
            extended_until: None,
            resumed_at: None,
            deletion: None,
            deleted_at: None,
            created_at: now,
            started_at: None,
            ready_at: None,
            updated_at: now,
            traceparent: String::new(),
        }
    }

    /// Opaque to callers; changes with every change.
    pub fn etag(&self) -> String {
        format!("{}.{}", self.uid.0.simple(), self.version)
    }

    /// The workspace around a container that ran without the store knowing: its idle clock begins when it answers.
    pub fn adopted(&self, generation: Generation, node: NodeId, now: OffsetDateTime) -> Self {
        let mut next = self.clone();
        next.begin(self.spec.clone(), String::new(), Actor::ControlPlane, now);
        next.generation = generation;
        next.enter(State::Starting, now);
        (next.node, next.last_node, next.stage) = (Some(node), Some(node), Some(Stage::Probing));
        next
    }

    /// Whether desired and observed differ.
    pub fn reconciling(&self) -> bool {
        self.deletion.is_some()
            || match self.desired {
                Desired::Running => self.state != State::Running,
                Desired::Stopped => {
                    !matches!(self.state, State::Stopped | State::Failed) || self.node.is_some()
                }
            }
    }

    /// Whether activity is recorded: it is meant to run.
    pub fn open_for_activity(&self) -> bool {
        self.desired == Desired::Running && self.state != State::Stopping
    }

    /// One step.
    ///
    /// # Errors
    /// [`IllegalTransition`] when the event means nothing in this state; nothing has changed then.
    pub fn apply(&self, event: Event, now: OffsetDateTime) -> Result<Step, IllegalTransition> {
        use State::{Failed, Pending, Running, Starting, Stopped, Stopping, Unreachable};
        let mut next = self.clone();
        let log = match (self.state, event) {
            (_, Event::Start { .. } | Event::Restart { .. }) if self.deletion.is_some() => {
                return Err(IllegalTransition::Deleting);
            }
            (Stopped | Failed, Event::Start { course, spec, traceparent }) => {
                next.course = course.or(next.course);
                vec![next.begin(spec, traceparent, Actor::Caller, now)]
            }
            (Stopped | Failed, Event::Restart { spec, traceparent }) => {
                vec![next.begin(spec, traceparent, Actor::Caller, now)]
            }
            (Pending | Starting | Running | Unreachable, Event::Start { course, .. }) => {
                next.course = course.or(next.course);
                vec![]
            }
            (Stopping, Event::Start { course, spec, traceparent }) => {
                next.course = course.or(next.course);
                next.want_running(spec, traceparent)
            }
            (Stopping, Event::Restart { spec, traceparent }) => next.want_running(spec, traceparent),
            (Pending, Event::Restart { .. }) => vec![],
            (Starting | Running | Unreachable, Event::Restart { spec, traceparent }) => {
                let mut log = next.wind_down(StopReason::User, false, "Restarted.".into(), None, now);
                log.extend(next.want_running(spec, traceparent));
                log
            }

            (Stopped, Event::Stop { .. }) => vec![],
            (Pending | Failed, Event::Stop { reason, message, .. }) if self.node.is_none() => {
                next.note_stop(reason, message, None, now);
                next.rest(Actor::Caller, None, now)
            }
            (
                Pending | Failed | Starting | Running | Unreachable,
                Event::Stop { reason, force, message, evidence },
            ) => next.wind_down(reason, force, message, evidence, now),
            (Stopping, Event::Stop { force, .. }) => {
                next.desired = Desired::Stopped;
                next.force |= force;
                vec![]
            }

            (_, Event::Delete { purge_files }) => next.delete(purge_files, now),

            (Pending, Event::Place { node }) if self.node.is_none() => {
                next.enter(Starting, now);
                (next.node, next.last_node, next.stage) = (Some(node), Some(node), Some(Stage::Creating));
                vec![Entry::new("workspace.placed", Actor::ControlPlane)]
            }
            // A purge needs a node although nothing ran: the node confirms `Gone` when the files are in the trash.
            (Stopping | Failed, Event::Place { node }) if self.node.is_none() && self.deletion.is_some() => {
                next.node = Some(node);
                vec![]
            }
            (Pending, Event::Wait { reason, message }) => {
                (next.status_reason, next.status_message) = (Some(reason), message);
                vec![]
            }

            (_, Event::Report(report)) => next.report(report, now),

            (Starting | Running, Event::NodeSilent) => {
                next.enter(Unreachable, now);
                next.status_reason = Some(StatusReason::NodeUnreachable);
                next.status_message = "The host does not answer; your session may still be running.".into();
                vec![Entry::new("workspace.unreachable", Actor::ControlPlane)]
            }
            (Pending, Event::NodeSilent) => {
                next.status_reason = Some(StatusReason::PreviousHostUnreachable);
                next.status_message = "Waits for the host that held it before, which does not answer.".into();
                vec![]
            }
            (Stopped | Stopping | Failed | Unreachable, Event::NodeSilent) => vec![],

            (Pending, Event::Overdue) => next.fail(
                StatusReason::QueueTimeout,
                None,
                "No place became free in time. Press Start to try again.".into(),
                Actor::ControlPlane,
                now,
            ),
            (Starting, Event::Overdue) => next.fail(
                StatusReason::StartTimeout,
                None,
                "The editor did not answer in time. Press Start to try again.".into(),
                Actor::ControlPlane,
                now,
            ),
            (Stopping, Event::Overdue) if self.desired == Desired::Running => {
                let (spec, traceparent) = (next.spec.clone(), next.traceparent.clone());
                vec![next.begin(spec, traceparent, Actor::ControlPlane, now)]
            }
            (Stopping, Event::Overdue) => {
                next.enter(Failed, now);
                next.status_reason = Some(StatusReason::StopTimeout);
                next.status_message = "The container did not go in time; its host goes on trying.".into();
                vec![Entry::new("workspace.failed", Actor::ControlPlane).because(StatusReason::StopTimeout)]
            }

            (
                state @ (Stopped | Starting | Running | Stopping | Failed | Unreachable),
                Event::Wait { .. },
            ) => return Err(IllegalTransition::NotInThisState { state, event: "Wait" }),
            (state, Event::Place { .. }) => {
                return Err(IllegalTransition::NotInThisState { state, event: "Place" });
            }
            (state @ (Stopped | Running | Failed | Unreachable), Event::Overdue) => {
                return Err(IllegalTransition::NotInThisState { state, event: "Overdue" });
            }
        };
        Ok((next, log))
    }

    fn enter(&mut self, state: State, now: OffsetDateTime) {
        self.state = state;
        self.state_since = now;
        self.status_reason = None;
        self.status_message.clear();
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
    fn begin(
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
        self.stage = Some(Stage::Queued);
        self.force = false;
        self.started_at = Some(now);
        (self.ready_at, self.extended_until, self.resumed_at) = (None, None, None);
        if self.node.is_some() {
            self.status_reason = Some(StatusReason::PreviousStopping);
            self.status_message = "Starts as soon as the container before it is gone.".into();
        }
        Entry::new("workspace.requested", actor)
    }

    /// What runs now has its own spec in its placement; this one is for the generation that follows.
    fn want_running(&mut self, spec: WorkspaceSpec, traceparent: String) -> Vec<Entry> {
        if self.desired == Desired::Running {
            return vec![];
        }
        self.desired = Desired::Running;
        (self.spec, self.traceparent) = (spec, traceparent);
        vec![Entry::new("workspace.requested", Actor::Caller).with("after", "STOPPING")]
    }

    fn note_stop(
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
    fn wind_down(
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
        let actor = if reason == StopReason::Idle { Actor::Policy } else { Actor::Caller };
        vec![Entry::new("workspace.stopping", actor).because(reason)]
    }

    /// Nothing runs any more.
    fn rest(&mut self, actor: Actor, exit_code: Option<i32>, now: OffsetDateTime) -> Vec<Entry> {
        self.enter(State::Stopped, now);
        self.force = false;
        let mut entry = Entry::new("workspace.stopped", actor).with("exit_code", exit_code);
        if let Some(stop) = &mut self.stop {
            stop.exit_code = exit_code.or(stop.exit_code);
            entry = entry.because(stop.reason).with("message", stop.message.clone());
        }
        vec![entry]
    }

    fn fail(
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
            StatusReason::StorageUnavailable => StopReason::Storage,
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

    fn delete(&mut self, purge_files: bool, now: OffsetDateTime) -> Vec<Entry> {
        if let Some(deletion) = &mut self.deletion {
            deletion.purge_files |= purge_files;
            return vec![];
        }
        self.deletion = Some(Deletion { purge_files });
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

    fn finish_delete(&mut self, purged: bool, now: OffsetDateTime) -> Vec<Entry> {
        self.note_stop(StopReason::Deleted, "Deleted.".into(), None, now);
        self.enter(State::Stopped, now);
        self.deleted_at = Some(now);
        vec![Entry::new("workspace.deleted", Actor::ControlPlane).with("purged", purged)]
    }

    fn report(&mut self, report: Report, now: OffsetDateTime) -> Vec<Entry> {
        match (self.state, report) {
            (State::Starting | State::Running | State::Unreachable, Report::Starting(stage)) => {
                if self.state == State::Starting && self.stage == Some(stage) {
                    return vec![];
                }
                // The longest stay is counted after the pull, and anew when a running one has to start again.
                if self.state != State::Starting || self.stage == Some(Stage::Pulling) {
                    self.enter(State::Starting, now);
                }
                self.stage = Some(stage);
                if stage == Stage::Probing {
                    return vec![Entry::new("workspace.started", Actor::Agent)];
                }
                vec![]
            }
            (State::Running, Report::Running { endpoint, image_digest }) => {
                (self.endpoint, self.image_digest) = (Some(endpoint), image_digest);
                vec![]
            }
            (before @ (State::Starting | State::Unreachable), Report::Running { endpoint, image_digest }) => {
                self.enter(State::Running, now);
                (self.endpoint, self.image_digest) = (Some(endpoint), image_digest);
                let first = self.ready_at.is_none();
                self.ready_at = self.ready_at.or(Some(now));
                if before == State::Unreachable {
                    // Nobody could see activity while the node was silent: the idle clock begins anew, and so does
                    // the lead of a warning.
                    (self.resumed_at, self.warning) = (Some(now), None);
                    return vec![Entry::new("workspace.reachable", Actor::Agent)];
                }
                vec![Entry::new("workspace.ready", Actor::Agent).with("first", first)]
            }
            (
                State::Starting | State::Running | State::Unreachable,
                Report::Restarting { exit_code, message },
            ) => {
                self.enter(State::Starting, now);
                self.stage = Some(Stage::Starting);
                self.status_reason = Some(StatusReason::Restarting);
                self.status_message = message;
                vec![Entry::new("workspace.restarting", Actor::Agent).with("exit_code", exit_code)]
            }
            (
                State::Starting | State::Running | State::Unreachable,
                Report::Failed { reason, exit_code, message },
            ) => self.fail(reason, exit_code, message, Actor::Agent, now),
            (_, Report::Gone { purged, exit_code }) => self.gone(purged, exit_code, now),
            // A late word about a container that is to go, or has been given up: what counts is `Gone`.
            (
                State::Stopped | State::Pending | State::Stopping | State::Failed,
                Report::Starting(_)
                | Report::Running { .. }
                | Report::Restarting { .. }
                | Report::Failed { .. },
            ) => vec![],
        }
    }

    /// The proof that the placement is over.
    fn gone(&mut self, purged: bool, exit_code: Option<i32>, now: OffsetDateTime) -> Vec<Entry> {
        self.node = None;
        match self.state {
            _ if self.deletion.is_some() => {
                if self.deletion.is_some_and(|d| d.purge_files) && !purged {
                    // Either the order to purge crossed this report, or the move failed: it is placed and tried again.
                    return vec![];
                }
                self.finish_delete(purged, now)
            }
            State::Stopping if self.desired == Desired::Running => {
                let mut log = self.rest(Actor::Agent, exit_code, now);
                let (spec, traceparent) = (self.spec.clone(), self.traceparent.clone());
                log.push(self.begin(spec, traceparent, Actor::ControlPlane, now));
                log
            }
            State::Stopping => self.rest(Actor::Agent, exit_code, now),
            State::Failed if self.status_reason == Some(StatusReason::StopTimeout) => {
                self.rest(Actor::Agent, exit_code, now)
            }
            State::Pending => {
                (self.status_reason, self.stage) = (None, Some(Stage::Queued));
                self.status_message.clear();
                vec![]
            }
            State::Starting | State::Running | State::Unreachable => self.fail(
                StatusReason::RuntimeError,
                exit_code,
                "The host lost the container. Press Start to try again.".into(),
                Actor::Agent,
                now,
            ),
            State::Stopped | State::Failed => vec![],
        }
    }
}
