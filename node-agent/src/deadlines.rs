//! When the workspaces of this host will be stopped, as the control plane last said. Nothing here stops anything: it is what
//! the people in front of the editors are to know.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use carrel_common::id::{Generation, WorkspaceUid};
use carrel_common::model::{StopReason, WorkspaceIdle};

/// When one workspace will be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// The incarnation of the container.
    pub generation: Generation,
    /// By the agent's monotonic clock, and for what; `None` while the clock does not run.
    pub at: Option<(Duration, StopReason)>,
    /// Version of this statement.
    pub version: i64,
    /// A warning is out.
    pub warned: bool,
}

/// The deadlines of this host.
#[derive(Debug, Default)]
pub struct Deadlines(Mutex<BTreeMap<WorkspaceUid, Deadline>>);

impl Deadlines {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<WorkspaceUid, Deadline>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what was said at `now`, by the agent's monotonic clock; what is not named is as it was.
    pub fn take(&self, said: Vec<WorkspaceIdle>, now: Duration) {
        let mut known = self.lock();
        for WorkspaceIdle { workspace, generation, remaining, deadline_version, warned } in said {
            let at = remaining.map(|(left, reason)| (now + left, reason));
            known.insert(workspace, Deadline { generation, at, version: deadline_version, warned });
        }
    }

    /// What was last said of a workspace.
    pub fn get(&self, workspace: WorkspaceUid) -> Option<Deadline> {
        self.lock().get(&workspace).copied()
    }

    /// Whether a warning is out in this incarnation.
    pub fn is_warned(&self, workspace: WorkspaceUid, generation: Generation) -> bool {
        self.get(workspace).is_some_and(|deadline| deadline.warned && deadline.generation == generation)
    }

    /// Drops what was said of workspaces that are no more.
    pub fn keep(&self, is_here: impl Fn(WorkspaceUid) -> bool) {
        self.lock().retain(|workspace, _| is_here(*workspace));
    }
}
