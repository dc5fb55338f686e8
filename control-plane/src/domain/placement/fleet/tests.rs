//! The order of preferences, one by one, and the law: a placement is legal, and nobody is better.

use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};
use proptest::strategy::Strategy as Generator;

use super::*;

const NEED: Resources = Resources { cpu_millicores: 1000, memory_bytes: 1 << 30, pids: 512 };
const IMAGE: &str = "desk:1";

fn candidate(number: u128, gib: i64, used: i64) -> Candidate {
    let all = |n: i64| Resources { cpu_millicores: n * 1000, memory_bytes: n << 30, pids: 0 };
    Candidate {
        node: NodeId(uuid::Uuid::from_u128(number)),
        service: Service::Ready,
        zone: String::new(),
        capacity: all(gib),
        processors: 8000,
        allocated: all(used),
        count: used,
        most: 250,
        starting: 0,
        failures: 0,
        images: vec![IMAGE.to_owned()],
    }
}

fn ask() -> Ask<'static> {
    Ask { need: NEED, image: IMAGE, course: None, avoid: &[] }
}

/// Which of two nodes is taken, by number; both have room.
fn taken(strategy: Strategy, one: Candidate, two: Candidate) -> u128 {
    let mut fleet = Fleet::new(strategy, vec![one, two], []);
    fleet.place(&ask()).expect("there is room").0.as_u128()
}

#[test]
fn says_why_nobody_takes_it() {
    let why = |nodes: Vec<Candidate>, avoid: &[NodeId]| {
        Fleet::new(Strategy::Spread, nodes, []).place(&Ask { avoid, ..ask() }).expect_err("no place")
    };
    let unready = Candidate { service: Service::Silent, ..candidate(1, 4, 0) };
    let full = |lack, with_room, of| NoPlace::Full { lack, with_room, of, need: NEED };
    let none = OutOfService::default();
    assert_eq!(why(vec![], &[]), NoPlace::NoneReady(none));
    let cordoned = Candidate { service: Service::Cordoned, ..candidate(2, 4, 0) };
    assert_eq!(
        why(vec![unready.clone(), cordoned], &[]),
        NoPlace::NoneReady(OutOfService { cordoned: 1, silent: 1, ..none })
    );
    assert_eq!(why(vec![candidate(1, 0, 0)], &[]), NoPlace::TooLarge);
    assert_eq!(why(vec![candidate(1, 4, 4), candidate(2, 2, 2), unready], &[]), full(Lack::Memory, 0, 2));
    let crowded = Candidate { most: 1, ..candidate(1, 4, 1) };
    assert_eq!(why(vec![crowded, candidate(2, 4, 4)], &[]), full(Lack::Memory, 1, 2));
    let busy = Candidate { capacity: Resources { cpu_millicores: 1500, ..NEED }, ..candidate(1, 4, 1) };
    let busy = Candidate { capacity: Resources { memory_bytes: 4 << 30, ..busy.capacity }, ..busy };
    assert_eq!(why(vec![busy], &[]), full(Lack::Cpu, 0, 1));
    let avoid = [candidate(1, 4, 0).node];
    assert_eq!(why(vec![candidate(1, 4, 0)], &avoid), NoPlace::FailedOnAll);
    assert_eq!(why(vec![candidate(1, 4, 0), candidate(2, 4, 4)], &avoid), full(Lack::Memory, 0, 1));
}

#[test]
fn no_node_takes_a_desk_of_more_processors_than_it_has_however_many_it_promises() {
    let (small, large) = (|| Candidate { processors: 2000, ..candidate(1, 64, 0) }, || candidate(2, 64, 60));
    let ask = Ask { need: Resources { cpu_millicores: 4000, ..NEED }, ..ask() };
    let fleet = |nodes| Fleet::new(Strategy::Spread, nodes, []);
    let mut both = fleet(vec![small(), large()]);
    assert_eq!(both.take(&ask), Ok(large().node), "the emptiest by far is too small");
    assert!(!both.take_on(small().node, &ask));
    let full = NoPlace::Full { lack: Lack::Cpu, with_room: 0, of: 2, need: ask.need };
    assert_eq!(both.place(&ask), Err(full), "the large one has promised all that it can");
    assert!(!both.could_take_elsewhere(&Ask { avoid: &[large().node], ..ask }, false));
    assert_eq!(fleet(vec![small()]).place(&ask), Err(NoPlace::TooLarge));
}

#[test]
fn spread_takes_the_emptiest_and_pack_the_fullest() {
    let pair = || (candidate(1, 8, 5), candidate(2, 8, 2));
    assert_eq!(taken(Strategy::Spread, pair().0, pair().1), 2);
    assert_eq!(taken(Strategy::Pack, pair().0, pair().1), 1);
}

