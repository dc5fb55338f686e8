//! What the agent sees itself of activity in the containers of its host.
//!
//! Whoever has seen input in a container (the editor, or a `touch /run/carrel/activity/input`) sets the times of one file. A
//! *changed* time is activity at this moment by the agent's own clock; what the time says means nothing, so a clock that is
//! wrong, or a student who lies, can do no more than say "now". The last time that the control plane was told of is kept beside
//! it, so that what happens while no agent runs, or was seen by one that was killed before it could tell, is seen by the next.

mod files;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use carrel_common::id::{Generation, WorkspaceUid};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::files::Mtime;

/// Half a second is soon enough to withdraw a warning in front of somebody; three calls a desk are nothing.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What was seen in one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The workspace.
    pub workspace: WorkspaceUid,
    /// The incarnation of the container.
    pub generation: Generation,
    /// When, by the agent's monotonic clock.
    pub at: Duration,
}

#[derive(Debug)]
struct Desk {
    generation: Generation,
    /// The time that was last found; `None`: it could not be seen yet.
    mtime: Option<Mtime>,
    /// When there was activity last, by the monotonic clock, and the number of that change among all.
    active: Option<(Duration, u64)>,
    /// The number of the last change that is kept over the agent's own end.
    kept: u64,
    /// This process has made its directory, or seen that it is there, for a container that the lease has not ended since.
    ensured: bool,
}

#[derive(Debug, Default)]
struct Inner {
    desks: BTreeMap<WorkspaceUid, Desk>,
    changes: u64,
    /// The control plane knows of every change up to this number.
    told: u64,
    /// The workspaces that are here, when that is news.
    here: Option<BTreeSet<WorkspaceUid>>,
}

impl Inner {
    /// What the control plane knows of and is not kept yet.
    fn to_keep(&self) -> Vec<(WorkspaceUid, Generation, Mtime, u64)> {
        let unkept = self.desks.iter().filter_map(|(workspace, desk)| {
            let (_, number) =
                desk.active.filter(|(_, number)| (desk.kept + 1..=self.told).contains(number))?;
            Some((*workspace, desk.generation, desk.mtime?, number))
        });
        unkept.collect()
    }

    /// Takes note of the time that was found; whether it is activity.
    fn note(&mut self, workspace: WorkspaceUid, found: Mtime, now: Duration) -> bool {
        let Some(desk) = self.desks.get_mut(&workspace) else { return false };
        let before = desk.mtime.replace(found);
        let changed = before.is_some_and(|before| before != found);
        if changed {
            self.changes += 1;
            desk.active = Some((now, self.changes));
        }
        changed
    }
}

/// The desks of this host, as far as activity is concerned. Times are the agent's monotonic clock's.
#[derive(Debug)]
pub struct Desks {
    root: PathBuf,
    inner: Mutex<Inner>,
    /// Held while a directory is made and noted, and while one that nobody noted is removed.
    directories: Mutex<()>,
    news: Notify,
}

