//! A row of which nothing can be made holds up nobody but itself.

use std::time::Duration;

use control_plane::app::DrainOrder;
use control_plane::domain::workspace::State;

use crate::rig::{Rig, call};

/// Nothing can be made of the student's row from here on.
async fn spoil(rig: &Rig, student: &str) {
    let spoiled = r#"spec = '"spoiled"', warning = '"spoiled"'"#;
    rig.database.execute(&format!("UPDATE workspaces SET {spoiled} WHERE student_id = '{student}'")).await;
}

async fn state_of(rig: &Rig, student: &str) -> String {
    rig.database.text(&format!("SELECT state FROM workspaces WHERE student_id = '{student}'")).await
}

#[tokio::test]
async fn the_line_moves_past_it() {
    let rig = Rig::new().await;
    let node = rig.node(1).await;
    rig.running(node, "ada").await;
    for student in ["bob", "eve"] {
        assert_eq!(rig.start(student).await.unwrap().state, State::Pending);
    }
    spoil(&rig, "bob").await;
    rig.stop("ada").await;
    rig.obey(node).await;
    rig.app.place_waiting().await.unwrap();
    assert_eq!([state_of(&rig, "bob").await, state_of(&rig, "eve").await], ["PENDING", "STARTING"]);
    rig.end().await;
}

#[tokio::test]
async fn stays_that_are_too_long_end_beside_it() {
    let rig = Rig::with(|settings| settings.stays.pending = Duration::ZERO).await;
    let node = rig.node(1).await;
    rig.running(node, "ada").await;
    for student in ["bob", "eve"] {
        assert_eq!(rig.start(student).await.unwrap().state, State::Pending);
    }
    spoil(&rig, "bob").await;
    assert_eq!(rig.app.end_all_overdue().await.unwrap(), 1);
    assert_eq!([state_of(&rig, "bob").await, state_of(&rig, "eve").await], ["PENDING", "FAILED"]);
    rig.end().await;
}

#[tokio::test]
async fn a_lost_node_lets_go_of_the_others() {
    let rig = Rig::with(|settings| settings.unreachable_after = Duration::ZERO).await;
    let node = rig.node(4).await;
    for student in ["ada", "bob", "eve"] {
        rig.running(node, student).await;
    }
    spoil(&rig, "ada").await;
    assert_eq!(
        rig.app.deadlines_on(node).await.unwrap().0.len(),
        2,
        "the node hears of the others' deadlines"
    );
    assert_eq!(rig.app.give_up_node(node).await.unwrap(), 2);
    let (renewals, _) = rig.app.store.node_renewals(node).await.unwrap().unwrap();
    assert!(rig.app.fence_node(node, renewals).await.unwrap());
    assert_eq!(rig.app.release_lost().await.unwrap(), 2);
    for student in ["bob", "eve"] {
        assert_ne!(state_of(&rig, student).await, "UNREACHABLE", "{student}");
    }
    assert_eq!(rig.app.store.releasing_nodes().await.unwrap(), [node], "it is not finished with");
    rig.end().await;
}

#[tokio::test]
async fn a_drain_moves_the_others() {
    let rig = Rig::new().await;
    let old = rig.node(4).await;
    for student in ["ada", "bob", "eve"] {
        rig.start(student).await.unwrap();
    }
    rig.node(4).await;
    spoil(&rig, "ada").await;
    let order = DrainOrder {
        within: rig.app.settings.defaults.idle.warning_lead,
        reason: "new disks".into(),
        force: false,
        validate_only: false,
    };
    let drained = rig.app.drain(&call("DrainNode"), old, &order).await.unwrap();
    assert_eq!(drained.students.len(), 2);
    assert_eq!(rig.app.see_to_drains().await.unwrap(), 2);
    assert_eq!(state_of(&rig, "ada").await, "STARTING");
    for student in ["bob", "eve"] {
        assert_ne!(state_of(&rig, student).await, "STARTING", "{student}");
    }
    rig.end().await;
}
