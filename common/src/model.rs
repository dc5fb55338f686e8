//! Plain values that control plane and agent share. Always valid: what comes from outside is parsed in `wire`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{Generation, NodeId, Pair, PlacementId, StudentId, WorkspaceUid};

/// Limits of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a processor.
    pub cpu_millicores: i64,
    /// Bytes; no swap comes on top.
    pub memory_bytes: i64,
    /// Processes and threads.
    pub pids: i64,
}

/// What a container is made of; frozen when a workspace is placed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WorkspaceSpec {
    /// Image reference.
    pub image: String,
    /// Limits.
    pub resources: Resources,
    /// Port the editor listens on in the container.
    pub probe_port: u16,
    /// Path that answers 200 when the editor is ready.
    pub probe_path: String,
}

impl WorkspaceSpec {
    /// SHA-256 over the spec, for the label `carrel.spec`: a container made of another spec is seen.
    pub fn digest(&self) -> String {
        use sha2::{Digest as _, Sha256};
        let text = format!(
            "{}\n{}\n{}\n{}\n{}\n{}",
            self.image,
            self.resources.cpu_millicores,
            self.resources.memory_bytes,
            self.resources.pids,
            self.probe_port,
            self.probe_path
        );
        crate::id::hex(&Sha256::digest(text.as_bytes()))
    }
}

/// A kind of activity. An open tab, a socket, a health check or a read is none of them, by construction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Signal {
    /// Mouse or keys in the LMS's page.
    LmsInput,
    /// Keys, clicks or edits in the editor.
    EditorInput,
    /// "Keep working", or Start on a running workspace.
    KeepWorking,
    /// A declared job, which keeps it awake for a while.
    Job,
}

impl Signal {
    /// All of them, in the order of the API.
    pub const ALL: [Self; 4] = [Self::LmsInput, Self::EditorInput, Self::KeepWorking, Self::Job];

    /// As stored and as in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LmsInput => "LMS_INPUT",
            Self::EditorInput => "EDITOR_INPUT",
            Self::KeepWorking => "KEEP_WORKING",
            Self::Job => "JOB",
        }
    }
}

/// Who or what stopped a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum StopReason {
    /// A caller asked for it.
    User,
    /// No activity for the idle timeout.
    Idle,
    /// Its longest lifetime was over.
    MaxLifetime,
    /// Its node was being drained.
    Drain,
    /// Its node was lost: fenced, or confirmed dead.
    NodeLost,
    /// An operator.
    Operator,
    /// Out of its memory limit, too often.
    Oom,
    /// Its program ended, too often.
    Exited,
    /// It is being deleted.
    Deleted,
    /// The student's directory could not be mounted.
    Storage,
    /// Carrel gave up the start.
    StartFailed,
}

/// Why a workspace is in its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum StatusReason {
    /// PENDING: no node is connected and healthy.
    NoNodeReady,
    /// PENDING: every healthy node is full.
    NoCapacity,
    /// PENDING: the generation before is still being stopped.
    PreviousStopping,
    /// PENDING: the generation before is on a silent node.
    PreviousHostUnreachable,
    /// FAILED: waited too long in PENDING.
    QueueTimeout,
    /// FAILED: did not answer in time.
    StartTimeout,
    /// FAILED: did not go in time.
    StopTimeout,
    /// FAILED: the image cannot be had.
    ImageUnavailable,
    /// The node refused the student's directory.
    StorageUnavailable,
    /// FAILED: crashed more often than the budget allows.
    CrashLoop,
    /// STARTING: exited, and is restarted within the budget.
    Restarting,
    /// FAILED: Docker refused.
    RuntimeError,
    /// UNREACHABLE: no heartbeat from the node.
    NodeUnreachable,
    /// FAILED: out of its memory limit more often than the budget allows.
    OutOfMemory,
    /// It is being deleted.
    Deleting,
    /// FAILED: the share says that a later container of the student was started elsewhere.
    StorageFenced,
    /// PENDING: another container of the student, which no order names, still runs on a node.
    ContainerHeld,
}

