//! Starts that fail on one node come up on another, and a node that keeps failing takes itself out.

use carrel_common::id::{NodeId, WorkspaceUid};
use carrel_common::model::{Observed, Run, StatusReason};
use control_plane::domain::workspace::{State, Workspace};
use control_plane::store::EventQuery;

use crate::rig::{Rig, call, id};

/// What agents do of which those on `broken` nodes fail each start: until nothing is left to be done.
async fn obey_all(rig: &Rig, nodes: &[NodeId], broken: &[NodeId], why: StatusReason) {
    for _ in 0..20 {
        let mut idle = true;
        for node in nodes {
            for item in rig.desired_set(*node).await.items {
                let known = rig.app.store.workspaces_by_uid(vec![item.workspace]).await.unwrap().remove(0);
                let state = match item.run {
                    Run::Stopped { .. } => Observed::Gone { purge: Ok(false) },
                    Run::Running { .. } if known.state == State::Running => continue,
                    Run::Running { .. } if broken.contains(node) => Observed::Failed(why),
                    Run::Running { .. } => Observed::Running { endpoint: "127.0.0.1:1".into() },
                };
                idle = false;
                rig.report(*node, item.workspace, item.generation, state).await;
            }
        }
        idle &= rig.app.place_waiting().await.unwrap() == 0;
        if idle {
            return;
        }
    }
    panic!("the agents never come to rest");
}

async fn start_many(rig: &Rig, from: usize, count: usize) -> Vec<String> {
    let names: Vec<_> = (from..from + count).map(|n| format!("s{n:03}")).collect();
    for name in &names {
        rig.start(name).await.unwrap();
    }
    names
}

async fn all(rig: &Rig, names: &[String]) -> Vec<Workspace> {
    let mut all = Vec::new();
    for name in names {
        all.push(rig.get(name).await);
    }
    all
}

async fn events(rig: &Rig, kind: &str) -> Vec<control_plane::store::StoredEvent> {
    let query = EventQuery { kinds: vec![kind.into()], ..EventQuery::default() };
    rig.app.store.list_events(&query, 500).await.unwrap()
}

async fn failures(rig: &Rig, node: NodeId) -> i64 {
    rig.app.node(node).await.unwrap().start_failures
}

#[tokio::test]
async fn one_broken_node_of_eight_fails_three_starts_which_come_up_elsewhere_and_is_cordoned() {
    let rig = Rig::new().await;
    let mut nodes = Vec::new();
    for _ in 0..8 {
        nodes.push(rig.node(32).await);
    }
    let broken = nodes[3];
    let first = start_many(&rig, 0, 24).await;
    obey_all(&rig, &nodes, &[broken], StatusReason::RuntimeError).await;
    let later = start_many(&rig, 24, 40).await;
    obey_all(&rig, &nodes, &[broken], StatusReason::RuntimeError).await;
    for workspace in all(&rig, &[first, later].concat()).await {
        assert_eq!((workspace.state, workspace.attempts), (State::Running, None), "{}", workspace.student);
        assert_ne!(workspace.node, Some(broken));
    }
    let failed = events(&rig, "workspace.retried").await;
    assert_eq!(failed.len(), 3, "{failed:#?}");
    assert!(failed.iter().all(|event| event.node == Some(broken)));
    let cordoned = events(&rig, "node.cordoned").await;
    let told: Vec<_> = cordoned.iter().map(|e| (e.node, e.actor.as_str(), e.reason.as_str())).collect();
    assert_eq!(told, [(Some(broken), "control-plane", "START_FAILURES")]);
    let shown = rig.app.node(broken).await.unwrap();
    assert!(shown.node.cordon.is_some_and(|why| why.starts_with("by Carrel")));
    assert_eq!(shown.start_failures, 3);

    // Mended, and back in service: what was held against it is forgotten.
    rig.app.uncordon(&call("UncordonNode"), broken, "a new disk").await.unwrap();
    assert_eq!(failures(&rig, broken).await, 0);
    let last = start_many(&rig, 64, 6).await;
    obey_all(&rig, &nodes, &[], StatusReason::RuntimeError).await;
    assert!(
        all(&rig, &last).await.iter().all(|workspace| workspace.node == Some(broken)),
        "it is the emptiest"
    );
    rig.end().await;
}

