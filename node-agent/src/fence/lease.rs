//! The lease as the agent has it: renewed by acks, asked before each start, and ended with everything that ran under it.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use carrel_common::clock::Clock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::enforce::{Enforcer, Look};
use super::files::{FenceFiles, Recorded};
use super::{Deadline, Due, Terms, cgroup};
use crate::metrics::Metrics;

/// Whether this host may run workspaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Standing {
    /// Nothing is leased in this boot, or a lease ran out and nothing of it is left. Nothing is started.
    #[default]
    Unleased,
    /// It may.
    Leased,
    /// The lease has run out, and what ran under it is being ended. Nothing is started, nothing is said to the control plane.
    Over,
}

/// What the driver goes by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ground {
    /// Whether workspaces may run.
    pub standing: Standing,
    /// Containers that a lease has run out over: never started again, to be removed.
    pub over: Arc<BTreeSet<String>>,
}

/// Why a container is not started, or the lease not renewed.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// There is no lease, or it has run out.
    #[error("the lease does not hold")]
    NotHeld,
    /// The disk refused.
    #[error("the lease's files cannot be written: {0}")]
    Files(#[from] io::Error),
}

/// The agent's lease.
#[derive(Debug)]
pub struct Lease {
    files: FenceFiles,
    boot_id: String,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    ground: watch::Sender<Ground>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    deadline: Option<Deadline>,
    /// It has run out, and nothing that ran under it is left.
    fenced: bool,
}

impl State {
    fn standing(self, now: Duration) -> Standing {
        match self.deadline {
            Some(deadline) if deadline.due(now) == Due::Nothing => Standing::Leased,
            Some(_) if !self.fenced => Standing::Over,
            Some(_) | None => Standing::Unleased,
        }
    }
}

