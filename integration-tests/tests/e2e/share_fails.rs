//! The share hangs, goes stale, is unmounted: the node says so, nothing else suffers, and nothing lands on the disk below. A share
//! that hangs makes whoever touches it sleep beyond any signal; Docker's starts on it complete by themselves, later.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use carrel_proto::v1::workspace::{State, StatusReason};
use carrel_proto::v1::{self as pb};
use integration_tests::client::{Client, reason};
use integration_tests::cluster::{Cluster, Options};
use integration_tests::gated_share::ESTALE;
use integration_tests::{settings, writes};
use tonic::Code;

fn options() -> Options {
    Options::new()
        .gated_share()
        .agent_flag("storage-timeout", "1s")
        .agent_flag("fence-file-interval", "1s")
        .agent_flag("docker-timeout", "3s")
}

async fn event(client: &Client, kind: &str, reason: &str) -> String {
    let start = Instant::now();
    loop {
        let filter = pb::EventFilter { types: vec![kind.into()], ..Default::default() };
        let events = client.list_events(filter).await;
        if let Some(event) = events.iter().rev().find(|event| event.reason == reason) {
            return format!("{event:?}");
        }
        assert!(start.elapsed() < Duration::from_secs(30), "no {kind} {reason}: {events:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn starts_again(client: &Client, student: &str) {
    let start = Instant::now();
    while let Err(status) = client.try_start(student).await {
        assert!(start.elapsed() < Duration::from_secs(20), "{status}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    client.wait_for(student, State::Running).await;
}

/// The value of a gauge or counter of the agent, of those of its lines that have this label.
async fn metric(cluster: &Cluster, name: &str, label: &str) -> f64 {
    let text = cluster.agent_metrics().await;
    let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

async fn wait_until(what: &str, within: Duration, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < within, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_share_that_hangs_degrades_its_node_and_holds_up_nothing_else() {
    let mut cluster = Cluster::start(options()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let before = cluster.containers().await;

    cluster.share().hang();
    let told = event(&client, "node.degraded", "STORAGE_TIMEOUT").await;
    assert!(told.contains("file server"), "it says where to look: {told}");
    let asked = Instant::now();
    let status = client.try_start("bob").await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "STORAGE_TIMEOUT"));
    assert_eq!(client.get("ada").await.state(), State::Running, "who works goes on working");
    client.try_heartbeat("ada").await.expect("recorded");
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());

    // Time enough for looks and fence files to be asked for again and again: only so many of them are ever left hanging.
    wait_until("probers hang", Duration::from_secs(10), async || {
        metric(&cluster, "carrel_agent_share_stuck", "").await >= 2.0
    })
    .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (stuck, waiting) =
        (metric(&cluster, "carrel_agent_share_stuck", "").await, cluster.share().waiting());
    assert!(stuck <= 4.0 && waiting <= 8, "{stuck} probers, {waiting} operations");

    // The agent can end, and begin again, while they hang.
    let ended = Instant::now();
    assert!(cluster.agent().terminate().await.success());
    assert!(ended.elapsed() < Duration::from_secs(8), "{:?}", ended.elapsed());
    cluster.start_agent().await;
    assert_eq!(client.wait_for("ada", State::Running).await.generation, 1);
    assert_eq!(cluster.containers().await, before, "adopted as it was");

    cluster.share().pass();
    starts_again(&client, "bob").await;
    wait_until("what hung is gone", Duration::from_secs(10), async || {
        metric(&cluster, "carrel_agent_share_stuck", "").await == 0.0
    })
    .await;
    assert_eq!(cluster.containers_of("ada").await, before);
}

#[tokio::test]
async fn a_share_that_goes_stale_is_told_as_such_and_heals() {
    let cluster = Cluster::start(options()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    cluster.share().fail(ESTALE);
    let told = event(&client, "node.degraded", "STORAGE_NOT_WRITABLE").await;
    assert!(told.contains("Stale file handle"), "{told}");
    assert_eq!(client.try_start("bob").await.unwrap_err().code(), Code::FailedPrecondition);
    cluster.share().pass();
    starts_again(&client, "bob").await;

    // A server that is slow but there is no reason to refuse anybody.
    cluster.share().slow(Duration::from_millis(2));
    client.start_and_wait("eve").await;

    // And one that hangs until the kernel gives it up for good: who hung is answered with an error.
    cluster.share().hang();
    wait_until("probers hang", Duration::from_secs(10), async || {
        metric(&cluster, "carrel_agent_share_stuck", "").await >= 1.0
    })
    .await;
    cluster.share().abort();
    wait_until("they are let go", Duration::from_secs(10), async || {
        metric(&cluster, "carrel_agent_share_stuck", "").await == 0.0
    })
    .await;
    wait_until("the node says so again", Duration::from_secs(20), async || {
        let filter = pb::EventFilter { types: vec!["node.degraded".into()], ..Default::default() };
        client.list_events(filter).await.len() >= 2
    })
    .await;
    assert_eq!(client.get("ada").await.state(), State::Running);
}

#[tokio::test]
async fn an_unmounted_share_gets_nothing_written_to_the_disk_below() {
    let cluster = Cluster::start(options()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    cluster.share().unmount();
    // At once, while the last look at the share was a good one.
    client.start("bob").await;
    let failed = client.wait_for("bob", State::Failed).await;
    assert_eq!(failed.status_reason(), StatusReason::StorageUnavailable, "{failed:?}");
    wait_until("starts are refused", Duration::from_secs(20), async || {
        client.try_start("eve").await.is_err()
    })
    .await;
    let uncovered = cluster.base();
    assert_eq!(uncovered.metadata().unwrap().permissions().mode() & 0o7777, 0o711, "what was below it");
    assert_eq!(std::fs::read_dir(&uncovered).unwrap().count(), 0, "nothing is made");
    assert_eq!(client.get("ada").await.state(), State::Running);
}

/// A start that hangs within Docker, and completes when the share is back, whoever waits for it: the student, the container.
async fn ghost_start(cluster: &Cluster, client: &Client) -> (String, String) {
    for attempt in 0..20 {
        let student = format!("ghost-{attempt}");
        let claim = cluster.share().behind().join("base/.carrel/fence").join(&student);
        client.start(&student).await;
        // Made, and said on the share: what follows is Docker's start, which takes some tenths of a second.
        let made = loop {
            match cluster.containers_of(&student).await.pop() {
                Some(found) if claim.exists() => break found,
                Some(_) | None => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        };
        tokio::time::sleep(Duration::from_millis(20)).await;
        cluster.share().hang();
        // A container that is being started is locked: even a look at it waits.
        let look = cluster.docker().api().inspect_container(&made.id, None);
        if tokio::time::timeout(Duration::from_secs(1), look).await.is_err() {
            wait_until("the agent gives the start up", Duration::from_secs(20), async || {
                let given_up = r#"outcome="unknown",verb="start""#;
                metric(cluster, "carrel_agent_docker_call_seconds_count", given_up).await >= 1.0
            })
            .await;
            return (student, made.id);
        }
        cluster.share().pass();
        client.wait_until(&student, "settled", |w| w.state() != State::Starting).await;
        client.delete_and_wait(&student, false).await;
    }
    panic!("no start was caught on its way");
}

#[tokio::test]
async fn a_start_that_completes_after_it_was_given_up_never_writes_beside_the_next() {
    let cluster = Cluster::start(options().image(&settings::tiny_image_that_is("writer"))).await;
    let client = cluster.client();
    let (student, _) = ghost_start(&cluster, &client).await;
    let failed = client.wait_for(&student, State::Failed).await;
    assert!(!failed.status_message.is_empty(), "{failed:?}");
    let wanted = client.try_start(&student).await;
    if let Ok(waits) = &wanted {
        assert_eq!(waits.state(), State::Pending, "not before the end of the first is proved");
    }

    cluster.share().pass();
    starts_again(&client, &student).await;
    let file = cluster.share().behind().join("base").join(&student).join(writes::FILE);
    let history = || writes::check(&std::fs::read_to_string(&file).unwrap_or_default());
    wait_until("the second writes", Duration::from_secs(10), async || {
        let history = history().unwrap_or_else(|wrong| panic!("not one writer at a time: {wrong}"));
        history.runs.last().is_some_and(|run| run.pair == (1, 2) && run.lines > 20)
    })
    .await;
    let running: Vec<_> = cluster.containers_of(&student).await.iter().map(|c| c.generation).collect();
    assert_eq!(running, [2]);
}

#[tokio::test]
async fn a_start_that_completes_after_its_student_was_moved_gives_way_without_anybodys_order() {
    let mut cluster = Cluster::start(options()).await;
    let client = cluster.client();
    let (student, ghost) = ghost_start(&cluster, &client).await;
    // Nobody is there to order anything; and meanwhile its student has had a later container on another host, which was stopped.
    cluster.control_plane().kill();
    let other = uuid::Uuid::new_v4();
    for change in [
        "UPDATE placements SET released_at = now() WHERE released_at IS NULL".to_owned(),
        format!(
            "INSERT INTO placements (id, workspace_id, node_id, generation, spec, cpu_millicores, memory_bytes, incarnation, released_at)
             SELECT '{other}', p.workspace_id, p.node_id, 2, p.spec, p.cpu_millicores, p.memory_bytes, p.incarnation, now()
             FROM placements p JOIN workspaces w ON w.id = p.workspace_id AND w.student_id = '{student}'"
        ),
        "UPDATE nodes SET desired_generation = desired_generation + 1".to_owned(),
        format!(
            "UPDATE workspaces SET state = 'STOPPED', desired = 'STOPPED', generation = 2, node_id = NULL, version = version + 1
             WHERE student_id = '{student}'"
        ),
    ] {
        cluster.database().execute(&change).await;
    }
    let fences = cluster.share().behind().join("base/.carrel/fence");
    let later = format!("{{\"incarnation\":1,\"generation\":2,\"placement\":\"{other}\"}}");
    std::fs::write(fences.join(&student), later).unwrap();

    cluster.share().pass();
    wait_until("the ghost gave way", Duration::from_secs(20), async || {
        metric(&cluster, "carrel_agent_fenced_total", "running").await >= 1.0
    })
    .await;
    let look = cluster.docker().inspect(&ghost).await.state.unwrap();
    assert_eq!(look.running, Some(false), "{look:?}");
    assert!(look.started_at.is_some_and(|at| !at.starts_with("0001")), "it had come up");

    // The control plane hears of it, knows the later one, and has the ghost cleared away; the student starts anew.
    cluster.start_control_plane().await;
    starts_again(&client, &student).await;
    wait_until("the next one alone is left", Duration::from_secs(20), async || {
        let left: Vec<_> = cluster.containers_of(&student).await.iter().map(|c| c.generation).collect();
        left == [3]
    })
    .await;
    assert_eq!(cluster.database().behind().await, "", "the store has lost nothing");
}
