//! A store that has gone back in time: noticed, frozen, declared restored, and right again.

use std::time::Duration;

use carrel_common::id::{Generation, NodeId, PlacementId, WorkspaceUid};
use carrel_common::model::{Container, DesiredPair, HeartbeatCount, Observed, Run, StatusReason, Verdict};
use control_plane::app::{AppError, Greeting};
use control_plane::domain::workspace::{State, Workspace};
use control_plane::store::{DeclareError, Declared};

use crate::rig::{Rig, call, id, secret_of};

/// What the agent of a node that obeyed has.
pub(crate) async fn containers(rig: &Rig, node: NodeId) -> Vec<Container> {
    let items = rig.desired_set(node).await.items;
    items
        .into_iter()
        .filter(|item| matches!(item.run, Run::Running { .. }))
        .map(|item| Container {
            container_id: format!("c-{}-{}", item.student, item.generation),
            workspace: item.workspace,
            student: item.student,
            generation: item.generation,
            incarnation: item.incarnation,
            node,
            running: true,
            placement: Some(item.placement),
            spec: Some(item.spec),
        })
        .collect()
}

pub(crate) async fn greeting(rig: &Rig, node: NodeId, containers: Vec<Container>) -> Greeting {
    let mut work = rig.app.store.begin().await.unwrap();
    let known = work.list_nodes().await.unwrap().into_iter().find(|known| known.id == node).unwrap();
    let cluster = Some(rig.app.state.cluster());
    Greeting { containers, cluster, ..Greeting::of(known.facts, false) }
}

pub(crate) async fn declare(rig: &Rig, wait: bool) -> Declared {
    let mut work = rig.app.store.begin().await.unwrap();
    let declared = work.declare_restored(None, wait).await.unwrap();
    work.commit().await.unwrap();
    rig.app.refresh_state().await.unwrap();
    declared
}

/// The store is declared restored, and a node tells what it has, which is what it was told to have.
pub(crate) async fn restored(rig: &Rig, node: NodeId) -> Vec<Container> {
    let found = containers(rig, node).await;
    declare(rig, true).await;
    rig.hello(node, &greeting(rig, node, found.clone()).await).await;
    found
}

/// By the database's clock hosts that the store does not know have stopped everything by themselves.
pub(crate) async fn unknown_hosts_are_over(rig: &Rig) {
    rig.database.execute("UPDATE restoration SET declared_at = declared_at - interval '690 seconds'").await;
    rig.app.refresh_state().await.unwrap();
    rig.app.place_waiting().await.unwrap();
}

/// The store as a copy from before `change` has it: what the change did to desks and placements is undone.
pub(crate) async fn forget<T>(rig: &Rig, change: impl AsyncFnOnce() -> T) -> T {
    let run = async |sql: &str| rig.database.execute(sql).await;
    for table in ["nodes", "workspaces", "workspace_activity", "placements"] {
        run(&format!("CREATE TABLE copy_{table} AS TABLE {table}")).await;
    }
    let done = change().await;
    run("TRUNCATE placements, workspace_activity, workspaces CASCADE").await;
    run("DELETE FROM nodes").await;
    for table in ["nodes", "workspaces", "workspace_activity", "placements"] {
        run(&format!("INSERT INTO {table} SELECT * FROM copy_{table}")).await;
        run(&format!("DROP TABLE copy_{table}")).await;
    }
    done
}

/// What becomes of one orphan.
async fn judge(rig: &Rig, node: NodeId, container: &Container) -> (Verdict, &'static str) {
    let judged = rig.judge_report(node, std::slice::from_ref(container), &[]).await.remove(0);
    (judged.verdict, judged.reason)
}

pub(crate) async fn event(rig: &Rig, kind: &str) -> i64 {
    rig.database
        .text(&format!("SELECT count(*)::text FROM events WHERE kind = '{kind}'"))
        .await
        .parse()
        .unwrap()
}

fn is_behind<T: std::fmt::Debug>(result: control_plane::app::Result<T>) -> bool {
    matches!(result, Err(AppError::StoreBehind { .. }))
}

