//! Start, stop, restart, delete, purge: the whole life of a desk, and its files.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use carrel_proto::v1::stop::Reason;
use carrel_proto::v1::workspace::{DesiredState, State, StatusReason};
use integration_tests::client::reason;
use integration_tests::cluster::{Cluster, Options};
use integration_tests::http;
use tonic::Code;

/// All files below a directory.
fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let nested = entries
        .map(|entry| entry.path())
        .map(|path| if path.is_dir() && !path.is_symlink() { files_below(&path) } else { vec![path] });
    nested.flatten().collect()
}

#[tokio::test]
async fn a_desk_starts_stops_and_comes_back_to_the_same_files() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();

    let asked = client.start("ada").await;
    assert_eq!((asked.name.as_str(), asked.generation), ("workspaces/ada", 1));
    assert!(matches!(asked.state(), State::Pending | State::Starting), "{asked:?}");
    assert!(asked.reconciling);
    let running = client.wait_for("ada", State::Running).await;
    assert!(!running.reconciling);
    assert_eq!(running.desired_state(), DesiredState::Running);
    assert!(running.node.starts_with("nodes/"), "{running:?}");
    assert!(running.image_digest.starts_with("sha256:"), "{running:?}");
    assert!(running.ready_time.is_some() && running.progress.is_none(), "{running:?}");

    let dir = cluster.student_dir("ada");
    let owner = std::fs::metadata(&dir).expect("made for the student");
    assert_eq!((owner.uid(), owner.mode() & 0o7777), (1000, 0o700));
    let url = client.access("ada").await;
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");
    assert!(http::is_ok(&format!("{}/healthz", url.split('?').next().unwrap().trim_end_matches('/'))).await);
    std::fs::write(dir.join("essay.txt"), "first words").unwrap();

    let stopped = client.stop_and_wait("ada").await;
    assert_eq!(stopped.stop.clone().unwrap().reason(), Reason::User, "{stopped:?}");
    assert!(stopped.node.is_empty() && !stopped.reconciling, "{stopped:?}");
    assert_eq!(cluster.containers().await, [], "nothing is left");

    let again = client.start_and_wait("ada").await;
    assert_eq!((again.generation, &again.uid), (2, &running.uid));
    let containers = cluster.containers().await;
    assert_eq!(containers.iter().map(|c| (c.running, c.generation)).collect::<Vec<_>>(), [(true, 2)]);
    assert_eq!(std::fs::read_to_string(dir.join("essay.txt")).unwrap(), "first words");
    let mounts = cluster.docker().inspect(&containers[0].id).await.mounts.unwrap();
    // Docker lists them in any order.
    let project = mounts.iter().find(|mount| mount.destination.as_deref() == Some("/home/coder/project"));
    assert_eq!(project.and_then(|mount| mount.source.as_deref()), dir.to_str(), "{mounts:?}");
}

#[tokio::test]
async fn a_container_has_its_limits_and_no_rights() {
    let options = Options::new().flag("cpu-millicores", "250").flag("memory", "134217728").flag("pids", "64");
    let cluster = Cluster::start(options).await;
    let running = cluster.client().start_and_wait("ada").await;
    let containers = cluster.containers().await;
    let [container] = &containers[..] else { panic!("one container: {containers:?}") };
    assert_eq!(container.name, format!("carrel-{}-g1", running.uid));
    let inspected = cluster.docker().inspect(&container.id).await;
    let host = inspected.host_config.unwrap();
    assert_eq!(
        (host.nano_cpus, host.memory, host.memory_swap, host.pids_limit),
        (Some(250_000_000), Some(134_217_728), Some(134_217_728), Some(64))
    );
    assert_eq!(host.cap_drop, Some(vec!["ALL".to_owned()]));
    assert_eq!(host.security_opt, Some(vec!["no-new-privileges".to_owned()]));
    assert_eq!(host.init, Some(true));
    assert!(host.binds.unwrap_or_default().is_empty(), "binds make missing sources");
    assert_eq!(inspected.config.unwrap().user.as_deref(), Some("1000:1000"));
    let ports = inspected.network_settings.unwrap().ports.unwrap();
    let bindings: Vec<_> =
        ports.into_values().flatten().flatten().map(|port| port.host_ip.unwrap()).collect();
    assert_eq!(bindings, ["127.0.0.1"], "published on loopback only");
}

#[tokio::test]
async fn start_and_stop_can_be_repeated_without_effect() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    let first = client.start("ada").await;
    let second = client.start("ada").await;
    assert_eq!((first.generation, first.uid), (second.generation, second.uid.clone()));
    client.wait_for("ada", State::Running).await;
    let third = client.start("ada").await;
    assert_eq!((third.generation, third.state()), (1, State::Running));
    assert_eq!(cluster.containers().await.len(), 1);

    client.stop_and_wait("ada").await;
    let version = client.get("ada").await.version;
    let again = client.try_stop("ada").await.unwrap();
    assert_eq!((again.state(), again.version), (State::Stopped, version));
}

