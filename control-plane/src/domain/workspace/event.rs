//! What can happen to a workspace.

use carrel_common::id::{CourseId, Generation, NodeId};
use carrel_common::model::{Stage, StatusReason, StopReason, WorkspaceSpec};

use super::{IdleEvidence, State, Workspace};
use crate::domain::event::Entry;

/// What an agent reports of the present generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// On its way up.
    Starting {
        /// How far.
        stage: Stage,
        /// Share of the image that is on the node, 0 to 100; while it is pulled.
        pull_percent: u8,
    },
    /// The editor answers.
    Running {
        /// host:port.
        endpoint: String,
        /// Image id.
        image_digest: String,
    },
    /// The editor answers, and an idle stop was not carried out: there was activity that its decision did not know of.
    RefusedStop {
        /// host:port.
        endpoint: String,
        /// Image id.
        image_digest: String,
        /// What the container that goes on running is made of.
        spec: WorkspaceSpec,
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
    /// Not started, or stopped: the share knows a later container of the student, of an incarnation that the store has had.
    Fenced {
        /// Its generation.
        latest: Generation,
        /// One sentence.
        message: String,
    },
    /// Nothing of this generation, or of the older one that held the placement, runs or will run.
    Gone {
        /// Whether the files were moved to the trash, or why they could not be.
        purge: Result<bool, String>,
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
    /// Its node is being emptied: it stops there and starts again elsewhere.
    Move {
        /// One sentence for the student.
        message: String,
        /// What it was decided on; none when nobody could work in it yet.
        evidence: Option<IdleEvidence>,
        /// What the new generation is made of.
        spec: WorkspaceSpec,
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
    /// The start has failed on its node, and another is to try it.
    TryElsewhere {
        /// Why it failed.
        reason: StatusReason,
        /// One sentence.
        message: String,
    },
    /// No node took it, and why.
    Wait {
        /// What it waits for; `None`: nothing is lacking, it is its turn in a moment.
        reason: Option<StatusReason>,
        /// One sentence.
        message: String,
    },
    /// The agent's word.
    Report(Report),
    /// The node is silent.
    NodeSilent,
    /// The node was given up: nothing runs on it any more.
    NodeLost {
        /// Somebody worked in the workspace lately: it starts anew elsewhere.
        in_use: bool,
    },
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