#[tokio::test]
async fn while_the_store_is_behind_nothing_is_ordered_placed_or_stopped() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let ada = rig.running(node, "ada").await;
    let found = forget(&rig, async || {
        rig.running(node, "bob").await;
        containers(&rig, node).await
    })
    .await;
    let accepted = Some(DesiredPair { incarnation: 1, generation: 99 });
    let greeted = rig.hello(node, &Greeting { accepted, ..greeting(&rig, node, found).await }).await;
    let behind = greeted.state.behind.unwrap();
    assert!(behind.evidence.contains("version 1.99"), "{behind:?}");
    assert_eq!((behind.node, event(&rig, "store.behind").await), (Some(node), 1));

    assert!(is_behind(rig.start("bob").await));
    assert!(is_behind(rig.start("ada").await));
    assert!(is_behind(rig.app.stop(&call("StopWorkspace"), &id("ada"), false, "").await));
    assert!(is_behind(rig.app.restart(&call("RestartWorkspace"), &id("ada")).await));
    assert!(is_behind(rig.app.delete(&call("DeleteWorkspace"), &id("ada"), "", true).await));
    assert!(matches!(rig.app.desired_set(node, None).await, Err(AppError::InventoryAwaited(_))));
    rig.database.execute("UPDATE workspaces SET ready_at = now() - interval '2 hours'").await;
    let check = rig.app.check_idle(ada.uid).await.unwrap();
    assert!(check.again_at.is_some(), "it is looked at again");
    assert_eq!(rig.get("ada").await.state, State::Running);
    assert_eq!(rig.app.place_waiting().await.unwrap(), 0);
    // Reading and reporting go on.
    let running = Observed::Running { endpoint: "127.0.0.1:2".into() };
    rig.report(node, ada.uid, ada.generation, running).await;
    rig.end().await;
}

#[tokio::test]
async fn what_a_node_has_shown_once_is_told_once() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let acked = Some(HeartbeatCount { incarnation: 1, heartbeats: 500 });
    for _ in 0..2 {
        rig.hello(node, &Greeting { acked, ..greeting(&rig, node, vec![]).await }).await;
    }
    assert_eq!(event(&rig, "store.behind").await, 1);
    rig.end().await;
}

#[tokio::test]
async fn everything_that_runs_is_adopted_and_nothing_is_stopped() {
    let rig = Rig::new().await;
    let node = rig.node(8).await;
    let same = rig.running(node, "same").await;
    rig.running(node, "stopped-in-the-copy").await;
    rig.stop("stopped-in-the-copy").await;
    rig.obey(node).await;
    rig.running(node, "stopping-in-the-copy").await;
    let stopping = containers(&rig, node).await.into_iter().find(|c| c.student == id("stopping-in-the-copy"));
    rig.stop("stopping-in-the-copy").await;
    let mut found = forget(&rig, async || {
        for student in ["stopped-in-the-copy", "unknown-to-the-copy"] {
            rig.start(student).await.unwrap();
        }
        containers(&rig, node).await
    })
    .await;
    found.extend(stopping);
    assert_eq!(found.len(), 4);
    let declared = declare(&rig, true).await;
    assert_eq!((declared.incarnation, declared.awaited.len()), (2, 1));
    assert!(
        matches!(rig.app.desired_set(node, None).await, Err(AppError::InventoryAwaited(_))),
        "not before it told"
    );
    let greeted = rig.hello(node, &greeting(&rig, node, found.clone()).await).await;
    assert!(!greeted.awaited && greeted.state.behind.is_none());
    let set = rig.desired_set(node).await;
    assert_eq!(set.pair.incarnation, 2);
    let ordered: Vec<_> =
        set.items.iter().map(|item| (item.student.clone(), item.pair(), Some(item.placement))).collect();
    let mut runs: Vec<_> =
        found.iter().map(|c| (c.workspace, (c.student.clone(), c.pair(), c.placement))).collect();
    runs.sort_by_key(|(workspace, _)| *workspace);
    assert_eq!(ordered, runs.into_iter().map(|(_, run)| run).collect::<Vec<_>>(), "each as its labels tell");
    assert!(set.items.iter().all(|item| matches!(item.run, Run::Running { .. })));
    rig.obey(node).await;
    for container in &found {
        let desk = rig.get(container.student.as_str()).await;
        assert_eq!((desk.state, desk.generation), (State::Running, container.generation), "{}", desk.student);
    }
    assert!(rig.get("same").await.resumed_at.is_some(), "its idle clock begins now");
    assert_eq!(rig.get("same").await.uid, same.uid);
    // And then all goes on: a stop, and a start as a later pair.
    rig.stop("unknown-to-the-copy").await;
    rig.obey(node).await;
    rig.start("unknown-to-the-copy").await.unwrap();
    let items = rig.desired_set(node).await.items;
    let again = items.iter().find(|item| item.student == id("unknown-to-the-copy")).unwrap();
    assert_eq!((again.incarnation, again.generation), (2, Generation(2)));
    rig.end().await;
}

