//! What counts as use of a desk, with real containers: input that the agent sees itself, jobs, and what a policy leaves out.

use std::time::{Duration, Instant};

use carrel_proto::v1::idle_explanation::Verdict;
use carrel_proto::v1::policy_service_client::PolicyServiceClient;
use carrel_proto::v1::workspace::State;
use carrel_proto::v1::{self as pb, Signal};
use integration_tests::client::{Client, millis, name_of, reason};
use integration_tests::cluster::{Cluster, Options};
use integration_tests::process::{self, run};
use tonic::Code;

/// Longer than a heartbeat and a look of the agent's take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(15);

/// Somebody works in the container of a student, whose clock shows this year.
async fn touch(cluster: &Cluster, student: &str, year: u32) {
    let container = cluster.containers_of(student).await.remove(0);
    let (time, input) = (format!("{year}-01-01 00:00:00"), "/run/carrel/activity/input");
    run("docker", &["--host", cluster.docker().host(), "exec", &container.id, "touch", "-d", &time, input]);
}

/// Asks again and again, as activity is no event.
async fn idle_until(client: &Client, student: &str, is_so: impl Fn(&pb::Idle) -> bool) -> pb::Idle {
    let begun = Instant::now();
    loop {
        let idle = client.get(student).await.idle.unwrap();
        if is_so(&idle) {
            return idle;
        }
        assert!(begun.elapsed() < PATIENCE, "{idle:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn explain(client: &Client, student: &str) -> pb::IdleExplanation {
    let request = pb::ExplainIdleRequest { name: name_of(student) };
    client.workspaces.clone().explain_idle(request).await.unwrap().into_inner().explanation.unwrap()
}

fn job(student: &str, seconds: i64) -> pb::RecordHeartbeatRequest {
    pb::RecordHeartbeatRequest {
        name: name_of(student),
        signal: Signal::Job.into(),
        keep_awake: Some(prost_types::Duration { seconds, nanos: 0 }),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_touch_in_the_container_moves_the_deadline_and_withdraws_the_warning() {
    let cluster = Cluster::start(Options::new().idle("8s", "5s")).await;
    let client = cluster.client();
    let ready = client.start_and_wait("ada").await;
    let before = ready.idle.unwrap();
    touch(&cluster, "ada", 2090).await;
    let moved = idle_until(&client, "ada", |idle| idle.last_signal() == Signal::EditorInput).await;
    assert!(millis(moved.deadline_time) > millis(before.deadline_time));
    assert!(moved.deadline_version > before.deadline_version);
    assert!(millis(moved.last_active_time) > millis(ready.ready_time), "at the agent's own time");

    client.wait_until("ada", "warned", |w| w.idle.as_ref().is_some_and(|idle| idle.warned)).await;
    touch(&cluster, "ada", 2001).await;
    client.wait_until("ada", "no longer warned", |w| w.idle.as_ref().is_some_and(|idle| !idle.warned)).await;
    let explained = explain(&client, "ada").await;
    let editor = explained.signals.iter().find(|told| told.signal == "EDITOR_INPUT").unwrap();
    assert!(editor.counts && editor.last_time.is_some(), "{explained:#?}");

    let stopped = client.wait_for("ada", State::Stopped).await;
    let evidence = stopped.stop.unwrap().evidence.unwrap();
    assert_eq!(evidence.last_signal(), Signal::EditorInput);
    let acked = millis(evidence.warning_acked_time);
    assert!(acked >= millis(evidence.warning_time), "the node's session had the warning");
    assert!(millis(evidence.decision_time) - acked >= 5_000, "the whole lead since then: {evidence:#?}");
}

#[tokio::test]
async fn a_stop_that_does_not_know_what_was_typed_is_refused_by_the_host() {
    // Heartbeats so far apart that the agent can be held up without being given up.
    let options = Options::new()
        .idle("6s", "3s")
        .flag("heartbeat-interval", "10s")
        .flag("unreachable-after", "30s")
        .flag("longest-stopping", "60s");
    let mut cluster = Cluster::start(options).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let container = cluster.containers_of("ada").await.remove(0);
    client.wait_until("ada", "warned", |w| w.idle.as_ref().is_some_and(|idle| idle.warned)).await;
    let acked = "SELECT count(*)::text FROM workspace_activity WHERE warning_acked_at IS NOT NULL";
    while cluster.database().text(acked).await == "0" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.agent().signal(process::Signal::STOP);
    touch(&cluster, "ada", 2001).await;
    client.wait_for("ada", State::Stopping).await;
    cluster.agent().signal(process::Signal::CONT);
    let kept = client.wait_for("ada", State::Running).await;
    assert_eq!((kept.generation, kept.reconciling, kept.stop.clone()), (1, false, None), "{kept:#?}");
    assert_eq!(kept.idle.unwrap().last_signal(), Signal::EditorInput);
    assert_eq!(cluster.containers_of("ada").await, [container], "it was never touched");
    let events = client.events_of("ada").await;
    let told: Vec<_> = events.iter().map(|event| event.r#type.as_str()).collect();
    assert!(told.ends_with(&["workspace.stopping", "workspace.stop_refused"]), "{told:?}");
    client.wait_for("ada", State::Stopped).await;
}

#[tokio::test]
async fn a_declared_job_keeps_a_desk_awake_within_the_budget() {
    let cluster = Cluster::start(Options::new().idle("3s", "1s").flag("keep-awake-budget", "7s")).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let clamped = client.workspaces.clone().record_heartbeat(job("ada", 3600)).await.unwrap().into_inner();
    assert!(clamped.clamped, "{clamped:#?}");
    let idle = clamped.idle.unwrap();
    let until = millis(idle.awake_until_time);
    assert_eq!((millis(idle.deadline_time), idle.last_signal()), (until, Signal::Job));
    let explained = explain(&client, "ada").await;
    assert_eq!(explained.verdict(), Verdict::Active);
    let next: Vec<_> = explained.next.iter().map(|step| step.what.as_str()).collect();
    assert_eq!(next, ["warning", "job_end", "stop"], "{explained:#?}");
    let batch =
        pb::RecordHeartbeatsRequest { heartbeats: vec![job("ada", 1), job("ada", 60), job("bob", 1)] };
    let told = client.workspaces.clone().record_heartbeats(batch).await.unwrap().into_inner().results;
    assert_eq!(told.iter().map(|result| result.clamped).collect::<Vec<_>>(), [false, true, false]);
    client.wait_for("ada", State::Stopped).await;
    let events = client.events_of("ada").await;
    let stopping = events.iter().find(|event| event.r#type == "workspace.stopping").unwrap();
    assert!(millis(stopping.time) >= until, "never before the job's end");
    assert!(millis(stopping.time) < until + 2_500, "{} ms after it", millis(stopping.time) - until);
}

#[tokio::test]
async fn a_policy_says_which_signals_count_and_which_images_are_allowed() {
    let cluster = Cluster::start(Options::new().idle("1h", "1m")).await;
    let client = cluster.client();
    let before = client.start_and_wait("ada").await.idle.unwrap();
    let mut policies = PolicyServiceClient::connect(format!("http://{}", cluster.address())).await.unwrap();
    let mut set = async |policy: pb::Policy| {
        policies
            .set_policy(pb::SetPolicyRequest { policy: Some(policy), ..Default::default() })
            .await
            .map(|_| ())
    };
    let mut rule = pb::SignalRule { reason: "the page is open all day".into(), ..Default::default() };
    rule.set_signal(Signal::LmsInput);
    let site = pb::Policy {
        name: "policies/site".into(),
        signal_rules: vec![rule.clone()],
        allowed_images: vec!["carrel/*".into()],
        ..Default::default()
    };
    set(site.clone()).await.unwrap();
    let after = client.try_heartbeat("ada").await.unwrap();
    assert_eq!((after.deadline_time, after.last_active_time), (before.deadline_time, None));
    let explained = explain(&client, "ada").await;
    let told = explained.signals.iter().find(|told| told.signal == "LMS_INPUT").unwrap();
    assert_eq!((told.counts, told.why.as_str()), (false, "the page is open all day"));
    assert!(told.last_time.is_some(), "it is known of");
    assert_eq!(explained.policy.unwrap().origins["signal_rules.LMS_INPUT"], "policies/site");

    let course = |image: &str| pb::Policy {
        name: "policies/course-cs101".into(),
        image: Some(image.into()),
        ..Default::default()
    };
    set(course("carrel/big:1")).await.unwrap();
    let refusals = [
        (course("else/where:1"), "policy.image"),
        (pb::Policy { allowed_images: vec!["x".into()], ..site.clone() }, "policy.allowed_images"),
        (pb::Policy { allowed_images: vec!["a*b".into()], ..site.clone() }, "policy.allowed_images"),
        (
            pb::Policy { signal_rules: vec![rule.clone(), rule.clone()], ..site.clone() },
            "policy.signal_rules.signal",
        ),
        (
            pb::Policy {
                signal_rules: vec![pb::SignalRule { reason: String::new(), ..rule }],
                ..site.clone()
            },
            "policy.signal_rules.reason",
        ),
        (
            pb::Policy { probe: Some(pb::Probe { port: 0, path: "/".into() }), ..site.clone() },
            "policy.probe.port",
        ),
        (pb::Policy { probe: Some(pb::Probe { port: 1, path: "x".into() }), ..site }, "policy.probe.path"),
    ];
    for (policy, field) in refusals {
        let status = set(policy).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(integration_tests::client::violations(&status), [field], "{status}");
    }
}

#[tokio::test]
async fn a_report_on_an_incarnation_that_is_over_is_not_recorded() {
    let cluster = Cluster::start(Options::new().idle("1h", "1m")).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    client.restart("ada").await;
    client.wait_until("ada", "RUNNING again", |w| w.state() == State::Running && w.generation == 2).await;
    let beat = async |generation| {
        let request = pb::RecordHeartbeatRequest { name: name_of("ada"), generation, ..Default::default() };
        client.workspaces.clone().record_heartbeat(request).await
    };
    let refused = beat(1).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::FailedPrecondition, "WORKSPACE_NOT_RUNNING")
    );
    assert_eq!(client.get("ada").await.idle.unwrap().last_active_time, None);
    beat(2).await.unwrap();
}
