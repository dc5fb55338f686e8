//! After a store was declared restored: what may run on a host that has not told yet is not started a second time.

use carrel_common::model::StatusReason;
use control_plane::app::{App, Board};
use control_plane::domain::workspace::State;

use crate::restored::{containers, declare, event, forget, greeting, restored, unknown_hosts_are_over};
use crate::rig::{Rig, call};

#[tokio::test]
async fn starts_wait_for_hosts_that_have_not_told_unless_the_desk_was_found_or_the_host_is_given_up() {
    let rig = Rig::new().await;
    let (here, away) = (rig.node(4).await, rig.node(4).await);
    rig.app.cordon(&call("CordonNode"), away, "").await.unwrap();
    rig.running(here, "ada").await;
    restored(&rig, here).await;
    rig.stop("ada").await;
    rig.obey(here).await;
    assert_eq!(rig.start("ada").await.unwrap().state, State::Starting, "it was found, so it is nowhere else");
    assert_eq!(rig.start("eve").await.unwrap().state, State::Pending);
    // However late it is by the clock: the host that is silent was not yet seen to be over.
    rig.database.execute("UPDATE restoration SET declared_at = declared_at - interval '1 day'").await;
    rig.app.place_waiting().await.unwrap();
    assert_eq!(rig.get("eve").await.state, State::Pending);
    rig.database.execute(&format!("UPDATE nodes SET state = 'UNREACHABLE' WHERE id = '{away}'")).await;
    rig.app.confirm_node_dead(away, "burnt", false).await.unwrap();
    rig.app.place_waiting().await.unwrap();
    assert_eq!(rig.get("eve").await.state, State::Starting);
    rig.end().await;
}

/// Hosts that an empty database or a copy does not know, and those that the copy had given up or never heard, can only be waited for.
#[tokio::test]
async fn hosts_that_the_store_cannot_watch_are_waited_for_until_they_have_stopped_by_themselves() {
    let (empty, old, unheard, some) =
        (Rig::new().await, Rig::new().await, Rig::new().await, Rig::new().await);
    declare(&empty, true).await;
    empty.node(4).await;
    let given_up = old.node(4).await;
    old.database.execute(&format!("UPDATE nodes SET state = 'FENCED' WHERE id = '{given_up}'")).await;
    declare(&old, true).await;
    old.node(4).await;
    let heard = unheard.node(4).await;
    unheard.app.enroll(&greeting(&unheard, heard, vec![]).await.facts).await.unwrap();
    declare(&unheard, true).await;
    unheard.hello(heard, &greeting(&unheard, heard, vec![]).await).await;
    // All that the copy knows have told; one that was enrolled since may be away.
    let known = some.node(4).await;
    declare(&some, true).await;
    some.hello(known, &greeting(&some, known, vec![]).await).await;
    for rig in [empty, old, unheard, some] {
        let waits = rig.start("eve").await.unwrap();
        assert_eq!(
            (waits.state, waits.status_reason),
            (State::Pending, Some(StatusReason::PreviousHostUnreachable))
        );
        assert!(waits.status_message.contains("Waits at least until 2"), "{}", waits.status_message);
        unknown_hosts_are_over(&rig).await;
        assert_eq!(rig.get("eve").await.state, State::Starting);
        rig.end().await;
    }
}

/// Its stop was proved by the host that the copy has it on; it may run on another that has not told.
#[tokio::test]
async fn a_start_pressed_during_the_stop_waits_for_hosts_that_have_not_told_too() {
    let rig = Rig::new().await;
    let here = rig.node(4).await;
    rig.running(here, "ada").await;
    let away = rig.node(4).await;
    declare(&rig, true).await;
    rig.hello(here, &greeting(&rig, here, vec![]).await).await;
    assert_eq!(
        rig.start("ada").await.unwrap().state,
        State::Stopping,
        "it is not there, which is to be proved"
    );
    rig.obey(here).await;
    let waits = rig.get("ada").await;
    assert_eq!((waits.state, waits.node), (State::Pending, None), "its place is not kept");
    rig.app.place_waiting().await.unwrap();
    assert_eq!(rig.get("ada").await.node, None);
    unknown_hosts_are_over(&rig).await;
    assert_eq!(rig.get("ada").await.node, None);
    rig.hello(away, &greeting(&rig, away, vec![]).await).await;
    rig.app.place_waiting().await.unwrap();
    assert_eq!(rig.get("ada").await.state, State::Starting);
    rig.end().await;
}

#[tokio::test]
async fn who_waits_for_unknown_hosts_is_told_no_earlier_time_and_a_second_declaration_ends_it() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    for student in ["ada", "bob"] {
        rig.running(node, student).await;
    }
    let found = restored(&rig, node).await;
    // Others have just come up, so it is known what a start takes, and one is about to leave: her turn comes in a moment.
    rig.obey(node).await;
    rig.stop("bob").await;
    let eve = rig.start("eve").await.unwrap();
    // This replica knows what starts take from a moment ago, when none had come up; another one looks.
    let replica = App { board: Board::default(), ..rig.replica() };
    let place = replica.line().await.unwrap()[&eve.uid];
    let wait = place.ready_at.map(|at| at - eve.state_since);
    assert!(wait.is_some_and(|wait| wait > time::Duration::seconds(680)), "{place:?}");
    declare(&rig, false).await;
    rig.hello(node, &greeting(&rig, node, found).await).await;
    rig.app.place_waiting().await.unwrap();
    assert_eq!((rig.get("eve").await.state, rig.get("ada").await.node), (State::Starting, Some(node)));
    rig.end().await;
}

#[tokio::test]
async fn no_wait_starts_at_once_and_what_a_host_is_yet_to_be_told_of_is_not_missed_there() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    declare(&rig, false).await;
    let eve = rig.start("eve").await.unwrap();
    assert_eq!((eve.state, eve.node), (State::Starting, Some(node)));
    rig.hello(node, &greeting(&rig, node, vec![]).await).await;
    assert_eq!(rig.get("eve").await, eve);
    rig.end().await;
}

#[tokio::test]
async fn nobody_is_placed_beside_what_runs_and_is_not_taken_in() {
    let rig = Rig::new().await;
    let node = rig.node(1).await;
    let mut found = forget(&rig, async || {
        rig.running(node, "ada").await;
        containers(&rig, node).await
    })
    .await;
    // Before anybody notices she starts again, on another host as this one is full: the same pair.
    rig.running(node, "bob").await;
    found.extend(containers(&rig, node).await);
    let other = rig.node(1).await;
    let again = rig.running(other, "ada").await;
    let runs_there = containers(&rig, other).await;
    declare(&rig, true).await;
    for (host, runs) in [(node, found), (other, runs_there)] {
        rig.hello(host, &greeting(&rig, host, runs).await).await;
    }
    assert_eq!(event(&rig, "orphan.held").await, 1);
    assert_eq!(rig.get("ada").await.node, again.node);

    rig.stop("ada").await;
    rig.obey(other).await;
    rig.start("ada").await.unwrap();
    rig.app.place_waiting().await.unwrap();
    let waits = rig.get("ada").await;
    assert_eq!((waits.state, waits.status_reason), (State::Pending, Some(StatusReason::ContainerHeld)));
    rig.judge_report(node, &[], &[]).await;
    rig.app.place_waiting().await.unwrap();
    assert_eq!(rig.get("ada").await.state, State::Starting);
    rig.end().await;
}
