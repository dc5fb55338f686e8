use std::time::Duration;

use carrel_common::id::RequestId;
use control_plane::app::{AppError, Call, Extent};
use control_plane::domain::policy::{Policy, Scope};
use control_plane::store::Replay;

use crate::late::somebody_waits;
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
async fn a_call_with_the_id_of_one_that_is_under_way_waits_for_its_answer() {
    let rig = Rig::new().await;
    let (rpc, once) = ("StopWorkspace", RequestId::new());
    let mut first = rig.app.store.begin().await.unwrap();
    assert_eq!(first.reserve::<u8>(rpc, once, "x").await.unwrap(), Replay::New);
    let mut second = rig.app.store.begin().await.unwrap();
    let again = async { second.reserve::<u8>(rpc, once, "x").await.unwrap() };
    let answered = async {
        somebody_waits(&rig).await;
        first.answer(rpc, once, "x", &7_u8).await.unwrap();
        first.commit().await.unwrap();
    };
    let (replayed, ()) = tokio::join!(again, answered);
    assert_eq!(replayed, Replay::Answered(Box::new(7)));
    drop(second);
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

fn once(rpc: &'static str) -> Call {
    Call { rpc, request_id: Some(RequestId::new()), fingerprint: "x".into() }
}

#[tokio::test]
async fn an_extension_that_is_asked_for_again_is_answered_as_the_first_time() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    let (call, extent) = (once("ExtendWorkspace"), Extent::By(Duration::from_secs(7 * 24 * 3600)));
    let first = rig.app.extend(&call, &id("ada"), extent, "").await.unwrap();
    assert!(first.clamped, "beyond the budget");
    let policy = Policy { extension_budget: Some(Duration::from_secs(60)), ..Policy::default() };
    rig.app.set_policy(&once("SetPolicy"), &Scope::Site, "", &policy).await.unwrap();
    assert_eq!(rig.app.extend(&call, &id("ada"), extent, "").await.unwrap(), first);
    rig.stop("ada").await;
    assert_eq!(
        rig.app.extend(&call, &id("ada"), extent, "").await.unwrap(),
        first,
        "also once it is stopped"
    );
    let another = rig.app.extend(&once("ExtendWorkspace"), &id("ada"), extent, "").await;
    assert!(matches!(another, Err(AppError::NotRunning { .. })), "{another:?}");
    rig.end().await;
}

#[tokio::test]
async fn a_policy_call_that_is_repeated_changes_nothing_that_was_changed_since() {
    let rig = Rig::new().await;
    let idle = |seconds| Policy { idle_timeout: Some(Duration::from_secs(seconds)), ..Policy::default() };
    let (set, delete) = (once("SetPolicy"), once("DeletePolicy"));
    let first = rig.app.set_policy(&set, &Scope::Site, "", &idle(600)).await.unwrap();
    let second = rig.app.set_policy(&once("SetPolicy"), &Scope::Site, "", &idle(700)).await.unwrap();
    assert_eq!(rig.app.set_policy(&set, &Scope::Site, "", &idle(600)).await.unwrap(), first);
    assert_eq!(rig.app.policy(&Scope::Site).await.unwrap(), second);
    assert_eq!(rig.app.delete_policy(&delete, &Scope::Site, "").await.unwrap(), second);
    rig.app.set_policy(&once("SetPolicy"), &Scope::Site, "", &idle(800)).await.unwrap();
    assert_eq!(rig.app.delete_policy(&delete, &Scope::Site, "").await.unwrap(), second);
    assert_eq!(rig.app.policy(&Scope::Site).await.unwrap().policy, idle(800));
    rig.end().await;
}
