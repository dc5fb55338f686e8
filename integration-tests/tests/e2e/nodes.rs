//! What operators do with nodes: two agents on one machine, each with a Docker of its own.

use std::time::{Duration, Instant};

use carrel_proto::v1::node::State as NodeState;
use carrel_proto::v1::resolve_orphan_request::Resolution;
use carrel_proto::v1::workspace::{State, StatusReason};
use carrel_proto::v1::{self as pb, stop::Reason};
use integration_tests::client::{Client, millis, reason, violations};
use integration_tests::cluster::{Cluster, Options};
use integration_tests::own_docker::OwnDocker;
use integration_tests::settings;
use tonic::Code;

use crate::agent::{events, imitate, wait_for_containers, with};

async fn nodes(client: &Client) -> Vec<pb::Node> {
    let listed = client.nodes.clone().list_nodes(pb::ListNodesRequest::default()).await;
    listed.unwrap().into_inner().nodes
}

async fn node(client: &Client, name: &str) -> pb::Node {
    let request = pb::GetNodeRequest { name: name.into() };
    client.nodes.clone().get_node(request).await.unwrap().into_inner().node.unwrap()
}

async fn wait_for_node(client: &Client, name: &str, state: NodeState) -> pb::Node {
    let start = Instant::now();
    loop {
        let node = node(client, name).await;
        if node.state() == state {
            return node;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "not {}: {node:#?}", state.as_str_name());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_drained_host_loses_its_desks_at_their_idle_moments_and_is_then_removed() {
    let second = OwnDocker::start(false).await;
    second.load(&settings::docker_host(), &settings::tiny_image());
    let options = Options::new().idle("1h", "2s").flag("drain-idle-moment", "4s");
    let mut cluster = Cluster::start(options).await;
    let client = cluster.client();
    for student in ["ada", "bob"] {
        client.start_and_wait(student).await;
    }
    std::fs::write(cluster.student_dir("ada").join("essay.txt"), "to be").unwrap();
    let old = client.get("ada").await.node;
    let labels = ["--zone", "z2", "--label", "disk=ssd", "--label", "row=7"];
    let _other = cluster.start_other_agent(&second.host(), &labels).await;
    let new = nodes(&client).await.into_iter().find(|node| node.name != old).unwrap();
    assert_eq!((new.zone.as_str(), new.labels.len(), new.labels["disk"].as_str()), ("z2", 2, "ssd"));

    let drain = pb::DrainNodeRequest {
        name: old.clone(),
        within: Some(prost_types::Duration { seconds: 120, nanos: 0 }),
        reason: "new kernel".into(),
        ..Default::default()
    };
    let drained = client.nodes.clone().drain_node(drain).await.unwrap().into_inner();
    assert_eq!(drained.workspaces, ["workspaces/ada", "workspaces/bob"]);
    let deadline = millis(drained.node.unwrap().drain.unwrap().deadline_time);

    // Ada is idle: she moves. Bob types all the while: he is warned, and left where he is.
    let typing = async {
        loop {
            let idle = client.try_heartbeat("bob").await.unwrap();
            assert!(millis(idle.deadline_time) <= deadline);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let moves = client.wait_until("ada", "moved", |w| w.state() == State::Running && w.node == new.name);
    let moved = tokio::select! {
        // Cancel-safe: it never ends by itself.
        () = typing => unreachable!("typing goes on"),
        moved = moves => moved,
    };
    assert_eq!(moved.generation, 2);
    let container = cluster.containers_on(&second.host()).await.remove(0);
    let seen = reads_essay(&second, &container.id);
    assert_eq!(seen, "to be", "the files came along");
    let bob = client.get("bob").await;
    let idle = bob.idle.unwrap();
    assert_eq!((bob.state(), bob.generation, bob.node.as_str()), (State::Running, 1, old.as_str()));
    assert!(idle.warned && idle.reason() == Reason::Drain, "{idle:?}");
    assert_eq!(node(&client, &old).await.drain.unwrap().remaining, 1);

    // And moves when he has stopped typing, well before the deadline.
    client.wait_until("bob", "moved", |w| w.state() == State::Running && w.node == new.name).await;
    wait_for_node(&client, &old, NodeState::Drained).await;
    for kind in ["workspace.moved", "workspace.warning"] {
        let told = events(&client, kind).await;
        assert!(told.len() == 2 && told.iter().all(|event| event.reason == "DRAIN"), "{told:?}");
    }

    let remove = pb::RemoveNodeRequest { name: old.clone(), reason: "sold".into(), ..Default::default() };
    let removed = client.nodes.clone().remove_node(remove).await.unwrap().into_inner().node.unwrap();
    assert_eq!(removed.state(), NodeState::Removed);
    let left: Vec<_> = nodes(&client).await.into_iter().map(|node| node.name).collect();
    assert_eq!(left, [new.name]);
    let start = Instant::now();
    while !cluster.agent().log_tail(50).contains("was removed") {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "it is not told:\n{}",
            cluster.agent().log_tail(50)
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What a container sees of the essay.
fn reads_essay(docker: &OwnDocker, container: &str) -> String {
    let command = ["--host", &docker.host(), "exec", container, "cat", "/home/coder/project/essay.txt"];
    let output = std::process::Command::new("docker").args(command).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn a_host_tells_when_its_share_was_looked_at_and_how_long_that_took() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    let start = Instant::now();
    let measured = loop {
        let storage = nodes(&client).await.remove(0).storage.unwrap();
        if storage.latency_p99.is_some() {
            break storage;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{storage:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(measured.verdict, "HEALTHY");
    let checked = std::time::SystemTime::try_from(measured.checked_time.unwrap()).unwrap();
    assert!(checked.elapsed().is_ok_and(|ago| ago < Duration::from_secs(60)), "{measured:?}");
    let span = |span: Option<prost_types::Duration>| Duration::try_from(span.unwrap()).unwrap();
    let (half, most) = (span(measured.latency_p50), span(measured.latency_p99));
    assert!(Duration::ZERO < half && half <= most && most <= Duration::from_secs(10), "{measured:?}");
}

#[tokio::test]
async fn a_host_that_is_confirmed_dead_gives_its_desks_to_another_at_once() {
    let second = OwnDocker::start(false).await;
    second.load(&settings::docker_host(), &settings::tiny_image());
    let mut cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    let old = client.start_and_wait("ada").await.node;
    let _other = cluster.start_other_agent(&second.host(), &[]).await;
    let confirm = |validate_only| pb::ConfirmNodeDeadRequest {
        name: old.clone(),
        reason: "on fire".into(),
        validate_only,
        ..Default::default()
    };
    let heard = client.nodes.clone().confirm_node_dead(confirm(false)).await.unwrap_err();
    assert_eq!((heard.code(), reason(&heard).as_str()), (Code::FailedPrecondition, "NODE_STILL_HEARD"));

    cluster.agent().kill();
    cluster.docker().kill(&cluster.containers().await[0].id).await;
    wait_for_node(&client, &old, NodeState::Unreachable).await;
    let asked = client.nodes.clone().confirm_node_dead(confirm(true)).await.unwrap().into_inner();
    assert_eq!((asked.moved, asked.stopped), (vec!["workspaces/ada".to_owned()], vec![]));
    // It was only asked: the desk is told of its host's silence, and no more.
    client.wait_for("ada", State::Unreachable).await;
    let told = client.nodes.clone().confirm_node_dead(confirm(false)).await.unwrap().into_inner();
    assert_eq!(told.node.unwrap().state(), NodeState::Fenced);
    let moved = client.wait_for("ada", State::Running).await;
    assert!(moved.node != old && moved.generation == 2, "{moved:?}");
}

/// The orphan that is listed, once it runs: it may have been seen between its creation and its start.
pub(crate) async fn running_orphan(client: &Client) -> pb::Orphan {
    let start = Instant::now();
    loop {
        let listed = client.nodes.clone().list_orphans(pb::ListOrphansRequest::default()).await;
        if let Some(orphan) = listed.unwrap().into_inner().orphans.pop().filter(|orphan| orphan.running) {
            return orphan;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "nothing that runs is listed");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn an_operator_has_a_container_stopped_that_was_left_alone() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let ours = cluster.containers().await.remove(0);
    // Of a desk of ada's that is no more. A generation beyond hers would say that the store has forgotten.
    let desk = "01a20ea6-5135-7719-906d-f819e911ab71";
    let labels = with(&ours.labels, &[("carrel.workspace", desk)]);
    let ghost = imitate(&cluster, &format!("carrel-{desk}-g1"), labels).await;
    let orphan = running_orphan(&client).await;
    assert_eq!(
        (orphan.container_id.as_str(), orphan.workspace.as_str(), orphan.generation, orphan.running),
        (ghost.as_str(), "workspaces/ada", 1, true)
    );
    let resolve = |resolution: Resolution| pb::ResolveOrphanRequest {
        node: orphan.node.clone(),
        container_id: orphan.container_id.clone(),
        resolution: resolution.into(),
        reason: "a copy from an old disk".into(),
        ..Default::default()
    };
    let refused = client.nodes.clone().resolve_orphan(resolve(Resolution::Adopt)).await.unwrap_err();
    assert_eq!(reason(&refused), "ORPHAN_CANNOT_BE_ADOPTED");
    client.nodes.clone().resolve_orphan(resolve(Resolution::Stop)).await.unwrap();
    let left = wait_for_containers(&cluster, "one container", |found| found.len() == 1).await;
    assert_eq!(left[0].id, ours.id);
    let after = client.get("ada").await;
    assert_eq!((after.state(), after.generation), (State::Running, 1), "the desk did not notice");
    let gone = client.nodes.clone().resolve_orphan(resolve(Resolution::Stop)).await.unwrap_err();
    assert_eq!((gone.code(), reason(&gone).as_str()), (Code::NotFound, "ORPHAN_NOT_FOUND"));
}

#[tokio::test]
async fn a_student_of_whom_a_container_is_held_starts_once_an_operator_had_it_stopped() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let ours = cluster.containers().await.remove(0);
    client.start_and_wait("eve").await;
    client.stop_and_wait("eve").await;
    // Of a desk of eve's, who was here, that nobody knows.
    let desk = "01a20ea6-5135-7719-906d-f819e911ab71";
    let labels = with(
        &ours.labels,
        &[("carrel.student", "eve"), ("carrel.workspace", desk), ("carrel.generation", "7")],
    );
    let stray = imitate(&cluster, &format!("carrel-{desk}-g7"), labels).await;
    let orphan = running_orphan(&client).await;
    client.start("eve").await;
    let held =
        client.wait_until("eve", "told why", |w| w.status_reason() == StatusReason::ContainerHeld).await;
    assert_eq!((held.state(), held.node.as_str()), (State::Pending, ""));
    assert!(
        held.status_message.contains(&orphan.node) && held.status_message.contains(&stray),
        "{}",
        held.status_message
    );
    let resolve = pb::ResolveOrphanRequest {
        node: orphan.node,
        container_id: stray,
        resolution: Resolution::Stop.into(),
        reason: "a copy from an old disk".into(),
        ..Default::default()
    };
    client.nodes.clone().resolve_orphan(resolve).await.unwrap();
    client.wait_for("eve", State::Running).await;
    assert_eq!(cluster.containers().await.len(), 2, "ada's and eve's own");
}

#[tokio::test]
async fn operators_are_told_which_field_is_wrong() {
    let cluster = Cluster::start_without_agent(Options::new()).await;
    let nodes = cluster.client().nodes;
    let unknown = format!("nodes/{}", uuid::Uuid::new_v4());
    let missing = nodes.clone().get_node(pb::GetNodeRequest { name: unknown.clone() }).await.unwrap_err();
    assert_eq!((missing.code(), reason(&missing).as_str()), (Code::NotFound, "NODE_NOT_FOUND"));
    let named = nodes.clone().get_node(pb::GetNodeRequest { name: "host-1".into() }).await.unwrap_err();
    assert_eq!((named.code(), violations(&named)), (Code::InvalidArgument, vec!["name".to_owned()]));
    let drain = pb::DrainNodeRequest { name: unknown.clone(), ..Default::default() };
    let why = nodes.clone().drain_node(drain.clone()).await.unwrap_err();
    assert_eq!(violations(&why), ["reason"]);
    let long = prost_types::Duration { seconds: 31 * 24 * 3600, nanos: 0 };
    let drain = pb::DrainNodeRequest { reason: "x".into(), within: Some(long), ..drain };
    assert_eq!(violations(&nodes.clone().drain_node(drain).await.unwrap_err()), ["within"]);
    let remove = pb::RemoveNodeRequest { name: unknown.clone(), ..Default::default() };
    assert_eq!(violations(&nodes.clone().remove_node(remove).await.unwrap_err()), ["reason"]);
    let dead = pb::ConfirmNodeDeadRequest { name: unknown.clone(), ..Default::default() };
    assert_eq!(violations(&nodes.clone().confirm_node_dead(dead).await.unwrap_err()), ["reason"]);
    let resolve = pb::ResolveOrphanRequest { node: unknown, reason: "x".into(), ..Default::default() };
    let known = Resolution::Stop.into();
    let nul = pb::ResolveOrphanRequest { resolution: known, container_id: "a\0b".into(), ..resolve.clone() };
    assert_eq!(violations(&nodes.clone().resolve_orphan(resolve).await.unwrap_err()), ["resolution"]);
    assert_eq!(violations(&nodes.clone().resolve_orphan(nul).await.unwrap_err()), ["container_id"]);
    let page = pb::ListOrphansRequest { page_size: -1, ..Default::default() };
    assert_eq!(violations(&nodes.clone().list_orphans(page).await.unwrap_err()), ["page_size"]);
}
