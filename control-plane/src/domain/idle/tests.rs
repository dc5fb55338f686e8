use std::time::Duration;

use carrel_common::id::{Generation, WorkspaceUid};
use carrel_common::model::{Resources, Signal, StopReason, WorkspaceSpec};
use time::OffsetDateTime;
use time::macros::datetime;

use super::*;
use crate::domain::activity::Acked;

mod day;
mod drain;
mod holding;
mod laws;
mod silence;
mod warning;

const T0: OffsetDateTime = datetime!(2026-03-02 10:00:00 UTC);

fn policy() -> IdlePolicy {
    IdlePolicy {
        idle_timeout: Duration::from_secs(900),
        warning_lead: Duration::from_secs(120),
        max_lifetime: Duration::ZERO,
        extension_budget: Duration::from_secs(3600),
        keep_awake_budget: Duration::from_secs(7200),
        counts: BySignal::of(|_| true),
        ack_within: Duration::from_secs(30),
        quiet: vec![],
        drain: None,
    }
}

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

/// A time that passed.
fn pause(from: i64, to: i64) -> Pause {
    step(from, to, 0)
}

/// A sign of life found that the clock was set forward.
fn step(from: i64, to: i64, set_forward: u64) -> Pause {
    Pause { from: at(from), to: at(to), set_forward: Duration::from_secs(set_forward) }
}

/// A desk that is looked at, on a node whose session acks each warning at once.
struct Desk {
    policy: IdlePolicy,
    pauses: Vec<Pause>,
    workspace: Workspace,
    activity: Activity,
    heard: bool,
    acks: bool,
}

impl Desk {
    fn new() -> Self {
        Self {
            policy: policy(),
            pauses: vec![],
            workspace: running(),
            activity: Activity::default(),
            heard: true,
            acks: true,
        }
    }
    fn look(&self, seconds: i64) -> Look<'_> {
        let Self { policy, pauses, workspace, activity, heard, .. } = self;
        Look { policy, pauses, workspace, activity, heard: *heard, now: at(seconds) }
    }
    fn decide(&mut self, seconds: i64) -> Verdict {
        let verdict = self.look(seconds).decide();
        match &verdict {
            Verdict::Withdraw { .. } => self.workspace.warning = None,
            Verdict::Warn { warning, .. } => {
                self.workspace.warning = Some(warning.clone());
                if self.acks {
                    self.acks_at(seconds);
                }
            }
            Verdict::Unobservable | Verdict::Unheard | Verdict::Active { .. } | Verdict::Stop { .. } => {}
        }
        verdict
    }
    /// The node's session acks the warning that is out.
    fn acks_at(&mut self, seconds: i64) {
        let warned_at = self.workspace.warning.as_ref().expect("a warning is out").at;
        self.activity.acked = Some(Acked { warned_at, at: at(seconds) });
    }
    fn signals(&mut self, signal: Signal, seconds: i64) {
        self.activity = self.activity.with(signal, at(seconds));
    }
    fn types(&mut self, seconds: i64) {
        self.signals(Signal::EditorInput, seconds);
    }
    /// Looks whenever it is due, from `from` on, until the stop; when it warned last and when it stopped.
    fn runs_out(&mut self, from: i64) -> (i64, i64, StopReason) {
        let (mut now, mut warned) = (from, 0);
        for _ in 0..1000 {
            match self.decide(now) {
                Verdict::Active { recheck_at } => now = (recheck_at - T0).whole_seconds(),
                Verdict::Warn { .. } => warned = now,
                Verdict::Withdraw { .. } => {}
                Verdict::Stop { reason, .. } => return (warned, now, reason),
                Verdict::Unobservable | Verdict::Unheard => panic!("it is observable"),
            }
        }
        panic!("it never stops");
    }
}

#[test]
fn warns_two_minutes_before_and_stops_after_fifteen() {
    assert_eq!(Desk::new().runs_out(0), (780, 900, StopReason::Idle));
}

#[test]
fn a_key_press_withdraws_the_warning() {
    let mut desk = Desk::new();
    assert!(matches!(desk.decide(780), Verdict::Warn { .. }));
    desk.types(800);
    assert!(matches!(desk.decide(800), Verdict::Withdraw { .. }));
    assert_eq!(desk.runs_out(800), (800 + 780, 800 + 900, StopReason::Idle));
}

#[test]
fn warned_late_means_stopped_later() {
    assert_eq!(Desk::new().runs_out(5000), (5000, 5120, StopReason::Idle));
}

