//! What the tasks that work on workspaces share.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use carrel_common::clock::Clock;
use carrel_common::id::{Generation, WorkspaceUid};
use tokio::sync::{Semaphore, broadcast};

use super::images::{Images, Inbox};
use crate::activity::Desks;
use crate::deadlines::Deadlines;
use crate::fence::lease::{Lease, LeaseError};
use crate::logs::{self, SavedLogs};
use crate::metrics::Metrics;
use crate::reconcile::crash::{Budget, Exits};
use crate::reports::Reports;
use crate::runtime::{Hint, Runtime, RuntimeError, Scope};
use crate::storage::probe::Storage;

/// Numbers that limit the work.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Creations and starts at once: more only queue in the daemon.
    pub start_concurrency: usize,
    /// How often a program may end by itself.
    pub budget: Budget,
    /// Time between listings when nothing happens.
    pub reconcile_interval: Duration,
    /// Time between looks at the fence files of all that runs.
    pub fence_file_interval: Duration,
    /// How long one Docker call may take: also to read what is kept of a log.
    pub docker_timeout: Duration,
}

/// What the agent keeps on its host's disk.
#[derive(Debug)]
pub struct Kept {
    /// Whether workspaces may run here.
    pub lease: Arc<Lease>,
    /// What is seen of activity.
    pub desks: Arc<Desks>,
    /// Logs of containers that are gone.
    pub saved_logs: SavedLogs,
}

impl Kept {
    /// What is kept below `state_dir`, in the boot named `boot_id`. The path is absolute and without links: Docker takes no other
    /// as a mount's source. Blocking.
    ///
    /// # Errors
    /// When the lease's files cannot be made or read.
    pub fn open(state_dir: &Path, boot_id: &str, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let desks = Arc::new(Desks::open(state_dir.join("desks"), clock.monotonic()));
        let lease = Arc::new(Lease::open(state_dir, boot_id, clock)?);
        Ok(Self { lease, desks, saved_logs: SavedLogs::new(state_dir.join("logs")) })
    }
}

/// One Docker host, as its tasks see it.
#[derive(Debug)]
pub struct Host<R> {
    /// The container engine.
    pub runtime: R,
    /// The students' files.
    pub storage: Storage,
    /// What is to be told.
    pub reports: Reports,
    /// The images here, and their pulls.
    pub images: Images,
    /// Whether workspaces may run here.
    pub lease: Arc<Lease>,
    /// What is seen of activity.
    pub desks: Arc<Desks>,
    /// When the workspaces will be stopped, as the control plane last said.
    pub deadlines: Deadlines,
    /// Logs of containers that are gone.
    pub saved_logs: SavedLogs,
    /// The agent's numbers.
    pub metrics: Metrics,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Whose host it is.
    pub scope: Scope,
    /// Limits.
    pub limits: Limits,
    pub(super) starts: Semaphore,
    pub(super) hints: broadcast::Sender<Hint>,
    pub(super) exits: Mutex<Exits>,
    /// Id of the Docker daemon that the node's containers belong to, once it is known.
    daemon: OnceLock<String>,
}

/// Hints that a task may be behind by before it misses one; it looks for itself every 2 s anyway.
const HINTS_KEPT: usize = 256;

impl<R: Runtime> Host<R> {
    /// A host with nothing going on, and what `images::run` works from.
    pub fn new(
        runtime: R,
        storage: Storage,
        kept: Kept,
        metrics: Metrics,
        clock: Arc<dyn Clock>,
        scope: Scope,
        limits: Limits,
    ) -> (Self, Inbox) {
        let (images, inbox) = Images::new();
        let host = Self {
            runtime,
            storage,
            images,
            reports: Reports::default(),
            lease: kept.lease,
            desks: kept.desks,
            deadlines: Deadlines::default(),
            saved_logs: kept.saved_logs,
            metrics,
            clock,
            scope,
            limits,
            starts: Semaphore::new(limits.start_concurrency),
            hints: broadcast::channel(HINTS_KEPT).0,
            exits: Mutex::new(Exits::default()),
            daemon: OnceLock::new(),
        };
        (host, inbox)
    }

    /// The node's containers belong to this Docker daemon; an empty id says nothing.
    pub fn belongs_to(&self, docker_id: &str) {
        if !docker_id.is_empty() {
            self.daemon.get_or_init(|| docker_id.to_owned());
        }
    }

    /// Whether this is another daemon than the node's: its list proves nothing about what runs under the first.
    pub(super) fn check_daemon(&self, docker_id: &str) -> Result<(), RuntimeError> {
        match self.daemon.get() {
            Some(known) if known != docker_id => {
                Err(RuntimeError::OtherDaemon { known: known.clone(), found: docker_id.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// The end of the log of a container that will be removed is kept, as far as it can be had: nothing waits for it for ever.
    pub(super) async fn keep_log(&self, id: &str, workspace: WorkspaceUid, generation: Generation) {
        let (saved, within) = (&self.saved_logs, self.limits.docker_timeout);
        if let Err(error) = logs::keep(&self.runtime, saved, id, workspace, generation, within).await {
            tracing::warn!(%error, "the log of a container that is removed was not kept to its end");
        }
    }

    /// There is no such container, and it is on no list of the lease's.
    pub(super) async fn removed(&self, id: &str) -> Result<(), RuntimeError> {
        self.runtime.ensure_removed(id).await?;
        let (lease, id) = (Arc::clone(&self.lease), id.to_owned());
        // It fails only when the agent ends.
        let _ = tokio::task::spawn_blocking(move || lease.after_removal(&id)).await;
        Ok(())
    }

    /// The lease allows that a container is started, and will end it.
    pub(super) async fn leased(&self, id: &str) -> Result<(), LeaseError> {
        let (lease, id) = (Arc::clone(&self.lease), id.to_owned());
        let asked = tokio::task::spawn_blocking(move || lease.before_start(&id)).await;
        asked.unwrap_or(Err(LeaseError::NotHeld))
    }

    /// The workspace has no container any more.
    pub(super) async fn clear_desk(&self, workspace: WorkspaceUid) {
        let desks = Arc::clone(&self.desks);
        if let Err(error) = tokio::task::spawn_blocking(move || desks.remove(workspace)).await {
            tracing::error!(%error, "a removal died; this is a defect of the agent");
        }
    }

    pub(super) fn exits(&self) -> std::sync::MutexGuard<'_, Exits> {
        self.exits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
