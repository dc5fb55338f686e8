//! The idle stop: warned, on time, on evidence, and never over the head of somebody who works.

use std::time::Duration;

use carrel_proto::v1::stop::Reason;
use carrel_proto::v1::workspace::State;
use carrel_proto::v1::{self as pb, Signal};
use integration_tests::client::{Client, millis, name_of, reason};
use integration_tests::cluster::{Cluster, Options};
use integration_tests::settings;
use tonic::Code;

/// Half of it before the warning and half after: what a test does in either half may take seconds on a loaded machine.
const TIMEOUT_MS: i64 = 8_000;
const LEAD_MS: i64 = 4_000;
/// How late a warning or a stop may be: the promise itself.
const LATE_MS: i64 = 5_000;

fn options() -> Options {
    Options::new().idle("8s", "4s")
}

/// The times of the events of one type, in milliseconds.
fn times(events: &[pb::Event], kind: &str) -> Vec<i64> {
    events.iter().filter(|event| event.r#type == kind).map(|event| millis(event.time)).collect()
}

fn is_within(value: i64, from: i64, length: i64) -> bool {
    (from..=from + length).contains(&value)
}

#[tokio::test]
async fn an_idle_desk_is_warned_and_then_stopped_with_evidence() {
    let cluster = Cluster::start(options()).await;
    let client = cluster.client();
    let running = client.start_and_wait("ada").await;
    let idle = running.idle.unwrap();
    let ready = millis(running.ready_time);
    assert_eq!(millis(idle.deadline_time), ready + TIMEOUT_MS, "the deadline is told from the first moment");
    assert_eq!(millis(idle.warning_time), ready + TIMEOUT_MS - LEAD_MS);

    let stopped = client.wait_for("ada", State::Stopped).await;
    let events = client.events_of("ada").await;
    let (warned, stopping) = (times(&events, "workspace.warning"), times(&events, "workspace.stopping"));
    assert_eq!((warned.len(), stopping.len()), (1, 1), "{events:#?}");
    assert!(
        is_within(warned[0], ready + TIMEOUT_MS - LEAD_MS, LATE_MS),
        "warned {} ms after ready",
        warned[0] - ready
    );
    assert!(stopping[0] - warned[0] >= LEAD_MS, "the whole lead: {} ms", stopping[0] - warned[0]);
    assert!(
        is_within(stopping[0], ready + TIMEOUT_MS, LATE_MS),
        "stopped {} ms after ready",
        stopping[0] - ready
    );

    let stop = stopped.stop.unwrap();
    assert_eq!(stop.reason(), Reason::Idle);
    let evidence = stop.evidence.unwrap();
    assert_eq!((evidence.last_active_time, evidence.last_signal()), (None, Signal::Unspecified));
    assert_eq!(millis(evidence.basis_time), ready);
    assert_eq!(evidence.idle_timeout.unwrap().seconds * 1_000, TIMEOUT_MS);
    assert!(millis(evidence.deadline_time) >= ready + TIMEOUT_MS);
    assert!(millis(evidence.decision_time) >= millis(evidence.deadline_time));
    assert!((millis(evidence.warning_time) - warned[0]).abs() < 1_000);
    assert_eq!(cluster.containers().await, [], "the container is gone");
    assert_eq!(times(&events, "workspace.stopped").len(), 1);
}

#[tokio::test]
async fn activity_moves_the_deadline_and_withdraws_the_warning() {
    let cluster = Cluster::start(options()).await;
    let client = cluster.client();
    let before = client.start_and_wait("ada").await.idle.unwrap();
    let warned =
        client.wait_until("ada", "warned", |w| w.idle.as_ref().is_some_and(|idle| idle.warned)).await;
    assert_eq!(warned.state(), State::Running);

    let after = client.try_heartbeat("ada").await.unwrap();
    assert!(!after.warned, "{after:?}");
    assert_eq!(after.last_signal(), Signal::LmsInput);
    assert!(millis(after.deadline_time) >= millis(before.deadline_time) + TIMEOUT_MS - LEAD_MS);
    assert!(after.deadline_version > before.deadline_version);
    client.wait_until("ada", "no longer warned", |w| w.idle.as_ref().is_some_and(|idle| !idle.warned)).await;

    let stopped = client.wait_for("ada", State::Stopped).await;
    let events = client.events_of("ada").await;
    let kinds: Vec<_> = events
        .iter()
        .map(|event| event.r#type.as_str())
        .filter(|kind| {
            matches!(*kind, "workspace.warning" | "workspace.warning_withdrawn" | "workspace.stopping")
        })
        .collect();
    assert_eq!(
        kinds,
        ["workspace.warning", "workspace.warning_withdrawn", "workspace.warning", "workspace.stopping"]
    );
    let stopping = times(&events, "workspace.stopping")[0];
    assert!(
        is_within(stopping, millis(after.deadline_time), LATE_MS),
        "{} ms late",
        stopping - millis(after.deadline_time)
    );
    let evidence = stopped.stop.unwrap().evidence.unwrap();
    assert_eq!(evidence.last_signal(), Signal::LmsInput);
    assert_eq!(millis(evidence.last_active_time), millis(after.last_active_time));
}

#[tokio::test]
async fn nobody_who_works_is_stopped_or_warned() {
    // Six seconds before a warning: five more than lie between two heartbeats.
    let cluster = Cluster::start(Options::new().idle("8s", "2s")).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    // More than two timeouts long.
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        client.try_heartbeat("ada").await.expect("it runs");
    }
    let kinds: Vec<_> = client.events_of("ada").await.into_iter().map(|event| event.r#type).collect();
    assert!(!kinds.iter().any(|kind| kind.contains("warning") || kind.contains("stop")), "{kinds:?}");
}

#[tokio::test]
async fn a_heartbeat_tells_how_old_the_activity_is() {
    let cluster = Cluster::start(Options::new().idle("1h", "1m")).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let beat = async |seconds| {
        let age = Some(prost_types::Duration { seconds, nanos: 0 });
        let request = pb::RecordHeartbeatRequest { name: name_of("ada"), age, ..Default::default() };
        client.workspaces.clone().record_heartbeat(request).await.map(|r| r.into_inner().idle.unwrap())
    };
    // Since it is ready, so that the older one belongs to this run too; five seconds older, so that it stays older on a slow machine.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let now = beat(0).await.unwrap();
    let late = beat(5).await.unwrap();
    assert_eq!(late.last_active_time, now.last_active_time, "older than what is known: nothing moves");
    assert_eq!(late.deadline_time, now.deadline_time);
    let refused = beat(-1).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn start_during_the_idle_stop_ends_in_running() {
    // Its program ignores SIGTERM, so the stop lasts the whole grace.
    let options = options().image(&settings::tiny_image_that_is("stubborn")).flag("stop-grace", "8s");
    let cluster = Cluster::start(options).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    client.wait_for("ada", State::Stopping).await;
    let pressed = client.start("ada").await;
    assert!(pressed.reconciling, "{pressed:?}");
    let running =
        client.wait_until("ada", "RUNNING again", |w| w.state() == State::Running && w.generation == 2).await;
    assert_eq!(running.generation, 2);
    let containers = cluster.containers().await;
    assert_eq!(containers.iter().map(|c| (c.running, c.generation)).collect::<Vec<_>>(), [(true, 2)]);
}

#[tokio::test]
async fn an_extension_holds_the_stop_back_within_the_budget() {
    let cluster = Cluster::start(options().flag("extension-budget", "12s")).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let extend = async |seconds| {
        let by = prost_types::Duration { seconds, nanos: 0 };
        let request = pb::ExtendWorkspaceRequest {
            name: name_of("ada"),
            extent: Some(pb::extend_workspace_request::Extent::By(by)),
            ..Default::default()
        };
        client.workspaces.clone().extend_workspace(request).await.unwrap().into_inner()
    };
    let much = extend(3600).await;
    assert!(much.clamped, "{much:?}");
    let until = millis(much.extended_until_time);
    assert!(millis(much.idle.unwrap().deadline_time) >= until);
    client.wait_for("ada", State::Stopped).await;
    let stopping = times(&client.events_of("ada").await, "workspace.stopping")[0];
    assert!(is_within(stopping, until, LATE_MS), "{} ms after the extension's end", stopping - until);
}

#[tokio::test]
async fn activity_of_a_stopped_desk_is_refused_with_the_reason_of_the_stop() {
    let cluster = Cluster::start(Options::new().idle("1h", "1m")).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    client.start_and_wait("bob").await;
    client.stop_and_wait("ada").await;
    let refused = client.try_heartbeat("ada").await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::FailedPrecondition, "WORKSPACE_NOT_RUNNING")
    );
    let missing = client.try_heartbeat("nobody").await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    assert_eq!(
        batch(&client, &["ada", "bob", "nobody", "../etc"]).await,
        ["WORKSPACE_NOT_RUNNING", "recorded", "WORKSPACE_NOT_FOUND", "INVALID_ARGUMENT"]
    );
}

/// What became of each heartbeat of a batch.
async fn batch(client: &Client, students: &[&str]) -> Vec<String> {
    let beats = students
        .iter()
        .map(|student| pb::RecordHeartbeatRequest { name: name_of(student), ..Default::default() });
    let request = pb::RecordHeartbeatsRequest { heartbeats: beats.collect() };
    let results = client.workspaces.clone().record_heartbeats(request).await.unwrap().into_inner().results;
    let told = results.into_iter().map(|result| match result.result.expect("one of both") {
        pb::heartbeat_result::Result::Idle(_) => "recorded".into(),
        pb::heartbeat_result::Result::Error(error) => error.reason,
    });
    told.collect()
}