#[tokio::test]
async fn what_the_copy_has_and_no_node_has_ends_stopped_and_is_not_started_anew() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let ada = rig.running(node, "ada").await;
    declare(&rig, true).await;
    rig.hello(node, &greeting(&rig, node, vec![]).await).await;
    let items = rig.desired_set(node).await.items;
    assert!(matches!(items[..], [ref item] if matches!(item.run, Run::Stopped { .. })), "{items:?}");
    rig.obey(node).await;
    assert_eq!(rig.get("ada").await.state, State::Stopped);
    unknown_hosts_are_over(&rig).await;
    let again = rig.start("ada").await.unwrap();
    assert_eq!((again.state, again.generation), (State::Starting, ada.generation.next()));
    rig.end().await;
}

#[tokio::test]
async fn an_inventory_that_docker_did_not_answer_proves_nothing() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    let found = containers(&rig, node).await;
    declare(&rig, true).await;
    let blind = Greeting { current: false, ..greeting(&rig, node, vec![]).await };
    assert!(rig.hello(node, &blind).await.awaited);
    assert!(matches!(rig.app.desired_set(node, None).await, Err(AppError::InventoryAwaited(_))));
    assert_eq!(rig.get("ada").await.state, State::Running);
    assert!(!rig.hello(node, &greeting(&rig, node, found).await).await.awaited);
    rig.obey(node).await;
    assert_eq!(rig.get("ada").await.state, State::Running);
    rig.end().await;
}

/// A workspace that the copy has on one host and that has moved to another since.
#[tokio::test]
async fn a_workspace_that_moved_since_the_copy_is_where_it_runs_whoever_tells_first() {
    for moved_tells_first in [true, false] {
        let rig = Rig::new().await;
        let before = rig.node(4).await;
        let ada = rig.running(before, "ada").await;
        let after = rig.node(4).await;
        let moved = Container {
            container_id: "moved".into(),
            workspace: ada.uid,
            student: ada.student.clone(),
            generation: ada.generation.next(),
            incarnation: 1,
            node: after,
            running: true,
            placement: Some(PlacementId::new()),
            spec: Some(ada.spec.clone()),
        };
        declare(&rig, true).await;
        let with_it = greeting(&rig, after, vec![moved.clone()]).await;
        let without = greeting(&rig, before, vec![]).await;
        if moved_tells_first {
            rig.hello(after, &with_it).await;
            rig.hello(before, &without).await;
        } else {
            rig.hello(before, &without).await;
            rig.obey(before).await;
            // Between the two nobody may start it a second time.
            let waits = rig.start("ada").await.unwrap();
            assert_eq!(
                (waits.state, waits.status_reason),
                (State::Pending, Some(StatusReason::PreviousHostUnreachable))
            );
            assert_eq!(rig.app.place_waiting().await.unwrap(), 0, "looked at, and left to wait");
            assert_eq!(rig.get("ada").await.node, None);
            rig.hello(after, &with_it).await;
        }
        rig.obey(before).await;
        rig.obey(after).await;
        let desk = rig.get("ada").await;
        assert_eq!((desk.state, desk.node, desk.generation), (State::Running, Some(after), moved.generation));
        let judged = judge(&rig, before, &containers_of_before(&ada, before)).await;
        assert_eq!(judged.0, Verdict::Stop, "a ghost of before is superseded");
        rig.end().await;
    }
}

fn containers_of_before(ada: &Workspace, node: NodeId) -> Container {
    Container {
        container_id: "ghost".into(),
        workspace: ada.uid,
        student: ada.student.clone(),
        generation: ada.generation,
        incarnation: 1,
        node,
        running: true,
        placement: None,
        spec: None,
    }
}

#[tokio::test]
async fn while_the_store_is_behind_no_node_is_given_up_taken_out_or_emptied() {
    let rig = Rig::new().await;
    let (node, silent) = (rig.node(4).await, rig.node(4).await);
    rig.database.execute(&format!("UPDATE nodes SET state = 'UNREACHABLE' WHERE id = '{silent}'")).await;
    let (renewals, _) = rig.app.store.node_renewals(silent).await.unwrap().unwrap();
    let accepted = Some(DesiredPair { incarnation: 1, generation: 99 });
    rig.hello(node, &Greeting { accepted, ..greeting(&rig, node, vec![]).await }).await;
    assert!(!rig.app.fence_node(silent, renewals).await.unwrap());
    assert!(is_behind(rig.app.confirm_node_dead(silent, "burnt", false).await));
    assert!(is_behind(rig.app.remove_node(&call("RemoveNode"), silent, "sold", false).await));
    declare(&rig, true).await;
    assert!(rig.app.fence_node(silent, renewals).await.unwrap());
    rig.end().await;
}

