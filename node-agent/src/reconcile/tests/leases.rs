//! What a lease allows, and what becomes of what it ran out over.

use super::*;

const ALL: [Standing; 3] = [Standing::Leased, Standing::Unleased, Standing::Over];

#[test]
fn nothing_is_started_without_a_lease_and_what_runs_is_taken_over_until_it_has_run_out() {
    let there = |phase| vec![found(1, 1, phase)];
    for (containers, from, allowed) in [
        (vec![], From::Nothing, [true, false, false]),
        (there(Phase::Created), From::Created(id(1, 1)), [true, false, false]),
        (there(Phase::Exited), From::Exited(id(1, 1)), [true, false, false]),
        (there(Phase::Running), From::Running(id(1, 1)), [true, true, false]),
    ] {
        for (lease, allowed) in ALL.into_iter().zip(allowed) {
            let mut world = World::new(vec![item(1, 1, true)], containers.clone());
            world.lease = lease;
            let expected = if allowed { vec![bring(item(1, 1, true), from.clone())] } else { vec![] };
            assert_eq!(world.actions(), expected, "{from:?} {lease:?}");
        }
    }
}

#[test]
fn stops_and_removals_need_no_lease() {
    let mut world = World::new(
        vec![item(1, 1, false), item(2, 2, true)],
        vec![found(1, 1, Phase::Running), found(2, 1, Phase::Running)],
    );
    world.lease = Standing::Over;
    let expected = [
        Action::Stop { item: item(1, 1, false) },
        clear(2, Cause::Superseded, vec![found(2, 1, Phase::Running)]),
    ];
    assert_eq!(world.actions(), expected);
}

#[test]
fn what_a_lease_ran_out_over_is_removed_whatever_is_ordered_and_before_any_order() {
    for (items, fresh) in
        [(vec![item(1, 1, true)], true), (vec![item(1, 2, true)], true), (vec![], true), (vec![], false)]
    {
        for lease in ALL {
            let mut world = World::new(items.clone(), vec![found(1, 1, Phase::Exited)]);
            (world.fresh, world.seen_before, world.lease) = (fresh, false, lease);
            world.over.insert(id(1, 1));
            let expected = [clear(1, Cause::Fenced, vec![found(1, 1, Phase::Exited)])];
            assert_eq!(world.actions(), expected, "{items:?} {lease:?}");
        }
    }
}

#[test]
fn an_order_to_stop_it_is_carried_out_as_ordered() {
    let mut world = World::new(vec![item(1, 1, false)], vec![found(1, 1, Phase::Exited)]);
    world.over.insert(id(1, 1));
    assert_eq!(world.actions(), [Action::Stop { item: item(1, 1, false) }], "a purge may hang on it");
}

#[test]
fn the_breaker_holds_nothing_back_of_it() {
    let containers: Vec<_> = (0..10).map(|n| found(n, 1, Phase::Running)).collect();
    let mut world = World::new(vec![], containers);
    world.over = (0..10).map(|n| id(n, 1)).collect();
    assert_eq!((world.diff().actions.len(), world.diff().withheld.len()), (10, 0));
}

#[test]
fn it_is_not_made_anew_in_its_generation() {
    let mut world = World::new(vec![item(1, 1, true)], vec![found(1, 1, Phase::Exited)]);
    world.over.insert(id(1, 1));
    let actions = world.actions();
    world.carry_out(actions);
    assert_eq!(world.actions(), []);
    world.items = vec![item(1, 2, true)];
    assert_eq!(world.actions(), [bring(item(1, 2, true), From::Nothing)]);
}

#[test]
fn a_start_under_way_is_cancelled_when_the_lease_runs_out() {
    for (lease, over, cancelled) in [
        (Standing::Leased, false, false),
        (Standing::Unleased, false, false),
        (Standing::Over, false, true),
        (Standing::Leased, true, true),
    ] {
        let mut world = World::new(vec![item(1, 1, true)], vec![found(1, 1, Phase::Running)]);
        world.lease = lease;
        if over {
            world.over.insert(id(1, 1));
        }
        world.in_flight.insert(uid(1), InFlight::Bring(pair(1, 1)));
        let expected = if cancelled { vec![Action::Cancel { workspace: uid(1) }] } else { vec![] };
        assert_eq!(world.actions(), expected, "{lease:?} {over}");
    }
}

#[test]
fn a_removal_that_did_not_work_is_tried_again_at_its_time() {
    let not_before = Duration::from_secs(200);
    let mut world = World::new(vec![], vec![found(1, 1, Phase::Running)]);
    world.over.insert(id(1, 1));
    let mut world = world.remember(1, 1, Settled::Retry { not_before });
    assert_eq!(world.diff(), Decisions { wake_at: Some(not_before), ..Decisions::default() });
    world.now = not_before;
    assert_eq!(world.actions().len(), 1);
}
