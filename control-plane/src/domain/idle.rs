//! When a workspace is stopped because nobody works in it.
//!
//! The one idea: a deadline is data, derived from the policy and the activity whenever it is asked for. **No stop
//! without a warning that has been out for the whole lead**: warned late means stopped later.

use std::time::Duration;

use carrel_common::model::Signal;
use time::OffsetDateTime;

use super::workspace::{IdleEvidence, State, Warning, Workspace};

/// The times in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdlePolicy {
    /// Stop after this long without activity.
    pub idle_timeout: Duration,
    /// Warn this long before.
    pub warning_lead: Duration,
    /// An extension reaches at most this far from now.
    pub extension_budget: Duration,
}

/// What is known of a workspace's activity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Activity {
    /// The newest that counted, and its signal.
    pub last: Option<(OffsetDateTime, Signal)>,
    /// Rises with each record of activity or extension: the `deadline_version`.
    pub version: i64,
}

/// Whether the idle clock runs, and when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// The editor does not answer yet, or the workspace is not meant to run.
    Off,
    /// The node is silent, so activity cannot be seen.
    Paused,
    /// It is stopped at the deadline unless activity moves it.
    Running {
        /// When the warning is due, or was given.
        warning_at: OffsetDateTime,
        /// When it is stopped.
        deadline_at: OffsetDateTime,
    },
}

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing can be decided; it is asked again when the workspace changes.
    Unobservable,
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
    /// Activity came after the warning: take it back, then ask again.
    Withdraw {
        /// The warning that no longer holds.
        warning: Warning,
    },
    /// Stop now.
    Stop {
        /// What it was decided on.
        evidence: IdleEvidence,
    },
}

impl IdlePolicy {
    /// What the timeout is counted from: the latest of activity, readiness and the end of a silence.
    fn basis(workspace: &Workspace, activity: &Activity) -> Option<OffsetDateTime> {
        let ready_at = workspace.ready_at?;
        let last = activity.last.map_or(ready_at, |(at, _)| at);
        Some(ready_at.max(last).max(workspace.resumed_at.unwrap_or(ready_at)))
    }

    /// The deadline before the lead of a warning is considered.
    fn nominal_deadline(&self, workspace: &Workspace, activity: &Activity) -> Option<OffsetDateTime> {
        let by_activity = Self::basis(workspace, activity)? + self.idle_timeout;
        Some(workspace.extended_until.map_or(by_activity, |until| until.max(by_activity)))
    }

    /// The warning that is out, if it still speaks of today's deadline.
    fn standing_warning(workspace: &Workspace, nominal: OffsetDateTime) -> Option<Warning> {
        workspace.warning.filter(|warning| warning.nominal_deadline == nominal)
    }

    /// What callers are told.
    pub fn clock(&self, workspace: &Workspace, activity: &Activity, now: OffsetDateTime) -> Clock {
        match workspace.state {
            State::Unreachable => return Clock::Paused,
            State::Running => {}
            State::Stopped | State::Pending | State::Starting | State::Stopping | State::Failed => {
                return Clock::Off;
            }
        }
        let Some(nominal) = self.nominal_deadline(workspace, activity) else { return Clock::Off };
        let warning_at = match Self::standing_warning(workspace, nominal) {
            Some(warning) => warning.at,
            None => now.max(nominal - self.warning_lead),
        };
        Clock::Running { warning_at, deadline_at: nominal.max(warning_at + self.warning_lead) }
    }

    /// What is to be done at `now`.
    pub fn decide(&self, workspace: &Workspace, activity: &Activity, now: OffsetDateTime) -> Verdict {
        let Clock::Running { warning_at, deadline_at } = self.clock(workspace, activity, now) else {
            return Verdict::Unobservable;
        };
        let (Some(basis_at), Some(nominal)) =
            (Self::basis(workspace, activity), self.nominal_deadline(workspace, activity))
        else {
            return Verdict::Unobservable;
        };
        match (workspace.warning, Self::standing_warning(workspace, nominal)) {
            (Some(warning), None) => Verdict::Withdraw { warning },
            (_, None) if now < warning_at => Verdict::Active { recheck_at: warning_at },
            (_, None) => Verdict::Warn {
                warning: Warning { at: now, nominal_deadline: nominal, version: activity.version },
                deadline_at,
            },
            (_, Some(_)) if now < deadline_at => Verdict::Active { recheck_at: deadline_at },
            (_, Some(warning)) => Verdict::Stop {
                evidence: IdleEvidence {
                    last_active_at: activity.last.map(|(at, _)| at),
                    last_signal: activity.last.map(|(_, signal)| signal),
                    basis_at,
                    idle_timeout: self.idle_timeout,
                    deadline_at,
                    warned_at: warning.at,
                    decided_at: now,
                },
            },
        }
    }

