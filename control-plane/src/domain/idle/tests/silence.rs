//! What a silence of the node and a pause take from idleness, together and one after the other.

use proptest::prelude::*;

use super::*;

/// Silent until now, after which it goes on.
fn resume(desk: &mut Desk, since: i64, now: i64) {
    desk.workspace.resumed_at = desk.look(now).after_silence(at(since));
}

#[test]
fn a_pause_within_a_silence_counts_once() {
    let mut desk = Desk::new();
    desk.pauses = vec![pause(1200, 1500)];
    resume(&mut desk, 600, 1600);
    assert_eq!(desk.look(1600).basis(), Some(at(1000)), "ten minutes were seen to be idle");
    assert_eq!(desk.runs_out(1600), (1780, 1900, StopReason::Idle));
}

#[test]
fn a_pause_before_a_silence_counts_once() {
    let mut desk = Desk::new();
    desk.pauses = vec![pause(100, 400)];
    resume(&mut desk, 600, 1600);
    assert_eq!(desk.look(1600).basis(), Some(at(1300)));
    assert_eq!(desk.runs_out(1600), (2080, 2200, StopReason::Idle));
}

#[test]
fn a_silence_in_which_the_clock_is_set_forward_is_as_long_as_the_node_was_silent() {
    let mut desk = Desk::new();
    desk.pauses = vec![step(700, 700 + 10_801, 10_800)];
    resume(&mut desk, 600, 11_600);
    assert_eq!(desk.look(11_600).basis(), Some(at(11_000)), "ten minutes were seen to be idle");
}

proptest! {
    /// Whatever the order: what counts is each second in which somebody could have been seen, and no other. Silences and pauses
    /// of less than an hour in all.
    #[test]
    fn idle_is_each_second_that_was_seen_and_no_other(
        cuts in proptest::collection::btree_set(0_i64..3000, 0..12),
        (silent, ends, later) in (0_i64..1500, 1500_i64..3000, 0_i64..600),
        typed in proptest::option::of(0_i64..3000),
    ) {
        let cuts: Vec<_> = cuts.into_iter().collect();
        let mut desk = Desk::new();
        desk.pauses = cuts.chunks_exact(2).map(|cut| pause(cut[0], cut[1])).filter(|pause| pause.to <= at(ends)).collect();
        if let Some(typed) = typed.filter(|typed| *typed <= ends) {
            desk.types(typed);
        }
        let begins = typed.filter(|typed| *typed <= ends).unwrap_or(0);
        resume(&mut desk, silent, ends);
        let now = ends + later;
        let seen = |second: &i64| {
            let paused = desk.pauses.iter().any(|pause| (pause.from..pause.to).contains(&at(*second)));
            !paused && !(silent..ends).contains(second)
        };
        let idle = (begins..now).filter(seen).count();
        prop_assert_eq!(desk.look(now).basis(), Some(at(now - i64::try_from(idle).unwrap())));
    }
}
