//! Hosts that are banned while they are heard: what they say counts no more, and what they hold is released by the lease alone.

use std::time::Duration;

use carrel_common::id::NodeId;
use carrel_common::model::{DesiredPair, Health, Observed, StatusReason};
use control_plane::app::{AppError, Greeting, NodeLoad, Resolution, Result};
use control_plane::domain::node::Standing;
use control_plane::domain::workspace::State;

use crate::orphans::{held, resolve};
use crate::restored::{declare, greeting};
use crate::rig::{Rig, call, secret_of};

async fn ban(rig: &Rig, node: NodeId, only: bool) -> Result<NodeLoad> {
    rig.app.ban_node(&call("RemoveNode"), node, "stolen", only).await
}

async fn remove(rig: &Rig, node: NodeId) -> Result<NodeLoad> {
    rig.app.remove_node(&call("RemoveNode"), node, "stolen", false).await
}

/// What the host of a node is told, whatever it tries.
async fn is_refused(rig: &Rig, node: NodeId, hello: &Greeting, epochs: [i64; 2]) {
    let healthy = Health { problem: None, age: Duration::ZERO, latency: None };
    let mut refused = vec![
        rig.app.accept_session(&secret_of(node), hello).await.err(),
        rig.app.desired_set(node, None).await.err(),
    ];
    for epoch in epochs {
        refused.push(rig.app.heartbeat_node(node, epoch, &healthy, &healthy).await.err());
    }
    assert!(refused.iter().all(|error| matches!(error, Some(AppError::NodeBanned(_)))), "{refused:?}");
    assert_eq!(rig.app.store.orders_state(node).await.unwrap(), None, "its session ends at the next look");
}

async fn events(rig: &Rig) -> String {
    let told =
        "SELECT coalesce(string_agg(kind || ' ' || actor || ' ' || (data->>'why'), ', ' ORDER BY id), '')
                FROM events WHERE kind IN ('node.banned', 'node.removed')";
    rig.database.text(told).await
}

#[tokio::test]
async fn a_host_that_is_heard_is_banned_and_what_runs_there_goes_elsewhere_by_its_lease() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let ada = rig.running(node, "ada").await;
    let hello = greeting(&rig, node, vec![]).await;
    let would = ban(&rig, node, true).await.unwrap();
    assert_eq!((would.node.standing(), would.count), (Standing::Unreachable, 1), "it says what would be");
    assert!(would.node.banned_at.is_some());
    let epoch = rig.epoch(node).await;
    rig.heartbeat(node).await;
    assert_eq!(events(&rig).await, "");

    let banned = ban(&rig, node, false).await.unwrap();
    assert_eq!((banned.node.standing(), banned.count), (Standing::Unreachable, 1));
    is_refused(&rig, node, &hello, [epoch, banned.node.session_epoch]).await;
    let gone = Observed::Gone { purge: Ok(false) };
    let lie = rig.try_report(node, epoch, ada.uid, ada.generation, gone).await;
    assert!(matches!(lie, Err(AppError::SessionSuperseded(_))), "{lie:?}");
    assert_eq!(rig.get("ada").await.node, Some(node), "it is not believed that she is gone");
    let bob = rig.start("bob").await.unwrap();
    assert_eq!(bob.state, State::Pending, "nothing is placed there");

    // Although it was heard a moment ago: it is silent from now on.
    assert_eq!(rig.app.store.silent_nodes(Duration::from_secs(30)).await.unwrap(), [node]);
    rig.app.give_up_node(node).await.unwrap();
    assert_eq!(rig.get("ada").await.state, State::Unreachable);
    assert_eq!(rig.app.store.silent_nodes(Duration::from_secs(30)).await.unwrap(), []);
    let full = remove(&rig, node).await;
    assert!(matches!(full, Err(AppError::NodeNotEmpty { remaining: 1, .. })), "{full:?}");
    ban(&rig, node, false).await.unwrap();
    assert_eq!(events(&rig).await, "node.banned operator stolen", "once");

    // What the watchers of leases see is that it stands still.
    let (_, seen) = rig.app.watch_nodes().await.unwrap();
    let other = rig.node(4).await;
    assert!(rig.app.fence_node(node, seen[0].renewals).await.unwrap());
    rig.app.release_lost().await.unwrap();
    rig.app.place_waiting().await.unwrap();
    rig.obey(other).await;
    let moved = rig.get("ada").await;
    assert_eq!((moved.state, moved.node), (State::Running, Some(other)));
    assert_eq!(moved.generation, ada.generation.next());
    is_refused(&rig, node, &hello, [epoch, banned.node.session_epoch]).await;
    assert_eq!(remove(&rig, node).await.unwrap().node.standing(), Standing::Removed);
    assert_eq!(events(&rig).await, "node.banned operator stolen, node.removed operator stolen");
    rig.end().await;
}

