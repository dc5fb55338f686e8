//! What holds an idle stop back: signals that count, declared jobs, extensions.

use super::*;
use crate::domain::activity::Awake;

fn job(until: i64) -> Awake {
    Awake { until: Some(at(until)), granted: Duration::from_secs(1) }
}

#[test]
fn a_signal_that_does_not_count_moves_nothing() {
    let mut desk = Desk::new();
    desk.policy.counts.lms_input = false;
    desk.signals(Signal::LmsInput, 600);
    assert_eq!(desk.runs_out(600), (780, 900, StopReason::Idle));
    desk.workspace.warning = None;
    desk.policy.counts.lms_input = true;
    assert_eq!(desk.runs_out(700), (600 + 780, 600 + 900, StopReason::Idle), "a policy that counts it again");
}

#[test]
fn a_signal_that_does_not_count_withdraws_no_warning() {
    let mut desk = Desk::new();
    desk.policy.counts.lms_input = false;
    desk.decide(780);
    desk.signals(Signal::LmsInput, 800);
    assert_eq!(desk.runs_out(800), (0, 900, StopReason::Idle));
}

#[test]
fn a_declared_job_is_never_stopped_before_its_end_and_is_activity_itself() {
    let mut desk = Desk::new();
    desk.signals(Signal::Job, 60);
    desk.activity.awake = job(5000);
    assert_eq!(desk.look(60).awake_until(), Some(at(5000)));
    assert_eq!(desk.runs_out(60), (4880, 5000, StopReason::Idle));
    let mut short = Desk::new();
    short.signals(Signal::Job, 600);
    short.activity.awake = job(700);
    assert_eq!(short.runs_out(600), (600 + 780, 600 + 900, StopReason::Idle), "then the timeout runs");
}

#[test]
fn a_job_during_the_warning_withdraws_it() {
    let mut desk = Desk::new();
    desk.decide(780);
    desk.activity.awake = job(5000);
    assert!(matches!(desk.decide(790), Verdict::Withdraw { .. }));
}

#[test]
fn a_job_that_does_not_count_keeps_nobody_awake() {
    let mut desk = Desk::new();
    desk.policy.counts.job = false;
    desk.signals(Signal::Job, 60);
    desk.activity.awake = job(5000);
    assert_eq!(desk.look(60).awake_until(), None);
    assert_eq!(desk.runs_out(60), (780, 900, StopReason::Idle));
}

#[test]
fn a_lifetime_ends_in_the_middle_of_a_job() {
    let mut desk = Desk::new();
    desk.policy.max_lifetime = Duration::from_secs(2000);
    desk.activity.awake = job(5000);
    assert_eq!(desk.runs_out(60), (1880, 2000, StopReason::MaxLifetime));
}

#[test]
fn an_extension_is_cut_at_the_budget_and_at_the_end_of_the_lifetime() {
    let mut desk = Desk::new();
    assert_eq!(desk.look(100).grant(at(3000)), (at(3000), false));
    assert_eq!(desk.look(100).grant(at(9000)), (at(3700), true));
    desk.policy.max_lifetime = Duration::from_secs(2000);
    assert_eq!(desk.look(100).grant(at(3000)), (at(2000), true));
    desk.pauses = vec![pause(10, 90)];
    assert_eq!(desk.look(100).grant(at(3000)), (at(2080), true), "a pause moves the end of the lifetime");
    desk.workspace.ready_at = None;
    assert_eq!(desk.look(100).grant(at(3000)), (at(3000), false), "its lifetime has not begun");
}

#[test]
fn the_evidence_of_a_stop_has_what_held_it_back() {
    let mut desk = Desk::new();
    desk.types(100);
    desk.workspace.extended_until = Some(at(3000));
    desk.activity.awake = job(5000);
    desk.runs_out(100);
    let Verdict::Stop { evidence, .. } = desk.decide(5000) else { panic!("not stopped") };
    assert_eq!((evidence.deadline_at, evidence.basis_at, evidence.ready_at), (at(5000), at(100), Some(T0)));
    assert_eq!((evidence.extended_until, evidence.awake_until), (Some(at(3000)), Some(at(5000))));
    assert_eq!(evidence.warning_lead, Duration::from_secs(120));
    desk.policy.counts.job = false;
    desk.runs_out(5000);
    let Verdict::Stop { evidence, .. } = desk.decide(5120) else { panic!("not stopped") };
    assert_eq!(evidence.awake_until, None, "it did not count");

    let mut kept = serde_json::to_value(&evidence).expect("it is kept as JSON");
    let fields = kept.as_object_mut().expect("an object");
    fields.retain(|field, _| {
        !["ready_at", "extended_until", "awake_until", "warning_lead"].contains(&field.as_str())
    });
    let old: IdleEvidence = serde_json::from_value(kept).expect("older evidence is read");
    assert_eq!((old.ready_at, old.extended_until, old.warning_lead), (None, None, Duration::ZERO));
}
