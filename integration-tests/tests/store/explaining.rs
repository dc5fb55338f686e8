//! `ExplainIdle` as callers are answered: every verdict with its sentence, and what the last stop was decided on.

use std::time::Duration;

use carrel_common::id::NodeId;
use carrel_common::model::Signal;
use carrel_proto::v1 as pb;
use carrel_proto::v1::idle_explanation::Verdict;
use carrel_proto::v1::workspace_service_server::WorkspaceService as _;
use control_plane::app::DrainOrder;
use control_plane::domain::idle::Clock;
use control_plane::domain::policy::{Policy, QuietWindow};
use control_plane::domain::workspace::State;
use control_plane::grpc::{Following, Workspaces};
use control_plane::store::Beat;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Request;

use crate::rig::{Rig, beat, call, id};

const HOUR: Duration = Duration::from_secs(3600);

fn service(rig: &Rig) -> Workspaces {
    let following = Following { stop: CancellationToken::new() };
    Workspaces::new(rig.app.clone(), following, TaskTracker::new())
}

async fn explain(rig: &Rig, student: &str) -> pb::IdleExplanation {
    let request = pb::ExplainIdleRequest { name: format!("workspaces/{student}") };
    let answer = service(rig).explain_idle(Request::new(request)).await.unwrap();
    answer.into_inner().explanation.unwrap()
}

async fn said(rig: &Rig, student: &str) -> (Verdict, String) {
    let explained = explain(rig, student).await;
    (explained.verdict(), explained.message)
}

async fn set(rig: &Rig, scope: &str, policy: Policy) {
    rig.app.set_policy(&call("SetPolicy"), &scope.parse().unwrap(), "", &policy).await.unwrap();
}

/// It has been ready for so much longer.
async fn age(rig: &Rig, student: &str, by: Duration) {
    rig.database
        .execute(&format!(
            "UPDATE workspaces SET ready_at = ready_at - interval '{} s', version = version + 1 WHERE student_id = '{student}'",
            by.as_secs()
        ))
        .await;
}

async fn look(rig: &Rig, student: &str) {
    let uid = rig.get(student).await.uid;
    rig.app.check_idle(uid).await.unwrap();
}

async fn desks<const N: usize>(rig: &Rig, students: [&str; N]) -> NodeId {
    let node = rig.node(8).await;
    for student in students {
        rig.running(node, student).await;
    }
    node
}

#[tokio::test]
async fn what_keeps_a_desk_and_what_will_stop_it_is_told() {
    let rig = Rig::new().await;
    desks(&rig, ["ada", "bob", "eve", "kim"]).await;
    let steps = explain(&rig, "ada").await.next;
    assert_eq!(steps.iter().map(|step| step.what.as_str()).collect::<Vec<_>>(), ["warning", "stop"]);
    let job = Beat { keep_awake: HOUR, ..beat("bob", Signal::Job, Duration::ZERO) };
    rig.app.record(vec![job]).await.unwrap().remove(0).unwrap();
    set(&rig, "student-eve", Policy { max_lifetime: Some(HOUR / 6), ..Policy::default() }).await;
    let now = rig.app.store.now().await.unwrap();
    let exam = QuietWindow { start: now - HOUR, end: now + HOUR, student_extra: Default::default() };
    set(&rig, "student-kim", Policy { quiet_windows: vec![exam], ..Policy::default() }).await;
    let until = |what: &str| (Verdict::Active, what.to_owned());
    assert_eq!(
        [said(&rig, "ada").await, said(&rig, "bob").await, said(&rig, "eve").await],
        [
            until("It is stopped at the deadline unless somebody works in it."),
            until("A declared job keeps it awake; then it is stopped at the deadline."),
            until("Its longest lifetime ends next; work in it does not move that."),
        ]
    );
    let quiet = "A quiet window holds stops back; the times are those after it.";
    assert_eq!(said(&rig, "kim").await, (Verdict::PausedQuiet, quiet.to_owned()));

    for (student, seconds) in [("ada", 800), ("eve", 500)] {
        age(&rig, student, Duration::from_secs(seconds)).await;
        look(&rig, student).await;
    }
    let steps = explain(&rig, "ada").await.next;
    assert_eq!(steps.iter().map(|step| step.what.as_str()).collect::<Vec<_>>(), ["stop"]);
    let warned = |what: &str| (Verdict::Warned, format!("The warning is out: {what}"));
    assert_eq!(
        [said(&rig, "ada").await, said(&rig, "eve").await],
        [
            warned("it is stopped at the deadline unless somebody works in it."),
            warned("its longest lifetime ends at the deadline; work in it does not move that."),
        ]
    );
    rig.end().await;
}