#[tokio::test]
async fn a_restart_under_way_when_the_store_is_found_behind_keeps_no_place() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let ada = rig.running(node, "ada").await;
    rig.app.restart(&call("RestartWorkspace"), &id("ada")).await.unwrap();
    let accepted = Some(DesiredPair { incarnation: 1, generation: 99 });
    rig.hello(node, &Greeting { accepted, ..greeting(&rig, node, vec![]).await }).await;
    rig.report(node, ada.uid, ada.generation, Observed::Gone { purge: Ok(false) }).await;
    let waits = rig.get("ada").await;
    assert_eq!((waits.state, waits.node), (State::Pending, None));
    rig.end().await;
}

/// A session may have begun before the declaration, and tell after it what is no news then.
#[tokio::test]
async fn what_was_shown_to_the_store_before_the_declaration_says_nothing_of_the_one_after() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let (offered, accepted) = (3, 99);
    let [offered, accepted] =
        [offered, accepted].map(|generation| DesiredPair { incarnation: 1, generation });
    declare(&rig, true).await;
    rig.app.set_refused(node, (offered, accepted), 1).await.unwrap();
    assert_eq!(rig.app.store.state().await.unwrap().behind, None);
    rig.app.set_refused(node, (offered, accepted), 2).await.unwrap();
    assert!(rig.app.store.state().await.unwrap().behind.is_some());
    rig.end().await;
}

/// After an outage both happen at once: the pulse goes on to the nodes, a Hello comes from its node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_shows_and_the_first_pulse_after_an_outage_do_not_wait_for_each_other() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let accepted = Some(DesiredPair { incarnation: 1, generation: 99 });
    let told = Greeting { accepted, ..greeting(&rig, node, vec![]).await };
    for _ in 0..20 {
        rig.heartbeat(node).await;
        rig.database.execute("UPDATE restoration SET behind_since = NULL").await;
        rig.database.execute("UPDATE cluster SET alive_at = alive_at - interval '1 minute'").await;
        let secret = secret_of(node);
        let (pulse, greeted) = tokio::join!(
            rig.app.store.take_pulse(Duration::from_secs(3), None),
            rig.app.accept_session(&secret, &told)
        );
        pulse.unwrap();
        assert!(greeted.unwrap().state.behind.is_some());
    }
    rig.end().await;
}

#[tokio::test]
async fn the_incarnation_rises_above_all_that_was_seen() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let accepted = Some(DesiredPair { incarnation: 7, generation: 1 });
    rig.hello(node, &Greeting { accepted, ..greeting(&rig, node, vec![]).await }).await;
    assert_eq!(declare(&rig, true).await.incarnation, 8);
    // What was said before is explained now.
    let again = Greeting { accepted, ..greeting(&rig, node, vec![]).await };
    assert_eq!(rig.hello(node, &again).await.state.behind, None);
    rig.end().await;
}

#[tokio::test]
async fn a_container_later_than_the_store_is_held_and_a_hello_with_it_shows_that_it_went_back() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let ada = rig.running(node, "ada").await;
    rig.stop("ada").await;
    rig.obey(node).await;
    let later = Container { generation: Generation(9), ..containers_of_before(&ada, node) };
    assert_eq!(judge(&rig, node, &later).await, (Verdict::Hold, "LATER_THAN_THE_STORE"));
    assert_eq!(event(&rig, "store.behind").await, 0, "a report of orphans proves nothing");
    rig.hello(node, &greeting(&rig, node, vec![later.clone()]).await).await;
    assert!(is_behind(rig.start("ada").await));
    // While it is behind nothing is judged, and nothing is written about it.
    let before = event(&rig, "orphan.held").await;
    let unknown = Container { student: id("eve"), workspace: WorkspaceUid::new(), ..later };
    assert_eq!(judge(&rig, node, &unknown).await, (Verdict::Hold, "STORE_BEHIND"));
    assert_eq!(event(&rig, "orphan.held").await, before);
    rig.end().await;
}

#[tokio::test]
async fn a_node_that_the_store_has_forgotten_is_taken_in_again_and_shows_that_it_went_back() {
    let rig = Rig::new().await;
    let known = rig.node(4).await;
    let facts = greeting(&rig, known, vec![]).await.facts;
    let forgotten = NodeId::new();
    let greeting = Greeting { cluster: Some(rig.app.state.cluster()), ..Greeting::of(facts, true) };
    let greeted = rig.hello(forgotten, &greeting).await;
    assert!(greeted.state.behind.is_some_and(|behind| behind.node == Some(forgotten)));
    assert_eq!(event(&rig, "node.readmitted").await, 1);
    rig.end().await;
}