/// The steps of a start, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Stage {
    /// Waits for a place.
    Queued,
    /// The node fetches the image.
    Pulling,
    /// Directory and container are made.
    Creating,
    /// Docker starts the container.
    Starting,
    /// The editor is asked until it answers.
    Probing,
}

/// What an agent knows of its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// For people.
    pub hostname: String,
    /// Contents of /etc/machine-id.
    pub machine_id: String,
    /// The kernel's id of this boot.
    pub boot_id: String,
    /// Id of the Docker daemon; empty when it has never been reached.
    pub docker_id: String,
    /// Version of the Docker daemon; empty when it has never been reached.
    pub docker_version: String,
    /// Version of the agent.
    pub agent_version: String,
    /// Thousandths of a processor.
    pub cpu_millicores: i64,
    /// Bytes.
    pub memory_bytes: i64,
    /// Workspaces at most.
    pub max_workspaces: i64,
    /// The host's IP address, as the operator named it, to be shown.
    pub advertise_address: String,
    /// Availability zone, as the operator named it; may be empty.
    #[serde(default)]
    pub zone: String,
    /// Labels, as the operator named them.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The machine's own number, in which a copy of its disk differs; empty when it has none.
    #[serde(default)]
    pub hardware_id: String,
}

/// A container with our labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Docker's id.
    pub container_id: String,
    /// Label `carrel.workspace`.
    pub workspace: WorkspaceUid,
    /// Label `carrel.student`.
    pub student: StudentId,
    /// Label `carrel.generation`.
    pub generation: Generation,
    /// Label `carrel.incarnation`.
    pub incarnation: i64,
    /// Label `carrel.node`.
    pub node: NodeId,
    /// Whether its program runs.
    pub running: bool,
    /// Label `carrel.placement`; `None` when the container is older than that label.
    pub placement: Option<PlacementId>,
    /// Label `carrel.made_of`: what it was made from; `None` when the container is older than that label.
    pub spec: Option<WorkspaceSpec>,
}

impl Container {
    /// Which of two containers of one workspace is the later one.
    pub fn pair(&self) -> Pair {
        Pair { incarnation: self.incarnation, generation: self.generation }
    }
}

/// What a workspace should be on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredItem {
    /// The workspace.
    pub workspace: WorkspaceUid,
    /// The student.
    pub student: StudentId,
    /// The incarnation of the container.
    pub generation: Generation,
    /// Incarnation of the store in which the placement was made: a container's pair is (incarnation, generation).
    pub incarnation: i64,
    /// The placement.
    pub placement: PlacementId,
    /// What to run; the same through the whole generation.
    pub spec: WorkspaceSpec,
    /// Run or stop.
    pub run: Run,
    /// W3C trace context of the request that caused the order; empty when there is none.
    pub traceparent: String,
    /// With an idle stop: age, when the order was sent, of what its timeout was counted from. A node that has seen younger
    /// activity refuses the stop; `None`: it cannot be refused.
    pub idle_basis_age: Option<Duration>,
}

impl DesiredItem {
    /// The place in time of the container that is wanted, or is to go.
    pub fn pair(&self) -> Pair {
        Pair { incarnation: self.incarnation, generation: self.generation }
    }
}

/// Run or stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Run {
    /// A container of this generation runs.
    Running {
        /// How long a start may take before the agent gives up.
        start_timeout: Duration,
    },
    /// No container of this or a lower generation exists.
    Stopped {
        /// Why.
        reason: StopReason,
        /// Between SIGTERM and SIGKILL; zero is SIGKILL at once.
        grace: Duration,
        /// Move the student's directory to the trash afterwards.
        purge_files: bool,
    },
}

/// A version of a node's desired set. Ordered incarnation first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DesiredPair {
    /// Incarnation of the store.
    pub incarnation: i64,
    /// `node.desired_generation`.
    pub generation: i64,
}

