use carrel_common::model::{NodeFacts, Observed, Stage};
use control_plane::app::AppError;
use control_plane::domain::workspace::State;

use crate::rig::Rig;

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
    rig.app.accept_session(node, &facts(&rig).await, false).await.unwrap();
    let running = Observed::Running { endpoint: "127.0.0.1:1".into() };
    rig.report(node, desk.uid, desk.generation, running).await;

    let late = Observed::Starting(Stage::Probing);
    let refused = rig.try_report(node, before, desk.uid, desk.generation, late).await.unwrap_err();
    assert!(matches!(refused, AppError::SessionSuperseded(known) if known == node), "{refused:?}");
    assert_eq!(rig.get("ada").await.state, State::Running);
    rig.end().await;
}
