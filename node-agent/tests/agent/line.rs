//! The line to the control plane.

use carrel_common::model::{DesiredPair, DesiredSet, Observed, StopReason, WorkspaceIdle};
use carrel_proto::v1 as pb;
use carrel_proto::v1::session_response::Message as Down;

use crate::rig::{Rig, desk, docker};

#[tokio::test(flavor = "multi_thread")]
async fn says_hello_with_the_facts_of_the_host_and_keeps_its_identity() {
    let mut rig = Rig::start().await;
    let facts = |n: usize| {
        move |heard: &crate::control_plane::Heard| {
            heard.hellos.get(n).map(|hello| (hello.facts.clone(), hello.process_start))
        }
    };
    let (first, process_start) = rig.control_plane.hear("a hello", facts(0)).await;
    let first = first.expect("facts");
    assert_eq!(first.docker_id, docker(&["info", "--format", "{{.ID}}"]));
    assert!(
        process_start && first.cpu_millicores > 0 && first.memory_bytes > 0 && first.max_workspaces == 250
    );
    rig.stop_agent().await;
    rig.start_agent().await;
    let (second, _) = rig.control_plane.hear("a second hello", facts(1)).await;
    assert_eq!(second.expect("facts").machine_id, first.machine_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn tells_everything_again_in_a_new_session() {
    let rig = Rig::start().await;
    let ada = desk("ada", "test");
    rig.control_plane.want(vec![ada.clone()]);
    let (first, _) = rig.running(&ada).await;
    rig.control_plane.hang_up();
    let key = (ada.workspace, 1);
    let again = rig.control_plane.observe("RUNNING again", key, |o| o.sequence > first.sequence).await;
    assert!(matches!(again.state, Observed::Running { .. }), "{again:?}");
    let accepted = rig.control_plane.heard(|heard| heard.hellos.last().and_then(|hello| hello.accepted));
    assert_eq!(accepted.map(|pair| pair.desired_generation), Some(2));
    assert!(!rig.control_plane.heard(|heard| heard.hellos.last().is_some_and(|hello| hello.process_start)));
}

#[tokio::test(flavor = "multi_thread")]
async fn refuses_a_set_that_is_older_or_says_something_else_under_the_same_name() {
    let rig = Rig::start().await;
    let ada = desk("ada", "test");
    rig.control_plane.want(vec![ada.clone()]);
    rig.running(&ada).await;
    let holds = rig.control_plane.set().pair;
    let older = DesiredPair { generation: holds.generation - 1, ..holds };
    for pair in [older, holds] {
        rig.control_plane.offer(DesiredSet::new(pair, vec![crate::rig::stopped(&ada)]));
    }
    let refused = rig
        .control_plane
        .hear("two refusals", |heard| (heard.refused.len() == 2).then(|| heard.refused.clone()))
        .await;
    assert_eq!(
        refused.iter().map(|r| r.offered).collect::<Vec<_>>(),
        [Some(older.into()), Some(holds.into())]
    );
    assert_eq!(docker(&["inspect", "--format", "{{.State.Running}}", &rig.containers()[0]]), "true");
}

#[tokio::test(flavor = "multi_thread")]
async fn acks_what_it_is_told_of_deadlines() {
    let rig = Rig::start().await;
    let ada = desk("ada", "test");
    for sequence in [1, 2] {
        let idle = WorkspaceIdle {
            workspace: ada.workspace,
            generation: ada.generation,
            remaining: Some((std::time::Duration::from_secs(120), StopReason::Idle)),
            deadline_version: sequence,
            warned: sequence == 2,
        };
        rig.control_plane.send(Down::IdleState(pb::IdleState { sequence, workspaces: vec![idle.into()] }));
    }
    let acks = |heard: &crate::control_plane::Heard| (heard.idle_acks == [1, 2]).then_some(());
    rig.control_plane.hear("two acks", acks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_forgot_the_node_stops_nothing() {
    let rig = Rig::start().await;
    let ada = desk("ada", "test");
    rig.control_plane.want(vec![ada.clone()]);
    rig.running(&ada).await;
    rig.control_plane.forget_node();
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(docker(&["inspect", "--format", "{{.State.Running}}", &rig.containers()[0]]), "true");
}

#[tokio::test(flavor = "multi_thread")]
async fn dials_again_when_the_replica_leaves() {
    let rig = Rig::start().await;
    rig.control_plane.hear("a hello", |heard| (!heard.hellos.is_empty()).then_some(())).await;
    rig.control_plane.send(Down::GoAway(pb::GoAway { reason: "deploy".into() }));
    rig.control_plane.hear("a second hello", |heard| (heard.hellos.len() == 2).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_docker_the_heartbeat_says_so() {
    let mut rig = Rig::stopped(|config| config.docker_host = "unix:///nowhere/docker.sock".into()).await;
    let identity = serde_json::json!({
        "node": rig.control_plane.node(), "cluster": rig.control_plane.cluster(), "secret": "secret"
    });
    std::fs::create_dir_all(rig.dir.path().join("state")).expect("state");
    std::fs::write(rig.dir.path().join("state/identity.json"), identity.to_string()).expect("identity");
    rig.start_agent().await;
    let docker = rig
        .control_plane
        .hear("a heartbeat", |heard| heard.heartbeats.last().and_then(|beat| beat.docker.clone()))
        .await;
    assert_eq!((docker.healthy, docker.reason.as_str()), (false, "DOCKER_UNREACHABLE"));
}