#[tokio::test]
async fn while_a_node_has_not_told_what_it_saw_nothing_is_said_to_be_decided() {
    let rig = Rig::new().await;
    let node = desks(&rig, ["ada", "bob"]).await;
    age(&rig, "ada", Duration::from_secs(800)).await;
    rig.reconnect(node).await;
    let unheard =
        "Its host has yet to tell what it saw while nobody could hear it: nothing is decided before.";
    assert_eq!(said(&rig, "ada").await, (Verdict::PausedUnobservable, unheard.to_owned()));
    assert_eq!(explain(&rig, "ada").await.next, [], "nothing that is over");
    let clock = async || rig.app.get(&id("ada")).await.unwrap().idle.unwrap().clock;
    assert_eq!(clock().await, Clock::Paused, "every face says the same");
    assert_eq!(said(&rig, "bob").await.0, Verdict::Active, "nothing is due of this one");
    rig.heartbeat(node).await;
    assert_eq!(said(&rig, "ada").await.0, Verdict::Active);
    assert!(clock().await.running().is_some());
    look(&rig, "ada").await;
    assert_eq!(said(&rig, "ada").await.0, Verdict::Warned);

    rig.database.execute("UPDATE nodes SET last_heartbeat_at = now() - interval '1 min'").await;
    rig.app.give_up_node(node).await.unwrap();
    let (verdict, message) = said(&rig, "ada").await;
    assert_eq!(verdict, Verdict::PausedUnobservable);
    assert!(message.starts_with("Its host is silent"), "{message}");
    rig.end().await;
}

#[tokio::test]
async fn on_a_host_that_is_emptied_the_drain_is_told() {
    let rig = Rig::new().await;
    let node = desks(&rig, ["ada"]).await;
    let order = DrainOrder { within: HOUR, force: false, reason: "new kernel".into(), validate_only: false };
    rig.app.drain(&call("DrainNode"), node, &order).await.unwrap();
    let emptied = "Its host is being emptied: it leaves when nobody has worked in it for a moment, or at the drain's deadline.";
    assert_eq!(said(&rig, "ada").await, (Verdict::Active, emptied.to_owned()));
    look(&rig, "ada").await;
    assert_eq!(said(&rig, "ada").await, (Verdict::Warned, emptied.to_owned()));
    rig.end().await;
}

#[tokio::test]
async fn after_a_stop_by_the_policies_its_evidence_is_told_with_the_lifetime_that_ended() {
    let rig = Rig::with(|settings| settings.defaults.idle.warning_lead = Duration::from_millis(100)).await;
    let node = desks(&rig, ["ada"]).await;
    set(&rig, "site", Policy { max_lifetime: Some(HOUR / 6), ..Policy::default() }).await;
    assert_eq!(explain(&rig, "ada").await.last_stop_evidence, None, "it was never stopped");
    age(&rig, "ada", HOUR / 6).await;
    while rig.get("ada").await.state == State::Running {
        look(&rig, "ada").await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    rig.obey(node).await;
    let explained = explain(&rig, "ada").await;
    assert_eq!(
        (explained.verdict(), explained.message.as_str()),
        (Verdict::NotRunning, "It does not run, so nothing is counted.")
    );
    assert_eq!(explained.next, []);
    let request = pb::GetWorkspaceRequest { name: "workspaces/ada".into() };
    let shown = service(&rig).get_workspace(Request::new(request)).await.unwrap().into_inner();
    let stop = shown.workspace.unwrap().stop.unwrap();
    assert_eq!(stop.reason(), pb::stop::Reason::MaxLifetime);
    assert_eq!(explained.last_stop_evidence, stop.evidence, "the same as in the workspace");
    let evidence = explained.last_stop_evidence.unwrap();
    assert_eq!(evidence.max_lifetime, Some(prost_types::Duration { seconds: 600, nanos: 0 }));
    assert_eq!(evidence.max_lifetime_origin, "policies/site");
    assert_eq!(
        (evidence.idle_timeout.unwrap().seconds, evidence.idle_timeout_origin.as_str()),
        (900, "default")
    );
    assert!(rig.app.get(&id("ada")).await.unwrap().idle.is_none());
    rig.end().await;
}
