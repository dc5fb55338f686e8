//! Deadlines that have moved since they were told.
//!
//! Activity is recorded without an event, so that a heartbeat costs one narrow row: streams look for themselves what moved. They
//! share one read of all versions in a replica, and each compares it with what it has told.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use carrel_common::id::WorkspaceUid;
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::app::{App, IdleView, Result, WorkspaceView};
use crate::domain::idle::Clock;

/// What moved is told this late: a heartbeat comes each ten seconds, and a student looks at minutes.
pub(super) const EVERY: Duration = Duration::from_secs(2);

/// Told at most in one go by one stream, so that one which follows a whole fleet in which everybody types costs no more than
/// this; the rest has its turn in the next.
const AT_ONCE: usize = 1000;

/// What a stream last told of a deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Told {
    version: i64,
    clock: Clock,
    /// When the warning or the stop comes that was told of; it may not, while its node has yet to tell what it saw.
    next: Option<OffsetDateTime>,
}

impl Told {
    /// What a message about a workspace tells; `None` while there is no deadline that could move.
    pub(super) fn of(view: &WorkspaceView) -> Option<Self> {
        let IdleView { version, clock, warned, now, .. } = view.idle.as_ref()?;
        let next = clock.times().map(|times| if *warned { times.deadline_at } else { times.warning_at });
        let next = next.filter(|next| next > now);
        (*clock != Clock::Off).then_some(Self { version: *version, clock: *clock, next })
    }
}

/// The versions of all deadlines at one moment.
#[derive(Debug)]
pub(super) struct Seen {
    /// The database's time.
    pub(super) at: OffsetDateTime,
    versions: HashMap<WorkspaceUid, i64>,
}

/// What the streams of a replica share.
#[derive(Debug, Clone, Default)]
pub(in crate::grpc) struct Moves(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    asked_at: Option<Instant>,
    seen: Option<Arc<Seen>>,
}

impl Moves {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The versions as one stream or another has lately read them.
    pub(super) async fn seen(&self, app: &App) -> Result<Arc<Seen>> {
        let known = {
            let mut known = self.lock();
            let is_due = known.asked_at.is_none_or(|at| at.elapsed() >= EVERY);
            if is_due {
                // The others go on with what there is meanwhile.
                known.asked_at = Some(Instant::now());
            }
            known.seen.clone().filter(|_| !is_due)
        };
        if let Some(seen) = known {
            return Ok(seen);
        }
        let (versions, at) = app.store.deadline_versions().await?;
        let seen = Arc::new(Seen { at, versions });
        self.lock().seen = Some(Arc::clone(&seen));
        Ok(seen)
    }
}

/// Whose deadline has another version by now than was told, or is over without an event, beginning behind `after` and at most [`AT_ONCE`].
pub(super) fn moved(
    told: &BTreeMap<WorkspaceUid, Told>,
    seen: &Seen,
    after: Option<WorkspaceUid>,
) -> Vec<WorkspaceUid> {
    let has_moved = |(uid, told): &(&WorkspaceUid, &Told)| {
        // What was told may be younger than what was seen.
        let is_over = told.next.is_some_and(|next| next <= seen.at);
        seen.versions.get(uid).is_some_and(|version| *version > told.version || is_over)
    };
    let (first, rest) = match after {
        Some(after) => (told.range((Excluded(after), Unbounded)), Some(told.range(..=after))),
        None => (told.range::<WorkspaceUid, _>(..), None),
    };
    first.chain(rest.into_iter().flatten()).filter(has_moved).map(|(uid, _)| *uid).take(AT_ONCE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(n: usize) -> WorkspaceUid {
        WorkspaceUid(uuid::Uuid::from_u128(n as u128))
    }

    fn told(version: i64) -> Told {
        Told { version, clock: Clock::Paused, next: None }
    }

    fn seen(versions: impl IntoIterator<Item = (usize, i64)>) -> Seen {
        let versions = versions.into_iter().map(|(n, version)| (uid(n), version)).collect();
        Seen { at: OffsetDateTime::UNIX_EPOCH, versions }
    }

    #[test]
    fn what_has_a_higher_version_than_was_told_has_moved() {
        let all = [(uid(1), told(5)), (uid(2), told(5)), (uid(3), told(5)), (uid(4), told(5))].into();
        let seen = seen([(1, 6), (2, 5), (3, 4), (9, 9)]);
        assert_eq!(moved(&all, &seen, None), [uid(1)]);
    }

    #[test]
    fn what_should_have_come_and_did_not_is_told_anew() {
        let seen = seen([(1, 5), (2, 5)]);
        let due = |seconds| Told { next: Some(seen.at + Duration::from_secs(seconds)), ..told(5) };
        assert_eq!(
            moved(&[(uid(1), due(0)), (uid(2), due(1)), (uid(3), due(0))].into(), &seen, None),
            [uid(1)]
        );
    }

    #[test]
    fn when_everybody_types_each_has_a_turn() {
        let all: BTreeMap<_, _> = (0..2500).map(|n| (uid(n), told(1))).collect();
        let seen = seen((0..2500).map(|n| (n, 2)));
        let mut turns = Vec::new();
        let mut after = None;
        for _ in 0..3 {
            let turn = moved(&all, &seen, after);
            assert_eq!(turn.len(), AT_ONCE);
            after = turn.last().copied();
            turns.extend(turn);
        }
        turns.sort_unstable();
        turns.dedup();
        assert_eq!(turns.len(), 2500);
    }
}
