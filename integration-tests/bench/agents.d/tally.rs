//! What the agents have seen, in sum.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Shared by all agents.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Sessions with an acked heartbeat.
    standing: AtomicU32,
    broken: AtomicU32,
    acks: Mutex<Vec<Duration>>,
}

impl Tally {
    pub(crate) fn stands(&self) {
        self.standing.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn fell(&self) {
        self.standing.fetch_sub(1, Ordering::Relaxed);
        self.broken.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn standing(&self) -> u32 {
        self.standing.load(Ordering::Relaxed)
    }

    pub(crate) async fn until_standing(&self, wanted: u32, within: Duration) {
        let from = Instant::now();
        while self.standing() != wanted {
            assert!(from.elapsed() < within, "{} sessions stand, not {wanted}", self.standing());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A heartbeat was acked so long after it was sent.
    pub(crate) fn acked(&self, after: Duration) {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).push(after);
    }

    /// Sessions that stood and ended.
    pub(crate) fn broken(&self) -> u32 {
        self.broken.load(Ordering::Relaxed)
    }

    /// Counts anew.
    pub(crate) fn forget(&self) {
        self.broken.store(0, Ordering::Relaxed);
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(crate) fn acks(&self) -> [Duration; 2] {
        middle_and_tail(&mut self.acks.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// p50 and p99.
pub(crate) fn middle_and_tail(times: &mut [Duration]) -> [Duration; 2] {
    times.sort_unstable();
    let at = |percent: usize| times.get((times.len() * percent / 100).min(times.len().saturating_sub(1)));
    [50, 99].map(|percent| at(percent).copied().unwrap_or_default())
}
