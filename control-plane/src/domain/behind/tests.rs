//! What is proof and what is not, line by line; and the laws: no false alarm, no silence, and a declaration explains all.

use carrel_common::id::{NodeId, WorkspaceUid};
use proptest::prelude::*;

use super::*;

fn container(student: &str, incarnation: i64, generation: i64) -> Container {
    Container {
        container_id: format!("{student}-{incarnation}-{generation}"),
        workspace: WorkspaceUid(uuid::Uuid::nil()),
        student: student.parse().expect("valid"),
        generation: Generation(generation),
        incarnation,
        node: NodeId(uuid::Uuid::nil()),
        running: true,
        placement: None,
        spec: None,
    }
}

fn set(incarnation: i64, generation: i64) -> DesiredPair {
    DesiredPair { incarnation, generation }
}

fn count(incarnation: i64, heartbeats: i64) -> HeartbeatCount {
    HeartbeatCount { incarnation, heartbeats }
}

/// A store of incarnation 2 that knows ada up to generation 5 and has counted 100 heartbeats.
fn known() -> Known {
    Known {
        incarnation: 2,
        desired_generation: 40,
        heartbeats: 100,
        generations: HashMap::from([("ada".to_owned(), Generation(5))]),
    }
}

#[test]
fn what_is_proof_and_what_is_not() {
    for (what, accepted, proof) in [
        ("the set that the store made last", set(2, 40), false),
        ("a later set", set(2, 41), true),
        ("a later set of an earlier incarnation", set(1, 900), false),
        ("a set of a later incarnation", set(3, 1), true),
        ("a set of the last that can have been", set(2 + REACH, 1), true),
        ("a set of one after that", set(3 + REACH, 1), false),
    ] {
        let told = Told { accepted: Some(accepted), acked: None, containers: &[] };
        assert_eq!(evidence(&told, &known()).is_some(), proof, "{what}");
    }
    for (what, acked, proof) in [
        ("the heartbeats counted", count(2, 100), false),
        ("a few that a standby lost", count(2, 103), false),
        ("more than that", count(2, 104), true),
        ("many of an earlier incarnation", count(1, 9000), false),
        ("of an incarnation that cannot be", count(i64::MAX, 1), false),
    ] {
        let told = Told { accepted: None, acked: Some(acked), containers: &[] };
        assert_eq!(evidence(&told, &known()).is_some(), proof, "{what}");
    }
    for (what, found, proof) in [
        ("the generation known", container("ada", 2, 5), false),
        ("a lower one", container("ada", 2, 4), false),
        ("a higher one", container("ada", 2, 6), true),
        ("a higher one of an earlier incarnation", container("ada", 1, 9), false),
        ("any of a later incarnation", container("ada", 3, 1), true),
        ("a student the store does not know, alone", container("eve", 2, 7), false),
        ("the same of a later incarnation", container("eve", 3, 1), true),
        ("of an incarnation that cannot be", container("ada", i64::MAX, 6), false),
    ] {
        let told = Told { accepted: None, acked: None, containers: &[found] };
        assert_eq!(evidence(&told, &known()).is_some(), proof, "{what}");
    }
    assert_eq!(evidence(&Told { accepted: None, acked: None, containers: &[] }, &known()), None);
}

#[test]
fn students_are_told_apart_without_case() {
    let told = Told { accepted: None, acked: None, containers: &[container("Ada", 2, 6)] };
    assert!(evidence(&told, &known()).is_some());
}

