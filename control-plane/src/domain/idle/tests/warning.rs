//! When a warning counts as given, and what has to be told before one is.

use super::*;

#[test]
fn the_lead_is_counted_from_the_ack_of_the_nodes_session() {
    let mut desk = Desk::new();
    desk.acks = false;
    assert!(matches!(desk.decide(780), Verdict::Warn { deadline_at, .. } if deadline_at == at(900)));
    desk.acks_at(785);
    assert!(matches!(desk.look(786).clock(), Clock::Running(times) if times.deadline_at == at(905)));
    assert_eq!(desk.decide(900), Verdict::Active { recheck_at: at(905) });
    let Verdict::Stop { evidence, .. } = desk.decide(905) else { panic!("not stopped") };
    assert_eq!((evidence.warned_at, evidence.warning_acked_at), (at(780), Some(at(785))));
}

#[test]
fn without_a_session_the_warning_is_out_in_the_log() {
    let mut desk = Desk::new();
    desk.acks = false;
    desk.decide(780);
    let Verdict::Stop { evidence, .. } = desk.decide(900) else { panic!("not stopped") };
    assert_eq!(evidence.warning_acked_at, None);
}

#[test]
fn a_deadline_stays_as_it_was_told_with_the_warning_until_that_is_acked() {
    let mut desk = Desk::new();
    desk.acks = false;
    desk.policy.warning_lead = Duration::from_secs(20);
    desk.decide(880);
    let told = |desk: &Desk, now| desk.look(now).clock().times().map(|times| times.deadline_at);
    assert_eq!([881, 890, 899].map(|now| told(&desk, now)), [Some(at(900)); 3]);
    desk.acks_at(895);
    assert_eq!(told(&desk, 899), Some(at(915)));
}

#[test]
fn an_ack_that_nobody_waits_for_any_more_moves_nothing() {
    let mut desk = Desk::new();
    desk.acks = false;
    desk.decide(780);
    desk.acks_at(811);
    assert!(
        matches!(desk.decide(900), Verdict::Stop { evidence, .. } if evidence.warning_acked_at.is_none())
    );
}

#[test]
fn the_ack_of_another_warning_is_none() {
    let mut desk = Desk::new();
    desk.decide(780);
    desk.types(790);
    assert!(matches!(desk.decide(790), Verdict::Withdraw { .. }));
    desk.acks = false;
    assert!(matches!(desk.decide(1570), Verdict::Warn { .. }));
    desk.acks_at(1575);
    desk.activity.acked = desk.activity.acked.map(|acked| Acked { warned_at: at(780), ..acked });
    let Verdict::Stop { evidence, .. } = desk.decide(1690) else { panic!("not stopped") };
    assert_eq!(evidence.warning_acked_at, None);
}

#[test]
fn an_ack_is_waited_for_even_when_the_lead_is_shorter() {
    let mut desk = Desk::new();
    desk.acks = false;
    desk.policy.warning_lead = Duration::from_secs(5);
    desk.decide(895);
    assert_eq!(desk.decide(900), Verdict::Active { recheck_at: at(905) }, "an ack could come now");
    assert_eq!(desk.decide(922), Verdict::Active { recheck_at: at(925) });
    assert!(matches!(desk.decide(925), Verdict::Stop { .. }));
}

#[test]
fn a_shorter_lead_brings_a_deadline_that_was_told_no_nearer() {
    let mut desk = Desk::new();
    desk.acks = false;
    assert!(matches!(desk.decide(780), Verdict::Warn { deadline_at, .. } if deadline_at == at(900)));
    desk.acks_at(790);
    desk.policy.warning_lead = Duration::from_secs(10);
    assert_eq!(desk.decide(850), Verdict::Active { recheck_at: at(910) });
    assert!(matches!(desk.decide(910), Verdict::Stop { .. }));
}

