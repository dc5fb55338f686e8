//! What a row of activity has of its workspace: the student's key, and of one that runs all that its deadline is derived from. Every
//! test of this suite compares it at its end ([`Rig::end`]).

use std::time::Duration;

use carrel_common::id::Generation;
use carrel_common::model::{ActivityReport, Observed, Signal};
use control_plane::app::{AppError, Extent, IdleView};
use control_plane::domain::activity::BySignal;
use control_plane::domain::policy::Policy;
use control_plane::domain::workspace::State;
use control_plane::store::{Beat, Input};

use crate::rig::{Rig, beat, call, id};

const HOUR: Duration = Duration::from_secs(3600);

/// A heartbeat that moves no deadline is answered what everybody else is shown.
async fn agree(rig: &Rig, when: &str) {
    assert_eq!(rig.copies_apart().await, "", "{when}");
    let told = rig.app.record(vec![beat("ada", Signal::LmsInput, HOUR)]).await.unwrap().remove(0);
    let told = told.unwrap_or_else(|error| panic!("{when}: {error:?}")).idle;
    let shown = rig.app.get(&id("ada")).await.unwrap().idle.unwrap();
    let of_one_moment =
        |idle: IdleView| IdleView { now: shown.now, extendable_until: shown.extendable_until, ..idle };
    assert_eq!(of_one_moment(told), shown, "{when}");
}

#[tokio::test]
async fn through_all_that_becomes_of_a_desk_a_heartbeat_is_answered_what_everybody_is_shown() {
    let rig = Rig::with(|settings| settings.unreachable_after = Duration::ZERO).await;
    let node = rig.node(4).await;
    assert_eq!(rig.start("Ada").await.unwrap().state, State::Starting);
    agree(&rig, "it starts").await;
    rig.obey(node).await;
    let ada = rig.get("ada").await;
    agree(&rig, "it runs").await;

    let policy = Policy { idle_timeout: Some(HOUR / 4), ..Policy::default() };
    rig.app.set_policy(&call("SetPolicy"), &"course-cs101".parse().unwrap(), "", &policy).await.unwrap();
    rig.database.execute("UPDATE workspaces SET course_id = 'cs101', version = version + 1").await;
    agree(&rig, "it is of another course").await;
    let later = "UPDATE workspaces SET ready_at = ready_at - interval '850 s', version = version + 1";
    rig.database.execute(later).await;
    rig.app.check_idle(ada.uid).await.unwrap();
    assert!(rig.get("ada").await.warning.is_some());
    agree(&rig, "it is warned").await;
    rig.app.record(vec![beat("ada", Signal::EditorInput, Duration::ZERO)]).await.unwrap().remove(0).unwrap();
    agree(&rig, "it need not be warned any more").await;
    rig.app.check_idle(ada.uid).await.unwrap();
    assert_eq!(rig.get("ada").await.warning, None);
    agree(&rig, "the warning is withdrawn").await;
    rig.app.extend(&call("ExtendWorkspace"), &id("ada"), Extent::By(HOUR / 2), "").await.unwrap();
    agree(&rig, "it is extended").await;

    rig.app.give_up_node(node).await.unwrap();
    assert_eq!(rig.get("ada").await.state, State::Unreachable);
    agree(&rig, "its host is silent").await;
    rig.heartbeat(node).await;
    let running = Observed::Running { endpoint: "127.0.0.1:1".into() };
    rig.report(node, ada.uid, ada.generation, running).await;
    assert_eq!(rig.get("ada").await.state, State::Running);
    agree(&rig, "its host is back").await;

    let other = rig.node(4).await;
    rig.app.cordon(&call("CordonNode"), node, "").await.unwrap();
    rig.app.restart(&call("RestartWorkspace"), &id("ada")).await.unwrap();
    assert_eq!(rig.copies_apart().await, "", "it leaves");
    rig.obey(node).await;
    rig.app.place_waiting().await.unwrap();
    rig.obey(other).await;
    let moved = rig.get("ada").await;
    assert_eq!(
        (moved.state, moved.node, moved.generation),
        (State::Running, Some(other), Generation(ada.generation.0 + 1))
    );
    agree(&rig, "it runs elsewhere").await;

    rig.stop("ada").await;
    assert_eq!(rig.copies_apart().await, "", "it is being stopped");
    rig.obey(other).await;
    assert_eq!(rig.copies_apart().await, "", "it is stopped");
    let told = rig.app.record(vec![beat("ada", Signal::LmsInput, HOUR)]).await.unwrap().remove(0);
    assert!(matches!(told, Err(AppError::NotRunning { stop: Some(_), .. })), "{told:?}");
    rig.app.delete(&call("DeleteWorkspace"), &id("ada"), "", false).await.unwrap();
    assert_eq!(rig.copies_apart().await, "", "it is deleted");
    let told = rig.app.record(vec![beat("ada", Signal::LmsInput, HOUR)]).await.unwrap().remove(0);
    assert!(matches!(told, Err(AppError::WorkspaceNotFound(_))), "{told:?}");
    rig.start("ADA").await.unwrap();
    rig.obey(other).await;
    agree(&rig, "it is made anew").await;
    rig.end().await;
}

