//! The loop that warns and stops idle workspaces on time.
//!
//! Deadlines are kept exactly: each workspace that comes due before the next sweep has its time in a heap. The sweep is
//! the net under it: it finds what another replica made ready, what a lost nudge left out, and what a restart forgot.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::time::Duration;

use carrel_common::id::WorkspaceUid;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::app::{App, AppError, IdleDue};

/// A failed look is repeated after this long.
const AGAIN: Duration = Duration::from_secs(1);

/// Workspaces in one transaction: a commit costs little by the hundred, and a heartbeat that meets one of them waits no longer
/// than some tens of milliseconds.
const IN_ONE: usize = 100;
/// Transactions at once: a quarter of the connections of the pool, so that callers are not held up.
const AT_ONCE: usize = 4;

/// The loop and what it remembers.
#[derive(Debug)]
pub struct IdleStopper {
    app: App,
    sweep: Duration,
    due: BinaryHeap<Reverse<(OffsetDateTime, WorkspaceUid)>>,
    /// The database's time when it was last told, and when that was by our own clock.
    clock: Option<(OffsetDateTime, Instant)>,
}

impl IdleStopper {
    /// A loop that sweeps each `sweep`.
    pub fn new(app: App, sweep: Duration) -> Self {
        Self { app, sweep, due: BinaryHeap::new(), clock: None }
    }

    /// Runs until the end.
    pub async fn run(mut self, mut nudges: mpsc::UnboundedReceiver<IdleDue>, stop: CancellationToken) {
        let mut next_sweep = Instant::now();
        loop {
            let wake = self.next_due().map_or(next_sweep, |due| due.min(next_sweep));
            tokio::select! {
                // Cancel-safe: a nudge that is not taken stays in its channel, the rules' bell keeps one ring.
                Some((uid, at)) = nudges.recv() => {
                    self.due.push(Reverse((at, uid)));
                    continue;
                }
                () = self.app.nudge.sweep.notified() => next_sweep = Instant::now(),
                () = tokio::time::sleep_until(wake) => {}
                () = stop.cancelled() => return,
            }
            let outcome = if Instant::now() >= next_sweep {
                let swept = self.sweep_once().await;
                next_sweep = Instant::now() + if swept.is_ok() { self.sweep } else { AGAIN };
                swept
            } else {
                self.look_once().await
            };
            if let Err(error) = outcome {
                tracing::warn!(%error, "looking for idle workspaces failed; it is tried again");
                // Whatever was due is found again by the sweep.
                self.due.clear();
                self.clock = None;
                next_sweep = Instant::now() + AGAIN;
            }
        }
    }

    /// Finds what comes due before the next sweep.
    ///
    /// # Errors
    /// When the database cannot be reached.
    async fn sweep_once(&mut self) -> Result<(), AppError> {
        let (soon, now) = self.app.idle_soon(self.sweep * 2).await?;
        self.note(now);
        self.due = soon.into_iter().map(|(uid, at)| Reverse((at, uid))).collect();
        Ok(())
    }

    /// Looks at those that are due, many in a transaction, several transactions at once.
    ///
    /// # Errors
    /// When the database cannot be reached.
    async fn look_once(&mut self) -> Result<(), AppError> {
        let mut uids = BTreeSet::new();
        while uids.len() < IN_ONE * AT_ONCE && self.next_due().is_some_and(|due| due <= Instant::now()) {
            uids.extend(self.due.pop().map(|Reverse((_, uid))| uid));
        }
        let uids: Vec<_> = uids.into_iter().collect();
        let looks = uids.chunks(IN_ONE).map(|uids| self.app.check_idle_all(uids));
        let checks = futures_util::future::join_all(looks).await;
        let mut lost = Ok(());
        for (uid, check) in checks.into_iter().flatten() {
            match check {
                Ok(check) => {
                    if check.now > OffsetDateTime::UNIX_EPOCH {
                        self.note(check.now);
                    }
                    self.due.extend(check.again_at.map(|again_at| Reverse((again_at, uid))));
                }
                Err(error) if error.is_passing() => lost = Err(error),
                Err(error) => {
                    tracing::error!(workspace.id = %uid, %error, "nothing can be decided about a workspace");
                    // The next sweep finds it again; what it was due for is late until it can be read.
                }
            }
        }
        lost
    }

    fn note(&mut self, now: OffsetDateTime) {
        self.clock = Some((now, Instant::now()));
    }

    /// When, by our own clock, the next workspace is due.
    fn next_due(&self) -> Option<Instant> {
        let Reverse((at, _)) = self.due.peek()?;
        let Some((database, ours)) = self.clock else { return Some(Instant::now()) };
        let ahead = Duration::try_from(*at - database).unwrap_or_default();
        Some(ours + ahead)
    }
}
