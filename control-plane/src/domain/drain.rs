//! When a workspace leaves a node that is being emptied.
//!
//! Everyone is warned at once. From then on each workspace leaves at its own idle moment, a short time without input, so
//! that nobody is interrupted amid a sentence; by the deadline the rest leave. A drain stands in for the idle timeout and
//! the longest lifetime: everything on the node ends by its deadline anyway. **Never with less than the whole lead**: who
//! is warned late leaves late, even after the deadline. What the policies say of the idle moment holds for as long as the
//! warning is out: when they change it, the warning is given anew, so that nobody leaves sooner than was told.

use std::time::Duration;

use carrel_common::model::Signal;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::idle::IdlePolicy;

/// What the drain of a node means for who works there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drain {
    /// Everything is gone by then.
    pub deadline_at: OffsetDateTime,
    /// Also in an exam.
    pub forced: bool,
    /// Why, for students.
    pub reason: String,
    /// A workspace leaves when it had no input for this long.
    pub idle_moment: Duration,
}

/// What the policies say of a workspace's idle moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// No input for this long.
    pub calm: Duration,
    /// The signals that count as input.
    pub counts: Vec<Signal>,
    /// Quiet windows between the warning and the end of the drain.
    pub quiet: Vec<(OffsetDateTime, OffsetDateTime)>,
}

impl Drain {
    fn calm(&self, policy: &IdlePolicy) -> Duration {
        self.idle_moment.min(policy.idle_timeout)
    }

    /// When it is over for a workspace whose warning will have been out for the whole lead at `lead_over_at`: at the deadline, or
    /// then, and, unless it was forced, after an exam that was set since and that this falls into.
    fn ends_at(&self, policy: &IdlePolicy, lead_over_at: OffsetDateTime) -> OffsetDateTime {
        let end = self.deadline_at.max(lead_over_at);
        if self.forced { end } else { after_quiet(end, policy) }
    }

    /// What a warning that was given at `warned_at` follows from.
    pub fn terms(&self, policy: &IdlePolicy, warned_at: OffsetDateTime) -> Terms {
        let ends_at = self.ends_at(policy, warned_at + policy.warning_lead);
        let matters = |(start, end): &&(OffsetDateTime, OffsetDateTime)| *start < ends_at && *end > warned_at;
        Terms {
            calm: self.calm(policy),
            counts: Signal::ALL.into_iter().filter(|signal| *policy.counts.get(*signal)).collect(),
            quiet: policy.quiet.iter().filter(matters).copied().collect(),
        }
    }

    /// When a workspace leaves whose warning will have been out for the whole lead at `lead_over_at`, in which nobody has
    /// worked since `basis`, and which somebody wants kept until `kept_until`. An exam holds an idle moment back, and the deadline
    /// when it was set since, unless the drain was forced.
    pub fn leaves_at(
        &self,
        policy: &IdlePolicy,
        lead_over_at: OffsetDateTime,
        basis: OffsetDateTime,
        kept_until: Option<OffsetDateTime>,
    ) -> OffsetDateTime {
        let calm = basis + self.calm(policy);
        let calm = kept_until.map_or(calm, |until| until.max(calm)).max(lead_over_at);
        after_quiet(calm, policy).min(self.ends_at(policy, lead_over_at))
    }

    /// Whether a workspace that was never ready goes elsewhere now: nobody works in it, and once it is up there would
    /// be no time left for a warning.
    pub fn cuts_a_start(&self, policy: &IdlePolicy, now: OffsetDateTime) -> bool {
        now + policy.warning_lead >= self.deadline_at
    }
}

/// The first time from `at` on that is in no quiet window.
fn after_quiet(at: OffsetDateTime, policy: &IdlePolicy) -> OffsetDateTime {
    policy.quiet.iter().fold(at, |at, (start, end)| {
        let meets = (*start..*end).contains(&at);
        if meets { *end } else { at }
    })
}

/// Whether a deadline falls into an exam of somebody.
pub fn falls_into_quiet(deadline_at: OffsetDateTime, policy: &IdlePolicy) -> bool {
    policy.quiet.iter().any(|(start, end)| (*start..*end).contains(&deadline_at))
}
