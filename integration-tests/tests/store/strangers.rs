//! What a node tells of students who are not its own, with a certificate that counts: a host that was stolen tells what it likes.

use carrel_common::id::{Generation, NodeId, WorkspaceUid};
use carrel_common::model::{Container, Verdict};
use control_plane::app::AppError;
use control_plane::domain::workspace::State;

use crate::orphans::{container, judge, listed};
use crate::restored::{declare, greeting, restored, unknown_hosts_are_over};
use crate::rig::{Rig, call, id};

const HELD: (Verdict, &str) = (Verdict::Hold, "NOT_OF_THIS_NODE");

/// What an operator is told.
async fn told(rig: &Rig) -> String {
    let held = "SELECT count(*) || ' ' || min(reason) FROM events WHERE kind = 'orphan.held'";
    rig.database.text(held).await
}

/// A node that tells of `container`, again and again.
async fn tells(rig: &Rig, node: NodeId, container: &Container) {
    for _ in 0..2 {
        assert_eq!(judge(rig, node, std::slice::from_ref(container)).await, [HELD]);
    }
    assert_eq!(told(rig).await, "1 NOT_OF_THIS_NODE");
    assert_eq!(listed(rig).await, [("lie".to_owned(), "NOT_OF_THIS_NODE".to_owned())]);
    assert_eq!(rig.database.behind().await, "", "nobody else waits either");
}

#[tokio::test]
async fn a_container_of_a_desk_that_is_placed_elsewhere_changes_nothing_of_it_and_holds_up_no_start() {
    let rig = Rig::new().await;
    let home = rig.node(4).await;
    let ada = rig.running(home, "ada").await;
    let (thief, placements) = (rig.node(0).await, "SELECT string_agg(p::text, ' ') FROM placements p");
    let before = rig.database.text(placements).await;
    for generation in [ada.generation.0, i64::MAX] {
        let lie = container("lie", ada.uid, "ada", generation, thief);
        tells(&rig, thief, &lie).await;
        assert_eq!(rig.get("ada").await, ada);
        assert_eq!(rig.database.text(placements).await, before);
    }
    // Restarted, stopped and started, moved and deleted as if nothing had been told.
    rig.app.restart(&call("RestartWorkspace"), &id("ada")).await.unwrap();
    rig.obey(home).await;
    assert_eq!(rig.get("ada").await.state, State::Starting);
    rig.obey(home).await;
    rig.stop("ada").await;
    rig.obey(home).await;
    assert_eq!(rig.start("ada").await.unwrap().state, State::Starting);
    rig.end().await;
}

#[tokio::test]
async fn a_container_of_a_student_it_never_had_is_not_taken_in_and_holds_up_no_start() {
    let rig = Rig::new().await;
    let (home, thief) = (rig.node(4).await, rig.node(0).await);
    for incarnation in [0, 1, 2] {
        let lie = Container { incarnation, ..container("lie", WorkspaceUid::new(), "eve", 7, thief) };
        tells(&rig, thief, &lie).await;
    }
    assert!(matches!(rig.app.get(&id("eve")).await, Err(AppError::WorkspaceNotFound(_))));
    // Told once more in a Hello, that proves nothing of the store either.
    let lie = container("lie", WorkspaceUid::new(), "eve", 7, thief);
    let eve = rig.start("eve").await.unwrap();
    rig.hello(thief, &greeting(&rig, thief, vec![lie]).await).await;
    assert_eq!(rig.database.behind().await, "");
    assert_eq!((eve.state, eve.node, eve.generation), (State::Starting, Some(home), Generation(1)));
    // Nor does it keep itself from being taken out.
    rig.app.remove_node(&call("RemoveNode"), thief, "stolen", false).await.unwrap();
    rig.end().await;
}

#[tokio::test]
async fn after_a_restore_a_node_that_has_told_what_it_runs_takes_nothing_over() {
    let rig = Rig::new().await;
    let (home, thief) = (rig.node(4).await, rig.node(4).await);
    rig.app.cordon(&call("CordonNode"), thief, "").await.unwrap();
    rig.running(home, "ada").await;
    restored(&rig, home).await;
    rig.obey(home).await;
    let ada = rig.get("ada").await;
    // In the one Hello in which it is asked, of what another host has told already; and later, of whomever.
    let lie = Container { incarnation: 1, ..container("lie", ada.uid, "ada", 99, thief) };
    rig.hello(thief, &greeting(&rig, thief, vec![lie.clone()]).await).await;
    assert_eq!(rig.get("ada").await, ada);
    tells(&rig, thief, &lie).await;
    let lie = container("lie", WorkspaceUid::new(), "eve", 7, thief);
    assert_eq!(judge(&rig, thief, &[lie]).await, [HELD]);
    unknown_hosts_are_over(&rig).await;
    assert_eq!(rig.start("eve").await.unwrap().node, Some(home));
    rig.end().await;
}

#[tokio::test]
async fn a_student_who_was_there_once_is_held_up_there_and_taken_over_by_nobody() {
    let rig = Rig::new().await;
    let before = rig.node(4).await;
    rig.was_on(before, "ada").await;
    rig.app.cordon(&call("CordonNode"), before, "").await.unwrap();
    let home = rig.node(4).await;
    declare(&rig, false).await;
    for node in [before, home] {
        rig.hello(node, &greeting(&rig, node, vec![]).await).await;
    }
    let ada = rig.running(home, "ada").await;
    let late = container("late", ada.uid, "ada", 99, before);
    assert_eq!(judge(&rig, before, &[late]).await, [(Verdict::Stop, "GENERATION_SUPERSEDED")]);
    let late = Container { incarnation: 2, ..container("late", ada.uid, "ada", 99, before) };
    assert_eq!(judge(&rig, before, &[late]).await, [(Verdict::Hold, "LATER_THAN_THE_STORE")]);
    assert_eq!(rig.get("ada").await, ada);
    rig.end().await;
}
