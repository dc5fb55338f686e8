use std::time::Duration;

use carrel_common::id::{NodeId, RequestId};
use carrel_common::model::{Health, Observed, StatusReason};
use control_plane::app::{AppError, Call, Greeting, HeartbeatOutcome};
use control_plane::domain::node::{NodeState, Standing};
use control_plane::domain::policy::{Policy, Scope};
use control_plane::domain::workspace::{State, Workspace};

use crate::rig::{GIB, Rig, call, secret_of};

#[tokio::test]
async fn nodes_are_listed_in_pages_with_what_they_hold() {
    let rig = Rig::new().await;
    let mut nodes = vec![rig.node(4).await, rig.node(4).await, rig.node(4).await];
    nodes.sort();
    rig.start("ada").await.unwrap();
    let (first, next) = rig.app.nodes(None, false, 2).await.unwrap();
    let (second, end) = rig.app.nodes(next, false, 2).await.unwrap();
    let listed: Vec<_> = first.iter().chain(&second).map(|load| load.node.id).collect();
    assert_eq!((listed, end), (nodes, None));
    let held: Vec<_> = first.iter().chain(&second).filter(|load| load.count > 0).collect();
    let [load] = held[..] else { panic!("one placement was made: {held:?}") };
    assert_eq!((load.allocated.memory_bytes, load.allocated.pids, load.count), (GIB, 512, 1));
    assert_eq!((load.capacity.cpu_millicores, load.capacity.memory_bytes), (200_000, 4 * GIB));
    assert_eq!(load.node.standing(), Standing::Ready);
    rig.end().await;
}

#[tokio::test]
async fn limits_that_nobody_can_add_up_keep_no_node_from_being_shown() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let boundless = Policy { pids: Some(i64::MAX), ..Policy::default() };
    rig.app.set_policy(&call("SetPolicy"), &Scope::Site, "", &boundless).await.unwrap();
    for student in ["ada", "bob"] {
        rig.start(student).await.unwrap();
    }
    let (all, _) = rig.app.nodes(None, false, 10).await.unwrap();
    assert_eq!((all[0].allocated.pids, all[0].count), (i64::MAX, 2));
    assert_eq!(rig.app.node(node).await.unwrap(), all[0]);
    rig.end().await;
}

#[tokio::test]
async fn nothing_is_placed_on_a_cordoned_node_until_it_is_uncordoned() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let ada = rig.running(node, "ada").await;
    let again = Call { request_id: Some(RequestId::new()), ..call("CordonNode") };
    let cordoned = rig.app.cordon(&again, node, "a disk makes noises").await.unwrap();
    assert_eq!(cordoned.node.cordon.as_deref(), Some("a disk makes noises"));
    assert_eq!(rig.get("ada").await, ada, "what runs goes on");
    let waits = rig.start("bob").await.unwrap();
    assert_eq!((waits.state, waits.status_reason), (State::Pending, Some(StatusReason::NoNodeReady)));

    // Once more has no effect, and the same call gives the same answer.
    rig.app.cordon(&call("CordonNode"), node, "another reason").await.unwrap();
    assert_eq!(rig.app.cordon(&again, node, "a disk makes noises").await.unwrap(), cordoned);
    let told = "SELECT string_agg(kind || ' ' || actor, ', ' ORDER BY id) FROM events WHERE kind LIKE 'node.%cordoned'";
    assert_eq!(rig.database.text(told).await, "node.cordoned operator");

    let back = rig.app.uncordon(&call("UncordonNode"), node, "").await.unwrap();
    assert_eq!(back.node.cordon, None);
    rig.app.place_waiting().await.unwrap();
    assert_eq!(rig.get("bob").await.state, State::Starting);
    rig.end().await;
}

#[tokio::test]
async fn a_node_is_removed_only_when_empty_and_then_for_good() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    let remove = |only| {
        let app = rig.app.clone();
        async move { app.remove_node(&call("RemoveNode"), node, "sold", only).await }
    };
    let full = remove(false).await;
    assert!(matches!(full, Err(AppError::NodeNotEmpty { remaining: 1, .. })), "{full:?}");
    rig.stop("ada").await;
    rig.obey(node).await;
    assert_eq!(remove(true).await.unwrap().node.standing(), Standing::Removed, "it says what would be");
    assert_eq!(rig.app.node(node).await.unwrap().node.removed_at, None, "it was only asked");
    assert_eq!(remove(false).await.unwrap().node.standing(), Standing::Removed);

    // Its session ends, it gets no other, nothing is placed there, and it is kept for who asks.
    let epoch: i64 = rig.database.text("SELECT session_epoch::text FROM nodes").await.parse().unwrap();
    let healthy =
        carrel_common::model::Health { problem: None, age: std::time::Duration::ZERO, latency: None };
    let facts = rig.app.node(node).await.unwrap().node.facts;
    let banned = [
        rig.app.desired_set(node, None).await.err(),
        rig.app.heartbeat_node(node, epoch, &healthy, &healthy).await.err(),
        rig.app.accept_session(&secret_of(node), &Greeting::of(facts, true)).await.err(),
    ];
    assert!(banned.iter().all(|error| matches!(error, Some(AppError::NodeBanned(_)))), "{banned:?}");
    let nowhere = rig.start("bob").await;
    assert!(matches!(nowhere, Err(AppError::NoHealthyNode { .. })), "{nowhere:?}");
    assert_eq!(rig.app.nodes(None, false, 50).await.unwrap(), (vec![], None));
    assert_eq!(rig.app.nodes(None, true, 50).await.unwrap().0.len(), 1);
    let refused = rig.app.cordon(&call("CordonNode"), node, "").await;
    assert!(matches!(refused, Err(AppError::NodeRemoved(_))), "{refused:?}");
    rig.end().await;
}

/// What a session does after a begin: tells everything, then gives a sign of life; again, if the node had been given up.
async fn session(rig: &Rig, node: NodeId, desks: &[Workspace]) {
    loop {
        rig.reconnect(node).await;
        for desk in desks {
            let running = Observed::Running { endpoint: "127.0.0.1:1".into() };
            rig.report(node, desk.uid, desk.generation, running).await;
        }
        let healthy = Health { problem: None, age: Duration::ZERO, latency: None };
        let epoch = rig.epoch(node).await;
        let heard = rig.app.heartbeat_node(node, epoch, &healthy, &healthy).await.unwrap();
        if matches!(heard, HeartbeatOutcome::Committed(_)) {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_desk_stays_unreachable_on_a_node_that_is_heard_while_it_is_given_up() {
    let rig = Rig::with(|settings| settings.unreachable_after = Duration::ZERO).await;
    let node = rig.node(8).await;
    let mut desks = vec![];
    for student in ["ada", "bob", "eve", "kim", "lea", "tom"] {
        desks.push(rig.running(node, student).await);
    }
    for round in 0..40 {
        let given_up = async {
            tokio::time::sleep(Duration::from_micros(rand::random_range(0..8000))).await;
            rig.app.give_up_node(node).await.unwrap();
        };
        tokio::join!(given_up, session(&rig, node, &desks));
        if rig.app.node(node).await.unwrap().node.state == NodeState::Unreachable {
            session(&rig, node, &desks).await;
        }
        for desk in &desks {
            let state = rig.get(desk.student.as_str()).await.state;
            assert_eq!(state, State::Running, "round {round}: nobody will tell of it again");
        }
    }
    rig.end().await;
}
