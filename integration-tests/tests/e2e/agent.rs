//! The agent and what it finds: it dies, comes back, adopts, removes what is over, and leaves others' containers alone.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bollard::models::{ContainerCreateBody, HostConfig, PortBinding};
use carrel_proto::v1::resolve_orphan_request::Resolution;
use carrel_proto::v1::stop::Reason;
use carrel_proto::v1::workspace::{State, StatusReason};
use carrel_proto::v1::{self as pb};
use integration_tests::client::Client;
use integration_tests::cluster::{Cluster, Options};
use integration_tests::docker::Found;
use integration_tests::settings::{tiny_image, tiny_image_that_is};

use crate::nodes::running_orphan;

/// Waits until the containers of the cluster are as wanted.
pub(crate) async fn wait_for_containers(
    cluster: &Cluster,
    wanted: &str,
    is_so: impl Fn(&[Found]) -> bool,
) -> Vec<Found> {
    let start = Instant::now();
    loop {
        let containers = cluster.containers().await;
        if is_so(&containers) {
            return containers;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "not {wanted}: {containers:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) async fn events(client: &Client, kind: &str) -> Vec<pb::Event> {
    client.list_events(pb::EventFilter { types: vec![kind.into()], ..Default::default() }).await
}

/// The same container, not started again.
async fn identity(cluster: &Cluster, id: &str) -> (String, Option<String>) {
    let inspected = cluster.docker().inspect(id).await;
    (id.to_owned(), inspected.state.unwrap().started_at)
}

#[tokio::test]
async fn an_agent_that_is_killed_and_started_again_adopts_the_same_container() {
    let mut cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let before = identity(&cluster, &cluster.containers().await[0].id).await;
    cluster.agent().kill();
    // Longer than a silent node is given.
    client.wait_for("ada", State::Unreachable).await;
    assert_eq!(identity(&cluster, &before.0).await, before, "nothing stops because an agent is gone");
    cluster.start_agent().await;
    let running = client.wait_for("ada", State::Running).await;
    assert_eq!(running.generation, 1);
    assert_eq!(identity(&cluster, &before.0).await, before);
    assert_eq!(cluster.containers().await.len(), 1);
    client.stop_and_wait("ada").await;
}

#[tokio::test]
async fn an_agent_that_is_stopped_stops_no_container() {
    let mut cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let before = identity(&cluster, &cluster.containers().await[0].id).await;
    let start = Instant::now();
    assert!(cluster.agent().terminate().await.success());
    assert!(start.elapsed() < Duration::from_secs(8), "an orderly end is quick: {:?}", start.elapsed());
    assert_eq!(identity(&cluster, &before.0).await, before);
    assert!(cluster.containers().await[0].running);
    cluster.start_agent().await;
    client.wait_for("ada", State::Running).await;
    assert_eq!(identity(&cluster, &before.0).await, before);
}

#[tokio::test]
async fn a_frozen_agent_makes_its_desks_unreachable_and_comes_back() {
    use integration_tests::process::Signal;
    let mut cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let before = identity(&cluster, &cluster.containers().await[0].id).await;
    cluster.agent().signal(Signal::STOP);
    let silent = client.wait_for("ada", State::Unreachable).await;
    assert_eq!(silent.status_reason(), StatusReason::NodeUnreachable);
    assert_eq!(silent.idle.unwrap().clock(), pb::idle::Clock::PausedUnobservable);
    cluster.agent().signal(Signal::CONT);
    client.wait_for("ada", State::Running).await;
    assert_eq!(identity(&cluster, &before.0).await, before);
}

#[tokio::test]
async fn a_stop_that_is_asked_for_while_the_agent_is_away_happens_when_it_is_back() {
    let mut cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    cluster.agent().kill();
    client.try_stop("ada").await.unwrap();
    cluster.start_agent().await;
    client.wait_for("ada", State::Stopped).await;
    assert_eq!(cluster.containers().await, []);
}

/// A container like the one of a desk, in the same network, under other labels. Its port is published as the agent does.
pub(crate) async fn imitate(cluster: &Cluster, name: &str, labels: HashMap<String, String>) -> String {
    let port = vec![PortBinding { host_ip: Some("127.0.0.1".into()), host_port: None }];
    let body = ContainerCreateBody {
        image: Some(tiny_image()),
        labels: Some(labels),
        exposed_ports: Some(vec!["8080/tcp".into()]),
        host_config: Some(HostConfig {
            port_bindings: Some(HashMap::from([("8080/tcp".into(), Some(port))])),
            network_mode: Some(format!("carrel-{}", &cluster.id()[..8])),
            ..Default::default()
        }),
        ..Default::default()
    };
    cluster.docker().run(name, body).await
}

pub(crate) fn with(labels: &HashMap<String, String>, changes: &[(&str, &str)]) -> HashMap<String, String> {
    let mut labels = labels.clone();
    labels.extend(changes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    labels
}

#[tokio::test]
async fn a_container_of_an_older_generation_is_removed() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    let first = client.start_and_wait("ada").await;
    let labels = cluster.containers().await.remove(0).labels;
    client.restart("ada").await;
    client.wait_until("ada", "generation 2", |w| w.state() == State::Running && w.generation == 2).await;
    let ghost = imitate(&cluster, &format!("carrel-{}-g1", first.uid), labels).await;
    let left =
        wait_for_containers(&cluster, "one container", |found| found.iter().all(|c| c.id != ghost)).await;
    assert_eq!(left.iter().map(|c| (c.running, c.generation)).collect::<Vec<_>>(), [(true, 2)]);
    assert_eq!(client.get("ada").await.generation, 2, "the desk did not notice");
}

#[tokio::test]
async fn a_container_of_a_stopped_or_deleted_desk_is_removed() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    for student in ["ada", "bob"] {
        client.start_and_wait(student).await;
    }
    let all = cluster.containers().await;
    let labels_of = |student: &str| all.iter().find(|c| c.student == student).unwrap().labels.clone();
    client.stop_and_wait("ada").await;
    client.delete_and_wait("bob", false).await;
    imitate(&cluster, "carrel-test-ghost-ada", labels_of("ada")).await;
    imitate(&cluster, "carrel-test-ghost-bob", labels_of("bob")).await;
    wait_for_containers(&cluster, "empty", <[Found]>::is_empty).await;
    // Events are shown once no older transaction is open anywhere in the Postgres that tests share.
    let start = Instant::now();
    while events(&client, "orphan.stopped").await.len() != 2 {
        assert!(start.elapsed() < Duration::from_secs(20), "not both are told");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(client.get("ada").await.state(), State::Stopped);
}

#[tokio::test]
async fn a_container_that_the_store_does_not_know_is_adopted_by_an_operators_word() {
    let cluster = Cluster::start(Options::new().idle("1h", "1m")).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let labels = cluster.containers().await.remove(0).labels;
    let uid = uuid::Uuid::new_v4().to_string();
    let placement = uuid::Uuid::new_v4().to_string();
    let unknown = with(
        &labels,
        &[
            ("carrel.workspace", &uid),
            ("carrel.student", "eve"),
            ("carrel.generation", "7"),
            ("carrel.placement", &placement),
        ],
    );
    let id = imitate(&cluster, &format!("carrel-{uid}-g7"), unknown).await;
    let before = identity(&cluster, &id).await;
    let orphan = running_orphan(&client).await;
    assert_eq!((orphan.container_id.as_str(), orphan.reason.as_str()), (id.as_str(), "NOT_OF_THIS_NODE"));
    assert!(client.try_get("eve").await.is_err(), "nobody is taken in on a node's word");
    let adopt = pb::ResolveOrphanRequest {
        node: orphan.node,
        container_id: id.clone(),
        resolution: Resolution::Adopt.into(),
        reason: "made by hand".into(),
        ..Default::default()
    };
    client.nodes.clone().resolve_orphan(adopt).await.unwrap();
    let adopted = client.wait_for("eve", State::Running).await;
    assert_eq!((adopted.uid, adopted.generation), (uid, 7));
    assert_eq!(identity(&cluster, &id).await, before, "it was not touched");
    client.stop_and_wait("eve").await;
    assert_eq!(client.start_and_wait("eve").await.generation, 8);
}

#[tokio::test]
async fn others_containers_are_never_touched() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let labels = cluster.containers().await.remove(0).labels;
    let plain_name = format!("carrel-test-plain-{}", uuid::Uuid::new_v4().simple());
    let plain = cluster.docker().run_labelled(&plain_name, &tiny_image(), HashMap::new()).await;
    let another = uuid::Uuid::new_v4().to_string();
    let foreign = with(&labels, &[("carrel.cluster", &another), ("carrel.generation", "0")]);
    let foreign = imitate(&cluster, &format!("carrel-test-{another}"), foreign).await;
    // Several rounds of reconciliation.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let running =
        futures_util::future::join_all([&plain, &foreign].map(|id| cluster.docker().inspect(id))).await;
    for id in [&plain, &foreign] {
        cluster.docker().remove(id).await;
    }
    assert!(running.into_iter().all(|container| container.state.unwrap().running == Some(true)));
}

#[tokio::test]
async fn a_program_that_keeps_crashing_fails_with_its_exit_code_and_its_log() {
    let cluster = Cluster::start(Options::new().image(&tiny_image_that_is("crash"))).await;
    let client = cluster.client();
    client.start("ada").await;
    let failed = client.wait_for("ada", State::Failed).await;
    assert_eq!(failed.status_reason(), StatusReason::CrashLoop, "{failed:?}");
    let stop = failed.stop.unwrap();
    assert_eq!((stop.reason(), stop.exit_code), (Reason::Exited, Some(3)));
    assert!(!failed.status_message.is_empty());
    let logs = client.try_logs("ada", 100).await.unwrap();
    assert!(
        logs.iter().any(|(generation, line)| *generation == 1 && line.contains("tiny: crashing")),
        "{logs:?}"
    );
    let restarts = events(&client, "workspace.restarting").await;
    assert_eq!(restarts.len(), 3, "the budget");
    client.stop_and_wait("ada").await;
    assert_eq!(cluster.containers().await, []);
}

#[tokio::test]
async fn a_desk_that_runs_out_of_memory_says_so() {
    let cluster = Cluster::start(Options::new().image(&tiny_image_that_is("oom"))).await;
    let client = cluster.client();
    client.start("ada").await;
    let failed = client.wait_for("ada", State::Failed).await;
    assert_eq!(failed.status_reason(), StatusReason::OutOfMemory, "{failed:?}");
    assert_eq!(failed.stop.unwrap().reason(), Reason::Oom);
}

#[tokio::test]
async fn a_program_that_never_answers_times_out() {
    let options = Options::new().image(&tiny_image_that_is("deaf")).flag("longest-starting", "3s");
    let cluster = Cluster::start(options).await;
    let client = cluster.client();
    client.start("ada").await;
    let failed = client.wait_for("ada", State::Failed).await;
    assert_eq!(failed.status_reason(), StatusReason::StartTimeout, "{failed:?}");
    wait_for_containers(&cluster, "empty", <[Found]>::is_empty).await;
}

#[tokio::test]
async fn a_desk_whose_container_is_killed_behind_our_back_runs_again() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let container = cluster.containers().await.remove(0);
    cluster.docker().kill(&container.id).await;
    client.wait_until("ada", "restarting", |w| w.state() == State::Starting).await;
    client.wait_for("ada", State::Running).await;
    // Even when the container is removed.
    let container = cluster.containers().await.remove(0);
    cluster.docker().remove(&container.id).await;
    wait_for_containers(&cluster, "running again", |found| {
        found.len() == 1 && found[0].running && found[0].id != container.id
    })
    .await;
    client.wait_for("ada", State::Running).await;
}

