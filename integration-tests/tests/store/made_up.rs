//! Numbers that no Carrel has counted to: a host lies, or a label or a fence file was made by hand.

use carrel_common::id::{Generation, Pair, WorkspaceUid};
use carrel_common::model::{Container, DesiredPair, StatusReason};
use control_plane::app::{AppError, Greeting, Resolution};
use control_plane::domain::behind::REACH;
use control_plane::domain::workspace::State;

use crate::orphans::resolve;
use crate::restored::{declare, event, greeting, restored, unknown_hosts_are_over};
use crate::rig::{Rig, id};

#[tokio::test]
async fn a_number_that_no_carrel_has_counted_to_is_no_proof_and_is_never_counted_on_from() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let accepted = Some(DesiredPair { incarnation: i64::MAX, generation: 1 });
    let told = Greeting { accepted, ..greeting(&rig, node, vec![]).await };
    assert_eq!(rig.hello(node, &told).await.state.behind, None);
    // As a control plane of before has noted it.
    rig.database.execute(&format!("UPDATE restoration SET seen_incarnation = {}", i64::MAX)).await;
    let first = declare(&rig, true).await.incarnation;
    assert_eq!((first, declare(&rig, true).await.incarnation), (REACH + 2, 2 * REACH + 3));

    let eve = Container {
        container_id: "made-up".into(),
        workspace: WorkspaceUid::new(),
        student: id("eve"),
        generation: Generation(i64::MAX),
        incarnation: 1,
        node,
        running: true,
        placement: None,
        spec: None,
    };
    rig.hello(node, &greeting(&rig, node, vec![eve.clone()]).await).await;
    assert_eq!((event(&rig, "workspace.adopted").await, event(&rig, "orphan.held").await), (0, 1));
    let adopts = resolve(&rig, (node, "made-up"), Resolution::Adopt, false).await;
    assert!(matches!(adopts, Err(AppError::OrphanCannotBeAdopted { .. })), "{adopts:?}");
    unknown_hosts_are_over(&rig).await;
    let waits = rig.start("eve").await.unwrap();
    let seen = (waits.status_reason, waits.generation);
    assert_eq!(seen, (Some(StatusReason::ContainerHeld), Generation(1)));
    rig.end().await;
}

/// Of an incarnation of before: the next one is above it by its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_that_no_desk_has_come_to_is_not_counted_on_from() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let desk = rig.start("ada").await.unwrap();
    restored(&rig, node).await;
    rig.give_way(node, &desk, (Pair { incarnation: 1, generation: Generation(i64::MAX) }, None)).await;
    let waits = rig.get("ada").await;
    assert_eq!((waits.state, waits.generation), (State::Pending, desk.generation.next()));
    rig.end().await;
}
