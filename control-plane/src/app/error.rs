//! Why a use case did not do what was asked.

use std::sync::Arc;

use carrel_common::id::{Generation, NodeId, StudentId};

use crate::authority::AuthorityError;
use crate::domain::policy::{Contradiction, Scope};
use crate::domain::workspace::{IllegalTransition, State, Stop};
use crate::store::StoreError;

/// Why a use case did not do what was asked. Nothing has changed then.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppError {
    /// No such workspace.
    #[error("there is no workspace of student {0}")]
    WorkspaceNotFound(StudentId),
    /// The student exists under another spelling.
    #[error("student_id {given} differs only in case from {existing}, which has a workspace")]
    DiffersInCase {
        /// As given.
        given: StudentId,
        /// As known.
        existing: StudentId,
    },
    /// No such policy.
    #[error("no policy is set for {0}; everything is inherited there")]
    PolicyNotFound(Scope),
    /// Policies that contradict each other.
    #[error("{contradiction}")]
    PolicyContradiction {
        /// What contradicts what.
        contradiction: Contradiction,
        /// The field of the change that led to it.
        field: &'static str,
    },
    /// The etag is not the present one.
    #[error("it has changed since it was read: etag {given} is stale, the present one is {present}")]
    StaleEtag {
        /// As given.
        given: String,
        /// The present one.
        present: String,
    },
    /// The request id was used with other content.
    #[error("this request_id was used for another request within the last 24 hours; send a new one")]
    RequestIdReused,
    /// It is not running.
    #[error("the workspace is {}", state.map_or("not running", State::as_str))]
    NotRunning {
        /// Its state, when known.
        state: Option<State>,
        /// Its last stop.
        stop: Option<Box<Stop>>,
    },
    /// What was reported on is not the present incarnation.
    #[error("nothing was recorded: the workspace is in generation {present} now")]
    GenerationOver {
        /// The present one.
        present: Generation,
    },
    /// The step means nothing now.
    #[error(transparent)]
    Illegal(#[from] IllegalTransition),
    /// No node that is connected can take workspaces.
    #[error("{message}")]
    NoHealthyNode {
        /// Stable.
        reason: String,
        /// What is wrong and what to do.
        message: String,
        /// It may pass by itself.
        passing: bool,
    },
    /// No node is large enough even when empty.
    #[error(
        "the limits (cpu {cpu_millicores} millicores, memory {memory_bytes} bytes) are beyond every node there is; lower them or add a larger node"
    )]
    LimitsBeyondNodes {
        /// Asked.
        cpu_millicores: i64,
        /// Asked.
        memory_bytes: i64,
    },
    /// The editor's address is not given out.
    #[error("without an ingress the editor's address is given out with --dev only")]
    AccessNeedsDev,
    /// Nodes cannot enrol.
    #[error("nodes enrol over TLS, or with --dev over plaintext on loopback")]
    EnrollNeedsDev,
    /// There is nobody to sign certificates.
    #[error(
        "there is no authority to vouch for nodes; make one with `control-plane ca init` and serve with --ca-dir"
    )]
    NoAuthority,
    /// Over TLS a host enrols with a token only.
    #[error("a host enrols with a join token; ask an operator for one (CreateJoinToken)")]
    JoinTokenNeeded,
    /// The join token is not good.
    #[error("the join token is unknown, used or expired; ask an operator for a new one (CreateJoinToken)")]
    JoinTokenInvalid,
    /// A join token was made for this request already.
    #[error(
        "a join token was made for this request_id already, and is shown once only; send a new request_id"
    )]
    JoinTokenShown,
    /// The host runs containers of another node.
    #[error(
        "the host has {others} containers of another node of this Carrel; start the agent with --stop-existing to stop them first"
    )]
    HostHasContainers {
        /// How many.
        others: usize,
        /// The node that the host may enrol as; `None`: a new one.
        node: Option<NodeId>,
    },
    /// The request for a certificate is none.
    #[error("csr_pem: must be a certificate signing request (PKCS #10, PEM) signed by its own key")]
    RequestForCertificate,
    /// The node shows no certificate.
    #[error("a node shows who it is with its certificate; this connection showed none")]
    CertificateMissing,
    /// The certificate does not count here.
    #[error("the certificate does not count here: {why}")]
    CertificateRefused {
        /// Why.
        why: &'static str,
    },
    /// The node was banned, or taken out for good.
    #[error(
        "node {0} was removed or banned; once its containers are removed, its host can enrol as a new node with an empty state directory"
    )]
    NodeBanned(NodeId),
    /// The authority did not sign.
    #[error(transparent)]
    Authority(AuthorityError),
    /// Not a node of ours, or the wrong secret.
    #[error("node {0} is not known here, or its secret is wrong")]
    NodeUnknown(NodeId),
    /// An operator says that it is dead, and it speaks.
    #[error(
        "node {0} gives signs of life, so it is not dead: drain it, or stop its host and wait until it is UNREACHABLE, or ban it (RemoveNode with force)"
    )]
    NodeStillHeard(NodeId),
    /// The node was enrolled on another host or another Docker daemon.
    #[error(
        "node {node} was enrolled with another {what}; remove this host's containers and enrol it anew with an empty state directory"
    )]
    NodeIdentityChanged {
        /// The node.
        node: NodeId,
        /// Machine id or Docker daemon id.
        what: &'static str,
    },
    /// No such node.
    #[error("there is no node {0}; ListNodes names those there are")]
    NodeNotFound(NodeId),
    /// The node was banned, or taken out for good: told to an operator.
    #[error("node {0} was removed or banned; its host can come back only as a new node")]
    NodeRemoved(NodeId),
    /// Something is still placed there, or runs there without an order.
    #[error(
        "{remaining} workspaces or containers are still on node {node}; drain it and resolve its orphans first, or confirm it dead; force bans it at once"
    )]
    NodeNotEmpty {
        /// The node.
        node: NodeId,
        /// Unreleased placements, and containers that no order names.
        remaining: i64,
    },
    /// A drain that could not warn everyone.
    #[error("within: must be at least {longest_lead:?}, the longest warning lead of those who work there")]
    DrainTooShort {
        /// The longest lead.
        longest_lead: std::time::Duration,
    },
    /// A drain that would end in an exam.
    #[error("the deadline falls into a quiet window of {} students; choose another, or force it", students.len())]
    DrainInQuietWindow {
        /// Whose, sorted.
        students: Vec<StudentId>,
    },
    /// No such orphan, or not any more.
    #[error(
        "there is no container {container_id} on node {node} that waits for an operator; it is gone, or was resolved"
    )]
    OrphanNotFound {
        /// The node.
        node: NodeId,
        /// Docker's id.
        container_id: String,
    },
    /// It would take the place of something else.
    #[error("the container cannot be adopted: {why}")]
    OrphanCannotBeAdopted {
        /// Why.
        why: &'static str,
    },
    /// Another agent process of the node is alive.
    #[error(
        "another agent process of node {0} is alive and keeps the session; if that is not this host, its identity is in use twice"
    )]
    NodeHeld(NodeId),
    /// The database has gone back in time.
    #[error(
        "the database has gone back in time (noticed {since}: {evidence}); nothing is started, stopped or replaced until an \
         operator has run `control-plane declare-restored`"
    )]
    StoreBehind {
        /// When it was noticed.
        since: time::OffsetDateTime,
        /// What showed it.
        evidence: String,
    },
    /// The store was declared restored, and this node has not told yet what it runs.
    #[error(
        "node {0} has not told yet what it runs since the store was declared restored; wait until it has, or confirm it dead"
    )]
    InventoryAwaited(NodeId),
    /// Another session of the node took over.
    #[error("another session of node {0} took over")]
    SessionSuperseded(NodeId),
    /// The node that holds what is asked for is not connected here.
    #[error("the node that holds it is not connected")]
    NodeAway,
    /// A log that was being told ended before it was told whole.
    #[error("the log broke off: {why}")]
    LogBroken {
        /// Why.
        why: String,
    },
    /// An extension that would be over before it began.
    #[error("until_time: {until} is past; by the server's clock it is {now}")]
    ExtensionPast {
        /// As asked.
        until: time::OffsetDateTime,
        /// The database's time.
        now: time::OffsetDateTime,
    },
    /// The agent of a session does not speak.
    #[error("no heartbeat for three intervals; dial again")]
    HeartbeatsMissed,
    /// The node was silent, and speaks again.
    #[error("back from silence: dial again, and tell everything anew")]
    BackFromSilence,
    /// Docker of a node whose inventory is awaited can be asked again: its session begins anew, with what is there.
    #[error("Docker is back: tell everything anew")]
    DockerIsBack,
    /// It has never run, so there is nothing to show.
    #[error("the workspace has never run on a node")]
    NeverRan,
    /// The reader's place in the log is gone.
    #[error("the resume token is too old; begin again without it")]
    ResumeTokenTooOld,
    /// The database.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// We are being shut down.
    #[error("this replica is shutting down")]
    ShuttingDown,
}

impl From<StoreError> for AppError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl AppError {
    /// The database is away, or somebody else was first: it passes by itself.
    pub fn is_passing(&self) -> bool {
        self.is_conflict() || matches!(self, Self::Store(e) if e.is_unavailable())
    }

    /// Of many steps, the others would meet it, too: the database is away, or the session that they belong to is over.
    pub fn concerns_all(&self) -> bool {
        matches!(self, Self::SessionSuperseded(_)) || self.is_passing() && !self.is_conflict()
    }

    /// Nothing can be made of one row: a matter of whom it is about, and of nobody else.
    pub fn is_unreadable(&self) -> bool {
        matches!(self, Self::Store(e) if matches!(**e, StoreError::Corrupt { .. }))
    }

    /// Somebody else was first; the same again may well succeed.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Store(e) if matches!(**e, StoreError::Conflict { .. }))
    }
}

/// A use case's answer.
pub type Result<T> = std::result::Result<T, AppError>;
