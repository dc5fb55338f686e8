//! Nodes that are given up, and what becomes of their workspaces.

use std::time::Duration;

use carrel_common::id::{NodeId, WorkspaceUid};
use carrel_common::model::{Health, Observed, StatusReason, StopReason};
use control_plane::app::{AppError, Greeting, HeartbeatOutcome, Resolution};
use control_plane::domain::lease::{Renewals, Watcher};
use control_plane::domain::node::NodeState;
use control_plane::domain::workspace::State;

use crate::late::somebody_waits;
use crate::orphans::{container, judge, resolve};
use crate::restored::{declare, greeting};
use crate::rig::{Rig, call, id, secret_of};

/// Everybody who says nothing is silent at once.
async fn rig() -> Rig {
    Rig::with(|settings| settings.unreachable_after = Duration::ZERO).await
}

async fn silent(rig: &Rig, node: NodeId) -> Renewals {
    rig.app.give_up_node(node).await.unwrap();
    let (renewals, state) = rig.app.store.node_renewals(node).await.unwrap().unwrap();
    assert_eq!(state, NodeState::Unreachable);
    renewals
}

async fn state_of(rig: &Rig, node: NodeId) -> NodeState {
    rig.app.store.node_renewals(node).await.unwrap().unwrap().1
}

async fn beat(rig: &Rig, node: NodeId, session_epoch: i64) -> HeartbeatOutcome {
    let healthy = Health { problem: None, age: Duration::ZERO, latency: None };
    rig.app.heartbeat_node(node, session_epoch, &healthy, &healthy).await.unwrap()
}

/// A new session of a node, with its first heartbeat.
async fn comes_back(rig: &Rig, node: NodeId) -> i64 {
    let mut work = rig.app.store.begin().await.unwrap();
    let facts = work.list_nodes().await.unwrap().into_iter().find(|known| known.id == node).unwrap().facts;
    drop(work);
    let greeting = Greeting::of(facts, false);
    let session = rig.app.accept_session(&secret_of(node), &greeting).await.unwrap().session;
    assert_ne!(beat(rig, node, session.session_epoch).await, HeartbeatOutcome::Superseded);
    session.session_epoch
}

/// Nobody has worked in it for longer than the idle timeout.
async fn idle(rig: &Rig, student: &str) {
    let query = format!(
        "UPDATE workspaces SET ready_at = ready_at - interval '1 hour' WHERE student_id = '{student}' RETURNING student_id"
    );
    rig.database.text(&query).await;
}

