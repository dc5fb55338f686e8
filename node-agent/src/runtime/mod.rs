//! What the agent asks of a container engine, as verbs that can be repeated.
//!
//! `docker` is the real one, `fake` keeps the same state in memory, and `contract` is the one suite both pass. Nothing here
//! decides anything. Every call has a deadline, but for the two streams, which end when their reader will; one that ran into it has
//! an *unknown* result, so callers look again and never repeat blindly.

pub mod docker;
pub mod labels;

#[cfg(test)]
pub(crate) mod contract;
#[cfg(test)]
pub(crate) mod fake;

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use carrel_common::id::{ClusterId, NodeId, WorkspaceUid};
use carrel_common::model::{Container, DesiredItem};
use futures_util::stream::BoxStream;

/// Whose containers these are: goes into every label, and every listing is limited to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope {
    /// The Carrel this node belongs to.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
}

impl Scope {
    /// Name of the bridge network that the workspaces of a cluster share on a host.
    pub fn network(&self) -> String {
        let id = self.cluster.0.simple().to_string();
        format!("carrel-{}", &id[..8])
    }
}

/// What is known of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineFacts {
    /// The daemon's id; the same for the life of its data directory.
    pub id: String,
    /// Its version.
    pub version: String,
    /// Processors it sees.
    pub cpus: i64,
    /// Memory it sees, in bytes.
    pub memory_bytes: i64,
}

/// All that a container is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Whose it is.
    pub scope: Scope,
    /// The order.
    pub item: DesiredItem,
    /// The student's directory on this host; must exist.
    pub project_dir: PathBuf,
    /// The workspace's small directory on this host, for signals between its programs and the agent; must exist.
    pub desk_dir: PathBuf,
}

impl Plan {
    /// The container's name: two of one generation cannot be made side by side. A store that was restored may give a generation
    /// again; then the labels of the one that has the name decide.
    pub fn container_name(&self) -> String {
        format!("carrel-{}-g{}", self.item.workspace, self.item.generation)
    }
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Made, never started.
    Created,
    /// Its program runs.
    Running,
    /// Its program has ended.
    Exited,
}

/// A container of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What its labels say.
    pub container: Container,
    /// Label `carrel.spec`.
    pub spec_digest: String,
    /// Where it is in its life.
    pub phase: Phase,
}

/// A container looked at closely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    /// The engine's id of it.
    pub id: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// host:port where its published port is reached; `None` while it does not run.
    pub endpoint: Option<String>,
    /// Exit code of its program; `None` until it has ended.
    pub exit_code: Option<i32>,
    /// The kernel ended it for want of memory.
    pub oom_killed: bool,
    /// When its program last started, by the host's clock; `None` when it never has.
    pub started_at: Option<time::OffsetDateTime>,
    /// When its program last ended, as the engine writes it; names one exit. Empty when it never has.
    pub finished_at: String,
    /// Id of the image it was made from.
    pub image_id: String,
    /// The engine's words on why it could not start; empty when it could.
    pub error: String,
}

/// What `ensure_created` found or did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// The engine's id of the container.
    pub id: String,
    /// False when a container of this very pair was there already.
    pub new: bool,
}

/// That something happened. Hints only: they get lost, the listing is the truth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// The program of this container was started: by us, or by an earlier call that had been given up.
    Started(String),
    /// The program of this container ended.
    Died(String),
    /// This container was removed.
    Removed(String),
}