#[tokio::test]
async fn a_desk_whose_row_cannot_be_read_runs_on_and_the_others_of_its_node_are_served() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    for student in ["ada", "bob"] {
        client.start_and_wait(student).await;
    }
    let before = identity(&cluster, &cluster.containers_of("bob").await[0].id).await;
    let spoiled = "UPDATE workspaces SET warning = to_jsonb('spoiled'::text) WHERE student_id = 'bob'";
    cluster.database().execute(spoiled).await;
    client.stop_and_wait("ada").await;
    client.start_and_wait("cyd").await;
    // Long enough for a container that no order names to be judged.
    tokio::time::sleep(Duration::from_secs(3)).await;
    client.stop_and_wait("cyd").await;
    assert_eq!(identity(&cluster, &before.0).await, before);

    cluster.database().execute("UPDATE workspaces SET warning = NULL WHERE student_id = 'bob'").await;
    // It is looked after again without another word.
    cluster.docker().kill(&before.0).await;
    wait_for_containers(&cluster, "running again", |found| found.len() == 1 && found[0].running).await;
    assert_ne!(identity(&cluster, &before.0).await, before);
    client.stop_and_wait("bob").await;
}

#[tokio::test]
async fn logs_tell_this_incarnation_and_the_one_before() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let logs = client.try_logs("ada", 100).await.unwrap();
    assert!(
        logs.iter().any(|(generation, line)| *generation == 1 && line.contains("generation 1")),
        "{logs:?}"
    );
    client.restart("ada").await;
    client.wait_until("ada", "generation 2", |w| w.state() == State::Running && w.generation == 2).await;
    let told = |logs: &[(i64, String)], of: i64| {
        logs.iter().any(|(generation, line)| *generation == of && line.contains(&format!("generation {of}")))
    };
    let logs = client.try_logs("ada", 100).await.unwrap();
    assert!(told(&logs, 1) && told(&logs, 2), "{logs:?}");
    client.stop_and_wait("ada").await;
    let logs = client.try_logs("ada", 100).await.unwrap();
    assert!(told(&logs, 2), "{logs:?}");
}
