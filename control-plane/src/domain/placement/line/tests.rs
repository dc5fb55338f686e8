//! Who is next in line, and the laws of fairness.

use proptest::prelude::*;
use time::macros::datetime;

use super::*;
use crate::domain::placement::fleet::{Candidate, Service, Strategy as Spreading};

const T0: OffsetDateTime = datetime!(2026-03-02 10:00:00 UTC);

fn uid(n: usize) -> WorkspaceUid {
    WorkspaceUid(uuid::Uuid::from_u128(n as u128))
}

fn course(name: &str) -> Option<CourseId> {
    (!name.is_empty()).then(|| name.parse().expect("valid"))
}

fn need(gib: i64) -> Resources {
    Resources { cpu_millicores: 100, memory_bytes: gib << 30, pids: 1 }
}

/// The `n`-th of all, who came `n` seconds after the first.
fn waiting(n: usize, name: &str, gib: i64) -> Waiting {
    let since = T0 + Duration::from_secs(n as u64);
    Waiting { uid: uid(n), course: course(name), since, need: need(gib), image: "i:1".into(), avoid: vec![] }
}

fn node(n: u128, gib: i64) -> Candidate {
    Candidate {
        node: NodeId(uuid::Uuid::from_u128(n)),
        service: Service::Ready,
        zone: String::new(),
        capacity: Resources { cpu_millicores: 1_000_000, memory_bytes: gib << 30, pids: 0 },
        processors: 8000,
        allocated: Resources { cpu_millicores: 0, memory_bytes: 0, pids: 0 },
        count: 0,
        most: 250,
        starting: 0,
        failures: 0,
        images: vec![],
    }
}

fn fleet(gib: i64) -> Fleet {
    Fleet::new(Spreading::Spread, vec![node(1, gib)], [])
}

fn order(waiting: &[Waiting]) -> Vec<u128> {
    waiting.iter().map(|w| w.uid.0.as_u128()).collect()
}

fn placed(turns: &[Turn]) -> Vec<u128> {
    turns.iter().filter(|t| t.outcome.is_ok()).map(|t| t.uid.0.as_u128()).collect()
}

#[test]
fn the_course_that_holds_fewest_is_next_and_within_it_who_came_first() {
    let mut line = vec![
        waiting(1, "big", 1),
        waiting(2, "big", 1),
        waiting(3, "big", 1),
        waiting(4, "small", 1),
        waiting(5, "small", 1),
        waiting(6, "", 1),
    ];
    in_line(&mut line, &Held::from([(course("big"), 2), (course("small"), 1)]));
    // Held: none 0, small 1, big 2.
    assert_eq!(order(&line), [6, 4, 1, 5, 2, 3]);
}

#[test]
fn without_courses_the_line_is_first_come_first_served() {
    let mut line: Vec<_> = [3, 1, 2].map(|n| waiting(n, "", 1)).into();
    in_line(&mut line, &Held::new());
    assert_eq!(order(&line), [1, 2, 3]);
}

#[test]
fn a_smaller_one_overtakes_one_that_does_not_fit_but_not_for_ever() {
    let line = [waiting(0, "", 8), waiting(1, "", 1), waiting(2, "", 8), waiting(3, "", 1)];
    let mut room = Fleet::new(Spreading::Spread, vec![node(1, 2), node(2, 8)], []);
    assert!(room.take_on(NodeId(uuid::Uuid::from_u128(2)), &waiting(9, "", 1).ask()));
    let turns = plan(&line, &mut room.clone(), T0 + Duration::from_secs(30));
    assert_eq!(placed(&turns), [1, 3]);
    // A node is kept for it then: the others go elsewhere, or wait.
    let turns = plan(&line, &mut room.clone(), T0 + OVERTAKEN_FOR);
    let on_one = turns.iter().filter(|t| t.outcome == Ok(node(1, 0).node)).count();
    assert_eq!((placed(&turns), on_one), (vec![1, 3], 2));
    let mut alone = Fleet::new(Spreading::Spread, vec![node(2, 8)], []);
    assert!(alone.take_on(node(2, 0).node, &waiting(9, "", 1).ask()));
    let turns = plan(&line, &mut alone, T0 + OVERTAKEN_FOR);
    assert_eq!(placed(&turns), []);
    assert_eq!(turns[1].outcome, Err(NoPlace::NotItsTurn));
}

/// How many of a pass each of two nodes takes.
fn on_each(turns: &[Turn]) -> [usize; 2] {
    [1, 2].map(|n| turns.iter().filter(|turn| turn.outcome == Ok(node(n, 0).node)).count())
}

#[test]
fn for_one_that_is_tried_elsewhere_a_node_is_kept_that_it_has_not_failed_on() {
    let mut again = waiting(0, "", 8);
    again.avoid = vec![node(1, 0).node];
    let mut room = Fleet::new(Spreading::Spread, vec![node(1, 8), node(2, 8)], []);
    assert!(room.take_on(node(2, 0).node, &waiting(9, "", 1).ask()));
    let line: Vec<_> = std::iter::once(again).chain((1..7).map(|n| waiting(n, "", 1))).collect();
    assert_eq!(on_each(&plan(&line, &mut room.clone(), T0 + Duration::from_secs(30))), [4, 2]);
    assert_eq!(on_each(&plan(&line, &mut room, T0 + OVERTAKEN_FOR)), [6, 0]);
}