/// Else no test could fail for them.
#[tokio::test]
async fn copies_that_are_not_kept_are_seen() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    for (spoil, mend) in [
        ("running = false", "running = true"),
        ("course_id = 'x'", "course_id = NULL"),
        ("warning = '{}'", "warning = NULL"),
        ("student_key = 'Ada'", "student_key = 'ada'"),
    ] {
        let set =
            async |what: &str| rig.database.execute(&format!("UPDATE workspace_activity SET {what}")).await;
        set(spoil).await;
        assert_eq!(rig.copies_apart().await, "ada", "{spoil}");
        set(mend).await;
        assert_eq!(rig.copies_apart().await, "", "{mend}");
    }
    rig.end().await;
}

#[tokio::test]
async fn a_copy_of_which_nothing_can_be_made_holds_up_nobody_but_its_desk() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    for student in ["ada", "bob"] {
        rig.running(node, student).await;
    }
    let spoil = r#"UPDATE workspace_activity SET warning = '"spoiled"' WHERE student_key = 'ada'"#;
    rig.database.execute(spoil).await;
    let both = ["ada", "bob"].map(|student| beat(student, Signal::LmsInput, Duration::ZERO));
    let told = rig.app.record(both.to_vec()).await.unwrap();
    assert_eq!(told.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true]);
    let mend = "UPDATE workspace_activity SET warning = NULL WHERE student_key = 'ada'";
    rig.database.execute(mend).await;
    let told = rig.app.record(both.to_vec()).await.unwrap();
    assert_eq!(told.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, true]);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_locks_many_rows_of_activity_does_so_in_the_order_of_students_keys() {
    let rig = Rig::new().await;
    let node = rig.node(64).await;
    let ages = BySignal { lms_input: Some(Duration::ZERO), ..BySignal::default() };
    let (mut uids, mut seen, mut jobs, mut forth) = (vec![], vec![], vec![], vec![]);
    // Their ids rise as their keys fall.
    for number in (10..42).rev() {
        let desk = rig.start(&format!("s{number}")).await.unwrap();
        uids.push(desk.uid);
        seen.push(ActivityReport {
            workspace: desk.uid,
            generation: desk.generation,
            signal: Signal::EditorInput,
            age: Duration::ZERO,
        });
        let job = beat(desk.student.as_str(), Signal::Job, Duration::ZERO);
        jobs.push(Beat { keep_awake: Duration::from_secs(60), ..job });
        forth.push(Input { key: desk.student.key(), generation: None, ages });
    }
    rig.obey(node).await;
    let back: Vec<_> = forth.iter().rev().cloned().collect();
    let store = &rig.app.store;
    for _ in 0..200 {
        let lock = async {
            let mut work = store.begin().await?;
            let (locked, _) = work.lock_many(&uids).await?;
            work.commit().await.map(|_| locked.len())
        };
        let (forth, back, seen, jobs, locked) = tokio::join!(
            store.write_input(&forth),
            store.write_input(&back),
            store.record_seen(node, &seen),
            rig.app.record(jobs.clone()),
            lock
        );
        // Who lost a deadlock would be told of a conflict.
        for written in [forth, back] {
            written.unwrap();
        }
        seen.unwrap();
        assert!(jobs.unwrap().iter().all(Result::is_ok));
        assert_eq!(locked.unwrap(), uids.len());
    }
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pulse_that_moves_an_extension_holds_the_row_of_activity_before_that_of_the_workspace() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    rig.app.extend(&call("ExtendWorkspace"), &id("ada"), Extent::By(HOUR / 2), "").await.unwrap();
    let before = rig.get("ada").await.extended_until.unwrap();
    let held = rig.database.hold("SELECT 1 FROM workspace_activity FOR UPDATE").await;
    rig.database.execute("UPDATE cluster SET alive_at = alive_at - interval '1 min'").await;
    let app = rig.app.clone();
    let pulse = tokio::spawn(async move { app.pulse().await });
    rig.database.until_waiting(1).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    rig.database.execute("SELECT 1 FROM workspaces FOR UPDATE NOWAIT").await;
    drop(held);
    pulse.await.unwrap().unwrap();
    assert!(rig.get("ada").await.extended_until.unwrap() > before);
    rig.end().await;
}