#[test]
fn a_silent_node_stops_the_clock_and_then_it_goes_on_from_where_it_was() {
    let mut desk = Desk::new();
    desk.workspace.state = State::Unreachable;
    assert_eq!(desk.look(5000).clock(), Clock::Paused);
    assert_eq!(desk.look(5000).decide(), Verdict::Unobservable);
    // Silent from 600 to 1600: ten minutes were counted, five are left.
    let resumed_at = desk.look(1600).after_silence(at(600));
    assert_eq!(resumed_at, Some(at(1000)));
    (desk.workspace.state, desk.workspace.resumed_at) = (State::Running, resumed_at);
    assert_eq!(desk.runs_out(1600), (1780, 1900, StopReason::Idle));
}

#[test]
fn a_silence_counts_for_an_hour_at_most() {
    let mut desk = Desk::new();
    desk.workspace.resumed_at = desk.look(100_000).after_silence(at(600));
    assert_eq!(desk.runs_out(100_000), (100_000, 100_120, StopReason::Idle));
}

#[test]
fn an_outage_is_not_idleness_and_a_lead_begins_anew_after_it() {
    let mut desk = Desk::new();
    assert!(matches!(desk.decide(780), Verdict::Warn { .. }));
    desk.pauses = vec![pause(800, 890)];
    assert!(matches!(desk.decide(890), Verdict::Withdraw { .. }), "nobody could answer that warning");
    assert_eq!(desk.runs_out(890), (890, 1010, StopReason::Idle));
}

#[test]
fn an_hours_step_of_the_clock_stops_nobody() {
    let mut desk = Desk::new();
    desk.pauses = vec![pause(100, 3700)];
    assert_eq!(desk.runs_out(3700), (3600 + 780, 3600 + 900, StopReason::Idle));
}

#[test]
fn a_step_of_any_size_stops_nobody_and_an_outage_in_it_counts_for_an_hour_at_most() {
    let mut desk = Desk::new();
    desk.pauses = vec![step(100, 100 + 10_810, 10_800)];
    assert_eq!(desk.runs_out(10_910), (10_810 + 780, 10_810 + 900, StopReason::Idle));
    desk.pauses = vec![step(100, 100 + 10_800 + 7200, 10_800)];
    assert_eq!(desk.look(18_100).basis(), Some(at(10_800 + 3600)));
}

#[test]
fn what_is_told_after_a_step_with_an_age_that_reaches_back_over_it_makes_nothing_early() {
    let mut desk = Desk::new();
    // By the clock of now, what was clicked last is as old as if it had been at 3694.
    desk.signals(Signal::LmsInput, 95);
    desk.pauses = vec![step(100, 3700, 3599)];
    desk.types(3100);
    assert_eq!(desk.look(3700).basis(), Some(at(3700)));
}

#[test]
fn a_lifetime_ends_whatever_is_typed_and_only_with_a_warning() {
    let mut desk = Desk::new();
    desk.policy.max_lifetime = Duration::from_secs(2000);
    for typed in [500, 1000, 1500, 1900] {
        desk.types(typed);
        desk.decide(typed);
    }
    assert_eq!(
        desk.workspace.warning.as_ref().map(|w| (w.at, w.reason)),
        Some((at(1900), StopReason::MaxLifetime))
    );
    desk.types(1950);
    assert_eq!(desk.runs_out(1950), (0, 2020, StopReason::MaxLifetime), "typing does not withdraw it");
}

#[test]
fn an_hours_step_of_the_clock_takes_nothing_of_a_lifetime() {
    let mut desk = Desk::new();
    (desk.policy.idle_timeout, desk.policy.max_lifetime) =
        (Duration::from_secs(20_000), Duration::from_secs(9000));
    desk.pauses = vec![pause(8000, 8000 + 3600)];
    assert_eq!(desk.runs_out(11_600), (12_480, 12_600, StopReason::MaxLifetime));
}

#[test]
fn nobody_is_stopped_or_warned_in_an_exam() {
    let mut desk = Desk::new();
    desk.policy.quiet = vec![(at(800), at(4000))];
    assert_eq!(desk.runs_out(0), (4000, 4120, StopReason::Idle));
    assert!(matches!(desk.look(1000).clock(), Clock::Quiet(times) if times.deadline_at == at(4120)));
}

#[test]
fn an_exam_that_begins_during_a_warning_withdraws_it() {
    let mut desk = Desk::new();
    assert!(matches!(desk.decide(780), Verdict::Warn { .. }));
    desk.policy.quiet = vec![(at(850), at(4000))];
    assert!(matches!(desk.decide(790), Verdict::Withdraw { .. }));
    assert_eq!(desk.runs_out(790), (4000, 4120, StopReason::Idle));
}

#[test]
fn a_shorter_timeout_never_stops_within_the_lead() {
    let mut desk = Desk::new();
    desk.policy.idle_timeout = Duration::from_secs(3600);
    assert!(matches!(desk.decide(1000), Verdict::Active { .. }));
    desk.policy.idle_timeout = Duration::from_secs(300);
    assert_eq!(desk.runs_out(1000), (1000, 1120, StopReason::Idle));
}
