//! A host that is cut off, frozen or dead: it ends its desks by itself, they start elsewhere only after that, and nothing ends before
//! its time. With leases of seconds instead of minutes.

use std::time::{Duration, Instant};

use carrel_proto::v1 as pb;
use carrel_proto::v1::workspace::State;
use integration_tests::cluster::{Cluster, Options};
use integration_tests::docker::{Docker, Found};
use integration_tests::own_docker::OwnDocker;
use integration_tests::process::Signal;
use integration_tests::settings::{docker_host, tiny_image};

/// F: from the sending of the last acked heartbeat to the end.
const FENCE_AFTER: Duration = Duration::from_secs(10);
/// F + S + M
const REPLACE_AFTER: Duration = Duration::from_secs(15);
/// The last acked heartbeat may be this old on a slow machine, before its session ends for it.
const BEAT: Duration = Duration::from_secs(2);
/// A time without contact that is no lease, however long a slow machine takes to come back.
const AWAY: Duration = Duration::from_secs(3);
/// Of a machine that does other things as well.
const BUSY: Duration = Duration::from_secs(4);

fn short() -> Options {
    Options::new()
        .flag("heartbeat-interval", "400ms")
        .flag("unreachable-after", "2s")
        .flag("fence-after", "10s")
        .flag("stop-budget", "2s")
        .flag("lease-margin", "3s")
}

async fn events(cluster: &Cluster, kind: &str) -> usize {
    let filter = pb::EventFilter { types: vec![kind.into()], ..Default::default() };
    cluster.client().list_events(filter).await.len()
}

/// Of each of these daemons, the generations of the student's containers that run.
async fn running(cluster: &Cluster, dockers: &[&Docker], student: &str) -> Vec<Vec<i64>> {
    let generations = |found: Vec<Found>| {
        found.into_iter().filter(|c| c.running && c.student == student).map(|c| c.generation).collect()
    };
    let listings = dockers.iter().map(|docker| docker.of_cluster(cluster.id()));
    futures_util::future::join_all(listings).await.into_iter().map(generations).collect()
}