#[test]
fn a_longer_lead_is_given_whole_and_a_shorter_one_after_it_takes_nothing_of_that() {
    let mut desk = Desk::new();
    desk.decide(780);
    desk.policy.warning_lead = Duration::from_secs(300);
    assert!(matches!(desk.decide(850), Verdict::Withdraw { .. }));
    assert!(matches!(desk.decide(850), Verdict::Warn { deadline_at, .. } if deadline_at == at(1150)));
    desk.policy.warning_lead = Duration::from_secs(120);
    assert_eq!(desk.decide(900), Verdict::Active { recheck_at: at(1150) });
}

#[test]
fn nothing_is_decided_before_the_node_has_told_what_it_saw() {
    let mut desk = Desk::new();
    desk.heard = false;
    assert!(matches!(desk.decide(700), Verdict::Active { .. }), "nothing is due");
    assert_eq!(desk.decide(780), Verdict::Unheard);
    assert_eq!(desk.look(780).clock(), Clock::Paused);
    desk.heard = true;
    desk.decide(780);
    desk.heard = false;
    assert_eq!(desk.decide(900), Verdict::Unheard);
    assert!(matches!(desk.look(899).clock(), Clock::Running(times) if times.deadline_at == at(900)));
    assert_eq!(desk.look(900).clock(), Clock::Paused, "no deadline is told that has passed");
    desk.types(800);
    assert!(matches!(desk.decide(900), Verdict::Withdraw { .. }), "activity counts at once");
}

#[test]
fn a_warning_of_the_future_was_given_before_the_clock_was_set_back() {
    let mut desk = Desk::new();
    desk.decide(780);
    assert!(matches!(desk.decide(700), Verdict::Withdraw { .. }));
    assert_eq!(desk.runs_out(700), (780, 900, StopReason::Idle));
}

#[test]
fn a_node_that_has_seen_more_can_refuse_unless_what_it_sees_does_not_count() {
    let mut desk = Desk::new();
    desk.signals(Signal::LmsInput, 10);
    desk.decide(790);
    let refusable = |desk: &mut Desk| match desk.decide(910) {
        Verdict::Stop { evidence, .. } => evidence.refusable_after,
        other => panic!("not stopped: {other:?}"),
    };
    assert_eq!(refusable(&mut desk), Some(at(10)));
    desk.policy.counts.editor_input = false;
    assert_eq!(refusable(&mut desk), None);
}

#[test]
fn after_a_step_forward_a_node_is_told_an_age_by_the_clock_of_now_and_does_not_refuse_for_what_is_known() {
    let mut desk = Desk::new();
    desk.types(10);
    desk.pauses = vec![step(100, 3700, 3599)];
    assert!(matches!(desk.decide(3610 + 780), Verdict::Warn { .. }));
    let Verdict::Stop { evidence, .. } = desk.decide(3610 + 900) else { panic!("not stopped") };
    assert_eq!(evidence.last_active_at, Some(at(10)), "as it is recorded");
    assert_eq!(evidence.refusable_after, Some(at(3610)));
}

#[test]
fn a_warning_that_is_out_is_told_while_its_program_starts_again() {
    let mut desk = Desk::new();
    desk.workspace.state = State::Starting;
    assert_eq!(desk.look(780).clock(), Clock::Off, "nobody was warned");
    desk.workspace.state = State::Running;
    desk.decide(780);
    let told = desk.look(790).clock();
    assert!(matches!(told, Clock::Running(times) if times.deadline_at == at(900)));
    desk.workspace.state = State::Starting;
    assert_eq!(desk.look(790).clock(), told);
    assert_eq!(desk.decide(790), Verdict::Unobservable);
    assert_eq!(desk.look(900).clock(), Clock::Paused, "it is stopped when it is up, if at all");
    assert_eq!(desk.look(900).warning(), desk.workspace.warning.as_ref());
    desk.types(850);
    assert_eq!((desk.look(860).clock(), desk.look(860).warning()), (Clock::Off, None));
}
