//! Idle stops that are not carried out.

use super::*;

#[test]
fn activity_that_the_decision_did_not_know_refuses_its_stop() {
    let [day, minute, second] = [24 * 3600, 60, 1].map(Duration::from_secs);
    let taken_at = Duration::from_secs(1000);
    assert!(refuses(taken_at - minute, minute + second, taken_at));
    assert!(!refuses(taken_at - minute, minute, taken_at), "it is the very activity that was known");
    assert!(!refuses(taken_at - minute, second, taken_at), "younger was known");
    assert!(refuses(taken_at + minute, Duration::ZERO, taken_at), "since the order came");
    assert!(refuses(second, day, taken_at), "what was known is from before this process");
}

#[test]
fn a_refused_stop_waits_for_the_next_set() {
    let order = item(1, 1, false);
    let pair = |generation| DesiredPair { incarnation: 1, generation };
    let world = World::new(vec![order.clone()], vec![found(1, 1, Phase::Running)]);
    let refused = world.clone().remember(1, 1, Settled::Refused { pair: pair(1) });
    assert_eq!(refused.diff(), Decisions::default());
    let of_an_earlier_set = world.remember(1, 1, Settled::Refused { pair: pair(0) });
    assert_eq!(of_an_earlier_set.actions(), [Action::Stop { item: order }], "it is looked at again");
}

#[test]
fn after_a_refused_stop_the_workspace_is_adopted() {
    let pair = DesiredPair { incarnation: 1, generation: 0 };
    let world = World::new(vec![item(1, 1, true)], vec![found(1, 1, Phase::Running)]).remember(
        1,
        1,
        Settled::Refused { pair },
    );
    assert_eq!(world.actions(), [bring(item(1, 1, true), From::Running(id(1, 1)))]);
}
