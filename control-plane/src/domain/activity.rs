//! What is known of a workspace's activity, and what a declared job gets.
//!
//! Each kind of signal keeps a time of its own, whether it counts or not: which of them count is said by the policy at the
//! moment somebody asks, so a changed policy needs no new reports.

use std::time::Duration;

use carrel_common::model::Signal;
use time::OffsetDateTime;

/// One value for each kind of signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BySignal<T> {
    /// Of `LMS_INPUT`.
    pub lms_input: T,
    /// Of `EDITOR_INPUT`.
    pub editor_input: T,
    /// Of `KEEP_WORKING`.
    pub keep_working: T,
    /// Of `JOB`.
    pub job: T,
}

impl<T> BySignal<T> {
    /// What `value` says of each.
    pub fn of(mut value: impl FnMut(Signal) -> T) -> Self {
        Self {
            lms_input: value(Signal::LmsInput),
            editor_input: value(Signal::EditorInput),
            keep_working: value(Signal::KeepWorking),
            job: value(Signal::Job),
        }
    }

    /// The value of one.
    pub fn get(&self, signal: Signal) -> &T {
        match signal {
            Signal::LmsInput => &self.lms_input,
            Signal::EditorInput => &self.editor_input,
            Signal::KeepWorking => &self.keep_working,
            Signal::Job => &self.job,
        }
    }

    /// The value of one, to be changed.
    pub fn get_mut(&mut self, signal: Signal) -> &mut T {
        match signal {
            Signal::LmsInput => &mut self.lms_input,
            Signal::EditorInput => &mut self.editor_input,
            Signal::KeepWorking => &mut self.keep_working,
            Signal::Job => &mut self.job,
        }
    }
}

/// What is known of a workspace's activity in its present generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Activity {
    /// When each kind of signal was last seen, whether it counts or not.
    pub seen: BySignal<Option<OffsetDateTime>>,
    /// What declared jobs were granted.
    pub awake: Awake,
    /// The newest warning that the node's session has acked.
    pub acked: Option<Acked>,
    /// Rises with each record of activity or extension, and with the ack of a warning: the `deadline_version`.
    pub version: i64,
}

/// A warning that has arrived at the node's session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acked {
    /// When that warning was given: names it.
    pub warned_at: OffsetDateTime,
    /// When its ack was recorded.
    pub at: OffsetDateTime,
}

impl Activity {
    /// The newest activity that counts, and its signal.
    pub fn last(&self, counts: &BySignal<bool>) -> Option<(OffsetDateTime, Signal)> {
        let counted = Signal::ALL.into_iter().filter(|signal| *counts.get(*signal));
        counted.filter_map(|signal| self.seen.get(signal).map(|at| (at, signal))).max()
    }

    /// With a signal seen at `at`; an older one changes nothing.
    pub fn with(mut self, signal: Signal, at: OffsetDateTime) -> Self {
        let seen = self.seen.get_mut(signal);
        *seen = (*seen).max(Some(at));
        self.version += 1;
        self
    }
}

/// What declared jobs were granted in one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Awake {
    /// No idle stop before.
    pub until: Option<OffsetDateTime>,
    /// Taken of the budget so far.
    pub granted: Duration,
}

impl Awake {
    /// What a job gets that needs the workspace for `wanted` from now. Time that another job has already been granted costs
    /// nothing; beyond the budget the rest is cut off.
    pub fn grant(self, budget: Duration, wanted: Duration, now: OffsetDateTime) -> Self {
        let covered = self.until.map_or(now, |until| until.max(now));
        let more = Duration::try_from(now + wanted - covered).unwrap_or_default();
        let more = more.min(budget.saturating_sub(self.granted));
        if more.is_zero() {
            return self;
        }
        Self { until: Some(covered + more), granted: self.granted + more }
    }
}

/// Whether a job that needs the workspace for `wanted` from now gets less, when it is kept awake until `until`.
pub fn falls_short(until: Option<OffsetDateTime>, wanted: Duration, now: OffsetDateTime) -> bool {
    until.is_none_or(|until| until < now + wanted)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    const T0: OffsetDateTime = datetime!(2026-03-02 10:00:00 UTC);

    const fn minutes(n: u64) -> Duration {
        Duration::from_secs(n * 60)
    }

    #[test]
    fn what_does_not_count_is_kept_and_is_not_the_last() {
        let activity =
            Activity::default().with(Signal::LmsInput, T0 + minutes(1)).with(Signal::EditorInput, T0);
        let all = BySignal::of(|_| true);
        assert_eq!(activity.last(&all), Some((T0 + minutes(1), Signal::LmsInput)));
        let editor_alone = BySignal { editor_input: true, ..BySignal::default() };
        assert_eq!(activity.last(&editor_alone), Some((T0, Signal::EditorInput)));
        assert_eq!(activity.last(&BySignal::default()), None);
    }

    #[test]
    fn a_job_is_cut_at_the_budget_and_time_that_is_granted_already_costs_nothing() {
        let budget = minutes(60);
        let first = Awake::default().grant(budget, minutes(40), T0);
        assert_eq!(first, Awake { until: Some(T0 + minutes(40)), granted: minutes(40) });
        let shorter = first.grant(budget, minutes(10), T0 + minutes(10));
        assert_eq!(shorter, first, "it ends within the first");
        assert!(!falls_short(shorter.until, minutes(10), T0 + minutes(10)));
        let second = first.grant(budget, minutes(40), T0 + minutes(30));
        assert_eq!(second, Awake { until: Some(T0 + minutes(60)), granted: minutes(60) });
        assert!(falls_short(second.until, minutes(40), T0 + minutes(30)));
        assert_eq!(second.grant(budget, minutes(1), T0 + minutes(90)), second, "nothing is left");
        assert_eq!(Awake::default().grant(Duration::ZERO, minutes(1), T0), Awake::default());
    }

    proptest! {
        /// Whatever is asked for: never beyond the budget, never shorter than it was, and less than asked only when the
        /// budget is used up.
        #[test]
        fn jobs_keep_within_their_budget(jobs in proptest::collection::vec((0_u64..100, 0_u64..100), 1..30), budget in 0_u64..200) {
            let (budget, mut now, mut awake) = (minutes(budget), T0, Awake::default());
            let mut awake_in_all = Duration::ZERO;
            for (pause, wanted) in jobs {
                now += minutes(pause);
                let before = awake;
                awake = awake.grant(budget, minutes(wanted), now);
                let from = before.until.map_or(now, |until| until.max(now));
                awake_in_all += awake.until.map_or(Duration::ZERO, |until| Duration::try_from(until - from).unwrap_or_default());
                prop_assert!(awake.until >= before.until && awake.granted <= budget);
                prop_assert!(wanted == 0 || !falls_short(awake.until, minutes(wanted), now) || awake.granted == budget);
            }
            prop_assert_eq!(awake.granted, awake_in_all);
        }
    }
}
