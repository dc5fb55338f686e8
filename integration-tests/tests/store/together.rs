//! Many idle desks at once: one transaction, each with its own events, and none that holds the others up.

use std::collections::HashMap;
use std::time::Duration;

use carrel_common::id::WorkspaceUid;
use carrel_common::model::Signal;
use control_plane::domain::workspace::State;

use crate::rig::{Rig, beat};

const TIMEOUT: Duration = Duration::from_millis(300);
const LEAD: Duration = Duration::from_millis(100);

/// Three desks whose warning is due.
async fn idle_desks() -> (Rig, [WorkspaceUid; 3]) {
    let rig = Rig::with_idle(TIMEOUT, LEAD).await;
    let node = rig.node(4).await;
    let mut uids = Vec::new();
    for student in ["ada", "bob", "cyd"] {
        uids.push(rig.running(node, student).await.uid);
    }
    tokio::time::sleep(TIMEOUT).await;
    (rig, uids.try_into().expect("three"))
}

#[tokio::test]
async fn who_was_just_warned_is_looked_at_once_more_before_the_deadline() {
    let rig = Rig::with_idle(TIMEOUT, Duration::from_secs(120)).await;
    let node = rig.node(4).await;
    let ada = rig.running(node, "ada").await;
    tokio::time::sleep(TIMEOUT).await;
    let check = rig.app.check_idle(ada.uid).await.unwrap();
    assert!(rig.get("ada").await.warning.is_some());
    // Input that waited for the warning to be written did not see it, and rings nobody.
    assert_eq!(check.again_at, Some(check.now + Duration::from_secs(1)));
}

#[tokio::test]
async fn many_are_warned_kept_and_stopped_in_one_transaction_each_with_its_own_event() {
    let (rig, uids) = idle_desks().await;
    let warned = rig.app.check_idle_all(&uids).await;
    for (uid, check) in warned {
        let check = check.unwrap();
        let again_at = check.again_at.expect("its deadline");
        assert_eq!(again_at, check.now + LEAD, "{uid}");
    }
    let before = rig.get("bob").await;
    assert_eq!(before.warning.as_ref().map(|warning| warning.at), Some(before.updated_at));
    rig.app.record(vec![beat("ada", Signal::LmsInput, Duration::ZERO)]).await.unwrap().remove(0).unwrap();
    tokio::time::sleep(LEAD).await;
    let decided: HashMap<_, _> = rig.app.check_idle_all(&uids).await.into_iter().collect();
    let kept = decided[&uids[0]].as_ref().unwrap();
    assert!(kept.again_at.is_some(), "it is looked at again");
    assert_eq!(decided[&uids[1]].as_ref().unwrap().again_at, None);
    let told = "SELECT string_agg(t.line, '; ' ORDER BY t.line) FROM (
                    SELECT kind || ' ' || string_agg(student_id, ' ' ORDER BY student_id) || ' in '
                           || count(DISTINCT xid) AS line
                    FROM events WHERE kind LIKE 'workspace.warning%' OR kind = 'workspace.stopping' GROUP BY kind) t";
    assert_eq!(
        rig.database.text(told).await,
        "workspace.stopping bob cyd in 1; workspace.warning ada bob cyd in 1; workspace.warning_withdrawn ada in 1"
    );
    let (ada, bob) = (rig.get("ada").await, rig.get("bob").await);
    assert_eq!((ada.state, ada.warning, bob.state), (State::Running, None, State::Stopping));
    assert_eq!(bob.version, before.version + 1);
    let evidence = bob.stop.unwrap().evidence.unwrap();
    assert_eq!(Some(evidence.warned_at), before.warning.as_ref().map(|warning| warning.at));
    assert!(evidence.decided_at >= evidence.warned_at + LEAD);
    rig.end().await;
}

