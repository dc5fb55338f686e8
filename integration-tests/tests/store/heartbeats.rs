use std::time::Duration;

use carrel_common::model::Signal;
use control_plane::app::{AppError, Extent};
use control_plane::domain::idle::Clock;
use control_plane::store::Beat;

use crate::late::somebody_waits;
use crate::rig::{self, Rig, call, id};

fn beat(student: &str, age: u64) -> Beat {
    rig::beat(student, Signal::LmsInput, Duration::from_secs(age))
}

#[tokio::test]
async fn activity_never_goes_back() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    let young = rig.app.record(vec![beat("ada", 1)]).await.unwrap().remove(0).unwrap().idle;
    let old = rig.app.record(vec![beat("ADA", 200)]).await.unwrap().remove(0).unwrap().idle;
    assert_eq!(young.last, old.last);
    assert!(old.version > young.version);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_acked_before_its_commit() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let ada = rig.running(node, "ada").await;
    for signal in [Signal::LmsInput, Signal::Job] {
        let mut held = rig.app.store.begin().await.unwrap();
        held.lock(ada.uid).await.unwrap().unwrap();
        let (app, told) = (rig.app.clone(), rig::beat("ada", signal, Duration::ZERO));
        let mut acked = tokio::spawn(async move { app.record(vec![told]).await });
        somebody_waits(&rig).await;
        let early = tokio::time::timeout(Duration::from_millis(300), &mut acked).await;
        assert!(early.is_err(), "{signal:?}: nothing can be committed yet, and {early:?}");
        drop(held);
        acked.await.unwrap().unwrap().remove(0).unwrap();
    }
    rig.end().await;
}

#[tokio::test]
async fn each_of_a_batch_hears_of_itself_in_whatever_order_they_are_named() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let told = [("zoe", Signal::EditorInput), ("Ada", Signal::LmsInput), ("mia", Signal::KeepWorking)];
    for (student, _) in told {
        rig.running(node, student).await;
    }
    let beats = told.map(|(student, signal)| rig::beat(student, signal, Duration::ZERO));
    let answers = rig.app.record(beats.to_vec()).await.unwrap();
    let last = answers.into_iter().map(|answer| answer.unwrap().idle.last.unwrap().1);
    assert_eq!(last.collect::<Vec<_>>(), told.map(|(_, signal)| signal));
    rig.end().await;
}

#[tokio::test]
async fn a_batch_answers_each_report_in_order() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    rig.start("bob").await.unwrap();
    rig.stop("bob").await;
    rig.obey(node).await;
    let answers =
        rig.app.record(vec![beat("eve", 0), beat("bob", 0), beat("ada", 9), beat("ada", 0)]).await.unwrap();
    assert!(matches!(answers[0], Err(AppError::WorkspaceNotFound(_))));
    assert!(matches!(&answers[1], Err(AppError::NotRunning { stop: Some(_), .. })));
    let (third, fourth) = (answers[2].as_ref().unwrap(), answers[3].as_ref().unwrap());
    assert_eq!(third, fourth, "of several reports of one student the youngest counts, for all");
    rig.end().await;
}

#[tokio::test]
async fn what_is_answered_to_activity_is_what_every_other_face_shows() {
    let rig = Rig::with(|settings| {
        settings.defaults.idle.max_lifetime = Duration::from_secs(600);
        settings.defaults.idle.warning_lead = Duration::from_millis(100);
    })
    .await;
    let node = rig.node(4).await;
    let ada = rig.running(node, "ada").await;
    let faces = async || {
        let recorded = rig.app.record(vec![beat("ada", 0)]).await.unwrap().remove(0).unwrap();
        let by = Extent::By(Duration::from_secs(1));
        let extended = rig.app.extend(&call("ExtendWorkspace"), &id("ada"), by, "").await;
        let shown = rig.app.get(&id("ada")).await.unwrap();
        [recorded.idle, extended.unwrap().idle, shown.idle.unwrap()].map(|idle| idle.clock)
    };
    let are_running = |faces: [Clock; 3]| faces.iter().all(|clock| clock.running().is_some());
    let older = "UPDATE workspaces SET ready_at = ready_at - interval '10 min', version = version + 1";
    rig.database.execute(older).await;
    assert!(are_running(faces().await), "the warning is due, and nothing is missing for it");
    rig.reconnect(node).await;
    assert_eq!(faces().await, [Clock::Paused; 3], "the warning is due, and its host has yet to tell");
    rig.heartbeat(node).await;
    rig.app.check_idle(ada.uid).await.unwrap();
    assert!(rig.get("ada").await.warning.is_some(), "work does not move the end of a lifetime");
    rig.reconnect(node).await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!(faces().await, [Clock::Paused; 3], "the deadline is over, and its host has yet to tell");
    rig.heartbeat(node).await;
    assert!(are_running(faces().await));

    rig.running(node, "bob").await;
    rig.database.execute("UPDATE restoration SET behind_since = now()").await;
    rig.app.refresh_state().await.unwrap();
    let recorded = rig.app.record(vec![beat("bob", 0)]).await.unwrap().remove(0).unwrap();
    let shown = rig.app.get(&id("bob")).await.unwrap().idle.unwrap();
    assert_eq!([recorded.idle.clock, shown.clock], [Clock::Paused; 2], "nothing is decided by it");
    rig.end().await;
}

#[tokio::test]
async fn of_a_batch_each_is_answered_by_what_its_own_host_has_told() {
    let rig = Rig::with(|settings| {
        settings.defaults.idle.max_lifetime = Duration::from_secs(600);
        settings.defaults.idle.warning_lead = Duration::from_secs(60);
    })
    .await;
    let silent = rig.node(4).await;
    rig.running(silent, "ada").await;
    rig.app.cordon(&call("CordonNode"), silent, "").await.unwrap();
    let heard = rig.node(4).await;
    for student in ["bob", "eve", "fay"] {
        rig.running(heard, student).await;
    }
    let late = "UPDATE workspaces SET ready_at = ready_at - interval '10 min', version = version + 1 WHERE student_id <> 'fay'";
    rig.database.execute(late).await;
    rig.reconnect(silent).await;
    let batch = ["fay", "bob", "ada", "eve", "ada"].map(|student| beat(student, 0));
    let answers = rig.app.record(batch.to_vec()).await.unwrap();
    let runs = answers.into_iter().map(|answer| answer.unwrap().idle.clock.running().is_some());
    assert_eq!(runs.collect::<Vec<_>>(), [true, true, false, true, false]);
    rig.end().await;
}

#[tokio::test]
async fn an_activity_write_never_touches_the_workspace_row() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let before = rig.running(node, "ada").await;
    let row = "SELECT xmin::text || ctid::text FROM workspaces";
    let row_before = rig.database.text(row).await;
    rig.app.record(vec![beat("ada", 0)]).await.unwrap().remove(0).unwrap();
    assert_eq!(rig.database.text(row).await, row_before);
    assert_eq!(rig.get("ada").await.version, before.version);
    rig.end().await;
}