#[tokio::test]
async fn a_start_that_fails_everywhere_ends_after_three_nodes_and_takes_no_node_out() {
    let rig = Rig::new().await;
    let mut nodes = Vec::new();
    for _ in 0..5 {
        nodes.push(rig.node(8).await);
    }
    let names = start_many(&rig, 0, 30).await;
    obey_all(&rig, &nodes, &nodes, StatusReason::RuntimeError).await;
    for workspace in all(&rig, &names).await {
        assert_eq!(
            (workspace.state, workspace.status_reason, workspace.generation.0),
            (State::Failed, Some(StatusReason::RuntimeError), 3)
        );
    }
    assert_eq!(events(&rig, "node.cordoned").await, []);

    // It was mended, and all press Start again: that these come up proves nothing of those.
    start_many(&rig, 0, 30).await;
    obey_all(&rig, &nodes, &[], StatusReason::RuntimeError).await;
    assert!(all(&rig, &names).await.iter().all(|workspace| workspace.state == State::Running));
    assert_eq!(events(&rig, "node.cordoned").await, []);
    rig.end().await;
}

#[tokio::test]
async fn of_two_nodes_that_prove_to_fail_at_one_moment_one_is_left() {
    let rig = Rig::new().await;
    rig.node(8).await;
    rig.node(8).await;
    // Each has failed four starts that came up elsewhere, and one that has yet to.
    let mut moved = Vec::new();
    for student in ["ada", "bob"] {
        let desk = rig.start(student).await.unwrap();
        let first = desk.node.unwrap();
        for seen in [Observed::Failed(StatusReason::RuntimeError), Observed::Gone { purge: Ok(false) }] {
            rig.report(first, desk.uid, desk.generation, seen).await;
        }
        rig.app.place_waiting().await.unwrap();
        moved.push(rig.get(student).await);
    }
    let (ada, bob) = (&moved[0], &moved[1]);
    assert!(ada.node.is_some() && bob.node.is_some() && ada.node != bob.node, "{moved:?}");
    for statement in [
        "INSERT INTO start_failures (node_id, workspace_id, reason, proven)
         SELECT id, gen_random_uuid(), 'RUNTIME_ERROR', true FROM nodes, generate_series(1, 4)",
        "UPDATE start_failures SET over = true",
    ] {
        rig.database.execute(statement).await;
    }
    // Both have looked before either is cordoned.
    let held = rig.database.hold("SELECT 1 FROM nodes FOR NO KEY UPDATE").await;
    let up = |desk: &Workspace| {
        let endpoint = "127.0.0.1:1".into();
        rig.report(desk.node.unwrap(), desk.uid, desk.generation, Observed::Running { endpoint })
    };
    let release = async {
        rig.database.until_waiting(2).await;
        drop(held);
    };
    tokio::join!(up(ada), up(bob), release);
    assert_eq!(events(&rig, "node.cordoned").await.len(), 1);
    assert!(all(&rig, &["ada".into(), "bob".into()]).await.iter().all(|desk| desk.state == State::Running));
    rig.end().await;
}

#[tokio::test]
async fn starts_that_come_up_on_each_others_former_nodes_do_not_wait_in_a_circle() {
    let rig = Rig::new().await;
    let (one, two) = (rig.node(8).await, rig.node(8).await);
    let (ada, bob) = (rig.start("ada").await.unwrap().uid, rig.start("bob").await.unwrap().uid);
    let failed = format!(
        "INSERT INTO start_failures (node_id, workspace_id, reason)
         VALUES ('{one}', gen_random_uuid(), ''), ('{one}', '{ada}', ''), ('{two}', '{bob}', '')"
    );
    rig.database.execute(&failed).await;
    let held = rig.database.hold("SELECT 1 FROM start_failures ORDER BY id LIMIT 1 FOR UPDATE").await;
    let came_up = async |node: NodeId, uid: WorkspaceUid| {
        let mut work = rig.app.store.begin().await.unwrap();
        let proven = work.starts_came_up(node, &[uid]).await.unwrap();
        work.commit().await.unwrap();
        proven
    };
    let later = async {
        // The first has got as far as it can.
        rig.database.until_waiting(1).await;
        let release = async {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            drop(held);
        };
        tokio::join!(came_up(two, ada), release).0
    };
    assert_eq!(tokio::join!(came_up(one, bob), later), (vec![two], vec![one]));
    rig.end().await;
}

