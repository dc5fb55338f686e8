//! What operators see: one trace a start over both binaries, and metrics under their documented names.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use carrel_proto::v1::{self as pb};
use integration_tests::cluster::{Cluster, Options};
use integration_tests::collector::{Collector, Span};

#[tokio::test]
async fn a_start_is_one_trace_over_both_binaries() {
    let collector = Collector::start().await;
    let cluster = Cluster::start(Options::new().otlp(&collector.endpoint())).await;
    let client = cluster.client();
    let (trace, caller) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let mut request =
        tonic::Request::new(pb::StartWorkspaceRequest { student_id: "ada".into(), ..Default::default() });
    request.metadata_mut().insert("traceparent", format!("00-{trace}-{caller}-01").parse().unwrap());
    client.workspaces.clone().start_workspace(request).await.unwrap();
    client.start_and_wait("ada").await;

    // Whole: both ends are there, and every span's parent, too. Spans arrive when they have ended, in no order.
    let is_whole = |spans: &[Span]| {
        let has = |service: &str, name: &str| spans.iter().any(|s| s.service == service && s.name == name);
        let ids: HashSet<_> = spans.iter().map(|span| span.id.as_str()).collect();
        has("control-plane", "carrel.v1.WorkspaceService/StartWorkspace")
            && has("node-agent", "workspace.start")
            && has("control-plane", "workspace.ready")
            && spans.iter().all(|span| span.parent == caller || ids.contains(span.parent.as_str()))
    };
    let start = Instant::now();
    loop {
        let spans: Vec<_> = collector.spans().into_iter().filter(|span| span.trace == trace).collect();
        if is_whole(&spans) {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "the trace is not whole: {spans:#?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The names before the labels.
fn names(text: &str) -> HashSet<&str> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect()
}

#[tokio::test]
async fn metrics_have_their_documented_names() {
    let cluster = Cluster::start(Options::new().idle("2s", "1s")).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    client.try_heartbeat("ada").await.unwrap();
    client.wait_for("ada", pb::workspace::State::Stopped).await;
    let (control_plane, agent) = (cluster.control_plane_metrics().await, cluster.agent_metrics().await);
    for name in CONTROL_PLANE {
        assert!(names(&control_plane).contains(name), "{name} is missing:\n{control_plane}");
    }
    for name in AGENT {
        assert!(names(&agent).contains(name), "{name} is missing:\n{agent}");
    }
}

const CONTROL_PLANE: [&str; 5] = [
    "carrel_start_seconds_bucket",
    "carrel_stops_total",
    "carrel_heartbeats_total",
    "carrel_idle_stop_lateness_seconds_bucket",
    "carrel_agent_sessions_total",
];
const AGENT: [&str; 4] = [
    "carrel_agent_docker_call_seconds_bucket",
    "carrel_agent_start_seconds_bucket",
    "carrel_agent_starts_total",
    "carrel_agent_stops_total",
];