/// Why a call did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// The engine cannot be reached, or the connection broke: the result is unknown.
    #[error("{operation}: Docker cannot be reached: {problem}")]
    Unreachable {
        /// What was asked.
        operation: &'static str,
        /// The words of the connection's error.
        problem: String,
    },
    /// Another daemon answers than the one that the node's containers belong to.
    #[error(
        "another Docker daemon answers ({found}) than the one this node's containers belong to ({known})"
    )]
    OtherDaemon {
        /// Id of the node's.
        known: String,
        /// Id of the one that answers.
        found: String,
    },
    /// No answer within the deadline: the result is unknown.
    #[error("{operation}: Docker did not answer within {}", humantime::format_duration(*.after))]
    TimedOut {
        /// What was asked.
        operation: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// The image is not on this host, or could not be pulled.
    #[error("image {image} is not available: {problem}")]
    ImageMissing {
        /// Image reference.
        image: String,
        /// The engine's words.
        problem: String,
    },
    /// There is no such container.
    #[error("{operation}: there is no such container")]
    NotFound {
        /// What was asked.
        operation: &'static str,
    },
    /// The container's name belongs to a container that is not ours to replace.
    #[error("the name {name} is taken by container {holder}, which is not Carrel's to remove")]
    NameTaken {
        /// The name.
        name: String,
        /// The id of the container that has it.
        holder: String,
    },
    /// The container's name belongs to a later container of the workspace: the order is from before its time.
    #[error("the name {name} is taken by container {holder}, which is of a later time than the order")]
    Beyond {
        /// The name.
        name: String,
        /// The id of the container that has it.
        holder: String,
    },
    /// The container cannot be started as it was made; one made now would do without what the engine refused.
    #[error("the container has to be made again: {problem}")]
    Remake {
        /// The engine's words.
        problem: String,
    },
    /// The container runs, but where its port is reached the engine does not say.
    #[error("Docker gave the editor no address")]
    NoAddress,
    /// The engine refused.
    #[error("{operation}: Docker refused: {problem}")]
    Refused {
        /// What was asked.
        operation: &'static str,
        /// The engine's words.
        problem: String,
    },
}

impl RuntimeError {
    /// Whether the call may have had its effect all the same.
    pub fn result_unknown(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::TimedOut { .. })
    }
}

/// Last lines wanted of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogOptions {
    /// At most so many of the last lines; `None`: all that is kept.
    pub lines: Option<u32>,
    /// Go on with what comes, until the container ends.
    pub follow: bool,
}

/// A container engine. All ids are the engine's; all calls can be repeated.
pub trait Runtime: Send + Sync + 'static {
    /// Who it is; also the way to ask whether it answers.
    fn facts(&self) -> impl Future<Output = Result<EngineFacts, RuntimeError>> + Send;

    /// The cluster's network exists.
    fn ensure_network(&self, scope: Scope) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// All containers with the cluster's label, of one workspace or of all, running or not, sorted by id.
    fn list(
        &self,
        cluster: ClusterId,
        workspace: Option<WorkspaceUid>,
    ) -> impl Future<Output = Result<Vec<Found>, RuntimeError>> + Send;

    /// A container as planned exists. One of the same workspace and pair is taken as it is; one that is ours, of a lower pair and
    /// sits on the name is removed first.
    ///
    /// # Errors
    /// `ImageMissing`, `NameTaken`, `Beyond`, `Refused`, or an unknown result.
    fn ensure_created(&self, plan: &Plan) -> impl Future<Output = Result<Created, RuntimeError>> + Send;

    /// What the images on this host are called: canonical references by tag and by digest, sorted.
    fn images(&self) -> impl Future<Output = Result<Vec<String>, RuntimeError>> + Send;

    /// The image is on this host; pulls it when it is not, and tells `percent` how much of it is here, 0 to 100.
    fn ensure_image(
        &self,
        image: &str,
        percent: &(dyn Fn(u8) + Send + Sync),
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// The container's program was started.
    fn ensure_started(&self, id: &str) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// A close look; `None` when there is no such container. `port` is the published port to find the endpoint of.
    fn inspect(
        &self,
        id: &str,
        port: u16,
    ) -> impl Future<Output = Result<Option<Inspected>, RuntimeError>> + Send;

    /// The container's program has ended: SIGTERM, `grace` (rounded up to seconds), SIGKILL. No such container is fine.
    fn ensure_stopped(
        &self,
        id: &str,
        grace: Duration,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// There is no such container; kills its program if need be.
    fn ensure_removed(&self, id: &str) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// What the container has written, both streams, in the order written.
    fn logs(&self, id: &str, options: LogOptions) -> BoxStream<'static, Result<Bytes, RuntimeError>>;

    /// Hints about the cluster's containers, from a few seconds ago on; ends when the connection does.
    fn hints(&self, cluster: ClusterId) -> BoxStream<'static, Result<Hint, RuntimeError>>;
}