/// When the student's containers were first seen to run no more on the first of these daemons; on the others they run only after that.
async fn ended(cluster: &Cluster, dockers: &[&Docker], student: &str) -> Instant {
    let start = Instant::now();
    loop {
        // The last daemon is asked last, and the first one once more: what has moved meanwhile cannot look like two at once.
        let before = running(cluster, dockers, student).await;
        if before[0].is_empty() {
            return Instant::now();
        }
        assert!(before[1..].iter().all(Vec::is_empty), "{student} runs twice: {before:?}");
        assert!(start.elapsed() < FENCE_AFTER + BUSY * 3, "{student} runs on");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

#[tokio::test]
async fn a_host_whose_agent_stays_dead_is_fenced_and_its_desk_starts_elsewhere_only_after_that() {
    let mut cluster = Cluster::start(short()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let own = OwnDocker::start(false).await;
    own.load(&docker_host(), &tiny_image());
    let _other = cluster.start_other_agent(&own.host(), &[]).await;
    let (first, second) = (cluster.docker().clone(), Docker::at(&own.host()));

    cluster.agent().kill();
    let killed = Instant::now();
    let at = ended(&cluster, &[&first, &second], "ada").await - killed;
    assert!(at > FENCE_AFTER - BEAT && at < FENCE_AFTER + BUSY, "ended after {at:?}");
    let moved =
        client.wait_until("ada", "elsewhere", |w| w.state() == State::Running && w.generation == 2).await;
    assert!(killed.elapsed() > REPLACE_AFTER - BEAT, "moved after {:?}", killed.elapsed());
    assert_eq!(running(&cluster, &[&first, &second], "ada").await, [vec![], vec![2]]);
    assert_eq!((events(&cluster, "node.fenced").await, events(&cluster, "workspace.moved").await), (1, 1));
    assert!(cluster.control_plane_metrics().await.contains("carrel_fences_total{reason=\"LEASE_OVER\"} 1"));

    // It comes back: what it had is over, and it takes desks again.
    cluster.start_agent().await;
    let start = Instant::now();
    while !cluster.containers().await.is_empty() {
        assert!(start.elapsed() < Duration::from_secs(20), "the old container stays");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(client.get("ada").await.generation, moved.generation);
    assert_eq!(running(&cluster, &[&first, &second], "ada").await, [vec![], vec![2]]);
    // The agent ends what is over as it starts, before its session's first heartbeat makes the node READY.
    let ready = "SELECT count(*)::text FROM nodes WHERE state = 'READY'";
    let start = Instant::now();
    while cluster.database().text(ready).await != "2" {
        assert!(start.elapsed() < Duration::from_secs(20), "its node takes no desks");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_frozen_agent_has_ended_everything_before_it_says_a_word_when_it_wakes() {
    let mut cluster = Cluster::start(short()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let docker = cluster.docker().clone();
    cluster.agent().signal(Signal::STOP);
    let frozen = Instant::now();
    client.wait_for("ada", State::Unreachable).await;
    let at = ended(&cluster, &[&docker], "ada").await - frozen;
    assert!(at > FENCE_AFTER - BEAT && at < FENCE_AFTER + BUSY, "ended after {at:?}");
    // There is nowhere to go: it waits.
    client.wait_until("ada", "moved", |w| w.state() == State::Pending && w.generation == 2).await;
    cluster.agent().signal(Signal::CONT);
    client.wait_until("ada", "back", |w| w.state() == State::Running && w.generation == 2).await;
    assert_eq!(running(&cluster, &[&docker], "ada").await, [vec![2]]);
}

#[tokio::test]
async fn the_fence_needs_neither_the_agent_nor_docker() {
    let mut docker = OwnDocker::start(false).await;
    docker.load(&docker_host(), &tiny_image());
    let mut cluster = Cluster::start(short().docker(&docker.host())).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let container = cluster.containers().await.remove(0);
    let state = cluster.docker().inspect(&container.id).await.state.expect("a state");
    let program = format!("/proc/{}/cgroup", state.pid.expect("it runs"));
    let lives = || std::fs::read_to_string(&program).is_ok_and(|cgroups| cgroups.contains(&container.id));
    docker.signal(Signal::STOP);
    cluster.agent().kill();
    let killed = Instant::now();
    while lives() {
        assert!(killed.elapsed() < FENCE_AFTER + BUSY, "it lives on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(killed.elapsed() > FENCE_AFTER - BEAT, "ended after {:?}", killed.elapsed());
    // Docker is asked again only when it answers: the desk comes back, in another generation or, when it was in time, the same.
    docker.signal(Signal::CONT);
    cluster.start_agent().await;
    client.wait_until("ada", "back", |w| w.state() == State::Running && w.generation == 2).await;
    assert_eq!(running(&cluster, &[cluster.docker()], "ada").await, [vec![2]]);
}

#[tokio::test]
async fn a_control_plane_that_is_away_for_less_than_the_lease_stops_nothing() {
    let mut cluster = Cluster::start(short()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let before = cluster.containers().await;
    for _ in 0..2 {
        cluster.control_plane().kill();
        tokio::time::sleep(AWAY).await;
        cluster.start_control_plane().await;
        let heard = async || cluster.database().text("SELECT renewals::text FROM nodes").await;
        let count = heard().await;
        while heard().await == count {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    assert_eq!(client.wait_for("ada", State::Running).await.generation, 1);
    assert_eq!(cluster.containers().await, before, "the same container");
    assert_eq!(events(&cluster, "node.fenced").await, 0);
}

#[tokio::test]
async fn an_agent_that_is_killed_and_comes_back_in_time_goes_on_where_it_was() {
    let mut cluster = Cluster::start(short()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let before = cluster.containers().await;
    cluster.agent().kill();
    tokio::time::sleep(AWAY).await;
    cluster.start_agent().await;
    assert_eq!(client.wait_for("ada", State::Running).await.generation, 1);
    // Longer than the lease that was counted from before the kill.
    tokio::time::sleep(FENCE_AFTER).await;
    assert_eq!(cluster.containers().await, before, "the same container");
    assert!(cluster.agent_metrics().await.contains("carrel_agent_fence_process 1"));
}
