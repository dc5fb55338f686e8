//! What a sign of life says of the time since the one before: was anything missed, was the database's clock set?
//!
//! The one idea: a clock that somebody may set is watched beside one that nobody sets. The second is a process's own, so
//! each replica watches for itself, and what it takes for a step costs nobody time that another one has accounted for.

use std::time::{Duration, Instant};

use time::OffsetDateTime;

/// Less is no step: a clock that NTP slews (0.5 ms in a second), and timers that are not exact.
const STEP: time::Duration = time::Duration::milliseconds(100);

/// The database's clock, and when by this process's own it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// What it showed.
    pub shown: OffsetDateTime,
    /// It was read after this,
    pub asked: Instant,
    /// and before this.
    pub answered: Instant,
}

impl Reading {
    /// By how much the clock was set forward since another reading, at least: what the time between the questions and the
    /// answers does not explain.
    pub fn set_forward_since(&self, before: &Self) -> time::Duration {
        let most = self.answered.saturating_duration_since(before.asked);
        let ahead = self.shown - before.shown - time::Duration::try_from(most).unwrap_or(time::Duration::MAX);
        if ahead < STEP { time::Duration::ZERO } else { ahead }
    }
}

/// What a sign of life found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pulse {
    /// Nothing was missed.
    Steady,
    /// Nobody gave a sign of life for too long, or the clock was set forward meanwhile: recorded as a pause.
    Missed {
        /// Since the last sign of life of any replica.
        silence: Duration,
        /// By how much of that the clock was set forward, as far as is known.
        set_forward: Duration,
    },
    /// The clock was set back by this long: what lay in the future was moved back with it.
    SetBack(Duration),
}

impl Pulse {
    /// By how long ago, by the database's clock, the last sign of life of any replica was, and by how much this one saw the clock
    /// set forward since its own: what of a step is longer than that silence, another one has accounted for.
    ///
    /// Signs of life come each second, so a pause that a step makes is longer than the step by that at most: nothing of
    /// the step counts as idleness. A step back by less than `tolerance` is none: it makes everything later by no more.
    pub fn of(silence: time::Duration, set_forward: time::Duration, tolerance: Duration) -> Self {
        let span = silence.unsigned_abs();
        if silence.is_negative() {
            return if span > tolerance { Self::SetBack(span) } else { Self::Steady };
        }
        let set_forward = Duration::try_from(set_forward).unwrap_or_default().min(span);
        let missed = span > tolerance || !set_forward.is_zero();
        if missed { Self::Missed { silence: span, set_forward } } else { Self::Steady }
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const TOLERANCE: Duration = Duration::from_secs(3);

    fn seconds(n: f64) -> time::Duration {
        time::Duration::seconds_f64(n)
    }

    #[test]
    fn a_step_is_what_the_time_between_the_readings_does_not_explain() {
        let began = std::hint::black_box(some_instant());
        let reading = |shown: f64, asked: u64, answered: u64| Reading {
            shown: datetime!(2026-03-02 10:00:00 UTC) + seconds(shown),
            asked: began + Duration::from_millis(asked),
            answered: began + Duration::from_millis(answered),
        };
        let before = reading(0.0, 0, 10);
        let set = |shown, asked, answered| reading(shown, asked, answered).set_forward_since(&before);
        assert_eq!(set(1.0, 1000, 1010), seconds(0.0));
        assert_eq!(set(3.0, 1000, 1010), seconds(1.99));
        assert_eq!(set(1.5, 1000, 2000), seconds(0.0), "the answer may have taken so long");
        assert_eq!(set(1.05, 1000, 1010), seconds(0.0), "no more than clocks and timers are off");
        assert_eq!(set(-5.0, 1000, 1010), seconds(0.0), "back is not forward");
    }

    /// Any will do: only differences matter.
    fn some_instant() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    #[test]
    fn a_short_step_forward_is_a_pause_as_long_as_the_silence_that_it_is_in() {
        let of = |silence, forward| Pulse::of(seconds(silence), seconds(forward), TOLERANCE);
        assert_eq!(of(1.0, 0.0), Pulse::Steady);
        assert_eq!(of(2.5, 1.5), missed(2.5, 1.5));
        assert_eq!(of(3.5, 0.0), missed(3.5, 0.0));
        assert_eq!(of(3600.0, 3599.0), missed(3600.0, 3599.0));
    }

    #[test]
    fn what_another_replica_has_accounted_for_of_a_step_counts_once() {
        assert_eq!(Pulse::of(seconds(0.5), seconds(3599.0), TOLERANCE), missed(0.5, 0.5));
    }

    fn missed(silence: f64, set_forward: f64) -> Pulse {
        let [silence, set_forward] = [silence, set_forward].map(Duration::from_secs_f64);
        Pulse::Missed { silence, set_forward }
    }

    #[test]
    fn a_step_back_is_one_beyond_the_tolerance() {
        let of = |silence| Pulse::of(seconds(silence), time::Duration::ZERO, TOLERANCE);
        assert_eq!(of(-2.0), Pulse::Steady);
        assert_eq!(of(-3600.0), Pulse::SetBack(Duration::from_secs(3600)));
    }
}