#[tokio::test]
async fn a_start_moves_to_another_node_only_once_the_first_has_let_go() {
    let rig = Rig::new().await;
    let (one, two) = (rig.node(8).await, rig.node(8).await);
    let ada = rig.start("ada").await.unwrap();
    let first = ada.node.unwrap();
    let second = if first == one { two } else { one };
    rig.report(first, ada.uid, ada.generation, Observed::Failed(StatusReason::StartTimeout)).await;
    let waiting = rig.get("ada").await;
    assert_eq!(
        (waiting.state, waiting.status_reason, waiting.node),
        (State::Pending, Some(StatusReason::PreviousStopping), Some(first))
    );
    assert_eq!(waiting.started_at, ada.started_at, "it keeps its place in the line");
    rig.app.place_waiting().await.unwrap();
    assert_eq!(rig.get("ada").await.node, Some(first), "placed beside a container that may still run");
    rig.report(first, ada.uid, ada.generation, Observed::Gone { purge: Ok(false) }).await;
    rig.app.place_waiting().await.unwrap();
    rig.obey(second).await;
    let up = rig.get("ada").await;
    assert_eq!((up.state, up.node, up.generation), (State::Running, Some(second), ada.generation.next()));
    rig.end().await;
}

#[tokio::test]
async fn a_program_that_crashes_and_an_image_that_nobody_has_fail_at_once_and_blame_no_node() {
    let rig = Rig::new().await;
    let nodes = [rig.node(8).await, rig.node(8).await];
    for (student, why) in [("ada", StatusReason::CrashLoop), ("bob", StatusReason::ImageUnavailable)] {
        let placed = rig.start(student).await.unwrap();
        let node = placed.node.unwrap();
        rig.report(node, placed.uid, placed.generation, Observed::Failed(why)).await;
        let failed = rig.get(student).await;
        assert_eq!((failed.state, failed.status_reason), (State::Failed, Some(why)));
        assert_eq!(failures(&rig, node).await, 0);
        rig.obey(node).await;
    }
    // Another node has it: then that one is asked, and the first is to blame.
    let eve = rig.start("eve").await.unwrap();
    let first = eve.node.unwrap();
    let second = if first == nodes[0] { nodes[1] } else { nodes[0] };
    rig.app.note_images(second, rig.epoch(second).await, &["carrel/tiny:test".into()]).await.unwrap();
    rig.report(first, eve.uid, eve.generation, Observed::Failed(StatusReason::ImageUnavailable)).await;
    rig.obey(first).await;
    rig.app.place_waiting().await.unwrap();
    let moved = rig.app.get(&id("eve")).await.unwrap().workspace;
    assert_eq!((moved.state, moved.node), (State::Starting, Some(second)));
    assert_eq!(failures(&rig, first).await, 1);
    rig.end().await;
}

#[tokio::test]
async fn an_agent_that_says_nothing_of_a_start_loses_it_to_another_node() {
    let rig = Rig::with(|settings| settings.stays.starting = std::time::Duration::from_millis(50)).await;
    let (one, two) = (rig.node(8).await, rig.node(8).await);
    let ada = rig.start("ada").await.unwrap();
    let first = ada.node.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(60)).await;
    rig.app.end_overdue(ada.uid).await.unwrap();
    assert_eq!(rig.get("ada").await.state, State::Pending);
    rig.obey(first).await;
    rig.app.place_waiting().await.unwrap();
    let second = rig.get("ada").await.node;
    assert_eq!(second, Some(if first == one { two } else { one }));
    rig.end().await;
}