#[tokio::test]
async fn an_empty_database_takes_the_name_of_the_one_that_was_lost_and_adopts() {
    // A Carrel whose database was lost …
    let lost = Rig::new().await;
    let node = lost.node(4).await;
    lost.running(node, "ada").await;
    let told = Greeting {
        accepted: Some(DesiredPair { incarnation: 1, generation: 40 }),
        ..greeting(&lost, node, containers(&lost, node).await).await
    };
    // … and a new one in its place.
    let rig = Rig::new().await;
    let refused = rig.app.accept_session(&secret_of(node), &told).await;
    assert!(matches!(refused, Err(AppError::NodeUnknown(_))), "{refused:?}");
    rig.app.refresh_state().await.unwrap();
    let behind = rig.app.state.get().behind.unwrap();
    assert!(behind.evidence.contains(&lost.app.state.cluster().to_string()), "{behind:?}");
    assert!(is_behind(rig.start("ada").await));

    let mut work = rig.app.store.begin().await.unwrap();
    let declared = work.declare_restored(told.cluster, true).await.unwrap();
    work.commit().await.unwrap();
    rig.app.refresh_state().await.unwrap();
    assert_eq!((declared.incarnation, declared.awaited), (2, vec![(node, None)]));
    assert_eq!(Some(rig.app.state.cluster()), told.cluster);
    rig.app.accept_session(&secret_of(node), &told).await.unwrap();
    rig.obey(node).await;
    let ada = rig.get("ada").await;
    assert_eq!((ada.state, ada.generation), (State::Running, Generation(1)));
    assert_eq!(rig.app.store.node_secret_hash(node).await.unwrap().as_deref(), Some("secret"));
    rig.end().await;
    lost.end().await;
}

#[tokio::test]
async fn a_store_in_use_keeps_its_name_and_takes_no_strangers() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let mut work = rig.app.store.begin().await.unwrap();
    let other = Some(carrel_common::id::ClusterId::new());
    let refused = work.declare_restored(other, true).await;
    assert!(matches!(refused, Err(DeclareError::OfAnotherCarrel(_))), "{refused:?}");
    drop(work);
    let found = containers_of_before(&rig.running(node, "ada").await, node);
    let stranger = Greeting { cluster: other, ..greeting(&rig, node, vec![found]).await };
    let refused = rig.app.accept_session(&secret_of(NodeId::new()), &stranger).await;
    assert!(matches!(refused, Err(AppError::NodeUnknown(_))), "{refused:?}");
    assert_eq!(rig.app.store.state().await.unwrap().behind, None);
    rig.end().await;
}

#[tokio::test]
async fn events_of_another_servers_time_are_read_in_their_order_after_the_declaration() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    rig.database.execute("UPDATE events SET xid = xid + 1000000000").await;
    let query = control_plane::app::EventQuery::default();
    assert_eq!(rig.app.events(&query, 50).await.unwrap().0, vec![], "they are of the future");
    declare(&rig, true).await;
    rig.hello(node, &greeting(&rig, node, vec![]).await).await;
    let kinds = async || -> Vec<String> {
        rig.app.events(&query, 50).await.unwrap().0.into_iter().map(|event| event.kind).collect()
    };
    // Transactions of other tests on the same server hold the newest back for a moment.
    while kinds().await.last().is_none_or(|kind| kind != "node.adopted") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(kinds().await.first().map(String::as_str), Some("node.enrolled"));
    rig.end().await;
}

#[tokio::test]
async fn resume_tokens_of_the_store_before_are_too_old() {
    let rig = Rig::new().await;
    let stand = rig.app.stand(None).await.unwrap();
    assert!(rig.app.stand(Some((1, stand))).await.is_ok());
    declare(&rig, true).await;
    assert!(matches!(rig.app.stand(Some((1, stand))).await, Err(AppError::ResumeTokenTooOld)));
    rig.end().await;
}

#[tokio::test]
async fn what_was_placed_last_is_kept_so_that_a_late_ghost_is_known_to_be_over() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let ada = rig.running(node, "ada").await;
    rig.stop("ada").await;
    rig.obey(node).await;
    rig.database.execute("UPDATE placements SET released_at = now() - interval '30 days'").await;
    rig.app.store.drop_old(Duration::from_secs(3600)).await.unwrap();
    let ghost = containers_of_before(&ada, node);
    assert_eq!(judge(&rig, node, &ghost).await, (Verdict::Stop, "PLACEMENT_RELEASED"));
    rig.end().await;
}
