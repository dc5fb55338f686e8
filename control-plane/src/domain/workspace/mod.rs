//! The life of a workspace: every legal step, and nothing else.
//!
//! `Workspace::apply(event, now)`, in `step`, is the whole state machine; `event` lists what can happen, `moves` and
//! `report` are what the steps are made of; `found` is what becomes of a desk when the store did not know what runs. The API and the policies write what should be
//! (`Start`, `Stop`, `Restart`, `Delete`), the agents write what is (`Report`), the clock ends every stay that is too
//! long (`Overdue`). A step that means nothing in a state is an [`IllegalTransition`], never a guess.
//!
//! The one idea: **a placement is over only on proof**. `node` stays set until the agent has confirmed that nothing of
//! that generation runs (`Report::Gone`), whatever the state says meanwhile.

mod event;
mod found;
mod moves;
mod report;
mod stays;
mod step;
#[cfg(test)]
mod tests;

use carrel_common::id::{CourseId, Generation, NodeId, StudentId, WorkspaceUid};
use carrel_common::model::{Signal, Stage, StatusReason, StopReason, WorkspaceSpec};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::drain::Terms;
use super::event::{Actor, Entry};

pub use event::{Event, IllegalTransition, Report, Step};
pub use stays::{LONGEST_PURGE_PAUSE, Stays};

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
    /// What the timeout was counted from: the latest of activity, readiness and the end of a silence, moved on by pauses.
    #[serde(with = "time::serde::rfc3339")]
    pub basis_at: OffsetDateTime,
    /// When its editor first answered: what the longest lifetime was counted from, and moved on by pauses. `None`: not kept.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub ready_at: Option<OffsetDateTime>,
    /// Until when an extension held the stop back; `None`: none, or not kept.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub extended_until: Option<OffsetDateTime>,
    /// Until when declared jobs did; `None`: none that counted, or not kept.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub awake_until: Option<OffsetDateTime>,
    /// The timeout in force.
    pub idle_timeout: std::time::Duration,
    /// The lead that the warning was given with; zero: not kept.
    #[serde(default)]
    pub warning_lead: std::time::Duration,
    /// The longest lifetime in force; zero: none, or not kept.
    #[serde(default)]
    pub max_lifetime: std::time::Duration,
    /// The deadline that passed.
    #[serde(with = "time::serde::rfc3339")]
    pub deadline_at: OffsetDateTime,
    /// When the warning went out.
    #[serde(with = "time::serde::rfc3339")]
    pub warned_at: OffsetDateTime,
    /// When the node's session acked the warning; `None`: it had no session, the warning was in the log alone.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub warning_acked_at: Option<OffsetDateTime>,
    /// When it was decided.
    #[serde(with = "time::serde::rfc3339")]
    pub decided_at: OffsetDateTime,
    /// A node that has seen activity after this, the basis, refuses the stop; `None`: what a node sees does not count.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub refusable_after: Option<OffsetDateTime>,
    /// Where the policies stood.
    #[serde(default)]
    pub grounds: Grounds,
}

/// Where the policies stood at a decision: they may be others by the time somebody asks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Grounds {
    /// Their version; 0: not kept.
    pub policy_version: i64,
    /// The policy that set the idle timeout, or `default`.
    pub idle_timeout_origin: String,
    /// The policy that set the longest lifetime, or `default`; empty: not kept.
    #[serde(default)]
    pub max_lifetime_origin: String,
    /// Every kind of signal.
    pub signals: Vec<SignalEvidence>,
}

/// One kind of signal at a decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalEvidence {
    /// The kind.
    pub signal: Signal,
    /// When it was last seen.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_at: Option<OffsetDateTime>,
    /// Whether it counted.
    pub counts: bool,
    /// Why.
    pub why: String,
}

/// A warning that is out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// When it was given.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// The deadline, before the lead is considered, that it speaks of; any other deadline withdraws it.
    #[serde(with = "time::serde::rfc3339")]
    pub nominal_deadline: OffsetDateTime,
    /// `deadline_version` that it speaks of.
    pub version: i64,
    /// What it will be stopped for.
    pub reason: StopReason,
    /// The lead that it was given with: a shorter one since does not bring the deadline that was told nearer, a longer one withdraws
    /// it. Zero: given before this was kept.
    #[serde(default)]
    pub lead: std::time::Duration,
    /// In a drain: what it follows from; any other terms withdraw it.
    #[serde(default)]
    pub drain_terms: Option<Terms>,
}

impl Warning {
    /// What the log says of its end without a stop.
    pub fn withdrawn(&self) -> Entry {
        Entry::new("workspace.warning_withdrawn", Actor::Policy)
            .because(self.reason)
            .with("deadline_version", self.version)
    }
}

/// A delete under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// The files go to the trash once the container is gone.
    pub purge_files: bool,
    /// How often they could not be moved there.
    #[serde(default)]
    pub failures: u32,
    /// When it is tried again.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub retry_at: Option<OffsetDateTime>,
}

impl Deletion {
    /// Whether no node is asked to move the files at present. A longer pause than any was begun by a clock that was set back since.
    pub fn rests(&self, now: OffsetDateTime) -> bool {
        self.retry_at.is_some_and(|at| at > now && at <= now + LONGEST_PURGE_PAUSE)
    }
}

/// Where one start has failed so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempts {
    /// When the first of these nodes went about it.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// The nodes, in the order they were tried.
    pub failed_on: Vec<NodeId>,
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
    /// Share of the image that is on the node, 0 to 100; while it is pulled.
    pub pull_percent: u8,
    /// Where this start has failed so far.
    pub attempts: Option<Attempts>,
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
            pull_percent: 0,
            attempts: None,
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
}
