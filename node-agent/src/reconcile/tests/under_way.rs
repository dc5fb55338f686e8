//! Starts under way whose order changes.

use super::*;

fn starting(items: Vec<DesiredItem>, containers: Vec<Found>) -> World {
    let mut world = World::new(items, containers);
    world.in_flight.insert(uid(1), InFlight::Bring(pair(1, 1)));
    world
}

#[test]
fn a_start_whose_order_is_over_is_cancelled() {
    for wanted in [item(1, 1, false), item(1, 2, true)] {
        assert_eq!(starting(vec![wanted], vec![]).actions(), [Action::Cancel { workspace: uid(1) }]);
    }
}

#[test]
fn a_start_that_is_ordered_goes_on_in_the_next_session() {
    for fresh in [true, false] {
        let mut world = starting(vec![item(1, 1, true)], vec![]);
        world.fresh = fresh;
        assert_eq!(world.actions(), []);
    }
}

#[test]
fn a_start_that_the_set_of_the_session_does_not_name_is_cancelled() {
    for containers in [vec![], vec![found(1, 1, Phase::Created)], vec![found(1, 1, Phase::Running)]] {
        let mut world = starting(vec![item(2, 1, false)], containers).remember(2, 1, Settled::Gone);
        assert_eq!(world.actions(), [Action::Cancel { workspace: uid(1) }]);
        world.fresh = false;
        assert_eq!(world.actions(), [], "the set is of the session before, or there was none yet");
        world.fresh = true;
        world.in_flight.insert(uid(1), InFlight::Remove);
        assert_eq!(world.actions(), [], "what is being removed is");
    }
}