#[tokio::test]
async fn one_that_cannot_be_read_and_one_that_is_held_hold_nobody_else_up() {
    let (rig, uids) = idle_desks().await;
    let [ada, bob, cyd] = uids;
    let nonsense = "UPDATE workspaces SET stop = '\"nonsense\"' WHERE student_id = 'bob' RETURNING 'set'";
    assert_eq!(rig.database.text(nonsense).await, "set");
    let mut holding = rig.app.store.begin().await.unwrap();
    holding.lock(cyd).await.unwrap().expect("it is there");
    let checks: HashMap<_, _> = rig.app.check_idle_all(&uids).await.into_iter().collect();
    assert!(checks[&ada].is_ok());
    // The transaction that failed may still hold her for a moment; then she was passed over, as one that is held is.
    for _ in 0..100 {
        if rig.get("ada").await.warning.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        rig.app.check_idle_all(&[ada]).await;
    }
    assert!(rig.get("ada").await.warning.is_some());
    // So was the one of which nothing can be made.
    let mut told = checks[&bob].is_err();
    for _ in 0..100 {
        if told {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        told = rig.app.check_idle_all(&[bob]).await.iter().all(|(_, check)| check.is_err());
    }
    assert!(told);
    let held = checks[&cyd].as_ref().unwrap();
    let pause = held.again_at.expect("it is looked at again") - held.now;
    assert!(pause < Duration::from_secs(1), "{pause}");
    assert_eq!(rig.get("cyd").await.warning, None);
    drop(holding);
    // The server lets go of the locks when it hears that the transaction is over.
    for _ in 0..100 {
        rig.app.check_idle_all(&[cyd]).await;
        if rig.get("cyd").await.warning.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(rig.get("cyd").await.warning.is_some());
    let (found, _) = rig.app.idle_soon(Duration::from_secs(60)).await.unwrap();
    assert!(found.iter().any(|(uid, _)| *uid == ada), "the sweep goes on");
    rig.end().await;
}

#[tokio::test]
async fn who_comes_due_while_a_decision_waits_for_the_policies_is_looked_at_anew() {
    let (rig, [ada, bob, _]) = idle_desks().await;
    rig.app.check_idle_all(&[ada]).await;
    tokio::time::sleep(LEAD / 2).await;
    rig.app.check_idle_all(&[bob]).await;
    tokio::time::sleep(LEAD / 2).await;
    // Somebody is about to change a policy, and does not.
    let mut changing = rig.app.store.begin().await.unwrap();
    changing.change_rules().await.unwrap();
    let app = rig.app.clone();
    let deciding = tokio::spawn(async move { app.check_idle_all(&[ada, bob]).await });
    tokio::time::sleep(LEAD).await;
    drop(changing);
    let checks: HashMap<_, _> = deciding.await.unwrap().into_iter().collect();
    let states = [rig.get("ada").await.state, rig.get("bob").await.state];
    assert_eq!(states, [State::Stopping, State::Running]);
    let bob = checks[&bob].as_ref().unwrap();
    assert_eq!(bob.again_at, Some(bob.now), "at once");
    rig.end().await;
}

#[tokio::test]
async fn callers_at_once_each_get_the_answers_to_their_own_reports() {
    let (rig, _) = idle_desks().await;
    let calls = (0..300).map(|number| {
        let students = if number % 2 == 0 { vec!["ada", "nobody", "bob"] } else { vec!["nobody", "cyd"] };
        let app = rig.app.clone();
        async move {
            let beats = students.iter().map(|who| beat(who, Signal::LmsInput, Duration::ZERO)).collect();
            let answers = app.record(beats).await.unwrap();
            let recorded: Vec<_> = answers.iter().map(Result::is_ok).collect();
            assert_eq!(recorded, students.iter().map(|who| *who != "nobody").collect::<Vec<_>>());
        }
    });
    futures_util::future::join_all(calls).await;
    assert!(rig.app.record(vec![]).await.unwrap().is_empty());
    rig.end().await;
}
