//! Starts.

use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use carrel_common::model::{Observed, Stage};

use crate::rig::{Rig, desk, docker};

#[tokio::test(flavor = "multi_thread")]
async fn starts_a_desk_that_answers_and_gives_it_the_students_directory() {
    let rig = Rig::start().await;
    let ada = desk("ada", "test");
    rig.control_plane.want(vec![ada.clone()]);
    let (seen, endpoint) = rig.running(&ada).await;
    assert!(endpoint.starts_with("127.0.0.1:"), "{endpoint}");
    assert!(seen.image_digest.starts_with("sha256:"), "{seen:?}");
    let dir = std::fs::metadata(rig.base().join("ada")).expect("made");
    assert_eq!((dir.uid(), dir.gid(), dir.mode() & 0o7777), (1000, 1000, 0o700));
    let id = &rig.containers()[0];
    docker(&["exec", id, "sh", "-c", "echo work > /home/coder/project/file"]);
    assert_eq!(std::fs::read_to_string(rig.base().join("ada/file")).expect("written"), "work\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_container_has_its_limits_and_no_more_rights_than_it_needs() {
    let rig = Rig::start().await;
    let ada = desk("ada", "test");
    rig.control_plane.want(vec![ada.clone()]);
    rig.running(&ada).await;
    let id = &rig.containers()[0];
    let format = "{{.Name}} {{.Config.User}} {{.HostConfig.NanoCpus}} {{.HostConfig.Memory}} {{.HostConfig.MemorySwap}} \
                  {{.HostConfig.PidsLimit}} {{.HostConfig.RestartPolicy.Name}} {{.HostConfig.CapDrop}} \
                  {{.HostConfig.SecurityOpt}} {{.HostConfig.Init}} {{.HostConfig.Binds}}";
    let expected = format!(
        "/carrel-{}-g1 1000:1000 1000000000 1073741824 1073741824 512 no [ALL] [no-new-privileges] true <no value>",
        ada.workspace
    );
    assert_eq!(docker(&["inspect", "--format", format, id]), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn tells_the_stages_of_a_start_and_running_only_when_the_editor_answers() {
    let rig = Rig::start().await;
    let ada = desk("ada", "test");
    let hold = rig.base().join("ada/.tiny");
    std::fs::create_dir_all(&hold).expect("hold");
    std::fs::write(hold.join("hold"), "").expect("hold");
    for path in [rig.base().join("ada"), hold.clone(), hold.join("hold")] {
        std::os::unix::fs::chown(path, Some(1000), Some(1000)).expect("chown");
    }
    rig.control_plane.want(vec![ada.clone()]);
    let key = (ada.workspace, 1);
    rig.control_plane.observe("PROBING", key, |o| o.state == Observed::Starting(Stage::Probing)).await;
    let running = |o: &Observed| matches!(o, Observed::Running { .. });
    assert!(!rig.control_plane.heard(|heard| heard.observations.iter().any(|o| running(&o.state))));
    std::fs::remove_file(hold.join("hold")).expect("let go");
    rig.running(&ada).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn starts_many_at_once() {
    let rig = Rig::start().await;
    let desks: Vec<_> = (0..8).map(|n| desk(&format!("s{n}"), "test")).collect();
    rig.control_plane.want(desks.clone());
    for desk in &desks {
        rig.running(desk).await;
    }
    assert_eq!(rig.containers().len(), desks.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn makes_the_network_again_when_somebody_removed_it() {
    let rig = Rig::start().await;
    let network = rig.network();
    let ada = desk("ada", "test");
    rig.control_plane.want(vec![ada.clone()]);
    rig.running(&ada).await;
    let stop = crate::rig::stopped(&ada);
    rig.control_plane.want(vec![stop.clone()]);
    rig.gone(&stop).await;
    docker(&["network", "rm", &network]);
    let bob = desk("bob", "test");
    rig.control_plane.want(vec![bob.clone()]);
    rig.running(&bob).await;
    let icc = "{{index .Options \"com.docker.network.bridge.enable_icc\"}}";
    assert_eq!(docker(&["network", "inspect", "--format", icc, &network]), "false");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_during_the_probe_ends_it_at_once() {
    let rig = Rig::start().await;
    let deaf = desk("ada", "deaf");
    rig.control_plane.want(vec![deaf.clone()]);
    let key = (deaf.workspace, 1);
    rig.control_plane.observe("PROBING", key, |o| o.state == Observed::Starting(Stage::Probing)).await;
    let stop = crate::rig::stopped(&deaf);
    let gone = async {
        rig.control_plane.want(vec![stop.clone()]);
        rig.gone(&stop).await
    };
    tokio::time::timeout(Duration::from_secs(15), gone)
        .await
        .expect("long before the start's timeout of 30 s");
    assert_eq!(rig.containers(), Vec::<String>::new());
}
