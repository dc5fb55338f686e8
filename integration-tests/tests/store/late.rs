//! What a session tells late: another one of the node has taken over from it.

use carrel_common::id::WorkspaceUid;
use control_plane::app::{AppError, Resolution};
use control_plane::domain::workspace::State;

use crate::orphans::{container, held, resolve};
use crate::restored::{declare, greeting, unknown_hosts_are_over};
use crate::rig::{Rig, call, id, secret_of};

/// Until somebody waits for a lock in the database.
pub(crate) async fn somebody_waits(rig: &Rig) {
    rig.database.until_waiting(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_that_another_one_has_overtaken_stops_nothing_and_takes_nothing_in() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    rig.was_on(node, "ada").await;
    declare(&rig, true).await;
    let found = container("c1", WorkspaceUid::new(), "kim", 1, node);
    let late = greeting(&rig, node, vec![found]).await;
    let held = rig.app.store.begin().await.unwrap();
    held.lock_student(&id("kim")).await.unwrap();
    let app = rig.app.clone();
    let overtaken = tokio::spawn(async move { app.accept_session(&secret_of(node), &late).await });
    somebody_waits(&rig).await;
    // The node has waited for long enough, and says Hello once more.
    rig.hello(node, &greeting(&rig, node, vec![]).await).await;
    unknown_hosts_are_over(&rig).await;
    let ada = rig.start("ada").await.unwrap();
    assert_eq!(ada.state, State::Starting);
    drop(held);
    let refused = overtaken.await.unwrap();
    assert_eq!(rig.get("ada").await, ada);
    assert!(matches!(rig.app.get(&id("kim")).await, Err(AppError::WorkspaceNotFound(_))));
    assert!(matches!(refused, Err(AppError::SessionSuperseded(known)) if known == node), "{refused:?}");
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_of_orphans_by_a_session_that_is_over_forgets_none_and_keeps_none() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let before = rig.epoch(node).await;
    rig.reconnect(node).await;
    held(&rig, node).await;
    resolve(&rig, (node, "c0ffee"), Resolution::Stop, false).await.unwrap();
    rig.node(4).await;
    assert_eq!(rig.start("ada").await.unwrap().state, State::Pending);
    // A replica that was frozen meanwhile has read this before.
    for late in [vec![], vec![container("c1", WorkspaceUid::new(), "kim", 1, node)]] {
        let refused = rig.app.judge_report(node, before, &late, &[]).await;
        assert_eq!(rig.app.place_waiting().await.unwrap(), 0, "her container may still write");
        assert_eq!(rig.database.text("SELECT string_agg(container_id, ' ') FROM orphans").await, "c0ffee");
        assert_eq!(rig.app.resolved_orphans(node).await.unwrap().len(), 1, "an operator's word stands");
        assert!(matches!(refused, Err(AppError::SessionSuperseded(known)) if known == node), "{refused:?}");
    }
    rig.end().await;
}

/// An order could stand there for ever: the node is neither given up nor removed once more.
#[tokio::test]
async fn a_report_of_orphans_by_a_node_that_was_taken_out_meanwhile_keeps_none_and_nothing_is_adopted_there()
{
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let before = rig.epoch(node).await;
    let late = container("c1", WorkspaceUid::new(), "kim", 1, node);
    rig.judge_report(node, std::slice::from_ref(&late), &[]).await;
    // As a report leaves it that had asked for the session just before the removal.
    rig.database.execute("CREATE TABLE told AS TABLE orphans").await;
    rig.app.remove_node(&call("RemoveNode"), node, "sold", false).await.unwrap();
    let refused = rig.app.judge_report(node, before, std::slice::from_ref(&late), &[]).await;
    assert!(matches!(refused, Err(AppError::SessionSuperseded(known)) if known == node), "{refused:?}");
    assert_eq!(rig.database.text("SELECT count(*)::text FROM orphans").await, "0");
    rig.database.execute("INSERT INTO orphans SELECT * FROM told").await;
    let adopted = resolve(&rig, (node, "c1"), Resolution::Adopt, false).await;
    let Err(AppError::OrphanCannotBeAdopted { why }) = adopted else { panic!("{adopted:?}") };
    assert_eq!(why, "its node was banned or removed");
    rig.end().await;
}