#[test]
fn equal_nodes_are_taken_in_the_order_of_their_ids() {
    for strategy in [Strategy::Spread, Strategy::Pack] {
        assert_eq!(taken(strategy, candidate(2, 8, 2), candidate(1, 8, 2)), 1);
    }
}

#[test]
fn each_preference_outweighs_all_that_follow_it() {
    let empty = || candidate(1, 8, 0);
    let other = || candidate(2, 8, 6);
    // The emptiest by far, but …
    assert_eq!(taken(Strategy::Spread, Candidate { starting: 6, ..empty() }, other()), 2, "starts under way");
    assert_eq!(taken(Strategy::Spread, Candidate { starting: 5, ..empty() }, other()), 1, "not yet many");
    let busy = |c: Candidate| Candidate { starting: 60, ..c };
    assert_eq!(
        taken(Strategy::Spread, Candidate { images: vec![], ..empty() }, busy(other())),
        2,
        "no image"
    );
    let bare = |c: Candidate| Candidate { images: vec![], ..busy(c) };
    assert_eq!(taken(Strategy::Spread, Candidate { failures: 1, ..empty() }, bare(other())), 2, "failures");
}

#[test]
fn a_course_is_spread_over_zones_before_nodes_are_balanced() {
    let course: CourseId = "cs101".parse().expect("valid");
    let in_zone = |number, zone: &str, used| Candidate { zone: zone.into(), ..candidate(number, 8, used) };
    let nodes = vec![in_zone(1, "a", 0), in_zone(2, "a", 1), in_zone(3, "b", 5)];
    let placed = [(nodes[0].node, Some(course.clone()), 1)];
    let mut fleet = Fleet::new(Strategy::Spread, nodes, placed);
    let ask = Ask { course: Some(&course), ..ask() };
    let order: Vec<_> = (0..4).map(|_| fleet.take(&ask).expect("room").0.as_u128()).collect();
    // b has none of the course; then both zones have one, and the emptiest node is in a; and so on in turns.
    assert_eq!(order, [3, 1, 3, 1]);
}

#[test]
fn what_is_taken_is_seen_by_whoever_comes_next() {
    let mut fleet = Fleet::new(Strategy::Spread, vec![candidate(1, 2, 0), candidate(2, 2, 1)], []);
    let order: Vec<_> = (0..3).map(|_| fleet.take(&ask()).expect("room").0.as_u128()).collect();
    assert_eq!(order, [1, 1, 2]);
    assert!(fleet.take(&ask()).is_err());
}

#[test]
fn a_place_is_taken_on_a_named_node_only_where_there_is_one() {
    let mut fleet = Fleet::new(Strategy::Spread, vec![candidate(1, 2, 1), candidate(2, 8, 0)], []);
    let node = NodeId(uuid::Uuid::from_u128(1));
    assert_eq!([fleet.take_on(node, &ask()), fleet.take_on(node, &ask())], [true, false]);
}

#[test]
fn the_node_that_is_kept_is_the_one_of_which_the_smallest_share_has_to_become_free() {
    let used = |cpu, candidate: Candidate| {
        let allocated = Resources { cpu_millicores: cpu, ..candidate.allocated };
        let capacity = Resources { cpu_millicores: 8000, ..candidate.capacity };
        Candidate { allocated, capacity, ..candidate }
    };
    let large = Ask { need: Resources { cpu_millicores: 4000, ..NEED }, ..ask() };
    let kept = |nodes: &[Candidate]| {
        let mut fleet = Fleet::new(Strategy::Spread, nodes.to_vec(), []);
        assert!(fleet.place(&large).is_err());
        assert!(fleet.keep_for(&large));
        fleet.kept.map(|index| fleet.nodes()[index].node.0.as_u128())
    };
    // Much memory is free there, but of its processors three have to become so.
    let busy = used(7000, candidate(1, 64, 8));
    let half_a_processor = used(4500, candidate(2, 16, 8));
    assert_eq!(kept(&[busy.clone(), half_a_processor.clone()]), Some(2));
    let full = used(0, candidate(3, 8, 8));
    assert_eq!(kept(&[full.clone(), half_a_processor.clone()]), Some(2));
    // Whoever leaves makes a place.
    let crowded = Candidate { count: 250, ..used(0, candidate(4, 16, 8)) };
    assert_eq!(kept(&[busy, half_a_processor, full.clone(), crowded]), Some(4));
    assert_eq!(kept(&[full.clone(), Candidate { node: candidate(5, 0, 0).node, ..full }]), Some(3));
}

