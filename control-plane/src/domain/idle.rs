//! When a workspace is stopped because nobody works in it, or because its time is over.
//!
//! The one idea: a deadline is data, derived from the policy and the activity whenever it is asked for. **No stop
//! without a warning that has been out for the whole lead**: warned late means stopped later. A warning is out once the
//! node's session has acked it; where none acks, from the log alone. What could not be observed (a [`Pause`]) is not
//! idleness: the clock stands still, a full round of reports comes first, and a lead begins anew.

use std::time::Duration;

use carrel_common::model::{Signal, StopReason};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::activity::{Activity, BySignal};
use super::drain::{Drain, Terms};
use super::workspace::{Grounds, IdleEvidence, State, Warning, Workspace};

/// The idle clock stands still for at most this long in one go: a node that is gone for days must not keep a
/// workspace's clock from ever ending. It is time that passed; what a clock was set forward passed for nobody.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);

/// The times in force for one workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdlePolicy {
    /// Stop after this long without activity.
    pub idle_timeout: Duration,
    /// Warn this long before.
    pub warning_lead: Duration,
    /// Stop this long after readiness whatever happens; zero: never.
    pub max_lifetime: Duration,
    /// An extension reaches at most this far from now.
    pub extension_budget: Duration,
    /// Declared jobs keep it awake for at most this long in all, in one generation.
    pub keep_awake_budget: Duration,
    /// Which kinds of signal keep it from its idle stop.
    pub counts: BySignal<bool>,
    /// The ack of a warning by the node's session is waited for this long; without one the node has no session, and the
    /// warning is out in the log alone.
    pub ack_within: Duration,
    /// Times without stops, sorted.
    pub quiet: Vec<(OffsetDateTime, OffsetDateTime)>,
    /// The node it is on is being emptied.
    pub drain: Option<Drain>,
}

/// A time during which nobody's activity could be recorded: the database or every replica was away, or its clock
/// was set forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pause {
    /// From here.
    pub from: OffsetDateTime,
    /// To here.
    pub to: OffsetDateTime,
    /// By how much of that the clock was set forward, as far as a replica saw it: the rest is time that passed.
    pub set_forward: Duration,
}

/// Everything a decision is made from.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    /// The times in force.
    pub policy: &'a IdlePolicy,
    /// What could not be observed, sorted.
    pub pauses: &'a [Pause],
    /// The workspace.
    pub workspace: &'a Workspace,
    /// Its activity.
    pub activity: &'a Activity,
    /// Whether its node has a session, and has told all that it saw, since that began and since the last time that could
    /// not be observed.
    pub heard: bool,
    /// The database's time.
    pub now: OffsetDateTime,
}

/// When the warning is due or was given, when the stop follows, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// When the warning is due, or was given.
    pub warning_at: OffsetDateTime,
    /// When it is stopped.
    pub deadline_at: OffsetDateTime,
    /// Why: IDLE, MAX_LIFETIME or DRAIN.
    pub reason: StopReason,
}

/// Whether the idle clock runs, and when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Clock {
    /// The editor does not answer yet, or the workspace is not meant to run.
    Off,
    /// Activity cannot be seen: the node is silent. Or something is due, and the node has yet to tell what it saw, or the
    /// program is starting again.
    Paused,
    /// A quiet window holds stops back until then.
    Quiet(Times),
    /// It is stopped at the deadline unless activity moves it.
    Running(Times),
}

impl Clock {
    /// The times, unless the clock stands still.
    pub fn times(self) -> Option<Times> {
        match self {
            Self::Off | Self::Paused => None,
            Self::Quiet(times) | Self::Running(times) => Some(times),
        }
    }

    /// The times, while the clock runs.
    pub fn running(self) -> Option<Times> {
        if let Self::Running(times) = self { Some(times) } else { None }
    }
}

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing can be decided; it is asked again when the workspace changes.
    Unobservable,
    /// A warning or a stop would be due, but its node has yet to tell what it saw: ask again soon.
    Unheard,
    /// Nothing before this time.
    Active {
        /// Ask again then.
        recheck_at: OffsetDateTime,
    },
    /// Warn now.
    Warn {
        /// The warning to record.
        warning: Warning,
        /// The stop it announces.
        deadline_at: OffsetDateTime,
    },
    /// The warning no longer holds: take it back, then ask again.
    Withdraw {
        /// The warning that no longer holds.
        warning: Warning,
    },
    /// Stop now.
    Stop {
        /// IDLE, MAX_LIFETIME or DRAIN.
        reason: StopReason,
        /// What it was decided on.
        evidence: IdleEvidence,
    },
}

