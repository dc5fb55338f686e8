//! When a workspace leaves a node that is being emptied.
//!
//! Everyone is warned at once. From then on each workspace leaves at its own idle moment, a short time without input, so
//! that nobody is interrupted amid a sentence; by the deadline the rest leave. A drain stands in for the idle timeout and
//! the longest lifetime: everything on the node ends by its deadline anyway. **Never with less than the whole lead**: who
//! is warned late leaves late, even after the deadline.

use std::time::Duration;

use time::OffsetDateTime;

use super::idle::IdlePolicy;

/// What the drain of a node means for who works there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drain {
    /// Everything is gone by then.
    pub deadline_at: OffsetDateTime,
    /// Why, for students.
    pub reason: String,
    /// A workspace leaves when it had no input for this long.
    pub idle_moment: Duration,
}

impl Drain {
    /// When a workspace leaves whose warning will have been out for the whole lead at `lead_over_at`, in which nobody has
    /// worked since `basis`, and which somebody wants kept until `kept_until`. An exam holds an idle moment back, but not
    /// the deadline.
    pub fn leaves_at(
        &self,
        policy: &IdlePolicy,
        lead_over_at: OffsetDateTime,
        basis: OffsetDateTime,
        kept_until: Option<OffsetDateTime>,
    ) -> OffsetDateTime {
        let calm = basis + self.idle_moment.min(policy.idle_timeout);
        let calm = kept_until.map_or(calm, |until| until.max(calm)).max(lead_over_at);
        let calm = policy.quiet.iter().fold(calm, |at, (start, end)| {
            let meets = (*start..*end).contains(&at);
            if meets { *end } else { at }
        });
        calm.min(self.deadline_at).max(lead_over_at)
    }

    /// Whether a workspace that is still starting goes elsewhere now: nobody works in it, and once it is up there would
    /// be no time left for a warning.
    pub fn cuts_a_start(&self, policy: &IdlePolicy, now: OffsetDateTime) -> bool {
        now + policy.warning_lead >= self.deadline_at
    }
}

/// Whether a deadline falls into an exam of somebody.
pub fn falls_into_quiet(deadline_at: OffsetDateTime, policy: &IdlePolicy) -> bool {
    policy.quiet.iter().any(|(start, end)| (*start..*end).contains(&deadline_at))
}
