//! The table of verdicts, and the law that what runs is stopped only when something later is known.

use carrel_common::id::{Generation, PlacementId, WorkspaceUid};
use carrel_common::model::{Resources, WorkspaceSpec};
use proptest::prelude::*;
use time::macros::datetime;

use super::*;
use crate::domain::behind::REACH;

const NODE: NodeId = NodeId(uuid::Uuid::nil());
const DESK: WorkspaceUid = WorkspaceUid(uuid::Uuid::nil());

fn spec() -> WorkspaceSpec {
    WorkspaceSpec {
        image: "carrel/tiny:test".into(),
        resources: Resources { cpu_millicores: 1000, memory_bytes: 1 << 30, pids: 512 },
        probe_port: 8080,
        probe_path: "/healthz".into(),
    }
}

fn container((incarnation, generation): (i64, i64)) -> Container {
    Container {
        container_id: "c".into(),
        workspace: DESK,
        student: "ada".parse().expect("valid"),
        generation: Generation(generation),
        incarnation,
        node: NODE,
        running: true,
        placement: None,
        spec: None,
    }
}

fn desk(generation: i64) -> Workspace {
    let now = datetime!(2026-03-02 10:00:00 UTC);
    Workspace::new(DESK, "ada".parse().expect("valid"), Generation(generation), spec(), now)
}

fn placement((incarnation, generation): (i64, i64)) -> Placement {
    Placement {
        id: PlacementId(uuid::Uuid::nil()),
        workspace: DESK,
        node: NODE,
        generation: Generation(generation),
        incarnation,
        spec: spec(),
    }
}

/// A store of incarnation 2: generation of the desk, what is placed, what was placed last.
fn judged(
    found: (i64, i64),
    generation: i64,
    placed: Option<(i64, i64)>,
    newest: Option<(i64, i64)>,
) -> (Verdict, &'static str) {
    let (desk, placement) = (desk(generation), placed.map(placement));
    let newest = placed
        .or(newest)
        .map(|(incarnation, generation)| Pair { incarnation, generation: Generation(generation) });
    let known =
        Known { incarnation: 2, desk: Some(&desk), placement: placement.as_ref(), newest, here: true };
    let (found, judged) = (container(found), judge(&container(found), &known));
    // Where the student was never placed, what is not known to be over is told apart by that alone.
    let elsewhere = judge(&found, &Known { here: false, ..known });
    match judged.0 {
        Verdict::Stop | Verdict::StopByOrder => assert_eq!(elsewhere, judged),
        Verdict::Hold => assert_eq!(elsewhere, (Verdict::Hold, NOT_OF_THIS_NODE)),
    }
    let taken_in = may_take_in(&found, NODE, &known, false);
    assert_eq!(taken_in, judged.1 == FORGOTTEN);
    assert!(!may_take_in(&found, NODE, &known, true), "what another node runs is not taken from it");
    assert!(!may_take_in(&found, NodeId(uuid::Uuid::max()), &known, false), "nor what another node made");
    judged
}

const FORGOTTEN: &str = "FORGOTTEN_BY_THE_STORE";