impl Desks {
    /// The desks whose directories are below `root`; what happened since an agent last told of it counts as happening now.
    /// Blocking.
    pub fn open(root: PathBuf, now: Duration) -> Self {
        let desks =
            Self { root, inner: Mutex::default(), directories: Mutex::default(), news: Notify::new() };
        for (workspace, generation) in files::found(&desks.root) {
            if let Some(generation) = generation {
                desks.register(workspace, generation, false);
            }
        }
        desks.look(now);
        desks
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directory to mount into the container of this incarnation: made when missing. Blocking.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn ensure(&self, workspace: WorkspaceUid, generation: Generation) -> io::Result<PathBuf> {
        let _held = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        let path = files::ensure(&self.root, workspace)?;
        self.register(workspace, generation, true);
        Ok(path)
    }

    /// A generation that begins has seen nothing.
    fn register(&self, workspace: WorkspaceUid, generation: Generation, ensured: bool) {
        if let Some(desk) = self.lock().desks.get_mut(&workspace)
            && desk.generation == generation
        {
            desk.ensured |= ensured;
            return;
        }
        let mtime = files::remembered(&self.root, workspace, generation).or_else(|| {
            let now = files::look(&self.root, workspace)?;
            self.remember(workspace, generation, now);
            Some(now)
        });
        self.lock().desks.insert(workspace, Desk { generation, mtime, active: None, kept: 0, ensured });
    }

    fn remember(&self, workspace: WorkspaceUid, generation: Generation, seen: Mtime) {
        if let Err(error) = files::remember(&self.root, workspace, generation, seen) {
            tracing::warn!(workspace.id = %workspace, %error, "what was seen of activity is not kept over a restart");
        }
    }

    /// Looks at all desks, and keeps what was told of them. Blocking.
    pub fn look(&self, now: Duration) {
        let all: Vec<_> = self.lock().desks.iter().map(|(uid, desk)| (*uid, desk.generation)).collect();
        for (workspace, generation) in all {
            self.look_at(workspace, generation, now);
        }
        let told = self.lock().to_keep();
        for (workspace, generation, mtime, number) in told {
            self.remember(workspace, generation, mtime);
            if let Some(desk) = self.lock().desks.get_mut(&workspace) {
                desk.kept = number;
            }
        }
    }

    /// Looks at one desk: when there was activity in this generation last, by the monotonic clock. Blocking.
    pub fn look_at(
        &self,
        workspace: WorkspaceUid,
        generation: Generation,
        now: Duration,
    ) -> Option<Duration> {
        if let Some(found) = files::look(&self.root, workspace) {
            let changed = self.lock().note(workspace, found, now);
            if changed {
                self.news.notify_one();
            }
        }
        let inner = self.lock();
        let desk = inner.desks.get(&workspace).filter(|desk| desk.generation == generation)?;
        desk.active.map(|(at, _)| at)
    }

    /// What was seen after the change of this number, and the number of the last change; 0: everything.
    pub fn since(&self, change: u64) -> (Vec<Seen>, u64) {
        let inner = self.lock();
        let seen = inner.desks.iter().filter_map(|(workspace, desk)| {
            let (at, number) = desk.active?;
            let seen = Seen { workspace: *workspace, generation: desk.generation, at };
            (number > change).then_some(seen)
        });
        (seen.collect(), inner.changes)
    }

    /// The control plane has committed every change up to this number: what comes next need not tell it again.
    pub fn told(&self, change: u64) {
        let mut inner = self.lock();
        inner.told = inner.told.max(change);
    }

    /// Completes when there was activity; a single waiter. Cancel-safe.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// The workspace has no container any more. Blocking.
    pub fn remove(&self, workspace: WorkspaceUid) {
        self.lock().desks.remove(&workspace);
        if let Err(error) = files::remove(&self.root, workspace) {
            tracing::warn!(workspace.id = %workspace, %error, "its directory for signals stays behind");
        }
    }

    /// The lease has ended the workspace's container, and it is removed. Its directory goes once no order names the workspace here: until
    /// then the control plane may not know yet what was seen while the host was cut off, and goes by it when it decides whether the
    /// workspace is to start elsewhere.
    pub fn release(&self, workspace: WorkspaceUid) {
        if let Some(desk) = self.lock().desks.get_mut(&workspace) {
            desk.ensured = false;
        }
    }

    /// These workspaces have a container here, or an order; what an agent that was killed, or the lease, left of others is removed at
    /// the next look.
    pub fn only(&self, here: BTreeSet<WorkspaceUid>) {
        self.lock().here = Some(here);
    }

    fn clear_up(&self) {
        let Some(here) = self.lock().here.take() else { return };
        for (workspace, _) in files::found(&self.root) {
            let _held = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
            let ensured = self.lock().desks.get(&workspace).is_some_and(|desk| desk.ensured);
            if !here.contains(&workspace) && !ensured {
                self.remove(workspace);
            }
        }
    }

    /// Looks again and again until `stop`.
    pub async fn watch(self: Arc<Self>, now: impl Fn() -> Duration + Send, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let (desks, now) = (Arc::clone(&self), now());
            let looked = tokio::task::spawn_blocking(move || {
                desks.look(now);
                desks.clear_up();
            });
            if let Err(error) = looked.await {
                tracing::error!(%error, "a look at the desks died; this is a defect of the agent");
            }
        }
    }
}

#[cfg(test)]
mod tests;
