//! What the share knows and the store does not: a container that was started later.

use carrel_common::id::{Generation, Pair, PlacementId};
use carrel_common::model::{Observed, StatusReason};
use control_plane::app::AppError;
use control_plane::domain::workspace::State;

use crate::restored::restored;
use crate::rig::Rig;

fn pair(incarnation: i64, generation: i64) -> Pair {
    Pair { incarnation, generation: Generation(generation) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_the_share_refuses_is_placed_again_above_it_once_its_host_has_let_go() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let desk = rig.start("ada").await.unwrap();
    // A twin of another placement that this store has made: the next generation is later than both.
    let twin = rig.placed_once(node, "ada").await;
    let above = desk.generation.next();
    let share = (pair(1, desk.generation.0), Some(twin));
    rig.give_way(node, &desk, share).await;
    let waits = rig.get("ada").await;
    assert_eq!((waits.state, waits.generation, waits.node), (State::Pending, above, Some(node)));
    rig.app.place_waiting().await.unwrap();
    assert_eq!(rig.get("ada").await.state, State::Pending, "not before the host has let go");

    // Told again, as on a new session: it is over.
    rig.give_way(node, &desk, share).await;
    assert_eq!(rig.get("ada").await.generation, above);
    rig.report(node, desk.uid, desk.generation, Observed::Gone { purge: Ok(false) }).await;
    rig.app.place_waiting().await.unwrap();
    rig.obey(node).await;
    let up = rig.get("ada").await;
    assert_eq!((up.state, up.generation), (State::Running, above));
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ran_and_gave_way_waits_for_its_student() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let desk = rig.running(node, "ada").await;
    rig.give_way(node, &desk, (pair(1, 9), None)).await;
    let failed = rig.get("ada").await;
    let seen = (failed.state, failed.status_reason, failed.generation);
    assert_eq!(seen, (State::Failed, Some(StatusReason::StorageFenced), desk.generation));
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_store_has_never_given_shows_that_it_went_back_and_nothing_is_counted_above_it() {
    // Later than all; and a twin of the very pair, whose placement is forgotten.
    for later in [(pair(2, 1), None), (pair(1, 9), None), (pair(1, 1), Some(PlacementId::new()))] {
        let rig = Rig::new().await;
        let node = rig.node(4).await;
        let desk = rig.start("ada").await.unwrap();
        rig.give_way(node, &desk, later).await;
        let failed = rig.get("ada").await;
        let seen = (failed.state, failed.status_reason, failed.generation);
        assert_eq!(seen, (State::Failed, Some(StatusReason::StorageFenced), desk.generation));
        let behind = rig.app.store.state().await.unwrap().behind.unwrap();
        assert!(behind.evidence.contains("the share holds"), "{behind:?}");
        assert!(matches!(rig.start("eve").await, Err(AppError::StoreBehind { .. })));
        rig.end().await;
    }
}

/// What was given by a store of before a declaration may be forgotten: it is gone above.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_twin_of_before_a_restore_that_was_declared_is_no_news() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let desk = rig.start("ada").await.unwrap();
    restored(&rig, node).await;
    rig.give_way(node, &desk, (pair(1, desk.generation.0), Some(PlacementId::new()))).await;
    assert_eq!(rig.database.behind().await, "");
    assert_eq!(rig.get("ada").await.generation, desk.generation.next());
    rig.end().await;
}
