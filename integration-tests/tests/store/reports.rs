use std::sync::Arc;
use std::time::Duration;

use carrel_common::model::{NodeFacts, Observation, Observed, Stage};
use control_plane::app::{App, AppError, Greeting};
use control_plane::domain::reconcile::OrderTimes;
use control_plane::domain::workspace::{State, Workspace};

use crate::late::somebody_waits;
use crate::rig::{Rig, observation};

/// The facts that the node enrolled with.
async fn facts(rig: &Rig) -> NodeFacts {
    let mut work = rig.app.store.begin().await.unwrap();
    work.list_nodes().await.unwrap().remove(0).facts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_report_of_a_session_that_is_over_undoes_nothing() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let desk = rig.start("ada").await.unwrap();
    let before = rig.epoch(node).await;
    rig.hello(node, &Greeting::of(facts(&rig).await, false)).await;
    let running = Observed::Running { endpoint: "127.0.0.1:1".into() };
    rig.report(node, desk.uid, desk.generation, running).await;

    let late = Observed::Starting(Stage::Probing);
    let refused = rig.try_report(node, before, desk.uid, desk.generation, late).await.unwrap_err();
    assert!(matches!(refused, AppError::SessionSuperseded(known) if known == node), "{refused:?}");
    assert_eq!(rig.get("ada").await.state, State::Running);
    rig.end().await;
}

/// A desk runs, as it did.
pub(crate) fn still_running(desk: &Workspace) -> Observation {
    let state = Observed::Running { endpoint: "127.0.0.1:1".into() };
    Observation { sequence: 2, ..observation(desk.uid, desk.generation, state) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_that_tells_everything_anew_waits_for_no_lock_and_loses_no_news() {
    let rig = Rig::new().await;
    let node = rig.node(20).await;
    let mut desks = Vec::new();
    for number in 0..10 {
        desks.push(rig.running(node, &format!("student-{number}")).await);
    }
    let epoch = rig.epoch(node).await;
    let mut told: Vec<_> = desks.iter().map(still_running).collect();
    let mut held = rig.app.store.begin().await.unwrap();
    held.lock(desks[3].uid).await.unwrap().unwrap();
    let acked = tokio::time::timeout(Duration::from_secs(10), rig.app.observe(node, epoch, &told)).await;
    assert_eq!(acked.expect("nothing was waited for").unwrap().len(), 10, "all are acked");

    told[3].state = Observed::Running { endpoint: "127.0.0.1:2".into() };
    let (app, news) = (rig.app.clone(), told[3].clone());
    let mut acked = tokio::spawn(async move { app.observe(node, epoch, &[news]).await });
    somebody_waits(&rig).await;
    let early = tokio::time::timeout(Duration::from_millis(300), &mut acked).await;
    assert!(early.is_err(), "news cannot be committed yet, and {early:?}");
    drop(held);
    assert_eq!(acked.await.unwrap().unwrap().len(), 1);
    told[7].state = Observed::Gone { purge: Ok(false) };
    assert_eq!(rig.app.observe(node, epoch, &told).await.unwrap().len(), 10);
    assert_eq!(rig.get("student-3").await.endpoint.as_deref(), Some("127.0.0.1:2"));
    assert_ne!(rig.get("student-7").await.state, State::Running);
    assert_eq!(rig.get("student-5").await.version, desks[5].version, "nothing was written for the rest");
    rig.end().await;
}

/// Else they and whoever locks many could wait for each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_on_several_lock_them_in_the_order_of_their_students() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let (zoe, ada) = (rig.running(node, "zoe").await, rig.running(node, "ada").await);
    assert!(zoe.uid < ada.uid, "the order of ids is another one");
    let epoch = rig.epoch(node).await;
    let mut held = rig.app.store.begin().await.unwrap();
    held.lock(ada.uid).await.unwrap().unwrap();
    let state = Observed::Running { endpoint: "127.0.0.1:2".into() };
    let news = [&zoe, &ada].map(|desk| Observation { state: state.clone(), ..still_running(desk) });
    let app = rig.app.clone();
    let acked = tokio::spawn(async move { app.observe(node, epoch, &news).await });
    somebody_waits(&rig).await;
    let free = format!(
        "SELECT count(*)::text FROM (
             SELECT 1 FROM workspace_activity WHERE workspace_id = '{}' FOR UPDATE SKIP LOCKED) AS free",
        zoe.uid
    );
    assert_eq!(rig.database.text(&free).await, "1", "who waits for the first holds nothing of the rest");
    drop(held);
    assert_eq!(acked.await.unwrap().unwrap().len(), 2);
    for student in ["ada", "zoe"] {
        assert_eq!(rig.get(student).await.endpoint.as_deref(), Some("127.0.0.1:2"));
    }
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_with_other_times_order_the_same_and_a_set_that_is_refused_is_followed_by_the_next() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    rig.running(node, "bob").await;
    rig.stop("bob").await;
    let mut settings = (*rig.app.settings).clone();
    settings.orders = OrderTimes { start_timeout: Duration::from_secs(180), stop_grace: Duration::ZERO };
    let other = App { settings: Arc::new(settings), ..rig.replica() };
    let (ours, theirs) = (rig.desired_set(node).await, other.desired_set(node, None).await.unwrap().unwrap());
    assert_ne!(ours.items, theirs.items);
    assert_eq!((ours.pair, &ours.digest), (theirs.pair, &theirs.digest));

    rig.app.set_refused(node, (ours.pair, ours.pair), 1).await.unwrap();
    let next = rig.desired_set(node).await;
    assert!(next.pair > ours.pair, "{:?} after {:?}", next.pair, ours.pair);
    assert_eq!((next.digest, rig.database.behind().await), (ours.digest, String::new()));
    rig.end().await;
}
