//! When to dial again. PURE.

use std::time::Duration;

/// Why there is no session any more, as far as the next attempt cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The replica is leaving: another one is ready now.
    GoAway,
    /// The stream broke, or the control plane did not answer.
    Broken,
    /// Refused for a reason that an operator has to remove; asking often helps nobody.
    Refused,
}

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(8);
const REFUSED: Duration = Duration::from_secs(30);

/// Attempts since the last session that held.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// A session stood.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// How long to wait; `random` is in 0..1. Full jitter: a fleet that lost its control plane comes back spread out.
    pub(super) fn next(&mut self, ended: Ended, random: f64) -> Duration {
        let longest = match ended {
            Ended::GoAway => return Duration::ZERO,
            Ended::Refused => return REFUSED.mul_f64(0.5 + random / 2.0),
            Ended::Broken => FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST),
        };
        self.failures = self.failures.saturating_add(1);
        longest.mul_f64(random)
    }
}

/// The end of a lease is never approached faster than this.
const DENSEST: Duration = Duration::from_millis(500);

/// How long a wait, or an attempt, may last when so much of the lease is left: whoever is about to end every workspace of a
/// host tries often and in many places before. Far from the end, and without a lease, as long as it would be.
pub(super) fn in_haste(usual: Duration, left: Option<Duration>) -> Duration {
    left.map_or(usual, |left| usual.min((left / 4).max(DENSEST)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn doubles_up_to_8_seconds_and_begins_again_after_a_session() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..8).map(|_| backoff.next(Ended::Broken, 1.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 8000]);
        backoff.reset();
        assert_eq!(backoff.next(Ended::Broken, 1.0), FIRST);
    }

    #[test]
    fn goes_to_another_replica_at_once_when_one_leaves() {
        assert_eq!(Backoff::default().next(Ended::GoAway, 1.0), Duration::ZERO);
    }

    #[test]
    fn makes_haste_as_the_lease_ends() {
        let seconds = Duration::from_secs;
        let usual = |left| in_haste(LONGEST, left);
        assert_eq!([usual(None), usual(Some(seconds(600)))], [LONGEST; 2]);
        assert_eq!(usual(Some(seconds(8))), seconds(2));
        assert_eq!(usual(Some(Duration::ZERO)), DENSEST);
        assert_eq!(in_haste(Duration::ZERO, Some(Duration::ZERO)), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn never_waits_longer_than_the_longest(failures in 0_u32..1000, random in 0.0..1.0_f64) {
            let mut backoff = Backoff { failures };
            prop_assert!(backoff.next(Ended::Broken, random) <= LONGEST);
            prop_assert!(backoff.next(Ended::Refused, random) <= REFUSED);
        }
    }
}
