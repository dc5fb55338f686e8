//! A delete whose files cannot be moved to the trash: told, tried again after a pause, and ended by a word.

use carrel_common::id::WorkspaceUid;
use carrel_common::model::{Observed, StatusReason};
use control_plane::app::AppError;
use control_plane::domain::workspace::{State, Workspace};

use crate::orphans::{container, judge};
use crate::restored::event;
use crate::rig::{GIB, Rig, call, id};

async fn delete(rig: &Rig, purge_files: bool) -> Workspace {
    rig.app.delete(&call("DeleteWorkspace"), &id("ada"), "", purge_files).await.unwrap().workspace
}

#[tokio::test]
async fn files_that_cannot_be_moved_are_tried_again_after_a_pause_and_stay_when_somebody_says_so() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let ada = rig.running(node, "ada").await;
    delete(&rig, true).await;
    for failures in 1..=3 {
        let problem = "/srv/desks/.carrel/trash is a link".to_owned();
        rig.report(node, ada.uid, ada.generation, Observed::Gone { purge: Err(problem) }).await;
        let failed = rig.get("ada").await;
        let state = (failed.state, failed.status_reason, failed.node);
        assert_eq!(state, (State::Failed, Some(StatusReason::Deleting), None));
        assert!(failed.status_message.contains("is a link"), "{failed:?}");
        assert_eq!(event(&rig, "workspace.purge_failed").await, failures);
        rig.app.place_waiting().await.unwrap();
        assert_eq!(rig.get("ada").await, failed, "its pause is not over");
        assert_eq!(
            rig.app.store.purges_waiting(1).await.unwrap(),
            [],
            "it takes no place among those that are tried"
        );
        assert_eq!(rig.stop("ada").await, failed, "nothing runs");
        let over = "UPDATE workspaces SET deletion = jsonb_set(deletion, '{retry_at}', to_jsonb(now()))";
        rig.database.execute(over).await;
        rig.app.place_waiting().await.unwrap();
        assert_eq!(rig.get("ada").await.node, Some(node), "it is tried again");
    }
    assert!(delete(&rig, false).await.deleted_at.is_none(), "the node may be moving them");
    let problem = "/srv/desks/.carrel/trash is a link".to_owned();
    rig.report(node, ada.uid, ada.generation, Observed::Gone { purge: Err(problem) }).await;
    assert!(matches!(rig.start("ada").await, Err(AppError::Illegal(_))));
    assert!(delete(&rig, false).await.deleted_at.is_some());
    assert!(matches!(rig.app.get(&id("ada")).await, Err(AppError::WorkspaceNotFound(_))));
    assert_eq!(rig.start("ada").await.unwrap().state, State::Starting);
    rig.end().await;
}

#[tokio::test]
async fn a_purge_that_no_host_is_there_for_is_ended_by_a_word() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    rig.was_on(node, "ada").await;
    rig.app.cordon(&call("CordonNode"), node, "").await.unwrap();
    assert!(delete(&rig, true).await.deleted_at.is_none());
    rig.app.place_waiting().await.unwrap();
    assert!(delete(&rig, false).await.deleted_at.is_some());
    rig.end().await;
}

#[tokio::test]
async fn a_purge_that_waits_for_a_held_container_hides_nobody_behind_it() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let mut desks = Vec::new();
    for student in ["ada", "bob"] {
        rig.was_on(node, student).await;
        rig.app.delete(&call("DeleteWorkspace"), &id(student), "", true).await.unwrap();
        desks.push(rig.get(student).await);
    }
    // In the order in which they are tried.
    desks.sort_by_key(|desk| desk.uid);
    let (first, behind) = (&desks[0], &desks[1]);
    let held = container("c1", WorkspaceUid::new(), &first.student.to_string(), 7, node);
    judge(&rig, node, &[held]).await;
    assert_eq!(rig.app.store.purges_waiting(1).await.unwrap(), [behind.uid]);
    assert_eq!(rig.app.place_waiting().await.unwrap(), 1);
    judge(&rig, node, &[]).await;
    assert_eq!(rig.app.store.purges_waiting(1).await.unwrap(), [first.uid]);
    rig.end().await;
}

#[tokio::test]
async fn a_purge_is_placed_on_a_full_host_and_holds_no_room_there() {
    let rig = Rig::new().await;
    let node = rig.node(1).await;
    rig.was_on(node, "ada").await;
    let bob = rig.running(node, "bob").await;
    delete(&rig, true).await;
    rig.app.place_waiting().await.unwrap();
    assert_eq!(rig.get("ada").await.node, Some(node));
    let load = rig.app.node(node).await.unwrap();
    assert_eq!((load.count, load.allocated.memory_bytes, load.allocated.cpu_millicores), (2, GIB, 1000));
    // The host takes its time with the files.
    rig.stop("bob").await;
    rig.report(node, bob.uid, bob.generation, Observed::Gone { purge: Ok(false) }).await;
    assert_eq!(rig.start("eve").await.unwrap().state, State::Starting, "the room is free");
    rig.end().await;
}