/// A stop that is due, before the lead of its warning and quiet windows are considered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Due {
    at: OffsetDateTime,
    reason: StopReason,
}

impl IdlePolicy {
    /// The first deadline from `at` on whose whole warning lies outside of quiet windows.
    fn outside_quiet(&self, at: OffsetDateTime) -> OffsetDateTime {
        self.quiet.iter().fold(at, |at, (start, end)| {
            let meets = at > *start && at - self.warning_lead < *end;
            if meets { *end + self.warning_lead } else { at }
        })
    }
}

impl Look<'_> {
    /// How far an extension that asks for `until` reaches, and whether it was cut: at the budget, or at the end of the
    /// longest lifetime, which no extension moves.
    pub fn grant(&self, until: OffsetDateTime) -> (OffsetDateTime, bool) {
        let budget = self.now + self.policy.extension_budget;
        let most = self.lifetime_ends().map_or(budget, |end| end.min(budget));
        if until > most { (most, true) } else { (until, false) }
    }

    /// The end of the longest lifetime. A pause moves it on, too: it may have been a clock that was set forward.
    fn lifetime_ends(&self) -> Option<OffsetDateTime> {
        let ready_at = self.workspace.ready_at.filter(|_| !self.policy.max_lifetime.is_zero())?;
        Some(ready_at + self.policy.max_lifetime + lost(self.pauses, ready_at, self.now))
    }

    /// The newest activity that counts, and its signal.
    pub fn last(&self) -> Option<(OffsetDateTime, Signal)> {
        self.activity.last(&self.policy.counts)
    }

    /// Until when declared jobs keep it awake; `None` when none does.
    pub fn awake_until(&self) -> Option<OffsetDateTime> {
        self.jobs_end().filter(|until| *until > self.now)
    }

    /// What the timeout is counted from: the latest of activity, readiness and the end of a silence, moved on by what
    /// could not be observed since.
    pub fn basis(&self) -> Option<OffsetDateTime> {
        let seen = self.seen()?;
        Some((seen + lost(self.pauses, seen, self.now)).min(self.now))
    }

    /// The latest of activity, readiness and the end of a silence.
    fn seen(&self) -> Option<OffsetDateTime> {
        let ready_at = self.workspace.ready_at?;
        let last = self.last().map_or(ready_at, |(at, _)| at);
        Some(ready_at.max(last).max(self.workspace.resumed_at.unwrap_or(ready_at)).min(self.now))
    }

    /// The end of declared jobs, which may be over.
    fn jobs_end(&self) -> Option<OffsetDateTime> {
        self.activity.awake.until.filter(|_| self.policy.counts.job)
    }

    /// The end of an extension and of declared jobs.
    fn held_until(&self) -> Option<OffsetDateTime> {
        self.workspace.extended_until.max(self.jobs_end())
    }

    fn due(&self) -> Option<Due> {
        if let Some(drain) = &self.policy.drain {
            // Activity moves the moment, not what the warning speaks of.
            return Some(Due { at: drain.deadline_at, reason: StopReason::Drain });
        }
        let by_activity = self.basis()? + self.policy.idle_timeout;
        let at = self.held_until().map_or(by_activity, |held| held.max(by_activity));
        let over = self.lifetime_ends().filter(|over| *over < at);
        Some(match over {
            Some(over) => Due { at: over, reason: StopReason::MaxLifetime },
            None => Due { at, reason: StopReason::Idle },
        })
    }

    /// When the node's session acked a warning; an ack that came too late is none.
    fn acked_at(&self, warning: &Warning) -> Option<OffsetDateTime> {
        let acked = self.activity.acked.filter(|acked| acked.warned_at == warning.at)?;
        (acked.at <= warning.at + self.policy.ack_within).then_some(acked.at.max(warning.at))
    }

    /// The stop that a warning leads to. While its ack is awaited this is the earliest that can come of it, so that a
    /// deadline that was told is never followed by an earlier one.
    fn deadline_after(&self, warning: &Warning, due: Due) -> OffsetDateTime {
        let lead = warning.lead;
        let unacked = warning.at + lead.max(self.policy.ack_within);
        let full = match self.acked_at(warning) {
            Some(acked_at) => acked_at + lead,
            // As it was told with the warning, for as long as it can be: not another time at each look.
            None if self.now < warning.at + lead => warning.at + lead,
            None => unacked.min(self.now + lead),
        };
        self.deadline(due, full)
    }

    /// When it is stopped whose warning will have been out for the whole lead at `lead_over_at`.
    fn deadline(&self, due: Due, lead_over_at: OffsetDateTime) -> OffsetDateTime {
        match (&self.policy.drain, self.basis()) {
            (Some(drain), Some(basis)) => {
                drain.leaves_at(self.policy, lead_over_at, basis, self.held_until())
            }
            _ => due.at.max(lead_over_at),
        }
    }

    /// What a drain's warning that was given at `warned_at` follows from by the policies of now.
    fn drain_terms(&self, warned_at: OffsetDateTime) -> Option<Terms> {
        self.policy.drain.as_ref().map(|drain| drain.terms(self.policy, warned_at))
    }

    /// The warning that is out, if it still speaks of this stop, and could be seen all the while.
    fn standing_warning(&self, due: Due) -> Option<&Warning> {
        // One from the future was given before the clock was set back.
        let warning = self.workspace.warning.as_ref().filter(|warning| warning.at <= self.now)?;
        // Looked at late, the stop itself would fall into the window.
        let until = self.deadline_after(warning, due).max(self.now);
        // A drain is announced in an exam, too: it takes long, and its deadline holds.
        let quiet = due.reason != StopReason::Drain
            && self.policy.quiet.iter().any(|(start, end)| *start < until && *end > warning.at);
        let lost = self.pauses.iter().any(|pause| pause.to > warning.at);
        let speaks_of_it = warning.nominal_deadline == due.at
            && warning.reason == due.reason
            && warning.drain_terms == self.drain_terms(warning.at);
        let is_long_enough = warning.lead >= self.policy.warning_lead;
        (speaks_of_it && is_long_enough && !quiet && !lost).then_some(warning)
    }

    /// The warning that is out and still holds. It does on while the program that has ended by itself starts again.
    pub fn warning(&self) -> Option<&Warning> {
        let is_up = matches!(self.workspace.state, State::Running | State::Starting);
        self.due().filter(|_| is_up).and_then(|due| self.standing_warning(due))
    }

    /// What callers are told.
    pub fn clock(&self) -> Clock {
        let due = match (self.workspace.state, self.due()) {
            (State::Unreachable, _) => return Clock::Paused,
            (State::Running, Some(due)) => due,
            (State::Starting, Some(due)) if self.warning().is_some() => due,
            _ => return Clock::Off,
        };
        let times = self.times(due);
        let next = if self.warning().is_some() { times.deadline_at } else { times.warning_at };
        let is_seen = self.heard && self.workspace.state == State::Running;
        if next <= self.now && !is_seen {
            return Clock::Paused;
        }
        // What a quiet window holds back in a drain is in its times already: they hold within one, too.
        let quiet = due.reason != StopReason::Drain
            && self.policy.quiet.iter().any(|(start, end)| (*start..*end).contains(&self.now));
        if quiet { Clock::Quiet(times) } else { Clock::Running(times) }
    }

    fn times(&self, due: Due) -> Times {
        let lead = self.policy.warning_lead;
        match self.standing_warning(due) {
            Some(warning) => Times {
                warning_at: warning.at,
                deadline_at: self.deadline_after(warning, due),
                reason: due.reason,
            },
            None if due.reason == StopReason::Drain => Times {
                warning_at: self.now,
                deadline_at: self.deadline(due, self.now + lead),
                reason: due.reason,
            },
            None => {
                let deadline_at = self.policy.outside_quiet(due.at.max(self.now + lead));
                Times { warning_at: deadline_at - lead, deadline_at, reason: due.reason }
            }
        }
    }

    /// What is to be done now.
    pub fn decide(&self) -> Verdict {
        let (State::Running, Some(basis_at), Some(due)) = (self.workspace.state, self.basis(), self.due())
        else {
            return Verdict::Unobservable;
        };
        let Times { warning_at, deadline_at, reason } = self.times(due);
        match (&self.workspace.warning, self.standing_warning(due)) {
            (Some(warning), None) => Verdict::Withdraw { warning: warning.clone() },
            (_, None) if self.now < warning_at => Verdict::Active { recheck_at: warning_at },
            (_, Some(_)) if self.now < deadline_at => Verdict::Active { recheck_at: deadline_at },
            _ if !self.heard => Verdict::Unheard,
            (_, None) => Verdict::Warn {
                warning: Warning {
                    at: self.now,
                    nominal_deadline: due.at,
                    version: self.activity.version,
                    reason,
                    lead: self.policy.warning_lead,
                    drain_terms: self.drain_terms(self.now),
                },
                deadline_at,
            },
            (_, Some(warning)) => {
                let last = self.last();
                let ready_at = self.workspace.ready_at;
                Verdict::Stop {
                    reason,
                    evidence: IdleEvidence {
                        last_active_at: last.map(|(at, _)| at),
                        last_signal: last.map(|(_, signal)| signal),
                        basis_at,
                        ready_at,
                        extended_until: self.workspace.extended_until,
                        awake_until: self.jobs_end(),
                        idle_timeout: self.policy.idle_timeout,
                        warning_lead: warning.lead,
                        max_lifetime: self.policy.max_lifetime,
                        deadline_at,
                        warned_at: warning.at,
                        warning_acked_at: self.acked_at(warning),
                        decided_at: self.now,
                        // By the clock of now, as the basis is, and so is the age that the agent is told: the input itself
                        // may be by the clock as it was. And no stop is early for it: it comes the timeout after the basis, so
                        // what an agent has seen before that is older than the timeout.
                        refusable_after: Some(basis_at).filter(|_| self.policy.counts.editor_input),
                        // Added by whoever knows the policies.
                        grounds: Grounds::default(),
                    },
                }
            }
        }
    }

    /// Whether somebody works in it: there was activity within the last idle timeout, or it was asked for within that, or an
    /// extension, a declared job or a quiet window (an exam) holds.
    pub fn is_in_use(&self) -> bool {
        let quiet = self.policy.quiet.iter().any(|(start, end)| (*start..*end).contains(&self.now));
        let held = self.held_until().is_some_and(|until| until > self.now);
        let since = self.basis().or(self.workspace.started_at);
        quiet || held || since.is_some_and(|since| since + self.policy.idle_timeout > self.now)
    }

    /// The end of the node's silence, as it is kept, after it was silent since `since` until now: the clock stood still
    /// meanwhile. What of that was a pause, too, counts once: this is as long ago as idleness was seen, not counting pauses, which
    /// [`Look::basis`] adds again.
    pub fn after_silence(&self, since: OffsetDateTime) -> Option<OffsetDateTime> {
        let (seen, now) = (self.seen()?, self.now);
        let within = self.pauses.iter().filter(|pause| pause.to > since);
        let stepped: Duration = within.map(|pause| pause.set_forward).sum();
        let silent_from = since.max(seen).max(now - LONGEST_PAUSE - stepped);
        let before = silent_from - seen;
        let mut idle = (before - lost(self.pauses, seen, silent_from)).max(time::Duration::ZERO);
        let mut at = now;
        for (from, to) in self.pauses.iter().rev().map(counted) {
            if to >= at {
                at = at.min(from);
                continue;
            }
            if idle <= at - to {
                break;
            }
            idle -= at - to;
            at = from;
        }
        Some((at - idle).max(seen))
    }
}