/// How many of a node's heartbeats the store has counted, over all sessions. Ordered incarnation first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HeartbeatCount {
    /// Incarnation of the store.
    pub incarnation: i64,
    /// `node.renewals`.
    pub heartbeats: i64,
}

/// All that a node should run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredSet {
    /// Its version.
    pub pair: DesiredPair,
    /// Digest over the items.
    pub digest: String,
    /// Sorted by workspace.
    pub items: Vec<DesiredItem>,
}

/// What one workspace does on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// The workspace.
    pub workspace: WorkspaceUid,
    /// The incarnation of the container.
    pub generation: Generation,
    /// The incarnation of the store that ordered it; 0: the agent is older than this word, and means the present one.
    pub incarnation: i64,
    /// Rises with each report of an agent process; acks name it.
    pub sequence: i64,
    /// What it does.
    pub state: Observed,
    /// Last exit code; `None` when its program has not ended.
    pub exit_code: Option<i32>,
    /// Ended by the kernel for want of memory.
    pub oom_killed: bool,
    /// One sentence.
    pub message: String,
    /// Image id as resolved on the node; empty when unknown.
    pub image_digest: String,
    /// W3C trace context of the order; empty when there is none.
    pub traceparent: String,
    /// Share of the image that has been fetched, 0 to 100; with PULLING.
    pub pull_percent: u8,
    /// With `StorageFenced`: what the share says is the latest.
    pub share_pair: Option<Pair>,
    /// With `share_pair`: the placement that the share names; `None` when it names none.
    pub share_placement: Option<PlacementId>,
}

impl Observation {
    /// The place in time of the container it tells of.
    pub fn pair(&self) -> Pair {
        Pair { incarnation: self.incarnation, generation: self.generation }
    }
}

/// What a workspace does on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// On its way up.
    Starting(Stage),
    /// The editor answers HTTP at `endpoint` (host:port).
    Running {
        /// host:port.
        endpoint: String,
    },
    /// As [`Observed::Running`], and an idle stop was not carried out: there was activity this long ago, which its decision did
    /// not know of.
    RefusedStop {
        /// host:port.
        endpoint: String,
        /// How long ago there was activity.
        seen_ago: Duration,
    },
    /// Its program ended and is being restarted.
    Restarting,
    /// Given up.
    Failed(StatusReason),
    /// Not on this node, and never again in this generation.
    Gone {
        /// Whether the files went to the trash, when the item asked for it; `Err` says why not.
        purge: Result<bool, String>,
    },
    /// Ended and removed since the node's lease had run out, and never again in this generation.
    Fenced,
}

/// Activity that a node has seen itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActivityReport {
    /// The workspace.
    pub workspace: WorkspaceUid,
    /// The incarnation of the container.
    pub generation: Generation,
    /// What was seen.
    pub signal: Signal,
    /// How long ago.
    pub age: Duration,
}

/// When one workspace will be stopped, as its node is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkspaceIdle {
    /// The workspace.
    pub workspace: WorkspaceUid,
    /// The incarnation of the container.
    pub generation: Generation,
    /// Time left when this was said, and what it will be stopped for; `None` while the clock does not run.
    pub remaining: Option<(Duration, StopReason)>,
    /// Version of this statement.
    pub deadline_version: i64,
    /// A warning is out.
    pub warned: bool,
}

/// Health of a part of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// `None`: healthy. Else a stable reason and a sentence with the next step.
    pub problem: Option<(String, String)>,
    /// How old the finding is.
    pub age: Duration,
    /// How long looks took lately; `None`: not measured.
    #[serde(default)]
    pub latency: Option<Latency>,
}

/// How long something took, over many times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Half of them at most this long.
    pub p50: Duration,
    /// 99 of 100 at most this long.
    pub p99: Duration,
}

/// What is to be done with an orphan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Its generation is known to be over.
    Stop,
    /// An operator's word: stop it whatever is known, and however many at once.
    StopByOrder,
    /// Leave it alone.
    Hold,
}
