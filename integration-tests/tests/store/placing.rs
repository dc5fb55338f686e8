use std::time::Duration;

use carrel_common::model::{Observed, StatusReason};
use control_plane::app::{AppError, DrainOrder, WorkspaceView};
use control_plane::domain::workspace::State;
use time::OffsetDateTime;

use crate::rig::{GIB, Rig, call, id};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_first_starts_of_one_student_make_one_workspace_and_one_placement() {
    let rig = Rig::new().await;
    rig.node(4).await;
    let starts = (0..16).map(|_| rig.start("ada"));
    let started: Vec<_> =
        futures_util::future::join_all(starts).await.into_iter().map(|s| s.unwrap()).collect();
    assert!(started.iter().all(|w| w.uid == started[0].uid && w.generation == started[0].generation));
    assert_eq!(rig.database.text("SELECT count(*)::text FROM placements").await, "1");
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_starts_for_ten_places_overcommit_nothing_and_queue_in_order() {
    let rig = Rig::new().await;
    let node = rig.node(10).await;
    let names: Vec<String> = (0..100).map(|n| format!("s{n:03}")).collect();
    futures_util::future::join_all(names.iter().map(|name| rig.start(name))).await;
    rig.app.place_waiting().await.unwrap();
    let placed = "SELECT count(*)::text FROM placements WHERE released_at IS NULL";
    assert_eq!(rig.database.text(placed).await, "10");
    let in_line = async || {
        let (line, _) = rig.app.store.waiting().await.unwrap();
        line.into_iter().map(|one| one.waiting.uid).collect::<Vec<_>>()
    };
    let waiting = in_line().await;
    assert_eq!(waiting.len(), 90);
    let first = rig.app.store.workspaces_by_uid(vec![waiting[0]]).await.unwrap().remove(0);
    assert_eq!((first.state, first.status_reason), (State::Pending, Some(StatusReason::NoCapacity)));
    assert_eq!(rig.app.get(&first.student).await.unwrap().queue_position, 1);

    // One leaves: the first of the queue takes the place, and nobody else.
    let leaving =
        rig.database.text("SELECT student_id FROM workspaces WHERE node_id IS NOT NULL LIMIT 1").await;
    rig.stop(&leaving).await;
    rig.obey(node).await;
    rig.app.place_waiting().await.unwrap();
    assert_eq!(rig.database.text(placed).await, "10");
    assert_eq!(in_line().await, waiting[1..]);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starts_are_answered_while_another_transaction_has_the_node_and_placed_together_afterwards() {
    const STARTS: usize = 40;
    let rig = Rig::new().await;
    let node = rig.node(64).await;
    // As a pass does, or a start at another replica, for as long as it takes.
    let mut holding = rig.app.store.begin().await.unwrap();
    holding.lock_candidates(&[node], &[], rig.app.settings.limits).await.unwrap();
    let names: Vec<String> = (0..STARTS).map(|n| format!("s{n:03}")).collect();
    let press = async |name| rig.app.start(&call("StartWorkspace"), &id(name), None).await.unwrap();
    let answers = futures_util::future::join_all(names.iter().map(|name| press(name))).await;
    // Whoever had waited for the node would be on it.
    for answer in answers {
        let WorkspaceView { workspace, queue_position, .. } = answer;
        assert_eq!((workspace.state, workspace.node), (State::Pending, None), "{workspace:#?}");
        let lacks_nothing = (workspace.status_reason, workspace.status_message.as_str());
        assert_eq!(lacks_nothing, (None, "Waits for its turn."));
        assert!((1..=i64::try_from(STARTS).unwrap()).contains(&queue_position), "{queue_position}");
    }
    drop(holding);
    assert_eq!(rig.app.place_waiting().await.unwrap(), STARTS);
    let transactions = "SELECT count(DISTINCT xmin::text)::text FROM placements";
    assert_eq!(rig.database.text(transactions).await, "1");
    // It is over: who comes now is placed alone.
    assert_eq!(rig.start("late").await.unwrap().node, Some(node));
    rig.end().await;
}

#[tokio::test]
async fn a_start_that_no_node_could_take_changes_nothing_and_says_why() {
    let rig = Rig::new().await;
    let none = rig.start("ada").await;
    assert!(
        matches!(&none, Err(AppError::NoHealthyNode { reason, .. }) if reason == "NO_NODE_READY"),
        "{none:?}"
    );
    assert_eq!(rig.database.text("SELECT count(*)::text FROM workspaces").await, "0");
    rig.end().await;

    let rig = Rig::with(|settings| settings.defaults.spec.resources.memory_bytes = 64 * GIB).await;
    rig.node(4).await;
    let large = rig.start("ada").await;
    assert!(matches!(large, Err(AppError::LimitsBeyondNodes { .. })), "{large:?}");
    assert_eq!(rig.database.text("SELECT count(*)::text FROM workspaces").await, "0");
    rig.end().await;
}

#[tokio::test]
async fn while_every_host_is_out_of_service_a_start_waits_and_says_how_many_of_them_are() {
    let rig = Rig::new().await;
    let (drained, cordoned) = (rig.node(4).await, rig.node(4).await);
    let order = DrainOrder {
        within: Duration::from_secs(3600),
        force: false,
        reason: "new kernel".into(),
        validate_only: false,
    };
    rig.app.drain(&call("DrainNode"), drained, &order).await.unwrap();
    rig.app.cordon(&call("CordonNode"), cordoned, "a disk makes noises").await.unwrap();
    let waits = rig.start("ada").await.unwrap();
    assert_eq!((waits.state, waits.status_reason), (State::Pending, Some(StatusReason::NoNodeReady)));
    let told = "Waits for a host: 1 being emptied, 1 out of service (cordoned).";
    assert_eq!(waits.status_message, told);
    rig.app.place_waiting().await.unwrap();
    assert_eq!(rig.get("ada").await.version, waits.version, "what is told already is not told again");
    rig.app.uncordon(&call("UncordonNode"), cordoned, "").await.unwrap();
    rig.app.place_waiting().await.unwrap();
    assert_eq!(rig.get("ada").await.node, Some(cordoned));
    rig.end().await;
}

#[tokio::test]
async fn a_new_generation_waits_until_the_one_before_is_proven_gone() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let first = rig.running(node, "ada").await;
    let crashed = Observed::Failed(StatusReason::CrashLoop);
    rig.report(node, first.uid, first.generation, crashed).await;
    let second = rig.start("ada").await.unwrap();
    assert_eq!((second.state, second.status_reason), (State::Pending, Some(StatusReason::PreviousStopping)));
    rig.app.place_waiting().await.unwrap();
    assert_eq!(rig.get("ada").await.state, State::Pending, "placed beside a container that may still run");
    rig.report(node, first.uid, first.generation, Observed::Gone { purge: Ok(false) }).await;
    rig.app.place_waiting().await.unwrap();
    rig.obey(node).await;
    let up = rig.get("ada").await;
    assert_eq!((up.state, up.generation), (State::Running, first.generation.next()));
    rig.end().await;
}

#[tokio::test]
async fn a_node_may_report_on_its_own_workspaces_only() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let ada = rig.running(node, "ada").await;
    let other = rig.node(4).await;
    rig.report(other, ada.uid, ada.generation, Observed::Gone { purge: Ok(false) }).await;
    assert_eq!(rig.get("ada").await, ada);
    rig.end().await;
}

