//! The share: what it has to be before anything is started on it, what an operator is told, and that it heals by itself.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

use carrel_proto::v1::workspace::{State, StatusReason};
use carrel_proto::v1::{self as pb};
use integration_tests::client::{Client, reason};
use integration_tests::cluster::{Cluster, Options};
use integration_tests::process::run;
use integration_tests::settings;
use tonic::Code;

#[tokio::test]
async fn a_missing_base_refuses_starts_and_creates_nothing_until_it_is_there() {
    let cluster = Cluster::start(Options::new().without_base()).await;
    let client = cluster.client();
    let status = client.try_start("ada").await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "STORAGE_BASE_MISSING"));
    assert!(!cluster.base().exists(), "the base is not made");
    assert_eq!(cluster.containers().await, []);
    assert_eq!(client.try_get("ada").await.unwrap_err().code(), Code::NotFound, "nothing half done");
    wait_for_event(&client, "node.degraded", "STORAGE_BASE_MISSING").await;

    std::fs::create_dir(cluster.base()).unwrap();
    std::fs::set_permissions(cluster.base(), std::fs::Permissions::from_mode(0o711)).unwrap();
    cluster.mark_share();
    wait_for_event(&client, "node.recovered", "").await;
    client.start_and_wait("ada").await;
}

#[tokio::test]
async fn a_share_without_a_mark_is_refused_with_the_command_that_gives_it_one_and_another_carrels_always() {
    let cluster = Cluster::start(Options::new().without_base()).await;
    let client = cluster.client();
    std::fs::create_dir(cluster.base()).unwrap();
    std::fs::set_permissions(cluster.base(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let status = refused_for(&client, "STORAGE_NOT_MARKED").await;
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert_eq!(std::fs::read_dir(cluster.base()).unwrap().count(), 0, "nothing is made");

    // What it says is what there is to do: in the words of the message, on another share first.
    let command = status.message().split_once("run once: node-agent ").expect("it says what to run").1;
    let args: Vec<_> = command.split(' ').collect();
    let other = command.replace(cluster.id(), &uuid::Uuid::new_v4().to_string());
    run(settings::binary("node-agent"), &other.split(' ').collect::<Vec<_>>());
    refused_for(&client, "STORAGE_OF_ANOTHER_CLUSTER").await;
    let refused = Command::new(settings::binary("node-agent")).args(&args).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("STORAGE_OF_ANOTHER_CLUSTER"), "{said}");

    std::fs::remove_file(cluster.base().join(".carrel/cluster-id")).unwrap();
    for said in ["is marked", "already"] {
        assert!(run(settings::binary("node-agent"), &args).contains(said), "it can be repeated");
    }
    wait_for_event(&client, "node.recovered", "").await;
    client.start_and_wait("ada").await;
}

#[tokio::test]
async fn a_place_that_is_no_good_gets_no_mark() {
    let dir = tempfile::tempdir().unwrap();
    let id = uuid::Uuid::new_v4().to_string();
    let mark = |base: &str, more: &[&str]| {
        let base = dir.path().join(base);
        let output = Command::new(settings::binary("node-agent"))
            .arg("mark-share")
            .arg("--workspace-base-path")
            .arg(&base)
            .args(more)
            .output()
            .unwrap();
        assert!(!output.status.success(), "{output:?}");
        assert!(!base.join(".carrel").exists());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(mark("missing", &["--cluster-id", &id]).contains("STORAGE_BASE_MISSING"));
    std::fs::create_dir(dir.path().join("open")).unwrap();
    std::fs::set_permissions(dir.path().join("open"), std::fs::Permissions::from_mode(0o755)).unwrap();
    assert!(mark("open", &["--cluster-id", &id]).contains("STORAGE_EXPOSED"));
    std::fs::create_dir(dir.path().join("base")).unwrap();
    std::fs::set_permissions(dir.path().join("base"), std::fs::Permissions::from_mode(0o711)).unwrap();
    let state = dir.path().join("state");
    let said = mark("base", &["--state-dir", state.to_str().unwrap()]);
    assert!(said.contains("--cluster-id"), "{said}");
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    if !mounts.lines().any(|line| line.split(' ').nth(1) == Some("/tmp")) {
        let said = mark("base", &["--cluster-id", &id, "--storage", "mount"]);
        assert!(said.contains("STORAGE_NOT_MOUNTED"), "{said}");
    }
}

/// What a start answers once the node has told that it cannot take workspaces for this reason.
async fn refused_for(client: &Client, why: &str) -> tonic::Status {
    let start = std::time::Instant::now();
    loop {
        let status = client.try_start("ada").await.unwrap_err();
        if reason(&status) == why {
            return status;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "not {why} but {status}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_base_that_others_can_list_is_refused() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let running = client.get("ada").await;
    std::fs::set_permissions(cluster.base(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let degraded = wait_for_event(&client, "node.degraded", "STORAGE_EXPOSED").await;
    assert!(degraded.contains("chmod"), "it says what to do: {degraded}");
    let status = client.try_start("bob").await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "STORAGE_EXPOSED"));
    assert!(!cluster.student_dir("bob").exists());
    assert_eq!(client.get("ada").await.version, running.version, "who works goes on working");

    std::fs::set_permissions(cluster.base(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let back = std::time::Instant::now();
    while let Err(status) = client.try_start("bob").await {
        assert!(back.elapsed() < Duration::from_secs(40), "{status}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    client.wait_for("bob", State::Running).await;
}

#[tokio::test]
async fn a_base_that_is_no_mount_is_refused_where_one_is_asked_for() {
    // Below /tmp on the root disk, which may itself be a mount: then there is nothing to refuse.
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    if mounts.lines().any(|line| line.split(' ').nth(1) == Some("/tmp")) {
        return;
    }
    let cluster = Cluster::start(Options::new().agent_flag("storage", "mount")).await;
    let status = cluster.client().try_start("ada").await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "STORAGE_NOT_MOUNTED"));
}

async fn wait_for_event(client: &Client, kind: &str, reason: &str) -> String {
    let start = std::time::Instant::now();
    loop {
        let filter = pb::EventFilter { types: vec![kind.into()], ..Default::default() };
        let events = client.list_events(filter).await;
        if let Some(event) = events.iter().find(|event| event.reason == reason) {
            return format!("{event:?}");
        }
        assert!(start.elapsed() < Duration::from_secs(40), "no {kind} {reason}: {events:#?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_link_in_place_of_a_students_directory_is_refused() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    std::os::unix::fs::symlink("/etc", cluster.student_dir("ada")).unwrap();
    client.start("ada").await;
    let failed = client.wait_for("ada", State::Failed).await;
    assert_eq!(failed.status_reason(), StatusReason::StorageUnavailable, "{failed:?}");
    assert_eq!(cluster.containers().await, []);
    assert!(cluster.student_dir("ada").is_symlink(), "left as it is");
}