#[tokio::test]
async fn a_host_that_says_that_the_database_went_back_is_banned_all_the_same_and_says_so_no_more() {
    let rig = Rig::new().await;
    let thief = rig.node(4).await;
    let accepted = Some(DesiredPair { incarnation: 1, generation: 99 });
    let lie = Greeting { accepted, ..greeting(&rig, thief, vec![]).await };
    rig.hello(thief, &lie).await;
    let refused = remove(&rig, thief).await;
    assert!(matches!(refused, Err(AppError::StoreBehind { .. })), "{refused:?}");
    // It looks empty, which nobody knows of a store that may have gone back.
    let banned = ban(&rig, thief, false).await.unwrap();
    assert_eq!(banned.node.standing(), Standing::Unreachable);
    let epoch = banned.node.session_epoch;
    declare(&rig, true).await;
    let lie = Greeting { accepted: Some(DesiredPair { incarnation: 9, generation: 99 }), ..lie };
    is_refused(&rig, thief, &lie, [epoch, epoch]).await;
    assert_eq!(rig.database.behind().await, "");
    rig.node(4).await;
    // Hosts that nobody knows would be over by now; this one is known, and was not seen to be.
    rig.database.execute("UPDATE restoration SET declared_at = declared_at - interval '1 day'").await;
    let waits = rig.start("ada").await.unwrap();
    assert_eq!(waits.state, State::Pending, "what may run there is started nowhere else");
    rig.app.confirm_dead(&call("ConfirmNodeDead"), thief, "its instance is terminated", false).await.unwrap();
    rig.app.place_waiting().await.unwrap();
    assert_eq!(rig.get("ada").await.state, State::Starting);
    assert_eq!(remove(&rig, thief).await.unwrap().node.standing(), Standing::Removed);
    rig.end().await;
}

#[tokio::test]
async fn what_was_left_alone_on_a_banned_host_keeps_its_student_waiting_until_that_is_given_up() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    held(&rig, node).await;
    ban(&rig, node, false).await.unwrap();
    // Nothing else of hers would be in the way of it.
    rig.database.execute("UPDATE workspaces SET deleted_at = now()").await;
    let adopted = resolve(&rig, (node, "c0ffee"), Resolution::Adopt, false).await;
    let Err(AppError::OrphanCannotBeAdopted { why }) = adopted else { panic!("{adopted:?}") };
    assert_eq!(why, "its node was banned or removed");
    rig.database.execute("UPDATE workspaces SET deleted_at = NULL").await;
    rig.node(4).await;
    let ada = rig.start("ada").await.unwrap();
    assert_eq!((ada.state, ada.status_reason), (State::Pending, Some(StatusReason::ContainerHeld)));
    rig.app.confirm_dead(&call("ConfirmNodeDead"), node, "cut off from the share", false).await.unwrap();
    assert_eq!(rig.app.place_waiting().await.unwrap(), 1);
    rig.end().await;
}

#[tokio::test]
async fn an_empty_host_that_is_banned_is_taken_out_at_once() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    for only in [true, false, false] {
        assert_eq!(ban(&rig, node, only).await.unwrap().node.standing(), Standing::Removed);
    }
    assert_eq!(events(&rig).await, "node.removed operator stolen");
    rig.end().await;
}
