//! What holds in every world: it comes to rest, and nothing is removed without a right to.

use proptest::prelude::*;

use super::*;

fn any_phase() -> impl Strategy<Value = Phase> {
    prop_oneof![Just(Phase::Created), Just(Phase::Running), Just(Phase::Exited)]
}

fn any_verdict() -> impl Strategy<Value = Option<Verdict>> {
    use Verdict::{Hold, Stop, StopByOrder};
    proptest::option::of(prop_oneof![Just(Stop), Just(StopByOrder), Just(Hold)])
}

/// One of five, so that most worlds have others as well.
fn any_over() -> impl Strategy<Value = bool> {
    (0..5_u8).prop_map(|n| n == 0)
}

fn any_standing() -> impl Strategy<Value = Standing> {
    prop_oneof![Just(Standing::Leased), Just(Standing::Unleased), Just(Standing::Over)]
}

/// Up to six workspaces with any containers, orders and verdicts.
fn any_world() -> impl Strategy<Value = World> {
    let container = (0..6_u128, 1..5_i64, any_phase(), 1..3_i64, any::<bool>(), any_verdict(), any_over());
    let order = (0..6_u128, 1..5_i64, any::<bool>(), 1..3_i64);
    let containers = proptest::collection::vec(container, 0..10);
    (containers, proptest::collection::vec(order, 0..6), any::<bool>(), any_standing()).prop_map(
        |(containers, orders, fresh, lease)| {
            let mut world = World::new(vec![], vec![]);
            (world.fresh, world.lease) = (fresh, lease);
            let order = |(w, g, run, incarnation)| (w, DesiredItem { incarnation, ..item(w, g, run) });
            let items: BTreeMap<_, _> = orders.into_iter().map(order).collect();
            world.items = items.into_values().collect();
            let mut names = BTreeSet::new();
            for (workspace, generation, phase, incarnation, other_spec, verdict, over) in containers {
                // One name, one container.
                if !names.insert((workspace, generation)) {
                    continue;
                }
                let mut container = found(workspace, generation, phase);
                container.container.incarnation = incarnation;
                if other_spec {
                    container.spec_digest = spec("/other").digest();
                }
                if let Some(verdict) = verdict {
                    world.verdicts.insert(id(workspace, generation), verdict);
                }
                if over {
                    world.over.insert(id(workspace, generation));
                }
                world.containers.push(container);
            }
            world
        },
    )
}

/// What may be removed: named by an order, superseded, or over by the control plane's word; never what is later than its order, but
/// for an operator's word, or where a lease ran out over it.
fn may_be_removed(world: &World, container: &Container) -> bool {
    let verdict = world.verdicts.get(&container.container_id);
    if world.over.contains(&container.container_id) || (world.fresh && verdict == Some(&Verdict::StopByOrder))
    {
        return true;
    }
    match world.items.iter().find(|item| item.workspace == container.workspace) {
        None => world.fresh && verdict == Some(&Verdict::Stop),
        Some(item) => {
            let stopped = matches!(item.run, Run::Stopped { .. });
            container.pair() < item.pair() || (stopped && container.pair() == item.pair())
        }
    }
}

proptest! {
    #[test]
    fn comes_to_rest_and_stays_there(mut world in any_world()) {
        for _ in 0..6 {
            let actions = world.actions();
            world.carry_out(actions);
        }
        prop_assert_eq!(world.actions(), vec![]);
    }

    #[test]
    fn at_rest_every_order_is_carried_out_or_held(mut world in any_world()) {
        (world.fresh, world.lease) = (true, Standing::Leased);
        for _ in 0..6 {
            let actions = world.actions();
            world.carry_out(actions);
        }
        let reported = world.diff().orphans;
        for item in &world.items {
            let of_it = || world.containers.iter().filter(|found| found.container.workspace == item.workspace);
            let fenced = world.memory.get(&item.workspace).is_some_and(|memory| memory.settled == Settled::Gone);
            if fenced && matches!(item.run, Run::Running { .. }) {
                continue;
            }
            if of_it().any(|found| reported.contains(&found.container)) {
                continue;
            }
            let now: Vec<_> = of_it().map(|found| (found.container.pair(), found.phase)).collect();
            let wanted = if matches!(item.run, Run::Running { .. }) { vec![(item.pair(), Phase::Running)] } else { vec![] };
            prop_assert_eq!(now, wanted);
        }
    }

    #[test]
    fn what_is_later_than_its_order_is_reported_and_its_workspace_is_left_as_it_is(world in any_world()) {
        let decisions = world.diff();
        for item in &world.items {
            let beyond: Vec<_> = world
                .containers
                .iter()
                .filter(|found| found.container.workspace == item.workspace && found.container.pair() > item.pair())
                .collect();
            // Only an operator's word touches it.
            let by_order = |found: &&Found| {
                world.verdicts.get(&found.container.container_id) == Some(&Verdict::StopByOrder)
            };
            if beyond.iter().any(by_order) {
                continue;
            }
            prop_assert!(beyond.iter().all(|found| decisions.orphans.contains(&found.container)));
            let touched = decisions.actions.iter().any(|action| action.workspace() == item.workspace);
            prop_assert!(beyond.is_empty() || !touched);
        }
    }

    #[test]
    fn only_what_may_be_is_ever_removed(mut world in any_world()) {
        for _ in 0..6 {
            let before = world.clone();
            let actions = world.actions();
            for action in &actions {
                if let Action::Clear { containers, .. } = action {
                    prop_assert!(containers.iter().all(|container| may_be_removed(&before, container)));
                }
            }
            world.carry_out(actions);
            for lost in before.containers.iter().filter(|found| !world.containers.iter().any(|f| f.container.container_id == found.container.container_id)) {
                prop_assert!(may_be_removed(&before, &lost.container), "{lost:?}");
            }
        }
    }

    #[test]
    fn without_a_lease_nothing_is_started_and_what_one_ran_out_over_never(mut world in any_world()) {
        for _ in 0..6 {
            let actions = world.actions();
            for action in &actions {
                let Action::Bring { from, .. } = action else { continue };
                match from {
                    From::Running(id) => prop_assert!(world.lease != Standing::Over && !world.over.contains(id)),
                    From::Created(id) | From::Exited(id) => {
                        prop_assert!(world.lease == Standing::Leased && !world.over.contains(id));
                    }
                    From::Nothing => prop_assert_eq!(world.lease, Standing::Leased),
                }
            }
            world.carry_out(actions);
        }
    }

    #[test]
    fn decides_the_same_again_sorted_and_at_most_once_a_workspace(world in any_world()) {
        let actions = world.actions();
        prop_assert_eq!(&actions, &world.actions());
        let workspaces: Vec<_> = actions.iter().map(Action::workspace).collect();
        let mut sorted = workspaces.clone();
        sorted.sort();
        sorted.dedup();
        prop_assert_eq!(workspaces, sorted);
    }
}
