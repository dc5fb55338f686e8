//! What a node has seen itself: recorded with its heartbeat, and a reason to refuse an idle stop.

use std::time::Duration;

use carrel_common::id::{Generation, NodeId};
use carrel_common::model::{ActivityReport, Observed, Run, Signal, StopReason};
use control_plane::domain::workspace::{State, Workspace};
use time::OffsetDateTime;

use crate::rig::{Rig, beat, call, id};

const TIMEOUT: Duration = Duration::from_millis(300);
const LEAD: Duration = Duration::from_millis(100);

fn seen(workspace: &Workspace, age: Duration) -> ActivityReport {
    ActivityReport {
        workspace: workspace.uid,
        generation: workspace.generation,
        signal: Signal::EditorInput,
        age,
    }
}

async fn last_input(rig: &Rig, student: &str) -> Option<OffsetDateTime> {
    rig.app.explain_idle(&id(student)).await.unwrap().activity.seen.editor_input
}

/// A workspace whose idle stop has been decided.
async fn stopping(rig: &Rig, node: NodeId) -> Workspace {
    let uid = rig.running(node, "ada").await.uid;
    for _ in 0..500 {
        rig.app.check_idle(uid).await.unwrap();
        let workspace = rig.get("ada").await;
        if workspace.state == State::Stopping {
            return workspace;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it is not stopped");
}

async fn quick() -> Rig {
    Rig::with_idle(TIMEOUT, LEAD).await
}

fn refused(seen_ago: Duration) -> Observed {
    Observed::RefusedStop { endpoint: "127.0.0.1:1".into(), seen_ago }
}

#[tokio::test]
async fn what_a_node_sees_is_recorded_of_its_own_workspaces_and_generations_as_old_as_it_is() {
    let rig = Rig::new().await;
    let (node, other) = (rig.node(4).await, rig.node(1).await);
    let ada = rig.running(node, "ada").await;
    assert_eq!(ada.node, Some(node));
    let hour = Duration::from_secs(3600);
    let older = ActivityReport { generation: Generation(0), ..seen(&ada, Duration::ZERO) };
    rig.app.record_seen(node, &[older]).await.unwrap();
    rig.app.record_seen(other, &[seen(&ada, Duration::ZERO)]).await.unwrap();
    assert_eq!(last_input(&rig, "ada").await, None);
    let before = rig.get("ada").await;
    rig.app.record_seen(node, &[seen(&ada, hour)]).await.unwrap();
    let old = last_input(&rig, "ada").await.unwrap();
    let now = rig.app.store.now().await.unwrap();
    let age = Duration::try_from(now - old).unwrap();
    assert!((hour..hour + Duration::from_secs(10)).contains(&age), "not made younger: {age:?}");
    rig.app.record_seen(node, &[seen(&ada, Duration::ZERO)]).await.unwrap();
    let young = last_input(&rig, "ada").await.unwrap();
    rig.app.record_seen(node, &[seen(&ada, hour)]).await.unwrap();
    assert_eq!(last_input(&rig, "ada").await, Some(young), "told again in a new session: nothing goes back");
    assert_eq!(rig.get("ada").await.version, before.version);
    rig.stop("ada").await;
    rig.app.record_seen(node, &[seen(&ada, Duration::ZERO)]).await.unwrap();
    assert_eq!(last_input(&rig, "ada").await, Some(young), "behind the back of a stop nothing is recorded");
    rig.end().await;
}

#[tokio::test]
async fn an_idle_stop_tells_the_node_what_it_knew_and_other_stops_do_not() {
    let rig = quick().await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    rig.app.record(vec![beat("ada", Signal::LmsInput, Duration::ZERO)]).await.unwrap();
    let ada = stopping(&rig, node).await;
    let known = ada.stop.as_ref().unwrap().evidence.as_ref().unwrap().last_active_at.unwrap();
    let order = async || rig.desired_set(node).await.items.remove(0);
    let first = order().await;
    let age = first.idle_basis_age.unwrap();
    let now = rig.app.store.now().await.unwrap();
    assert!(age >= TIMEOUT && now - age >= known, "{age:?}");
    tokio::time::sleep(Duration::from_millis(20)).await;
    let later = order().await.idle_basis_age.unwrap();
    assert!(later > age, "as of the moment it is sent");
    rig.stop("ada").await;
    let item = order().await;
    assert_eq!(item.idle_basis_age, None, "somebody wants it stopped");
    assert!(matches!(item.run, Run::Stopped { reason: StopReason::User, .. }), "{item:?}");
    rig.end().await;
}

#[tokio::test]
async fn a_stop_that_the_node_refuses_leaves_the_workspace_running_with_what_it_saw() {
    let rig = quick().await;
    let node = rig.node(4).await;
    let ada = stopping(&rig, node).await;
    let late = rig.app.record(vec![beat("ada", Signal::LmsInput, Duration::ZERO)]).await.unwrap();
    assert!(late[0].is_err(), "it is closed for others");
    rig.report(node, ada.uid, ada.generation, refused(Duration::from_millis(40))).await;
    let kept = rig.get("ada").await;
    assert_eq!((kept.state, kept.generation, kept.reconciling()), (State::Running, ada.generation, false));
    assert_eq!((kept.warning, kept.stop), (None, None));
    let at = last_input(&rig, "ada").await.unwrap();
    assert!(at > ada.stop.unwrap().at - Duration::from_millis(40));
    let recorded = rig.app.record(vec![beat("ada", Signal::LmsInput, Duration::ZERO)]).await.unwrap();
    assert!(recorded[0].is_ok(), "it is open again");
    let told = "SELECT string_agg(kind || ' ' || actor || ' ' || reason, ', ') FROM events
                WHERE kind IN ('workspace.stop_refused', 'workspace.stopped')";
    assert_eq!(rig.database.text(told).await, "workspace.stop_refused agent IDLE");
    // The order is as it was before, and the next stop is decided on what is known then.
    let items = rig.desired_set(node).await.items;
    assert!(matches!(items[0].run, Run::Running { .. }) && items[0].idle_basis_age.is_none());
    let again = stopping(&rig, node).await;
    assert!(again.stop.unwrap().evidence.unwrap().basis_at > at);
    rig.obey(node).await;
    assert_eq!(rig.get("ada").await.state, State::Stopped);
    rig.end().await;
}

#[tokio::test]
async fn a_refusal_that_comes_after_somebody_pressed_stop_changes_nothing() {
    let rig = quick().await;
    let node = rig.node(4).await;
    let ada = stopping(&rig, node).await;
    rig.stop("ada").await;
    rig.report(node, ada.uid, ada.generation, refused(Duration::ZERO)).await;
    let workspace = rig.get("ada").await;
    assert_eq!((workspace.state, workspace.stop.unwrap().reason), (State::Stopping, StopReason::User));
    rig.obey(node).await;
    assert_eq!(rig.get("ada").await.state, State::Stopped);
    rig.end().await;
}

#[tokio::test]
async fn where_what_a_node_sees_does_not_count_it_cannot_refuse() {
    use control_plane::domain::policy::{Policy, SignalRule};
    let rig = quick().await;
    let node = rig.node(4).await;
    let rule = SignalRule { counts: false, reason: "a demonstration".into() };
    let policy = Policy { signal_rules: [(Signal::EditorInput, rule)].into(), ..Policy::default() };
    rig.app.set_policy(&call("SetPolicy"), &"site".parse().unwrap(), "", &policy).await.unwrap();
    let ada = stopping(&rig, node).await;
    assert_eq!(ada.stop.unwrap().evidence.unwrap().refusable_after, None);
    assert_eq!(rig.desired_set(node).await.items[0].idle_basis_age, None);
    rig.end().await;
}