#[test]
fn one_for_which_there_is_no_node_to_keep_leaves_it_to_the_next() {
    let mut again = waiting(0, "", 8);
    again.avoid = vec![node(1, 0).node];
    let mut room = Fleet::new(Spreading::Spread, vec![node(1, 8), node(2, 2)], []);
    assert!(room.take_on(node(1, 0).node, &waiting(9, "", 1).ask()));
    let line = [again, waiting(1, "", 8), waiting(2, "", 1), waiting(3, "", 1), waiting(4, "", 1)];
    let turns = plan(&line, &mut room, T0 + OVERTAKEN_FOR * 2);
    assert_eq!(on_each(&turns), [0, 2]);
    assert_eq!(turns[4].outcome, Err(NoPlace::NotItsTurn));
}

#[test]
fn a_node_is_kept_for_one_that_waits_behind_a_later_one_that_needs_the_same() {
    let mut room = Fleet::new(Spreading::Spread, vec![node(1, 8)], []);
    assert!(room.take_on(node(1, 0).node, &waiting(9, "", 1).ask()));
    let line = [waiting(30, "few", 8), waiting(0, "many", 8), waiting(40, "many", 1)];
    assert_eq!(placed(&plan(&line, &mut room.clone(), T0 + Duration::from_secs(59))), [40]);
    assert_eq!(placed(&plan(&line, &mut room, T0 + OVERTAKEN_FOR)), []);
}

#[test]
fn one_that_no_node_could_ever_take_holds_up_nobody() {
    let line = [waiting(0, "", 64), waiting(1, "", 1)];
    let turns = plan(&line, &mut fleet(2), T0 + OVERTAKEN_FOR * 2);
    assert_eq!(turns[0].outcome, Err(NoPlace::TooLarge));
    assert_eq!(placed(&turns), [1]);
}

#[test]
fn one_that_avoids_its_node_waits_for_another_and_holds_up_nobody() {
    let mut first = waiting(0, "", 1);
    first.avoid = vec![node(1, 2).node];
    let turns = plan(&[first, waiting(1, "", 1)], &mut fleet(2), T0 + OVERTAKEN_FOR * 2);
    assert_eq!(turns[0].outcome, Err(NoPlace::FailedOnAll));
    assert_eq!(placed(&turns), [1]);
}

const COURSES: [&str; 4] = ["", "a", "b", "c"];

prop_compose! {
    fn some_line()(
        those in proptest::collection::vec((0..COURSES.len(), 0..50_u64), 0..40),
        held in proptest::collection::vec(0..30_i64, COURSES.len()),
    ) -> (Vec<Waiting>, Held) {
        let line = those.into_iter().enumerate().map(|(n, (name, late))| {
            Waiting { since: T0 + Duration::from_secs(late), ..waiting(n, COURSES[name], 1) }
        });
        (line.collect(), COURSES.iter().map(|name| course(name)).zip(held).collect())
    }
}

proptest! {
    #[test]
    fn within_a_course_who_came_first_is_first((mut line, held) in some_line()) {
        in_line(&mut line, &held);
        for name in COURSES {
            let of: Vec<_> = line.iter().filter(|w| w.course == course(name)).map(|w| (w.since, w.uid)).collect();
            prop_assert!(of.is_sorted());
        }
    }

    #[test]
    fn no_course_is_before_another_by_more_than_it_holds_less((mut line, held) in some_line()) {
        in_line(&mut line, &held);
        for (at, w) in line.iter().enumerate() {
            let before = |of: &Option<CourseId>| {
                i64::try_from(line[..at].iter().filter(|other| other.course == *of).count()).expect("few")
            };
            let own = held[&w.course] + before(&w.course) + 1;
            for (other, theirs) in held.iter().filter(|(other, _)| **other != w.course) {
                prop_assert!(before(other) <= (own - theirs).max(0), "{other:?} before {w:?}");
            }
        }
    }

    /// Places that become free one by one are given in the order of the line: a position says what will be.
    #[test]
    fn the_line_keeps_its_order_while_its_first_are_served((mut line, mut held) in some_line()) {
        in_line(&mut line, &held);
        while !line.is_empty() {
            let expected = order(&line[1..]);
            let first = line.remove(0);
            *held.entry(first.course).or_default() += 1;
            line.reverse();
            in_line(&mut line, &held);
            prop_assert_eq!(order(&line), expected);
        }
    }

    /// Nothing is overcommitted, and of two of a course that need the same, the later is never placed instead of the
    /// earlier.
    #[test]
    fn a_pass_overtakes_only_with_less(
        (mut line, held) in some_line(),
        sizes in proptest::collection::vec(1..4_i64, 40),
        room in 0..30_i64,
        late in 0..120_u64,
    ) {
        for (w, gib) in line.iter_mut().zip(&sizes) {
            w.need = need(*gib);
        }
        in_line(&mut line, &held);
        let mut fleet = fleet(room);
        let turns = plan(&line, &mut fleet, T0 + Duration::from_secs(late));
        let used: i64 = line.iter().zip(&turns).filter(|(_, t)| t.outcome.is_ok()).map(|(w, _)| w.need.memory_bytes >> 30).sum();
        prop_assert!(used <= room);
        for (i, (w, turn)) in line.iter().zip(&turns).enumerate() {
            let later = line.iter().zip(&turns).skip(i + 1);
            let as_much = |o: &Waiting| o.need.memory_bytes >= w.need.memory_bytes;
            let overtaken = later.filter(|(o, t)| t.outcome.is_ok() && as_much(o)).count();
            prop_assert!(turn.outcome.is_ok() || overtaken == 0, "{w:?} was overtaken by one that needs as much");
        }
    }
}
