//! Leaving a node that is being emptied.

use proptest::prelude::*;

use super::*;
use crate::domain::drain::{Drain, falls_into_quiet};

const IDLE_MOMENT: i64 = 120;

fn drain(deadline: i64) -> Option<Drain> {
    let idle_moment = Duration::from_secs(120);
    Some(Drain { deadline_at: at(deadline), forced: true, reason: "new kernel".into(), idle_moment })
}

/// A desk in which somebody types each 20 seconds from `from` on, until `until`.
fn typed(desk: &mut Desk, from: i64, until: i64) -> Option<(i64, StopReason)> {
    for now in (from..until).step_by(20) {
        desk.types(now);
        if let Verdict::Stop { reason, .. } = desk.decide(now) {
            return Some((now, reason));
        }
    }
    None
}

#[test]
fn an_idle_desk_leaves_once_the_warning_has_been_out_for_its_lead() {
    let mut desk = Desk::new();
    desk.policy.drain = drain(4000);
    assert_eq!(desk.runs_out(400), (400, 520, StopReason::Drain));
}

#[test]
fn a_busy_desk_leaves_after_two_minutes_without_input() {
    let mut desk = Desk::new();
    desk.policy.drain = drain(4000);
    assert_eq!(typed(&mut desk, 100, 1000), None);
    assert_eq!(desk.workspace.warning.as_ref().map(|w| (w.at, w.reason)), Some((at(100), StopReason::Drain)));
    let (_, left, _) = desk.runs_out(1000);
    assert_eq!(left, 980 + IDLE_MOMENT, "typing did not withdraw the warning");
}

#[test]
fn a_desk_that_is_never_idle_leaves_at_the_deadline() {
    let mut desk = Desk::new();
    desk.policy.drain = drain(4000);
    assert_eq!(typed(&mut desk, 100, 9000), Some((4000, StopReason::Drain)));
}

#[test]
fn who_is_warned_late_leaves_late() {
    let mut desk = Desk::new();
    desk.policy.drain = drain(1000);
    assert_eq!(desk.runs_out(950), (950, 1070, StopReason::Drain));
}

#[test]
fn a_warning_of_the_idle_stop_gives_way_to_the_drains() {
    let mut desk = Desk::new();
    assert!(matches!(desk.decide(780), Verdict::Warn { .. }));
    desk.policy.drain = drain(4000);
    assert!(matches!(desk.decide(800), Verdict::Withdraw { .. }));
    assert_eq!(desk.runs_out(800), (800, 920, StopReason::Drain));
}

#[test]
fn a_drain_that_is_called_off_withdraws_its_warning() {
    let mut desk = Desk::new();
    desk.policy.drain = drain(4000);
    assert!(matches!(desk.decide(100), Verdict::Warn { .. }));
    desk.policy.drain = None;
    assert!(matches!(desk.decide(110), Verdict::Withdraw { .. }));
    assert_eq!(desk.runs_out(110), (780, 900, StopReason::Idle));
}

#[test]
fn an_exam_holds_the_idle_moment_back_but_not_the_deadline() {
    let mut desk = Desk::new();
    desk.policy.quiet = vec![(at(300), at(2000))];
    desk.policy.drain = drain(4000);
    assert_eq!(desk.runs_out(290), (290, 2000, StopReason::Drain), "warned at once, left in peace");
    let mut forced = Desk::new();
    forced.policy.quiet = vec![(at(300), at(5000))];
    forced.policy.drain = drain(4000);
    assert!(falls_into_quiet(at(4000), &forced.policy) && !falls_into_quiet(at(5000), &forced.policy));
    assert!(matches!(forced.decide(290), Verdict::Warn { .. }));
    assert!(matches!(forced.look(1000).clock(), Clock::Running(times) if times.deadline_at == at(4000)));
    assert_eq!(forced.runs_out(1000), (0, 4000, StopReason::Drain));
}

