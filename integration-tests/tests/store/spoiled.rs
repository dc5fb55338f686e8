//! A row of which nothing can be made holds up nobody but itself.

use std::time::Duration;

use carrel_common::model::{Observation, Observed};
use control_plane::app::{AppError, DrainOrder, SentSet};
use control_plane::domain::workspace::State;

use crate::reports::still_running;
use crate::restored::containers;
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

/// Nothing can be made of the student's desk, or of its placement, until it is mended.
const SPOILS: [[&str; 2]; 2] = [
    [
        r#"UPDATE workspaces SET spec = '"spoiled"' WHERE student_id = 'bob'"#,
        "UPDATE workspaces SET spec = p.spec FROM placements p WHERE p.workspace_id = workspaces.id AND student_id = 'bob'",
    ],
    [
        r#"UPDATE placements SET spec = '"spoiled"' FROM workspaces w WHERE w.id = workspace_id AND student_id = 'bob'"#,
        "UPDATE placements SET spec = w.spec FROM workspaces w WHERE w.id = workspace_id AND student_id = 'bob'",
    ],
];

#[tokio::test]
async fn a_node_is_told_of_the_others_and_of_it_again_once_it_can_be_read() {
    for [spoil, mend] in SPOILS {
        let rig = Rig::new().await;
        let node = rig.node(4).await;
        for student in ["ada", "bob"] {
            rig.running(node, student).await;
        }
        let (whole, all) = (rig.desired_set(node).await, containers(&rig, node).await);
        let told_after = async |sent| rig.app.desired_set(node, Some(&SentSet::from(sent))).await.unwrap();
        assert_eq!(told_after(&whole).await, None);

        rig.database.execute(spoil).await;
        let part = told_after(&whole).await.expect("it says less");
        let named: Vec<_> = part.items.iter().map(|item| item.student.as_str()).collect();
        assert_eq!((named, part.pair > whole.pair), (vec!["ada"], true));
        assert_eq!(told_after(&part).await, None, "it is told once");
        let judged = rig.judge_report(node, &all, &[]).await;
        let judged: Vec<_> = judged.into_iter().map(|judged| judged.container_id).collect();
        assert_eq!(judged, ["c-ada-1"], "nothing is said of what was left out, least of all that it is over");
        let next_session = rig.desired_set(node).await;
        assert_eq!((&next_session.digest, next_session.pair > part.pair), (&part.digest, true));
        let word = "UPDATE nodes SET desired_generation = desired_generation + 1";
        rig.database.execute(word).await;
        assert!(told_after(&next_session).await.is_some(), "as an operator's word on an orphan does");

        rig.database.execute(mend).await;
        let sent = told_after(&whole).await.unwrap();
        assert_eq!((&sent.digest, sent.pair > next_session.pair), (&whole.digest, true));
        assert_eq!(told_after(&sent).await, None);
        rig.end().await;
    }
}

#[tokio::test]
async fn reports_on_the_others_are_committed() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let (ada, bob) = (rig.running(node, "ada").await, rig.running(node, "bob").await);
    let told = [&bob, &ada].map(|desk| Observation {
        state: Observed::Running { endpoint: "127.0.0.1:2".into() },
        ..still_running(desk)
    });
    let [spoil, mend] = SPOILS[0];
    rig.database.execute(spoil).await;
    let epoch = rig.epoch(node).await;
    assert_eq!(rig.app.observe(node, epoch, &told).await.unwrap(), [(ada.uid, 2)], "the other is told again");
    rig.database.execute(mend).await;
    let endpoints = [rig.get("ada").await, rig.get("bob").await].map(|desk| desk.endpoint.unwrap());
    assert_eq!(endpoints, ["127.0.0.1:2", "127.0.0.1:1"]);

    rig.database.execute(spoil).await;
    let over = rig.app.observe(node, epoch - 1, &told).await;
    assert!(matches!(over, Err(AppError::SessionSuperseded(_))), "{over:?}");
    rig.end().await;
}