impl Lease {
    /// As an agent before this one left it in the same boot: a lease outlives the agent. Blocking.
    ///
    /// # Errors
    /// When the files below `state_dir` cannot be made or read.
    pub fn open(state_dir: &Path, boot_id: &str, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let files = FenceFiles::open(state_dir)?;
        let deadline = match files.deadline(boot_id) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::error!(%error, "taken for that of a lease that has run out: what is on the list ends first");
                Some(Deadline::PASSED)
            }
            read => read?,
        };
        let state = State { deadline, fenced: false };
        let ground = Ground { standing: state.standing(clock.boot()), over: Arc::new(files.over()?) };
        Ok(Self {
            files,
            boot_id: boot_id.to_owned(),
            clock,
            state: Mutex::new(state),
            ground: watch::Sender::new(ground),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host's boot-time clock, by which a lease is counted.
    pub fn now(&self) -> Duration {
        self.clock.boot()
    }

    /// Whether this host may run workspaces, at this moment.
    pub fn standing(&self) -> Standing {
        self.state().standing(self.now())
    }

    /// How long the lease holds; `None` when it does not.
    pub fn left(&self) -> Option<Duration> {
        let (state, now) = (*self.state(), self.now());
        state.deadline?.stop_at.checked_sub(now).filter(|left| !left.is_zero())
    }

    /// What the driver goes by, as it changes.
    pub fn ground(&self) -> watch::Receiver<Ground> {
        self.ground.subscribe()
    }

    /// An ack came of a heartbeat that was sent at `sent_at`, by [`Lease::now`]. Blocking.
    ///
    /// # Errors
    /// `NotHeld`: it has run out meanwhile, and everything has to end first. `Files`: it holds no longer than before.
    pub fn renew(&self, sent_at: Duration, terms: Terms) -> Result<(), LeaseError> {
        let mut state = self.state();
        if state.standing(self.now()) == Standing::Over {
            return Err(LeaseError::NotHeld);
        }
        let deadline = terms.deadline(sent_at);
        self.files.set_deadline(&self.boot_id, deadline)?;
        // An ack that took longer than the lease renews nothing: what it ended has ended already.
        let fenced = deadline.due(self.now()) != Due::Nothing;
        *state = State { deadline: Some(deadline), fenced };
        drop(state);
        self.publish(None);
        Ok(())
    }

    /// Before a container is started: puts it on the list of what ends with the lease, and looks whether the lease holds. In this
    /// order: whatever runs out in between ends this start, too. Blocking.
    ///
    /// # Errors
    /// See [`LeaseError`]; then it must not be started.
    pub fn before_start(&self, id: &str) -> Result<(), LeaseError> {
        let recorded = self.files.record(id)?;
        if recorded == Recorded::Over || self.standing() != Standing::Leased {
            return Err(LeaseError::NotHeld);
        }
        Ok(())
    }

    /// A container is gone. Blocking.
    pub fn after_removal(&self, id: &str) {
        if let Err(error) = self.files.forget(id) {
            tracing::warn!(%error, container = id, "a removed container stays on the fence's list");
        }
        self.ground.send_if_modified(|ground| {
            let known = ground.over.contains(id);
            if known {
                Arc::make_mut(&mut ground.over).remove(id);
            }
            known
        });
    }

    /// These containers are there; `all`: and no other, as nobody can have made one since. Blocking.
    ///
    /// # Errors
    /// When the disk refuses: then something runs that would not end with the lease.
    pub fn found(&self, ids: &BTreeSet<String>, all: bool) -> io::Result<()> {
        let listed: BTreeSet<String> = self.files.containers()?.union(&self.files.over()?).cloned().collect();
        for id in ids.difference(&listed) {
            self.files.record(id)?;
        }
        if all {
            for id in listed.difference(ids) {
                cgroup::end(id);
                self.after_removal(id);
            }
        }
        Ok(())
    }

    /// Completes once nothing is left of a lease that has run out; at once when none has.
    pub async fn fenced(&self) {
        let mut ground = self.ground();
        while self.standing() == Standing::Over {
            // The sender lives as long as this.
            let _ = ground.changed().await;
        }
    }

    /// Enforces the deadline until `stop`, as the fence process does, which may not be there.
    pub async fn keep(self: Arc<Self>, metrics: Metrics, stop: CancellationToken) {
        let mut enforcer = Enforcer::new(self.files.clone(), self.boot_id.clone(), Arc::clone(&self.clock));
        let mut watched = Watched::new();
        loop {
            let (lease, moved) = (Arc::clone(&self), enforcer);
            let looked = tokio::task::spawn_blocking(move || {
                let mut enforcer = moved;
                let look = lease.look(&mut enforcer);
                let watched = lease.files.lock().map(|free| free.is_none());
                (enforcer, look, watched)
            });
            let (returned, look, by_process) = match looked.await {
                Ok(looked) => looked,
                Err(error) => match error.try_into_panic() {
                    // Nobody would see that the lease is watched no more: it breaks this part, and with it the agent.
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The agent ends.
                    Err(_) => return,
                },
            };
            enforcer = returned;
            let again_in = match look {
                Ok(look) => look.again_in,
                Err(error) => {
                    tracing::error!(%error, "the lease's files cannot be used");
                    Duration::from_secs(1)
                }
            };
            metrics.lease(self.left().unwrap_or_default(), watched.look(by_process.unwrap_or(false)));
            if stop.run_until_cancelled(tokio::time::sleep(again_in)).await.is_none() {
                return;
            }
        }
    }

    /// One look, and what it means for the lease. Blocking.
    fn look(&self, enforcer: &mut Enforcer) -> io::Result<Look> {
        let deadline = self.state().deadline;
        if let Some(deadline) = deadline {
            enforcer.hold(deadline);
        }
        let look = enforcer.once()?;
        if look.due != Due::Nothing && look.left == 0 {
            let mut state = self.state();
            // Not one that holds since.
            state.fenced |= state.deadline.is_some_and(|deadline| deadline.due(look.at) != Due::Nothing);
        }
        self.publish(Some(&look.over));
        Ok(look)
    }

    fn publish(&self, over: Option<&BTreeSet<String>>) {
        let standing = self.standing();
        self.ground.send_if_modified(|ground| {
            let before = ground.clone();
            ground.standing = standing;
            if let Some(over) = over.filter(|over| **over != *ground.over) {
                ground.over = Arc::new(over.clone());
            }
            *ground != before
        });
    }
}

/// Whether the fence process is there, told when it changes.
#[derive(Debug)]
struct Watched {
    was: Option<bool>,
    looks: u32,
}

/// A fence process that is started together with the agent gets so many looks, of a second each, to be there.
const PATIENCE: u32 = 10;

impl Watched {
    fn new() -> Self {
        Self { was: None, looks: 0 }
    }

    fn look(&mut self, is: bool) -> bool {
        self.looks = self.looks.saturating_add(1);
        let patient = self.was.is_none() && !is && self.looks < PATIENCE;
        if patient || self.was == Some(is) {
            return is;
        }
        if is {
            tracing::info!("a fence process watches the lease");
        } else {
            tracing::error!(
                "no fence process runs on this host: start `node-agent fence` with the same --state-dir"
            );
        }
        self.was = Some(is);
        is
    }
}

#[cfg(test)]
mod tests;