async fn events(rig: &Rig, kind: &str) -> String {
    rig.database.text(&format!("SELECT count(*)::text FROM events WHERE kind = '{kind}'")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sign_of_life_and_the_fence_exclude_each_other() {
    let rig = rig().await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    let (mut lived, mut fenced) = (0, 0);
    for _ in 0..integration_tests::settings::number("CARREL_RACE_ROUNDS", 40) {
        let observed = silent(&rig, node).await;
        let (outcome, given_up) =
            tokio::join!(beat(&rig, node, observed.session_epoch), rig.app.fence_node(node, observed));
        let placements =
            rig.database.text("SELECT count(*)::text FROM placements WHERE released_at IS NULL").await;
        if given_up.unwrap() {
            fenced += 1;
            assert_eq!(outcome, HeartbeatOutcome::Superseded, "acked by a node that was given up");
            assert_eq!((state_of(&rig, node).await, placements.as_str()), (NodeState::Fenced, "0"));
            rig.app.release_lost().await.unwrap();
            comes_back(&rig, node).await;
            rig.app.place_waiting().await.unwrap();
            rig.obey(node).await;
        } else {
            lived += 1;
            assert!(matches!(outcome, HeartbeatOutcome::BackFromSilence(_)), "{outcome:?}");
            assert_eq!((state_of(&rig, node).await, placements.as_str()), (NodeState::Ready, "1"));
            // What the agent reports in its new session.
            rig.obey(node).await;
        }
        assert_eq!(rig.get("ada").await.state, State::Running);
    }
    assert!(lived > 0 && fenced > 0, "{lived} lived, {fenced} were given up: no race");
    rig.end().await;
}

/// What waits for a silent host comes to do so after that fell silent: nobody presses Start before.
#[tokio::test]
async fn who_begins_to_wait_for_a_silent_node_is_told_what_for() {
    let rig = Rig::with(|settings| {
        settings.unreachable_after = Duration::ZERO;
        settings.stays.stopping = Duration::ZERO;
    })
    .await;
    let node = rig.node(4).await;
    for student in ["ada", "bob"] {
        rig.running(node, student).await;
    }
    silent(&rig, node).await;
    let told = async || rig.app.store.silent_nodes(Duration::ZERO).await.unwrap();
    assert_eq!(told().await, [], "all there is to say of it was said");
    rig.app.restart(&call("RestartWorkspace"), &id("ada")).await.unwrap();
    rig.stop("bob").await;
    rig.app.end_all_overdue().await.unwrap();
    rig.start("bob").await.unwrap();
    for student in ["ada", "bob"] {
        let waits = rig.get(student).await;
        assert_eq!(
            (waits.state, waits.status_reason),
            (State::Pending, Some(StatusReason::PreviousStopping)),
            "{student}"
        );
    }
    assert_eq!(told().await, [node]);
    rig.app.give_up_node(node).await.unwrap();
    for student in ["ada", "bob"] {
        let reason = rig.get(student).await.status_reason;
        assert_eq!(reason, Some(StatusReason::PreviousHostUnreachable), "{student}");
    }
    assert_eq!(told().await, [], "told once");
    rig.end().await;
}

#[tokio::test]
async fn what_was_observed_has_to_be_what_is() {
    let rig = rig().await;
    let node = rig.node(4).await;
    let observed = silent(&rig, node).await;
    for other in [
        Renewals { count: observed.count - 1, ..observed },
        Renewals { count: observed.count + 1, ..observed },
        Renewals { session_epoch: observed.session_epoch - 1, ..observed },
        Renewals { boot_epoch: observed.boot_epoch + 1, ..observed },
    ] {
        assert!(!rig.app.fence_node(node, other).await.unwrap(), "{other:?}");
    }
    assert!(rig.app.fence_node(node, observed).await.unwrap());
    assert!(!rig.app.fence_node(node, observed).await.unwrap(), "once");
    assert_eq!(events(&rig, "node.fenced").await, "1");
    rig.end().await;
}

#[tokio::test]
async fn workspaces_in_use_move_and_the_others_stop_until_the_next_click() {
    let rig = rig().await;
    let node = rig.node(10).await;
    for student in ["ada", "bob", "carol", "dan", "eve", "fay"] {
        rig.running(node, student).await;
    }
    let starting = rig.start("gus").await.unwrap();
    // bob is idle, carol being stopped, dan restarted after a crash, eve and fay deleted, fay with all files.
    idle(&rig, "bob").await;
    rig.stop("carol").await;
    let dan = rig.get("dan").await;
    rig.report(node, dan.uid, dan.generation, Observed::Failed(StatusReason::CrashLoop)).await;
    rig.start("dan").await.unwrap();
    rig.app.delete(&call("DeleteWorkspace"), &id("eve"), "", false).await.unwrap();
    rig.app.delete(&call("DeleteWorkspace"), &id("fay"), "", true).await.unwrap();

    let observed = silent(&rig, node).await;
    assert!(rig.app.fence_node(node, observed).await.unwrap());
    assert_eq!(rig.app.release_lost().await.unwrap(), 7);
    let unreleased = "SELECT count(*)::text FROM placements WHERE released_at IS NULL";
    assert_eq!(rig.database.text(unreleased).await, "0");

    let other = rig.node(10).await;
    rig.app.place_waiting().await.unwrap();
    rig.obey(other).await;
    for (student, state, generation, reason) in [
        ("ada", State::Running, 2, None),
        ("bob", State::Stopped, 1, Some(StopReason::NodeLost)),
        ("carol", State::Stopped, 1, Some(StopReason::User)),
        ("dan", State::Running, 2, Some(StopReason::Exited)),
        ("gus", State::Running, starting.generation.0 + 1, None),
    ] {
        let now = rig.get(student).await;
        let told = (now.state, now.generation.0, now.stop.map(|stop| stop.reason));
        assert_eq!(told, (state, generation, reason), "{student}");
    }
    for student in ["eve", "fay"] {
        assert!(matches!(rig.app.get(&id(student)).await, Err(AppError::WorkspaceNotFound(_))), "{student}");
    }
    assert_eq!(events(&rig, "workspace.moved").await, "2");
    assert_eq!(rig.start("bob").await.unwrap().generation.0, 2);
    rig.end().await;
}

#[tokio::test]
async fn what_a_replica_left_half_done_the_next_one_finishes() {
    let rig = rig().await;
    let node = rig.node(4).await;
    for student in ["ada", "bob"] {
        rig.running(node, student).await;
    }
    let observed = silent(&rig, node).await;
    rig.app.fence_node(node, observed).await.unwrap();
    // The node is back before anybody came to its workspaces, and takes a new one.
    comes_back(&rig, node).await;
    assert_eq!(rig.desired_set(node).await.items, vec![], "nothing of before is ordered any more");
    let carol = rig.running(node, "carol").await;
    assert_eq!(rig.app.release_lost().await.unwrap(), 2);
    assert_eq!(rig.app.release_lost().await.unwrap(), 0);
    assert_eq!(rig.get("carol").await, carol, "placed after the fence");
    assert_eq!(rig.app.store.releasing_nodes().await.unwrap(), vec![]);
    for student in ["ada", "bob"] {
        let moved = rig.get(student).await;
        assert_eq!((moved.state, moved.generation.0), (State::Pending, 2));
    }
    rig.end().await;
}

#[tokio::test]
async fn nothing_that_a_node_says_in_its_old_session_counts_after_the_fence() {
    let rig = rig().await;
    let node = rig.node(4).await;
    let ada = rig.running(node, "ada").await;
    let observed = silent(&rig, node).await;
    rig.app.fence_node(node, observed).await.unwrap();
    let running = Observed::Running { endpoint: "127.0.0.1:1".into() };
    let late = rig.try_report(node, observed.session_epoch, ada.uid, ada.generation, running.clone()).await;
    assert!(matches!(late, Err(AppError::SessionSuperseded(_))), "{late:?}");
    assert_eq!(beat(&rig, node, observed.session_epoch).await, HeartbeatOutcome::Superseded);
    rig.app.release_lost().await.unwrap();
    // Nor does what it says of the old generation in a new one.
    let epoch = comes_back(&rig, node).await;
    let moved = rig.get("ada").await;
    rig.try_report(node, epoch, ada.uid, ada.generation, running).await.unwrap();
    rig.try_report(node, epoch, ada.uid, ada.generation, Observed::Fenced).await.unwrap();
    assert_eq!(rig.get("ada").await, moved);
    rig.end().await;
}

#[tokio::test]
async fn what_a_node_ended_by_itself_moves_as_well() {
    let rig = rig().await;
    let node = rig.node(4).await;
    let desks = [rig.running(node, "ada").await, rig.running(node, "bob").await];
    idle(&rig, "bob").await;
    for desk in desks {
        rig.report(node, desk.uid, desk.generation, Observed::Fenced).await;
    }
    let (ada, bob) = (rig.get("ada").await, rig.get("bob").await);
    assert_eq!((ada.state, ada.generation.0, ada.node), (State::Pending, 2, None));
    assert_eq!((bob.state, bob.stop.map(|stop| stop.reason)), (State::Stopped, Some(StopReason::NodeLost)));
    rig.end().await;
}

#[tokio::test]
async fn an_operator_may_confirm_a_silent_node_dead_and_never_one_that_speaks() {
    let rig = rig().await;
    let node = rig.node(4).await;
    for student in ["ada", "bob"] {
        rig.running(node, student).await;
    }
    idle(&rig, "bob").await;
    let heard = rig.app.confirm_node_dead(node, "on fire", false).await;
    assert!(matches!(heard, Err(AppError::NodeStillHeard(_))), "{heard:?}");
    let unknown = rig.app.confirm_node_dead(NodeId::new(), "on fire", false).await;
    assert!(matches!(unknown, Err(AppError::NodeNotFound(_))), "{unknown:?}");

    silent(&rig, node).await;
    let before = (rig.get("ada").await, rig.get("bob").await);
    let told = rig.app.confirm_node_dead(node, "on fire", true).await.unwrap();
    assert_eq!((told.moved.clone(), told.stopped.clone()), (vec![id("ada")], vec![id("bob")]));
    assert_eq!((rig.get("ada").await, rig.get("bob").await), before, "it only says what it would do");
    assert_eq!(rig.app.confirm_node_dead(node, "on fire", false).await.unwrap(), told);
    assert_eq!((rig.get("ada").await.state, rig.get("bob").await.state), (State::Pending, State::Stopped));
    let why = "SELECT reason || ' ' || (data->>'why') FROM events WHERE kind = 'node.fenced'";
    assert_eq!(rig.database.text(why).await, "CONFIRMED_DEAD on fire");
    // Again, as one does when the answer was lost.
    rig.app.confirm_node_dead(node, "on fire", false).await.unwrap();
    assert_eq!(events(&rig, "node.fenced").await, "1");
    rig.end().await;
}

#[tokio::test]
async fn a_shorter_lease_counts_only_once_the_agent_has_had_an_ack_under_it() {
    let rig = rig().await;
    let node = rig.node(4).await;
    let promised = async || rig.database.text("SELECT leased_seconds::text FROM nodes").await;
    assert_eq!(promised().await, "630");
    // As a replica with longer leases had promised.
    rig.database.text("UPDATE nodes SET leased_seconds = 3000 RETURNING 'x'").await;
    let epoch = comes_back(&rig, node).await;
    assert_eq!(promised().await, "3000");
    rig.app.settle_lease(node, epoch - 1).await.unwrap();
    assert_eq!(promised().await, "3000", "an ack in an earlier session says nothing of this one");
    rig.app.settle_lease(node, epoch).await.unwrap();
    assert_eq!(promised().await, "630");
    rig.end().await;
}

#[tokio::test]
async fn a_replacement_that_waits_is_told_once_a_silence() {
    let rig = rig().await;
    let node = rig.node(4).await;
    assert!(!rig.app.hold_replacement(node).await.unwrap(), "it is not silent");
    for round in 1..3 {
        silent(&rig, node).await;
        assert!(rig.app.hold_replacement(node).await.unwrap());
        assert!(!rig.app.hold_replacement(node).await.unwrap());
        assert_eq!(events(&rig, "node.replacement_held").await, round.to_string());
        comes_back(&rig, node).await;
    }
    rig.end().await;
}

#[tokio::test]
async fn the_watch_names_the_timeline_and_every_node() {
    let rig = rig().await;
    let (timeline, nodes) = rig.app.watch_nodes().await.unwrap();
    assert!(timeline.len() == 8 && timeline.bytes().all(|digit| digit.is_ascii_hexdigit()), "{timeline}");
    assert_eq!(nodes, vec![]);
    let node = rig.node(4).await;
    let (_, nodes) = rig.app.watch_nodes().await.unwrap();
    assert_eq!(
        (nodes[0].node, nodes[0].state, nodes[0].promised),
        (node, NodeState::Ready, Some(Duration::from_secs(630)))
    );
    rig.end().await;
}

/// Nobody would give the node up once more, so what stood there would stand there for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_adopted_on_a_node_that_was_given_up_or_is_being_given_up() {
    let rig = rig().await;
    let node = rig.node(4).await;
    let found = container("c1", WorkspaceUid::new(), "eve", 7, NodeId::new());
    judge(&rig, node, std::slice::from_ref(&found)).await;
    let observed = silent(&rig, node).await;
    let mut fencing = rig.app.store.begin().await.unwrap();
    assert_eq!(fencing.fence_node(node, observed).await.unwrap(), Some(0));
    let adopts = async || resolve(&rig, (node, "c1"), Resolution::Adopt, false).await;
    let (at_once, ()) = tokio::join!(adopts(), async {
        somebody_waits(&rig).await;
        fencing.commit().await.unwrap();
    });
    for refused in [at_once, adopts().await] {
        assert!(matches!(refused, Err(AppError::OrphanCannotBeAdopted { .. })), "{refused:?}");
    }
    comes_back(&rig, node).await;
    let eve = adopts().await.unwrap().workspace.unwrap();
    assert_eq!((eve.state, eve.node), (State::Starting, Some(node)));
    rig.end().await;
}

/// A host that a restored store has just taken in, and that lost its power before its first heartbeat.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_taken_in_from_a_node_that_never_beats_is_released_by_its_lease_alone() {
    let rig = rig().await;
    let facts = greeting(&rig, rig.node(4).await, vec![]).await.facts;
    let known = rig.app.watch_nodes().await.unwrap().1[0].node;
    declare(&rig, true).await;
    let node = NodeId::new();
    let cluster = Some(rig.app.state.cluster());
    let found = vec![container("c1", WorkspaceUid::new(), "eve", 7, node)];
    let told = Greeting { cluster, containers: found, ..Greeting::of(facts, true) };
    rig.app.accept_session(&secret_of(node), &told).await.unwrap();
    assert_eq!(rig.get("eve").await.node, Some(node));
    let mut watcher = Watcher::new(rig.app.settings.lease);
    let mut due = vec![];
    for look in 0..=69 {
        let (timeline, nodes) = rig.app.watch_nodes().await.unwrap();
        due = watcher.take(Duration::from_secs(10 * look), &timeline, &nodes).due;
    }
    let [(silent, observed)] = due[..] else { panic!("{due:?}, {known} is heard") };
    assert_eq!(silent, node);
    assert!(rig.app.fence_node(node, observed).await.unwrap());
    rig.app.release_lost().await.unwrap();
    assert_eq!(rig.get("eve").await.node, None);
    rig.end().await;
}

/// The copy has the node as given up; it lives, tells what it runs to the restored store, and dies before it gives a sign of life.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_taken_in_from_a_node_that_was_given_up_is_released_when_that_dies() {
    let rig = rig().await;
    let node = rig.node(4).await;
    assert!(rig.app.fence_node(node, silent(&rig, node).await).await.unwrap());
    declare(&rig, true).await;
    let found = container("c1", WorkspaceUid::new(), "eve", 7, node);
    let told = greeting(&rig, node, vec![found]).await;
    rig.app.accept_session(&secret_of(node), &told).await.unwrap();
    assert_eq!(rig.get("eve").await.node, Some(node));
    rig.app.confirm_dead(&call("ConfirmNodeDead"), node, "burnt", false).await.unwrap();
    assert_eq!(rig.get("eve").await.node, None);
    assert_eq!(state_of(&rig, node).await, NodeState::Fenced);
    rig.app.remove_node(&call("RemoveNode"), node, "burnt", false).await.unwrap();
    rig.end().await;
}
