//! Activity that the agent sees itself.

use std::path::PathBuf;
use std::time::Duration;

use carrel_common::model::{DesiredItem, Observed, Run, StopReason, WorkspaceIdle};
use carrel_proto::v1 as pb;
use carrel_proto::v1::session_response::Message as Down;

use crate::control_plane::Heard;
use crate::rig::{Rig, desk, docker, later};

/// Somebody works in the container of `item`.
fn touch(rig: &Rig, id: &str) {
    docker(&["exec", id, "touch", "/run/carrel/activity/input"]);
    assert!(rig.containers().contains(&id.to_owned()));
}

/// The ages, in seconds, that heartbeats have told of a workspace so far.
fn ages(item: &DesiredItem) -> impl Fn(&Heard) -> Vec<f64> {
    let (workspace, generation) = (item.workspace.to_string(), item.generation.0);
    move |heard| {
        let reports = heard.heartbeats.iter().flat_map(|beat| &beat.activity);
        let ours = reports.filter(|r| r.workspace_uid == workspace && r.generation == generation);
        let seconds = |age: prost_types::Duration| age.seconds as f64 + f64::from(age.nanos) / 1e9;
        ours.map(|report| {
            assert_eq!(report.signal(), pb::Signal::EditorInput);
            seconds(report.age.expect("it says how long ago"))
        })
        .collect()
    }
}

fn dir(rig: &Rig, item: &DesiredItem) -> PathBuf {
    rig.dir.path().join("state/desks").join(item.workspace.to_string())
}

