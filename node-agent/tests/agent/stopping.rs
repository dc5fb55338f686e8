//! Stops.

use std::time::Duration;

use carrel_common::model::{DesiredItem, Observed, Run, StopReason};

use crate::rig::{Rig, desk, later, stopped};

fn with(item: &DesiredItem, grace: Duration, purge_files: bool) -> DesiredItem {
    DesiredItem { run: Run::Stopped { reason: StopReason::User, grace, purge_files }, ..item.clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn stops_and_removes_and_the_files_are_there_at_the_next_start() {
    let rig = Rig::start().await;
    let ada = desk("ada", "test");
    rig.control_plane.want(vec![ada.clone()]);
    rig.running(&ada).await;
    std::fs::write(rig.base().join("ada/file"), "work").expect("write");
    rig.control_plane.want(vec![stopped(&ada)]);
    let gone = rig.gone(&ada).await;
    assert_eq!((&gone.state, gone.exit_code), (&Observed::Gone { purge: Ok(false) }, Some(0)));
    assert_eq!(rig.containers(), Vec::<String>::new());
    let next = later(&ada, 1);
    rig.control_plane.want(vec![next.clone()]);
    rig.running(&next).await;
    assert_eq!(std::fs::read_to_string(rig.base().join("ada/file")).expect("kept"), "work");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_ignores_sigterm_is_killed_after_the_grace() {
    let rig = Rig::start().await;
    let ada = desk("ada", "stubborn");
    rig.control_plane.want(vec![ada.clone()]);
    rig.running(&ada).await;
    rig.control_plane.want(vec![with(&ada, Duration::from_secs(1), false)]);
    let gone = rig.gone(&ada).await;
    assert_eq!(gone.exit_code, Some(137));
    assert_eq!(rig.containers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_desk_that_never_ran_is_reported_gone_and_never_starts_in_that_generation() {
    let rig = Rig::start().await;
    let ada = desk("ada", "test");
    rig.control_plane.want(vec![stopped(&ada)]);
    rig.gone(&ada).await;
    let bob = desk("bob", "test");
    rig.control_plane.want(vec![ada.clone(), bob.clone()]);
    rig.running(&bob).await;
    let started = rig.control_plane.heard(|heard| {
        let ours = heard.observations.iter().filter(|o| o.workspace == ada.workspace);
        ours.filter(|o| !matches!(o.state, Observed::Gone { .. })).count()
    });
    assert_eq!(started, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn purged_files_go_to_the_trash() {
    let rig = Rig::start().await;
    let ada = desk("ada", "test");
    rig.control_plane.want(vec![ada.clone()]);
    rig.running(&ada).await;
    std::fs::write(rig.base().join("ada/file"), "work").expect("write");
    rig.control_plane.want(vec![with(&ada, Duration::from_secs(1), true)]);
    let gone = rig.gone(&ada).await;
    assert_eq!(gone.state, Observed::Gone { purge: Ok(true) });
    let trash = rig.base().join(format!(".carrel/trash/ada.{}.g1/file", ada.workspace));
    assert_eq!(std::fs::read_to_string(trash).expect("kept"), "work");
    assert!(!rig.base().join("ada").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_is_carried_out_when_it_comes_with_a_restart_of_the_agent() {
    let mut rig = Rig::start().await;
    let ada = desk("ada", "test");
    rig.control_plane.want(vec![ada.clone()]);
    rig.running(&ada).await;
    rig.kill_agent();
    rig.control_plane.want(vec![stopped(&ada)]);
    rig.start_agent().await;
    rig.gone(&ada).await;
    assert_eq!(rig.containers(), Vec::<String>::new());
}
