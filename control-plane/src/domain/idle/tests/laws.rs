//! What holds whatever happens in whatever order.

use proptest::prelude::*;

use super::*;
use crate::domain::activity::Awake;

/// A desk without a session acks nothing; an ack may also come late, or too late.
fn ack(desk: &mut Desk, now: i64) {
    if desk.workspace.warning.is_some()
        && desk.activity.acked.map(|acked| acked.warned_at) != desk.workspace.warning.as_ref().map(|w| w.at)
    {
        desk.acks_at(now);
    }
}

/// What is told with an age, as it is recorded.
fn of_then(desk: &Desk, told: i64) -> i64 {
    (by_the_clock_of_then(&desk.pauses, at(told)) - T0).whole_seconds()
}

proptest! {
    /// Whatever the order of looks, key presses, jobs, acks, rounds, outages, steps of the clock and exams: a stop for
    /// idleness comes never before the timeout after the last activity that counts, be it by the clock or by the time that
    /// passed, never before the end of a job, never before its warning has been out for the whole lead (since its ack, or,
    /// without one, for as long as an ack is waited for), never before the node was heard, and never in an exam. A deadline
    /// that was told is never followed by an earlier one while its warning is out, whatever lead the policies set meanwhile.
    /// And the node, which knows how long ago the last key press was, does not refuse. When it tells of it again, after whatever
    /// steps, it is as old as it was.
    #[test]
    fn never_stops_an_active_workspace_and_never_without_the_lead(
        steps in proptest::collection::vec((1_i64..400, 0..12_u8), 1..80),
        exam in proptest::option::of((0_i64..9000, 1_i64..4000)),
        (lms_counts, lead) in (any::<bool>(), 5_u64..200),
    ) {
        let mut desk = Desk::new();
        desk.acks = false;
        desk.policy.counts.lms_input = lms_counts;
        desk.policy.warning_lead = Duration::from_secs(lead);
        desk.policy.quiet = exam.map(|(start, long)| (at(start), at(start + long))).into_iter().collect();
        let mut now = 0;
        // By how much the clock is ahead of the time that passed, and the last input of each kind by that.
        let (mut ahead, mut typed, mut clicked, mut declared) = (0_i64, 0_i64, 0_i64, 0_i64);
        let mut told: Option<(OffsetDateTime, OffsetDateTime)> = None;
        for (step, what) in steps {
            let before = now;
            now += step;
            match what {
                0 => {
                    desk.types(now);
                    typed = now - ahead;
                }
                1 => {
                    desk.signals(Signal::LmsInput, now);
                    clicked = now - ahead;
                }
                2 => {
                    desk.pauses.push(pause(before, now));
                    desk.heard = false;
                }
                3 | 4 => ack(&mut desk, now),
                5 => {
                    let awake = Awake { until: Some(at(now + step * 3)), granted: Duration::ZERO };
                    desk.activity.awake = Awake { until: awake.until.max(desk.activity.awake.until), ..awake };
                    desk.signals(Signal::Job, now);
                    declared = now - ahead;
                }
                6 => desk.policy.warning_lead = Duration::from_secs(step.unsigned_abs() / 2 + 5),
                7 => {
                    let by = step * 40;
                    (now, ahead) = (now + by, ahead + by);
                    desk.pauses.push(super::step(before, now, by.unsigned_abs()));
                    desk.heard = false;
                }
                8 => {
                    let age = step * 3;
                    // Set right, as what a node tells, or not, as what the LMS tells.
                    let told = if step % 2 == 0 { of_then(&desk, now - age) } else { now - age };
                    desk.signals(Signal::LmsInput, told);
                    clicked = clicked.max(now - age - ahead);
                }
                _ => {
                    desk.heard = true;
                    if let Some(known) = desk.activity.seen.editor_input {
                        let again = of_then(&desk, typed + ahead);
                        prop_assert_eq!(at(again), known);
                        desk.types(again);
                    }
                }
            }
            let verdict = desk.decide(now);
            let times = desk.look(now).clock().times();
            if let (Some(warning), Some(times)) = (&desk.workspace.warning, times) {
                let earlier = told.filter(|(warned_at, _)| *warned_at == warning.at).map(|(_, deadline)| deadline);
                prop_assert!(earlier.is_none_or(|earlier| times.deadline_at >= earlier), "{earlier:?} {times:?}");
                told = Some((warning.at, times.deadline_at));
            }
            match verdict {
                Verdict::Stop { evidence, .. } => {
                    let counted = [Some(desk.activity.seen.editor_input), Some(desk.activity.seen.job), lms_counts.then_some(desk.activity.seen.lms_input)];
                    let last = counted.into_iter().flatten().flatten().max().unwrap_or(T0);
                    let patience = desk.policy.ack_within;
                    prop_assert!(desk.heard);
                    prop_assert!(at(now) >= last + desk.policy.idle_timeout);
                    let timeout = desk.policy.idle_timeout;
                    let newest = typed.max(declared).max(if lms_counts { clicked } else { 0 });
                    prop_assert!(time::Duration::seconds(now - ahead - newest) >= timeout);
                    let age = at(now) - evidence.refusable_after.expect("what is typed counts");
                    prop_assert!(age >= timeout);
                    prop_assert!(age <= time::Duration::seconds(now - ahead - typed), "it is refused");
                    prop_assert!(desk.activity.awake.until.is_none_or(|until| at(now) >= until));
                    prop_assert!(at(now) >= evidence.warned_at + desk.policy.warning_lead);
                    match evidence.warning_acked_at {
                        Some(acked_at) => prop_assert!(at(now) >= acked_at + desk.policy.warning_lead),
                        None => prop_assert!(at(now) >= evidence.warned_at + patience),
                    }
                    prop_assert!(evidence.warned_at >= last);
                    prop_assert!(desk.pauses.iter().all(|pause| pause.to <= evidence.warned_at), "lead not anew");
                    let quiet = &desk.policy.quiet;
                    prop_assert!(quiet.iter().all(|(s, e)| at(now) <= *s || evidence.warned_at >= *e));
                    return Ok(());
                }
                Verdict::Active { recheck_at } => prop_assert!(recheck_at > at(now)),
                Verdict::Unheard => prop_assert!(!desk.heard),
                Verdict::Withdraw { .. } | Verdict::Warn { .. } => {}
                Verdict::Unobservable => prop_assert!(false, "it is observable"),
            }
        }
    }

    /// Left alone, everything ends, with a session and without one.
    #[test]
    fn a_forgotten_workspace_is_stopped(
        from in 0_i64..20_000,
        exam in proptest::option::of((0_i64..9000, 1_i64..4000)),
        acks in any::<bool>(),
    ) {
        let mut desk = Desk::new();
        desk.acks = acks;
        desk.policy.quiet = exam.map(|(start, long)| (at(start), at(start + long))).into_iter().collect();
        let (warned, stopped, _) = desk.runs_out(from);
        prop_assert_eq!(stopped - warned, 120);
        prop_assert!(stopped <= from.max(14_000) + 1200);
    }
}
