//! A row of which nothing can be made holds up nobody but itself.

use std::time::Duration;

use carrel_common::model::{Observation, Observed, Signal};
use carrel_proto::v1 as pb;
use carrel_proto::v1::heartbeat_result::Result as Told;
use carrel_proto::v1::workspace_service_server::WorkspaceService as _;
use control_plane::app::{AppError, DrainOrder, SentSet};
use control_plane::domain::policy::{Policy, Scope};
use control_plane::domain::workspace::State;
use control_plane::grpc::{Following, Workspaces};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Request;

use crate::reports::still_running;
use crate::restored::containers;
use crate::rig::{Rig, beat, call};

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
    let node = rig.node(2).await;
    for student in ["ada", "zoe"] {
        rig.running(node, student).await;
    }
    for student in ["bob", "eve"] {
        assert_eq!(rig.start(student).await.unwrap().state, State::Pending);
    }
    spoil(&rig, "bob").await;
    rig.database.execute("UPDATE workspaces SET course_id = 'a b' WHERE student_id = 'zoe'").await;
    assert_eq!(rig.get("eve").await.state, State::Pending, "her place in line is told");
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

#[tokio::test]
async fn the_other_nodes_are_listed_and_why_they_take_nothing_is_told() {
    let rig = Rig::new().await;
    let mut nodes = [rig.node(4).await, rig.node(4).await];
    nodes.sort();
    let [spoiled, other] = nodes;
    rig.database.execute(&format!(r#"UPDATE nodes SET facts = '"spoiled"' WHERE id = '{spoiled}'"#)).await;
    assert_eq!(rig.app.nodes(None, false, 1).await.unwrap(), (vec![], Some(spoiled)));
    let (shown, next) = rig.app.nodes(Some(spoiled), false, 1).await.unwrap();
    let shown: Vec<_> = shown.into_iter().map(|load| load.node.id).collect();
    assert_eq!((shown, next), (vec![other], None));

    let away = r#"UPDATE nodes SET state = 'DEGRADED',
                         docker = jsonb_set(docker, '{problem}', '["DOCKER_UNREACHABLE", "It is away."]')"#;
    rig.database.execute(away).await;
    let refused = rig.start("ada").await;
    assert!(
        matches!(&refused, Err(AppError::NoHealthyNode { reason, .. }) if reason == "DOCKER_UNREACHABLE"),
        "{refused:?}"
    );
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

/// What callers reach, and what ends its streams.
fn door(rig: &Rig) -> (Workspaces, CancellationToken) {
    let stop = CancellationToken::new();
    (Workspaces::new(rig.app.clone(), Following { stop: stop.clone() }, TaskTracker::new()), stop)
}

fn reason(result: &pb::HeartbeatResult) -> &str {
    match &result.result {
        Some(Told::Error(error)) => &error.reason,
        Some(Told::Idle(_)) => "recorded",
        None => "nothing",
    }
}

#[tokio::test]
async fn heartbeats_of_the_others_count() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    for student in ["ada", "bob", "eve"] {
        rig.running(node, student).await;
    }
    rig.stop("eve").await;
    rig.obey(node).await;
    spoil(&rig, "ada").await;
    rig.database.execute(r#"UPDATE workspaces SET stop = '"spoiled"' WHERE student_id = 'eve'"#).await;
    let (door, _) = door(&rig);
    let minute = prost_types::Duration { seconds: 60, nanos: 0 };
    for (signal, keep_awake) in [(pb::Signal::LmsInput, None), (pb::Signal::Job, Some(minute))] {
        let of = |student| {
            let mut heartbeat = pb::RecordHeartbeatRequest {
                name: format!("workspaces/{student}"),
                keep_awake,
                ..Default::default()
            };
            heartbeat.set_signal(signal);
            heartbeat
        };
        let heartbeats = ["ada", "bob", "eve"].map(of).to_vec();
        let told = door.record_heartbeats(Request::new(pb::RecordHeartbeatsRequest { heartbeats })).await;
        let told = told.unwrap().into_inner().results;
        let told: Vec<_> = told.iter().map(reason).collect();
        assert_eq!(told, ["INTERNAL", "recorded", "INTERNAL"], "{signal:?}");
    }
    let kept = "SELECT concat(w.student_id, ' ', a.lms_input_at IS NOT NULL, ' ', a.awake_until IS NOT NULL)
                FROM workspaces w JOIN workspace_activity a ON a.workspace_id = w.id WHERE student_id = ";
    assert_eq!(rig.database.text(&format!("{kept} 'ada'")).await, "ada t f");
    assert_eq!(rig.database.text(&format!("{kept} 'bob'")).await, "bob t t");
    // Those who come singly share a batch, too.
    let singly = ["ada", "bob"]
        .map(|student| rig.app.record(vec![beat(student, Signal::KeepWorking, Duration::ZERO)]));
    let told = futures_util::future::join_all(singly).await;
    let counted: Vec<_> = told.into_iter().map(|answers| answers.unwrap()[0].is_ok()).collect();
    assert_eq!(counted, [false, true]);
    rig.end().await;
}

#[tokio::test]
async fn lists_and_watches_show_the_others() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    for student in ["ada", "bob"] {
        rig.running(node, student).await;
    }
    spoil(&rig, "ada").await;
    let (door, stop) = door(&rig);
    let mut shown = Vec::new();
    let mut page_token = String::new();
    for _ in 0..2 {
        let request = pb::ListWorkspacesRequest { page_size: 1, page_token, ..Default::default() };
        let page = door.list_workspaces(Request::new(request)).await.unwrap().into_inner();
        shown.push(page.workspaces.into_iter().map(|workspace| workspace.student_id).collect::<Vec<_>>());
        page_token = page.next_page_token;
    }
    assert_eq!((shown, page_token.as_str()), (vec![vec![], vec!["bob".to_owned()]], ""));

    let watch = door.watch_workspaces(Request::new(pb::WatchWorkspacesRequest::default())).await;
    let changes = watch.unwrap().into_inner().map(|told| told.unwrap().change.unwrap());
    let mut students = changes.map(|change| change.workspace.map(|workspace| workspace.student_id));
    assert_eq!(students.next().await, Some(Some("bob".into())), "the snapshot");
    assert_eq!(students.next().await, Some(None), "it is whole");
    rig.database
        .execute("INSERT INTO events (kind, workspace_id, student_id, actor, reason, data)
                  SELECT 'workspace.extended', id, student_id, 'CALLER', '', '{}' FROM workspaces ORDER BY student_id")
        .await;
    assert_eq!(students.next().await, Some(Some("bob".into())), "a change of both");
    stop.cancel();

    for scope in ["course-a", "course-b"] {
        let scope: Scope = scope.parse().unwrap();
        rig.app.set_policy(&call("SetPolicy"), &scope, "", &Policy::default()).await.unwrap();
    }
    rig.database.execute(r#"UPDATE policies SET policy = '"spoiled"' WHERE scope = 'course-a'"#).await;
    let (policies, next) = rig.app.policies("", 1).await.unwrap();
    assert_eq!((policies, next.as_deref()), (vec![], Some("course-a")));
    let (policies, next) = rig.app.policies("course-a", 1).await.unwrap();
    assert_eq!((policies.len(), next), (1, None));
    rig.end().await;
}