#[tokio::test]
async fn a_student_who_comes_back_after_a_delete_gets_a_higher_generation() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let first = rig.running(node, "ada").await;
    rig.app.delete(&call("DeleteWorkspace"), &first.student, "", false).await.unwrap();
    rig.obey(node).await;
    assert!(matches!(rig.app.get(&first.student).await, Err(AppError::WorkspaceNotFound(_))));
    let second = rig.running(node, "ada").await;
    assert!(second.generation > first.generation && second.uid != first.uid);
    assert!(second.created_at > OffsetDateTime::UNIX_EPOCH);
    rig.end().await;
}

#[tokio::test]
async fn a_restart_keeps_its_place_though_others_wait_and_another_node_is_emptier() {
    let rig = Rig::new().await;
    let full = rig.node(1).await;
    let ada = rig.running(full, "ada").await;
    let waits = rig.start("bob").await.unwrap();
    assert_eq!((waits.state, waits.node), (State::Pending, None));
    let emptier = rig.node(4).await;
    rig.app.restart(&call("RestartWorkspace"), &id("ada")).await.unwrap();
    rig.obey(full).await;
    let again = rig.get("ada").await;
    assert_eq!(
        (again.state, again.node, again.generation),
        (State::Starting, Some(full), ada.generation.next()),
        "in the transaction that proved the one before gone"
    );
    let placed = "SELECT count(*)::text FROM placements WHERE released_at IS NULL";
    assert_eq!(rig.database.text(placed).await, "1");
    rig.obey(full).await;
    assert_eq!(rig.get("ada").await.state, State::Running);

    // One that takes nothing any more is left.
    rig.app.cordon(&call("CordonNode"), full, "looks odd").await.unwrap();
    rig.app.restart(&call("RestartWorkspace"), &id("ada")).await.unwrap();
    rig.obey(full).await;
    assert_eq!(rig.get("ada").await.state, State::Pending);
    rig.app.place_waiting().await.unwrap();
    assert_eq!(rig.get("ada").await.node, Some(emptier));
    rig.end().await;
}