#[test]
fn the_whole_table() {
    use Verdict::{Hold, Stop};
    let cases = [
        ("of a later incarnation", judged((3, 1), 5, None, None), (Hold, "LATER_THAN_THE_STORE")),
        ("below what is placed", judged((2, 4), 5, Some((2, 5)), None), (Stop, "GENERATION_SUPERSEDED")),
        (
            "of before, below what is placed",
            judged((1, 9), 5, Some((2, 5)), None),
            (Stop, "GENERATION_SUPERSEDED"),
        ),
        ("what is placed elsewhere", judged((2, 5), 5, Some((2, 5)), None), (Hold, "ANOTHER_IS_PLACED")),
        ("above what is placed", judged((2, 6), 5, Some((2, 5)), None), (Hold, "LATER_THAN_THE_STORE")),
        ("forgotten, above what is placed", judged((1, 6), 5, Some((1, 5)), None), (Hold, FORGOTTEN)),
        ("below the desk's generation", judged((2, 4), 5, None, None), (Stop, "GENERATION_SUPERSEDED")),
        ("released on proof", judged((2, 5), 5, None, Some((2, 5))), (Stop, "PLACEMENT_RELEASED")),
        ("released on proof before", judged((1, 5), 5, None, Some((1, 5))), (Stop, "PLACEMENT_RELEASED")),
        (
            "of before, the desk went on since",
            judged((1, 9), 6, None, Some((2, 6))),
            (Stop, "GENERATION_SUPERSEDED"),
        ),
        ("queued in the copy, placed since", judged((1, 6), 6, None, Some((1, 5))), (Hold, FORGOTTEN)),
        ("stopped in the copy, started since", judged((1, 6), 5, None, Some((1, 5))), (Hold, FORGOTTEN)),
        ("the store itself went back", judged((2, 6), 5, None, Some((2, 5))), (Hold, "LATER_THAN_THE_STORE")),
        ("never placed as far as is known", judged((2, 5), 5, None, None), (Hold, "NEVER_PLACED")),
        ("of before, as far as can be", judged((1, 5 + REACH), 5, None, None), (Hold, FORGOTTEN)),
        ("made up", judged((1, 6 + REACH), 5, None, None), (Hold, "LATER_THAN_THE_STORE")),
        ("made up, placed", judged((1, i64::MAX), 5, Some((1, 5)), None), (Hold, "LATER_THAN_THE_STORE")),
    ];
    for (what, judged, expected) in cases {
        assert_eq!(judged, expected, "{what}");
    }
}

#[test]
fn a_student_the_store_does_not_know_is_taken_in_where_the_container_was_made_before_the_declaration() {
    let known = Known { incarnation: 2, desk: None, placement: None, newest: None, here: false };
    for (found, taken_in) in [((1, 7), true), ((2, 7), false), ((3, 1), false), ((1, i64::MAX), false)] {
        let found = container(found);
        assert_eq!(judge(&found, &known), (Verdict::Hold, NOT_OF_THIS_NODE));
        assert_eq!(may_take_in(&found, NODE, &known, false), taken_in, "{found:?}");
        assert!(!may_take_in(&found, NodeId(uuid::Uuid::max()), &known, false));
    }
}

#[test]
fn a_container_of_a_deleted_desk_is_over_unless_it_is_later() {
    let deleted = Workspace { deleted_at: Some(datetime!(2026-03-02 11:00:00 UTC)), ..desk(5) };
    let known = Known { incarnation: 2, desk: Some(&deleted), placement: None, newest: None, here: true };
    let of = |pair| judge(&container(pair), &known).0;
    assert_eq!([of((1, 5)), of((2, 5)), of((1, 6))], [Verdict::Stop, Verdict::Stop, Verdict::Hold]);
    assert!(may_take_in(&container((1, 6)), NODE, &known, false));
}

proptest! {
    #[test]
    fn what_is_later_than_all_that_was_placed_and_asked_for_is_never_stopped(
        found in (1..4_i64, 1..9_i64), generation in 0..9_i64,
        placed in proptest::option::of((1..3_i64, 1..9_i64)), newest in proptest::option::of((1..3_i64, 1..9_i64)),
    ) {
        let highest = placed.or(newest);
        prop_assume!(highest.is_none_or(|highest| found > highest) && found.1 >= generation);
        prop_assert_ne!(judged(found, generation, placed, newest).0, Verdict::Stop);
    }

    #[test]
    fn nothing_is_taken_in_beside_something_as_late(
        found in (1..4_i64, 1..9_i64), generation in 0..9_i64, placed in (1..3_i64, 1..9_i64),
    ) {
        if judged(found, generation, Some(placed), None).1 == FORGOTTEN {
            prop_assert!(found > placed);
        }
    }
}