#[test]
fn a_policy_that_brings_the_idle_moment_nearer_is_told_with_a_whole_lead() {
    let told_until = |hold: fn(&mut Desk), held: i64, release: fn(&mut Desk)| {
        let mut desk = Desk::new();
        desk.policy.drain = drain(8000);
        hold(&mut desk);
        assert!(matches!(desk.decide(290), Verdict::Warn { .. }));
        assert_eq!(desk.decide(600), Verdict::Active { recheck_at: at(held) });
        release(&mut desk);
        assert!(matches!(desk.decide(1000), Verdict::Withdraw { .. }));
        assert!(matches!(desk.decide(1000), Verdict::Warn { deadline_at, .. } if deadline_at == at(1120)));
        assert_eq!(desk.runs_out(1000), (0, 1120, StopReason::Drain));
    };
    told_until(|desk| desk.policy.quiet = vec![(at(300), at(5000))], 5000, |desk| desk.policy.quiet.clear());
    told_until(
        |desk| desk.activity.awake.until = Some(at(5000)),
        5000,
        |desk| desk.policy.counts.job = false,
    );
    told_until(
        |desk| {
            let moment = Duration::from_secs(1500);
            desk.policy.drain = drain(8000).map(|drain| Drain { idle_moment: moment, ..drain });
            desk.policy.idle_timeout = moment;
        },
        1500,
        |desk| desk.policy.idle_timeout = Duration::from_secs(60),
    );
}

#[test]
fn a_policy_that_changes_nothing_of_the_idle_moment_leaves_the_warning() {
    let mut desk = Desk::new();
    desk.policy.drain = drain(8000);
    desk.policy.quiet = vec![(at(100), at(200))];
    desk.decide(290);
    desk.policy.idle_timeout *= 2;
    desk.policy.quiet = vec![(at(9000), at(9900))];
    assert_eq!(desk.runs_out(300), (0, 410, StopReason::Drain));
}

#[test]
fn an_exam_that_is_set_after_the_drain_is_broken_only_when_that_was_forced() {
    for (forced, left) in [(false, 5000), (true, 4000)] {
        let mut desk = Desk::new();
        desk.policy.drain = drain(4000).map(|drain| Drain { forced, ..drain });
        desk.workspace.extended_until = Some(at(9000));
        assert!(matches!(desk.decide(290), Verdict::Warn { .. }));
        desk.policy.quiet = vec![(at(3000), at(4500)), (at(4400), at(5000))];
        assert!(matches!(desk.decide(1000), Verdict::Withdraw { .. }));
        assert_eq!(desk.runs_out(1000), (1000, left, StopReason::Drain));
    }
    // It begins when the deadline is over, and she was warned late.
    let mut late = Desk::new();
    late.policy.drain = drain(1000).map(|drain| Drain { forced: false, ..drain });
    late.policy.quiet = vec![(at(1010), at(3000))];
    assert_eq!(late.runs_out(950), (950, 3000, StopReason::Drain));
}

#[test]
fn a_desk_that_is_to_be_kept_stays_until_then_or_the_deadline() {
    for (kept, left) in [(1500, 1500), (9000, 4000)] {
        let mut desk = Desk::new();
        desk.policy.drain = drain(4000);
        desk.workspace.extended_until = Some(at(kept));
        assert_eq!(desk.runs_out(100), (100, left, StopReason::Drain));
    }
}

#[test]
fn a_start_is_cut_when_no_time_for_a_warning_is_left() {
    let drain = drain(1000).expect("one");
    assert!(!drain.cuts_a_start(&policy(), at(879)) && drain.cuts_a_start(&policy(), at(880)));
}