/// When something was that is told with an age which leads to this time: before a step forward the clock had not been set yet, and
/// what was seen then has to be compared with what was told then. `pauses` are sorted.
///
/// Never earlier than it was: a step is known to be at least as long, and what was not surely before it is taken for later.
pub fn by_the_clock_of_then(pauses: &[Pause], at: OffsetDateTime) -> OffsetDateTime {
    let before = |at: OffsetDateTime, pause: &Pause| {
        if at <= pause.from + pause.set_forward { at - pause.set_forward } else { at }
    };
    pauses.iter().rev().fold(at, before)
}

/// What of a pause the clock stands still for.
fn counted(pause: &Pause) -> (OffsetDateTime, OffsetDateTime) {
    (pause.from.max(pause.to - pause.set_forward - LONGEST_PAUSE), pause.to)
}

/// How much of the time between these could not be observed.
///
/// What was told after a step forward with an age that reaches back over it, and was not [set right](by_the_clock_of_then), lies in
/// the pause, and counts as seen at its end: later by its age at most. To take the step from it now could be too early: it may have
/// taken the place, as the later of the two times, of what was seen by the clock as it was and is in truth newer.
fn lost(pauses: &[Pause], from: OffsetDateTime, to: OffsetDateTime) -> time::Duration {
    let within = |(start, end): (OffsetDateTime, OffsetDateTime)| {
        (end.min(to) - start.max(from)).max(time::Duration::ZERO)
    };
    pauses.iter().map(counted).map(within).sum()
}

#[cfg(test)]
mod tests;