    /// How far an extension that asks for `until` reaches, and whether it was cut at the budget.
    pub fn grant(&self, until: OffsetDateTime, now: OffsetDateTime) -> (OffsetDateTime, bool) {
        let most = now + self.extension_budget;
        if until > most { (most, true) } else { (until, false) }
    }
}

#[cfg(test)]
mod tests {
    use carrel_common::id::{Generation, WorkspaceUid};
    use carrel_common::model::{Resources, WorkspaceSpec};
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    const T0: OffsetDateTime = datetime!(2026-03-02 10:00:00 UTC);
    const POLICY: IdlePolicy = IdlePolicy {
        idle_timeout: Duration::from_secs(900),
        warning_lead: Duration::from_secs(120),
        extension_budget: Duration::from_secs(3600),
    };

    fn running() -> Workspace {
        let spec = WorkspaceSpec {
            image: "i".into(),
            resources: Resources { cpu_millicores: 1, memory_bytes: 1, pids: 1 },
            probe_port: 1,
            probe_path: "/".into(),
        };
        let mut workspace =
            Workspace::new(WorkspaceUid::new(), "ada".parse().expect("valid"), Generation(1), spec, T0);
        (workspace.state, workspace.ready_at) = (State::Running, Some(T0));
        workspace
    }

    fn at(seconds: i64) -> OffsetDateTime {
        T0 + time::Duration::seconds(seconds)
    }

    #[test]
    fn warns_two_minutes_before_and_stops_after_fifteen() {
        let mut workspace = running();
        let none = Activity::default();
        assert_eq!(POLICY.decide(&workspace, &none, at(0)), Verdict::Active { recheck_at: at(780) });
        let Verdict::Warn { warning, deadline_at } = POLICY.decide(&workspace, &none, at(780)) else {
            panic!("no warning");
        };
        assert_eq!(deadline_at, at(900));
        workspace.warning = Some(warning);
        assert_eq!(POLICY.decide(&workspace, &none, at(899)), Verdict::Active { recheck_at: at(900) });
        assert!(matches!(POLICY.decide(&workspace, &none, at(900)), Verdict::Stop { .. }));
    }

    #[test]
    fn a_key_press_withdraws_the_warning() {
        let mut workspace = running();
        let Verdict::Warn { warning, .. } = POLICY.decide(&workspace, &Activity::default(), at(780)) else {
            panic!("no warning");
        };
        workspace.warning = Some(warning);
        let typed = Activity { last: Some((at(800), Signal::EditorInput)), version: 1 };
        assert_eq!(POLICY.decide(&workspace, &typed, at(800)), Verdict::Withdraw { warning });
        workspace.warning = None;
        assert_eq!(POLICY.decide(&workspace, &typed, at(900)), Verdict::Active { recheck_at: at(800 + 780) });
    }

    #[test]
    fn warned_late_means_stopped_later() {
        let workspace = running();
        let verdict = POLICY.decide(&workspace, &Activity::default(), at(5000));
        assert!(
            matches!(verdict, Verdict::Warn { deadline_at, .. } if deadline_at == at(5120)),
            "{verdict:?}"
        );
    }

    #[test]
    fn a_silent_node_stops_the_clock() {
        let mut workspace = running();
        workspace.state = State::Unreachable;
        assert_eq!(POLICY.clock(&workspace, &Activity::default(), at(5000)), Clock::Paused);
        assert_eq!(POLICY.decide(&workspace, &Activity::default(), at(5000)), Verdict::Unobservable);
    }

    proptest! {
        /// Whatever the order of checks and key presses: a stop comes never before the timeout after the last
        /// activity, and never before its warning has been out for the whole lead.
        #[test]
        fn never_stops_an_active_workspace_and_never_without_the_lead(
            steps in proptest::collection::vec((1_i64..700, any::<bool>()), 1..60)
        ) {
            let mut workspace = running();
            let mut activity = Activity::default();
            let mut now = 0;
            for (step, typed) in steps {
                now += step;
                if typed {
                    activity = Activity {
                        last: Some((at(now), Signal::LmsInput)), version: activity.version + 1,
                    };
                }
                match POLICY.decide(&workspace, &activity, at(now)) {
                    Verdict::Withdraw { .. } => workspace.warning = None,
                    Verdict::Warn { warning, .. } => workspace.warning = Some(warning),
                    Verdict::Stop { evidence } => {
                        let last = activity.last.map_or(T0, |(at, _)| at);
                        prop_assert!(at(now) >= last + POLICY.idle_timeout);
                        prop_assert!(at(now) >= evidence.warned_at + POLICY.warning_lead);
                        prop_assert!(evidence.warned_at >= last);
                        return Ok(());
                    }
                    Verdict::Active { recheck_at } => prop_assert!(recheck_at > at(now)),
                    Verdict::Unobservable => prop_assert!(false, "it is observable"),
                }
            }
        }
    }
}