proptest! {
    /// Whatever is typed whenever, with or without an exam: nobody leaves before the warning has been out for the whole
    /// lead, nor amid typing or in an exam before the deadline; and everyone has left by the deadline.
    #[test]
    fn leaves_in_peace_and_by_the_deadline(
        inputs in proptest::collection::vec(0_i64..6000, 0..80),
        declared in 0_i64..2000,
        within in 120_i64..4000,
        exam in proptest::option::of((0_i64..6000, 1_i64..3000)),
        kept in proptest::option::of(0_i64..8000),
    ) {
        let mut desk = Desk::new();
        desk.policy.quiet = exam.map(|(start, long)| (at(start), at(start + long))).into_iter().collect();
        desk.policy.idle_timeout = Duration::from_secs(6000);
        desk.workspace.extended_until = kept.map(at);
        let mut inputs = inputs;
        inputs.sort_unstable();
        for input in inputs.iter().filter(|input| **input < declared) {
            desk.types(*input);
        }
        let deadline = declared + within;
        desk.policy.drain = drain(deadline);
        let mut inputs = inputs.into_iter().filter(|input| *input >= declared).peekable();
        let mut now = declared;
        let left = loop {
            if inputs.next_if(|input| *input <= now).is_some() {
                desk.types(now);
            }
            match desk.decide(now) {
                Verdict::Stop { reason, evidence, .. } => {
                    prop_assert_eq!(reason, StopReason::Drain);
                    prop_assert!(at(now) >= evidence.warned_at + desk.policy.warning_lead);
                    break now;
                }
                Verdict::Active { recheck_at } => {
                    let recheck = (recheck_at - T0).whole_seconds();
                    prop_assert!(recheck > now);
                    now = inputs.peek().map_or(recheck, |input| recheck.min(*input));
                }
                Verdict::Warn { deadline_at, .. } => prop_assert!(deadline_at <= at(deadline)),
                Verdict::Withdraw { .. } => prop_assert!(false, "nothing withdraws it"),
                Verdict::Unobservable | Verdict::Unheard => prop_assert!(false, "it is observable"),
            }
        };
        prop_assert!(left <= deadline);
        if left < deadline {
            let last = desk.look(left).last().map_or(T0, |(at, _)| at);
            prop_assert!(at(left) >= last + time::Duration::seconds(IDLE_MOMENT));
            prop_assert!(!falls_into_quiet(at(left), &desk.policy));
            prop_assert!(kept.is_none_or(|kept| left >= kept));
        }
    }

    /// Whatever the policies say meanwhile, and whatever is typed: a deadline that was told is followed by no earlier one
    /// while its warning is out, and each warning is out for the whole lead.
    #[test]
    fn leaves_no_sooner_than_was_told(
        steps in proptest::collection::vec((1_i64..200, 0..8_u8), 1..80),
        exam in (0_i64..4000, 1_i64..3000),
    ) {
        let mut desk = Desk::new();
        desk.policy.drain = drain(6000);
        desk.activity.awake.until = Some(at(1500));
        let (mut now, mut told) = (0, None);
        for (step, what) in steps {
            now += step;
            match what {
                0 => desk.types(now),
                1 => desk.signals(Signal::LmsInput, now),
                2 => desk.policy.quiet = vec![(at(exam.0), at(exam.0 + exam.1))],
                3 => desk.policy.quiet.clear(),
                4 => desk.policy.idle_timeout = Duration::from_secs(step.unsigned_abs()),
                5 => desk.policy.counts.job ^= true,
                6 => desk.policy.counts.lms_input ^= true,
                _ => {}
            }
            let verdict = desk.decide(now);
            let earlier = |warned: OffsetDateTime| told.filter(|(at, _)| *at == warned).map(|(_, deadline)| deadline);
            if let Verdict::Stop { evidence, .. } = verdict {
                prop_assert!(earlier(evidence.warned_at).is_none_or(|earlier| evidence.deadline_at >= earlier));
                prop_assert!(at(now) >= evidence.warned_at + desk.policy.warning_lead);
                return Ok(());
            }
            let warned_at = desk.workspace.warning.as_ref().map(|warning| warning.at);
            let times = desk.look(now).clock().times();
            if let (Some(warned_at), Some(times)) = (warned_at, times) {
                prop_assert!(earlier(warned_at).is_none_or(|earlier| times.deadline_at >= earlier));
                told = Some((warned_at, times.deadline_at));
            }
        }
    }
}
