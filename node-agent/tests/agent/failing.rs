//! What goes wrong, and what the student is told.

use std::time::Duration;

use carrel_common::model::{Observed, Run, StatusReason};

use crate::rig::{Rig, desk, docker, stopped};

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_keeps_ending_is_restarted_within_the_budget_and_then_given_up() {
    let rig = Rig::start().await;
    let ada = desk("ada", "crash");
    rig.control_plane.want(vec![ada.clone()]);
    let failed = rig.failed(&ada).await;
    assert_eq!((&failed.state, failed.exit_code), (&Observed::Failed(StatusReason::CrashLoop), Some(3)));
    assert!(failed.message.contains("ended by itself 4 times"), "{}", failed.message);
    let restarted =
        rig.control_plane.heard(|heard| heard.observations.iter().filter(|o| o.exit_code == Some(3)).count());
    assert!(restarted > 1, "told before it was given up, too");
    assert_eq!(rig.containers().len(), 1, "the same container, for its log");
    rig.control_plane.want(vec![stopped(&ada)]);
    rig.gone(&ada).await;
    assert_eq!(rig.containers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_runs_out_of_memory_is_told_so() {
    let rig = Rig::start().await;
    let ada = desk("ada", "oom");
    rig.control_plane.want(vec![ada.clone()]);
    let failed = rig.failed(&ada).await;
    assert_eq!((&failed.state, failed.oom_killed), (&Observed::Failed(StatusReason::OutOfMemory), true));
    assert!(failed.message.contains("1024 MiB"), "{}", failed.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_ends_while_it_runs_is_restarted_in_the_same_container() {
    let rig = Rig::start().await;
    let ada = desk("ada", "test");
    rig.control_plane.want(vec![ada.clone()]);
    let (first, _) = rig.running(&ada).await;
    let before = rig.containers();
    docker(&["kill", &before[0]]);
    let key = (ada.workspace, 1);
    let again = rig
        .control_plane
        .observe("RUNNING again", key, |o| {
            o.sequence > first.sequence && matches!(o.state, Observed::Running { .. })
        })
        .await;
    assert!(again.sequence > first.sequence);
    assert_eq!(rig.containers(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_editor_that_does_not_answer_is_given_up_after_the_start_timeout() {
    let rig = Rig::start().await;
    let mut ada = desk("ada", "deaf");
    ada.run = Run::Running { start_timeout: Duration::from_secs(2) };
    rig.control_plane.want(vec![ada.clone()]);
    let failed = rig.failed(&ada).await;
    assert_eq!(failed.state, Observed::Failed(StatusReason::StartTimeout));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_be_had_is_told_with_dockers_words() {
    let rig = Rig::start().await;
    let mut ada = desk("ada", "test");
    ada.spec.image = "carrel.invalid/no-such-image:1".into();
    rig.control_plane.want(vec![ada.clone()]);
    let failed = rig.failed(&ada).await;
    assert_eq!(failed.state, Observed::Failed(StatusReason::ImageUnavailable));
    assert!(failed.message.contains("carrel.invalid/no-such-image:1"), "{}", failed.message);
    assert_eq!(rig.containers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_base_refuses_starts_creates_nothing_and_heals_by_itself() {
    let rig = Rig::start().await;
    std::fs::remove_dir_all(rig.base()).expect("unmounted");
    let ada = desk("ada", "test");
    rig.control_plane.want(vec![ada.clone()]);
    let failed = rig.failed(&ada).await;
    assert_eq!(failed.state, Observed::Failed(StatusReason::StorageUnavailable));
    assert!(failed.message.contains("does not exist"), "{}", failed.message);
    assert_eq!((rig.containers(), rig.base().exists()), (Vec::new(), false));
    std::fs::create_dir(rig.base()).expect("mounted again");
    std::fs::set_permissions(rig.base(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).expect("mode");
    rig.mark_share();
    let next = crate::rig::later(&ada, 1);
    rig.control_plane.want(vec![next.clone()]);
    rig.running(&next).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_generation_is_not_tried_again_by_itself() {
    let rig = Rig::start().await;
    let mut ada = desk("ada", "test");
    ada.spec.image = "carrel.invalid/no-such-image:1".into();
    rig.control_plane.want(vec![ada.clone()]);
    rig.failed(&ada).await;
    let creating = |heard: &crate::control_plane::Heard| {
        heard.observations.iter().filter(|o| matches!(o.state, Observed::Starting(_))).count()
    };
    let before = rig.control_plane.heard(creating);
    rig.control_plane.want(vec![ada.clone(), desk("bob", "test")]);
    rig.control_plane.hear("time pass", |heard| (heard.heartbeats.len() > 8).then_some(())).await;
    let of_ada = rig.control_plane.heard(|heard| {
        let starting = |o: &&carrel_common::model::Observation| matches!(o.state, Observed::Starting(_));
        heard.observations.iter().filter(starting).filter(|o| o.workspace == ada.workspace).count()
    });
    assert_eq!(of_ada, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_at_the_students_name_is_refused() {
    let rig = Rig::start().await;
    std::os::unix::fs::symlink("/etc", rig.base().join("ada")).expect("link");
    let ada = desk("ada", "test");
    rig.control_plane.want(vec![ada.clone()]);
    let failed = rig.failed(&ada).await;
    assert_eq!(failed.state, Observed::Failed(StatusReason::StorageUnavailable));
    assert_eq!(rig.containers(), Vec::<String>::new());
}
