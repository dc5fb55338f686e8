//! Reads the fence files of what runs: of a container that was just found running at once, of all every interval. Beside the loop,
//! so that a share that hangs holds up nothing; what it cannot read it knows nothing of, and stops nothing for.
//!
//! What the control plane wants says its own again where the file has something earlier; anything else only reads: a container that
//! nobody ordered must not fence off the one that was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use carrel_common::model::{Container, DesiredSet};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::host::Host;
use super::{Accepted, EngineState};
use crate::runtime::Runtime;
use crate::storage::fence_file::Token;
use crate::storage::fences::{Asking, Claim};

/// Writes that were cut off leave a small file each: there is no hurry.
const TIDY_EVERY: Duration = Duration::from_secs(3600);

/// Containers that gave way, with what the share has instead of theirs.
pub type FencedOff = BTreeMap<String, Token>;

/// The task.
#[derive(Debug)]
pub struct FenceWatch<R> {
    host: Arc<Host<R>>,
    engine: watch::Receiver<EngineState>,
    accepted: watch::Receiver<Accepted>,
    fenced: watch::Sender<FencedOff>,
    /// Running containers whose file was asked for.
    asked: BTreeSet<String>,
    /// When all are due, by the monotonic clock.
    due: Duration,
    tidy_due: Duration,
    /// What went wrong the last time; told once.
    trouble: Option<String>,
}

impl<R: Runtime> FenceWatch<R> {
    /// Watches what `engine` says is running, by the set in `accepted`, and tells in `fenced` what has to stop.
    pub fn new(
        host: Arc<Host<R>>,
        engine: watch::Receiver<EngineState>,
        accepted: watch::Receiver<Accepted>,
        fenced: watch::Sender<FencedOff>,
    ) -> Self {
        let now = host.clock.monotonic();
        Self {
            host,
            engine,
            accepted,
            fenced,
            asked: BTreeSet::new(),
            due: now,
            tidy_due: now,
            trouble: None,
        }
    }

    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            // Cancel-safe: a prober that is cut off is killed, and what it would have found the next agent finds.
            if stop.run_until_cancelled(self.once()).await.is_none() {
                return;
            }
            let left = self.due.saturating_sub(self.host.clock.monotonic());
            // Cancel-safe: a watch loses nothing.
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(left) => {}
                changed = self.engine.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn once(&mut self) {
        let inventory = self.engine.borrow_and_update().inventory.clone();
        let now = self.host.clock.monotonic();
        let all = now >= self.due;
        if all {
            self.due = now + self.host.limits.fence_file_interval;
            self.host.metrics.stuck(self.host.storage.stuck());
        }
        self.forget(&inventory);
        let running: Vec<_> = inventory.into_iter().filter(|container| container.running).collect();
        let due = |c: &&Container| all || !self.asked.contains(&c.container_id);
        let set = self.accepted.borrow().set.clone();
        let which: Vec<_> =
            running.iter().filter(due).map(|c| (c, is_wanted(c, set.as_deref(), &running))).collect();
        if !which.is_empty() {
            self.ask(&which).await;
        }
        if all && now >= self.tidy_due && self.host.storage.health().problem.is_none() {
            self.tidy_due = now + TIDY_EVERY;
            if let Err(problem) = self.host.storage.tidy().await {
                tracing::warn!(problem, "what cut-off writes left on the share is still there");
            }
        }
    }

    /// Drops what is remembered of containers that are no more.
    fn forget(&mut self, inventory: &[Container]) {
        let present: BTreeMap<_, _> = inventory.iter().map(|c| (&c.container_id, c.running)).collect();
        self.asked.retain(|id| present.get(id) == Some(&true));
        self.fenced.send_if_modified(|fenced| {
            fenced.retain(|id, _| present.contains_key(id));
            false
        });
    }

    async fn ask(&mut self, which: &[(&Container, bool)]) {
        let asking = |&(c, may_write): &(&Container, bool)| Asking {
            student: c.student.clone(),
            own: Token { pair: c.pair(), placement: c.placement },
            may_write,
        };
        let claims = self.host.storage.claim_all(which.iter().map(asking).collect()).await;
        self.asked.extend(which.iter().map(|(container, _)| container.container_id.clone()));
        let claims = match claims {
            Ok(claims) => claims,
            Err(problem) => return self.troubled(Some(problem)),
        };
        let trouble = claims.iter().find_map(|claim| claim.as_ref().err()).cloned();
        self.troubled(trouble);
        let fenced = which.iter().zip(&claims).filter_map(|((container, _), claim)| match claim {
            Ok(Claim::Fenced(later)) => Some((container.container_id.clone(), *later)),
            Ok(Claim::Held) | Err(_) => None,
        });
        let found: FencedOff = fenced.collect();
        // Once given way it stays so: what a late write says for a moment brings nothing back.
        self.fenced.send_if_modified(|fenced| {
            let before = fenced.len();
            fenced.extend(found);
            fenced.len() > before
        });
    }

    fn troubled(&mut self, trouble: Option<String>) {
        if let Some(problem) = trouble.as_ref().filter(|_| trouble != self.trouble) {
            tracing::warn!(problem, "fence files cannot be read; what runs goes on");
        }
        self.trouble = trouble;
    }
}

/// Whether `container` may say on the share that it is its student's: the set names it. Before the first set, after a restart of the
/// agent, one that is alone may: it was ordered once, and a late write of an earlier one must not stand for that long.
fn is_wanted(container: &Container, set: Option<&DesiredSet>, running: &[Container]) -> bool {
    match set {
        Some(set) => set
            .items
            .iter()
            .any(|item| item.workspace == container.workspace && item.pair() == container.pair()),
        None => running.iter().filter(|other| other.student == container.student).count() == 1,
    }
}

#[cfg(test)]
mod tests;
