use carrel_common::id::RequestId;
use control_plane::app::{AppError, Call};

use crate::rig::{Rig, id};

fn call(request_id: RequestId, fingerprint: &str) -> Call {
    Call { rpc: "StopWorkspace", request_id: Some(request_id), fingerprint: fingerprint.into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_request_id_has_one_effect_and_one_answer() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    let (ada, once) = (id("ada"), call(RequestId::new(), "x"));
    let calls = (0..8).map(|_| rig.app.stop(&once, &ada, false, ""));
    let answers = futures_util::future::join_all(calls).await;
    let first = answers[0].as_ref().unwrap().workspace.clone();
    assert!(answers.iter().all(|a| a.as_ref().unwrap().workspace == first));
    rig.obey(node).await;
    rig.running(node, "ada").await;
    let replayed = rig.app.stop(&once, &ada, false, "").await.unwrap();
    assert_eq!(replayed.workspace, first, "a repeated call must not stop what was started since");
    assert_eq!(rig.get("ada").await.state, control_plane::domain::workspace::State::Running);
    rig.end().await;
}

#[tokio::test]
async fn a_request_id_with_other_content_is_refused() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    let request_id = RequestId::new();
    rig.app.stop(&call(request_id, "x"), &id("ada"), false, "").await.unwrap();
    let other = rig.app.stop(&call(request_id, "y"), &id("ada"), true, "").await;
    assert!(matches!(other, Err(AppError::RequestIdReused)), "{other:?}");
    rig.end().await;
}