#[tokio::test]
async fn a_restart_is_a_new_generation_in_a_new_container() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let before = cluster.containers().await;
    client.restart("ada").await;
    let after =
        client.wait_until("ada", "RUNNING again", |w| w.state() == State::Running && w.generation == 2).await;
    assert_eq!(after.generation, 2);
    let now = cluster.containers().await;
    assert_eq!(now.len(), 1, "the old container is gone");
    assert_ne!(now[0].id, before[0].id);
    assert_eq!(now[0].generation, 2);
}

#[tokio::test]
async fn a_deleted_desk_keeps_its_files_and_its_generations_never_begin_again() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    let first = client.start_and_wait("ada").await;
    std::fs::write(cluster.student_dir("ada").join("essay.txt"), "kept").unwrap();
    client.delete_and_wait("ada", false).await;
    assert_eq!(cluster.containers().await, []);
    let listed = client.try_get("ada").await.unwrap_err();
    assert_eq!(listed.code(), Code::NotFound);

    let second = client.start_and_wait("ada").await;
    assert_ne!(second.uid, first.uid);
    assert!(second.generation > first.generation, "{} after {}", second.generation, first.generation);
    let essay = std::fs::read_to_string(cluster.student_dir("ada").join("essay.txt")).unwrap();
    assert_eq!(essay, "kept");
}

#[tokio::test]
async fn purged_files_go_to_the_trash() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    client.start_and_wait("bob").await;
    std::fs::write(cluster.student_dir("ada").join("essay.txt"), "ada's").unwrap();
    std::fs::write(cluster.student_dir("bob").join("essay.txt"), "bob's").unwrap();
    client.delete_and_wait("ada", true).await;
    assert!(!cluster.student_dir("ada").exists());
    let trashed = files_below(&cluster.base().join(".carrel/trash"));
    let texts: Vec<_> = trashed.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    assert_eq!(texts, ["ada's"]);
    assert_eq!(std::fs::read_to_string(cluster.student_dir("bob").join("essay.txt")).unwrap(), "bob's");

    // Stopped desks can be purged, too, and the next desk of the student begins with nothing.
    client.start_and_wait("ada").await;
    assert_eq!(files_below(&cluster.student_dir("ada")), Vec::<PathBuf>::new());
    std::fs::write(cluster.student_dir("ada").join("essay.txt"), "ada's second").unwrap();
    client.stop_and_wait("ada").await;
    client.delete_and_wait("ada", true).await;
    assert!(!cluster.student_dir("ada").exists());
    assert_eq!(files_below(&cluster.base().join(".carrel/trash")).len(), 2);
}

#[tokio::test]
async fn files_that_cannot_go_to_the_trash_are_told_of_and_can_be_left_where_they_are() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let essay = cluster.student_dir("ada").join("essay.txt");
    std::fs::write(&essay, "to be").unwrap();
    std::os::unix::fs::symlink("/tmp", cluster.base().join(".carrel/trash")).unwrap();
    client.try_delete("ada", "", true).await.unwrap();
    let failed = client.wait_for("ada", State::Failed).await;
    assert_eq!(failed.status_reason(), StatusReason::Deleting, "{failed:?}");
    assert!(failed.status_message.contains("trash"), "{failed:?}");
    assert_eq!(cluster.containers().await, []);
    assert_eq!(reason(&client.try_start("ada").await.unwrap_err()), "WORKSPACE_DELETING");

    client.delete_and_wait("ada", false).await;
    client.start_and_wait("ada").await;
    assert_eq!(std::fs::read_to_string(essay).unwrap(), "to be");
}

#[tokio::test]
async fn a_program_that_ignores_sigterm_is_killed_after_the_grace() {
    let options = Options::new().image(&integration_tests::settings::tiny_image_that_is("stubborn"));
    let cluster = Cluster::start(options.flag("stop-grace", "1s")).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let start = std::time::Instant::now();
    let stopped = client.stop_and_wait("ada").await;
    assert!(start.elapsed().as_millis() >= 1000, "the grace was given: {:?}", start.elapsed());
    assert_eq!(stopped.stop.unwrap().exit_code, Some(137));
    assert_eq!(cluster.containers().await, []);
}

#[tokio::test]
async fn desks_of_many_students_start_together() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    let students: Vec<_> = (0..8).map(|number| format!("student-{number}")).collect();
    let starts = students.iter().map(|student| client.start_and_wait(student));
    let running = futures_util::future::join_all(starts).await;
    assert!(running.iter().all(|w| w.generation == 1));
    let mut found: Vec<_> = cluster.containers().await.into_iter().map(|c| c.student).collect();
    found.sort();
    assert_eq!(found, students);
}