/// A node, its zone, and how many of the course it holds.
fn some_node(number: u128) -> impl Generator<Value = (Candidate, i64)> {
    let parts = (
        any::<bool>(),
        0..3_u8,
        1_i64..9,
        0_i64..9,
        0..4_i64,
        0..20_i64,
        prop::sample::select(vec![0, 0, 0, 1, 2]),
        any::<bool>(),
    );
    parts.prop_map(move |(ready, zone, gib, used, of_course, starting, failures, has_image)| {
        let images = if has_image { vec![IMAGE.to_owned()] } else { vec![] };
        let base = candidate(number, gib, used.min(gib));
        let service = if ready { Service::Ready } else { Service::Silent };
        (
            Candidate { service, zone: zone.to_string(), starting, failures, images, most: 6, ..base },
            of_course,
        )
    })
}

proptest! {
    #[test]
    fn a_placement_is_legal_and_nobody_is_better(
        nodes in (0..12_u128).prop_flat_map(|n| (0..n).map(some_node).collect::<Vec<_>>()),
        avoided in proptest::collection::vec(0..12_u128, 0..3),
        pack in any::<bool>(),
    ) {
        let course: CourseId = "c".parse().expect("valid");
        let avoid: Vec<_> = avoided.into_iter().map(|n| NodeId(uuid::Uuid::from_u128(n))).collect();
        let ask = Ask { course: Some(&course), avoid: &avoid, ..ask() };
        let strategy = if pack { Strategy::Pack } else { Strategy::Spread };
        let places: Vec<_> = nodes.iter().map(|(c, n)| (c.node, Some(course.clone()), *n)).collect();
        let in_zone = |zone: &str| -> i64 { nodes.iter().filter(|(c, _)| c.zone == zone).map(|(_, n)| n).sum() };
        let all: Vec<_> = nodes.iter().map(|(c, _)| c.clone()).collect();
        let mut fleet = Fleet::new(strategy, all.clone(), places);
        let legal: Vec<_> = all
            .iter()
            .filter(|c| {
                let room = c.capacity.memory_bytes - c.allocated.memory_bytes >= NEED.memory_bytes;
                c.is_ready() && room && c.count < c.most && !avoid.contains(&c.node)
            })
            .collect();
        // The policy in other words: compared preference by preference.
        let better = |a: &Candidate, b: &Candidate| {
            let share = |c: &Candidate| (c.allocated.memory_bytes + NEED.memory_bytes) * 1000 / c.capacity.memory_bytes;
            let full = share(a).cmp(&share(b)).then(a.count.cmp(&b.count));
            a.failures.cmp(&b.failures)
                .then(a.images.is_empty().cmp(&b.images.is_empty()))
                .then(in_zone(&a.zone).cmp(&in_zone(&b.zone)))
                .then((a.starting / 6).cmp(&(b.starting / 6)))
                .then(if pack { full.reverse() } else { full })
                .then(a.node.cmp(&b.node))
                .is_lt()
        };
        match fleet.place(&ask) {
            Err(_) => prop_assert!(legal.is_empty()),
            Ok(node) => {
                let chosen = legal.iter().find(|c| c.node == node);
                prop_assert!(chosen.is_some_and(|c| legal.iter().all(|other| !better(other, c))));
            }
        }
    }
    #[test]
    fn a_fleet_that_has_placed_others_decides_as_one_that_is_made_anew(
        nodes in (1..8_u128).prop_flat_map(|n| (0..n).map(some_node).collect::<Vec<_>>()),
        asks in proptest::collection::vec((0..2_usize, 0..2_usize, 0..2_usize, prop::option::of(0..8_usize)), 1..30),
        pack in any::<bool>(),
    ) {
        let courses = ["c".parse::<CourseId>().ok(), None];
        let strategy = if pack { Strategy::Pack } else { Strategy::Spread };
        let all = nodes.into_iter().map(|(candidate, _)| candidate).collect();
        let mut fleet = Fleet::new(strategy, all, []);
        let mut places = Vec::new();
        for (need, image, course, failing) in asks {
            if let Some(known) = failing.and_then(|at| fleet.nodes().get(at).cloned()) {
                fleet.refresh(Candidate { failures: known.failures + 1, ..known });
            }
            let need = Resources { memory_bytes: NEED.memory_bytes << need, ..NEED };
            let course = &courses[course];
            let ask = Ask { need, image: [IMAGE, "desk:2"][image], course: course.as_ref(), avoid: &[] };
            let anew = Fleet::new(strategy, fleet.nodes().to_vec(), places.clone()).place(&ask);
            let taken = fleet.take(&ask);
            prop_assert_eq!(&taken, &anew);
            places.extend(taken.ok().map(|node| (node, course.clone(), 1)));
        }
    }
}