#[test]
fn says_what_it_saw() {
    let (ada, uuid) = ("ada".parse::<StudentId>().expect("valid"), uuid::Uuid::nil());
    let told = |evidence: Option<Evidence>| evidence.expect("proof").to_string();
    let file = Pair { incarnation: 3, generation: Generation(9) };
    let of_ada = Pair { incarnation: 2, generation: Generation(5) };
    let holds = [container("ada", 2, 6)];
    insta::assert_snapshot!(
        [
            told(evidence(&Told { accepted: Some(set(2, 41)), acked: None, containers: &[] }, &known())),
            told(evidence(&Told { accepted: None, acked: Some(count(2, 200)), containers: &[] }, &known())),
            told(evidence(&Told { accepted: None, acked: None, containers: &holds }, &known())),
            told(Evidence::of_share(&ada, file, of_ada)),
            told(Evidence::of_share(&ada, Pair { incarnation: 2, ..file }, of_ada)),
            told(Evidence::of_twin(&ada, of_ada, PlacementId(uuid), 2)),
            told(Evidence::of_refusal(set(2, 40), set(2, 41))),
            Evidence::Node { cluster: None, containers: 3 }.to_string(),
            Evidence::Node { cluster: Some(ClusterId(uuid)), containers: 3 }.to_string(),
        ]
        .join("\n")
    );
    assert_eq!(Evidence::of_share(&ada, file, file), None);
    assert_eq!(Evidence::of_share(&ada, Pair { incarnation: i64::MAX, ..file }, of_ada), None);
    assert_eq!(Evidence::of_twin(&ada, of_ada, PlacementId(uuid), 3), None, "that was declared");
    assert_eq!(Evidence::of_refusal(set(2, 41), set(2, 41)), None);
}

fn any_containers() -> impl Strategy<Value = Vec<Container>> {
    let one =
        (0..4_u8, 1..4_i64, 1..9_i64).prop_map(|(student, i, g)| container(&format!("s{student}"), i, g));
    proptest::collection::vec(one, 0..6)
}

fn any_told() -> impl Strategy<Value = (Option<DesiredPair>, Option<HeartbeatCount>, Vec<Container>)> {
    let pair = proptest::option::of((1..4_i64, 0..50_i64));
    (pair.clone(), pair, any_containers()).prop_map(|(accepted, acked, containers)| {
        (accepted.map(|(i, g)| set(i, g)), acked.map(|(i, n)| count(i, n)), containers)
    })
}

/// A store of `incarnation` that has everything of that incarnation that was told.
fn complete(incarnation: i64, told: &Told<'_>) -> Known {
    let mut generations = HashMap::new();
    for container in told.containers.iter().filter(|container| container.incarnation == incarnation) {
        let known = generations.entry(container.student.key()).or_insert(container.generation);
        *known = container.generation.max(*known);
    }
    let now = |i: i64, n: i64| if i == incarnation { n } else { 0 };
    Known {
        incarnation,
        desired_generation: told.accepted.map_or(0, |pair| now(pair.incarnation, pair.generation)),
        heartbeats: told.acked.map_or(0, |acked| now(acked.incarnation, acked.heartbeats)),
        generations,
    }
}

proptest! {
    #[test]
    fn a_store_that_kept_everything_is_never_behind((accepted, acked, containers) in any_told()) {
        let told = Told { accepted, acked, containers: &containers };
        let store = complete(told.incarnation(), &told);
        prop_assert_eq!(evidence(&told, &store), None);
    }

    #[test]
    fn a_store_that_lost_a_set_or_a_generation_or_an_incarnation_is_behind(
        (accepted, acked, containers) in any_told(), lose in 0..3_u8,
    ) {
        let told = Told { accepted, acked, containers: &containers };
        let mut store = complete(told.incarnation(), &told);
        let lost = match lose {
            0 => accepted.filter(|pair| pair.incarnation == store.incarnation && pair.generation > 0).map(|pair| {
                store.desired_generation = pair.generation - 1;
            }),
            1 => containers.iter().find(|container| container.incarnation == store.incarnation).map(|container| {
                store.generations.insert(container.student.key(), Generation(container.generation.0 - 1));
            }),
            _ => (told.incarnation() > 0).then(|| store.incarnation -= 1),
        };
        prop_assume!(lost.is_some());
        prop_assert!(evidence(&told, &store).is_some());
    }

    #[test]
    fn a_declaration_above_all_that_was_seen_explains_everything(
        (accepted, acked, containers) in any_told(), desired_generation in 0..9_i64,
    ) {
        let told = Told { accepted, acked, containers: &containers };
        let incarnation = told.incarnation() + 1;
        let store = Known { incarnation, desired_generation, heartbeats: 0, generations: HashMap::new() };
        prop_assert_eq!(evidence(&told, &store), None);
    }
}