fn idle_stop(item: &DesiredItem, basis_age: u64) -> DesiredItem {
    let run = Run::Stopped { reason: StopReason::Idle, grace: Duration::from_secs(1), purge_files: false };
    DesiredItem { run, idle_basis_age: Some(Duration::from_secs(basis_age)), ..item.clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_touch_in_the_container_is_told_once_and_all_is_told_again_in_a_new_session() {
    let rig = Rig::start().await;
    let ada = desk("ada", "test");
    rig.control_plane.want(vec![ada.clone()]);
    rig.running(&ada).await;
    let id = rig.containers().remove(0);
    let told = ages(&ada);
    // Two heartbeats on: nothing has happened.
    let beats = rig.control_plane.heard(|heard| heard.heartbeats.len());
    rig.control_plane.hear("two heartbeats", |h| (h.heartbeats.len() >= beats + 2).then_some(())).await;
    assert_eq!(rig.control_plane.heard(&told), Vec::<f64>::new());
    touch(&rig, &id);
    rig.control_plane.hear("a touch", |heard| (!told(heard).is_empty()).then_some(())).await;
    let beats = rig.control_plane.heard(|heard| heard.heartbeats.len());
    rig.control_plane.hear("three more", |h| (h.heartbeats.len() >= beats + 3).then_some(())).await;
    let first = rig.control_plane.heard(&told);
    assert!(first.len() <= 2 && first[0] < 5.0, "until it was acked: {first:?}");
    rig.control_plane.hang_up();
    let again = rig
        .control_plane
        .hear("the same in a new session", |h| (told(h).len() > first.len()).then(|| told(h)))
        .await;
    assert!(again[first.len()] > first[0] && again[first.len()] < 30.0, "as old as it is: {again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_the_one_file_can_be_changed_in_the_container_and_a_time_of_the_future_means_now() {
    let rig = Rig::start().await;
    let ada = desk("ada", "test");
    rig.control_plane.want(vec![ada.clone()]);
    rig.running(&ada).await;
    let id = rig.containers().remove(0);
    for command in
        ["touch /run/carrel/x", "rm -f /run/carrel/activity/input", "ln -s / /run/carrel/activity/y"]
    {
        let done = std::process::Command::new("docker").args(["exec", &id, "sh", "-c", command]).output();
        assert!(!done.expect("docker runs").status.success(), "{command}");
    }
    docker(&["exec", &id, "touch", "-d", "2090-01-01 00:00:00", "/run/carrel/activity/input"]);
    let told = ages(&ada);
    let age = rig.control_plane.hear("a touch", |heard| told(heard).first().copied()).await;
    assert!(age < 5.0, "{age}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_while_no_agent_runs_is_seen_by_the_next_one() {
    let mut rig = Rig::start().await;
    let ada = desk("ada", "test");
    rig.control_plane.want(vec![ada.clone()]);
    rig.running(&ada).await;
    let id = rig.containers().remove(0);
    rig.kill_agent();
    touch(&rig, &id);
    rig.start_agent().await;
    let told = ages(&ada);
    rig.control_plane.hear("the touch", |heard| (!told(heard).is_empty()).then_some(())).await;
    let first = rig.control_plane.heard(|heard| {
        let session = heard.heartbeats.iter().rposition(|beat| beat.sequence == 1).expect("a session");
        heard.heartbeats[session].activity.len()
    });
    assert_eq!(first, 1, "in the first heartbeat of the session");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_warning_is_out_activity_is_told_at_once() {
    let rig = Rig::start().await;
    rig.control_plane.beat_each(Duration::from_secs(20));
    rig.control_plane.hang_up();
    rig.control_plane.hear("a second session", |heard| (heard.hellos.len() == 2).then_some(())).await;
    let ada = desk("ada", "test");
    rig.control_plane.want(vec![ada.clone()]);
    rig.running(&ada).await;
    let id = rig.containers().remove(0);
    let warned = WorkspaceIdle {
        workspace: ada.workspace,
        generation: ada.generation,
        remaining: Some((Duration::from_secs(60), StopReason::Idle)),
        deadline_version: 1,
        warned: true,
    };
    rig.control_plane.send(Down::IdleState(pb::IdleState { sequence: 1, workspaces: vec![warned.into()] }));
    rig.control_plane.hear("an ack", |heard| (!heard.idle_acks.is_empty()).then_some(())).await;
    touch(&rig, &id);
    let told = ages(&ada);
    let begun = tokio::time::Instant::now();
    rig.control_plane.hear("the touch", |heard| (!told(heard).is_empty()).then_some(())).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "long before the next heartbeat");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_stop_older_than_what_was_seen_here_is_refused() {
    let rig = Rig::start().await;
    let ada = desk("ada", "test");
    rig.control_plane.want(vec![ada.clone()]);
    rig.running(&ada).await;
    let id = rig.containers().remove(0);
    touch(&rig, &id);
    rig.control_plane.want(vec![idle_stop(&ada, 900)]);
    let key = (ada.workspace, 1);
    let refused = rig
        .control_plane
        .observe("a refusal", key, |o| matches!(o.state, Observed::RefusedStop { .. }))
        .await;
    let Observed::RefusedStop { seen_ago, .. } = refused.state else { panic!("as asked for") };
    assert!(seen_ago < Duration::from_secs(30), "{seen_ago:?}");
    assert_eq!(docker(&["inspect", "--format", "{{.State.Running}}", &id]), "true");
    // The control plane takes it back, and decides again later, on what it knows now.
    rig.control_plane.want(vec![ada.clone()]);
    rig.control_plane
        .observe("RUNNING", key, |o| {
            matches!(o.state, Observed::Running { .. }) && o.sequence > refused.sequence
        })
        .await;
    assert_eq!(rig.containers(), [id]);
    rig.control_plane.want(vec![idle_stop(&ada, 0)]);
    rig.gone(&ada).await;
    assert_eq!(rig.containers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn its_directory_is_there_while_a_workspace_has_a_container() {
    let mut rig = Rig::start().await;
    let ada = desk("ada", "test");
    rig.control_plane.want(vec![ada.clone()]);
    rig.running(&ada).await;
    assert!(dir(&rig, &ada).join("activity/input").exists());
    let second = later(&ada, 1);
    rig.control_plane.want(vec![second.clone()]);
    rig.running(&second).await;
    assert!(dir(&rig, &ada).join("seen-g2").exists(), "its next generation has it, too");
    // Removed by somebody while no agent runs, and wanted no more.
    rig.kill_agent();
    docker(&["rm", "-f", &rig.containers()[0]]);
    rig.control_plane.want(vec![]);
    rig.start_agent().await;
    for _ in 0..100 {
        if !dir(&rig, &ada).exists() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("its directory stays behind");
}
