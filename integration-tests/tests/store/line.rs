//! The line: what is told to those who wait, and who is next.

use std::time::Duration;

use carrel_common::id::CourseId;
use carrel_common::model::StatusReason;
use control_plane::domain::workspace::{State, Workspace};

use crate::rig::{Rig, call, id};

async fn start_for(rig: &Rig, student: &str, course: &str) -> Workspace {
    let course: CourseId = course.parse().unwrap();
    rig.app.start(&call("StartWorkspace"), &id(student), Some(&course)).await.unwrap().workspace
}

async fn position(rig: &Rig, student: &str) -> i64 {
    rig.app.get(&id(student)).await.unwrap().queue_position
}

#[tokio::test]
async fn one_class_does_not_starve_another() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    for n in 0..10 {
        start_for(&rig, &format!("big{n}"), "big").await;
    }
    start_for(&rig, "small0", "small").await;
    start_for(&rig, "small1", "small").await;
    assert_eq!([position(&rig, "small0").await, position(&rig, "small1").await], [1, 2]);
    assert_eq!(position(&rig, "big4").await, 3);
    rig.obey(node).await;
    // Two places become free: the small class gets them, though it came last.
    for student in ["big0", "big1"] {
        rig.stop(student).await;
    }
    rig.obey(node).await;
    rig.app.place_waiting().await.unwrap();
    for (student, state) in
        [("small0", State::Starting), ("small1", State::Starting), ("big4", State::Pending)]
    {
        assert_eq!(rig.get(student).await.state, state, "{student}");
    }
    // Now both hold two: it is the turn of who came first.
    rig.obey(node).await;
    rig.stop("small0").await;
    rig.obey(node).await;
    start_for(&rig, "small2", "small").await;
    rig.app.place_waiting().await.unwrap();
    assert_eq!(rig.get("small2").await.state, State::Starting, "one is fewer than two");
    rig.end().await;
}

#[tokio::test]
async fn those_who_wait_are_told_what_for_where_they_stand_and_when_they_may_be_ready() {
    let rig = Rig::new().await;
    let nodes = [rig.node(1).await, rig.node(1).await, rig.node(1).await];
    for student in ["a", "b", "c"] {
        rig.start(student).await.unwrap();
    }
    let dora = rig.start("dora").await.unwrap();
    assert_eq!((dora.state, dora.status_reason), (State::Pending, Some(StatusReason::NoCapacity)));
    assert_eq!(dora.status_message, "Waits for a free place (memory: 0 of 3 nodes have 1 GiB free).");
    assert_eq!(rig.app.get(&id("dora")).await.unwrap().ready_at, None, "no start has come up yet");
    for node in nodes {
        rig.obey(node).await;
    }
    rig.start("eve").await.unwrap();
    // Once starts have come up, and no place has become free: when the first would be idle.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let first = rig.get("a").await.ready_at.unwrap();
    let idle = rig.app.settings.defaults.idle.idle_timeout;
    let dora = rig.app.get(&id("dora")).await.unwrap();
    let eve = rig.app.get(&id("eve")).await.unwrap();
    assert_eq!((dora.queue_position, eve.queue_position), (1, 2));
    let told = dora.ready_at.unwrap();
    assert!(told >= first + idle && told <= first + idle + Duration::from_secs(30), "{told} after {first}");
    assert!(eve.ready_at.unwrap() >= told);
    // A stop under way is the next place.
    let stopping = rig.stop("b").await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let told = rig.app.get(&id("dora")).await.unwrap().ready_at.unwrap();
    assert!(told < stopping.state_since + Duration::from_secs(60), "{told}");
    assert_eq!(rig.app.board.line().len(), 2);
    rig.end().await;
}

#[tokio::test]
async fn no_time_is_told_to_those_who_wait_for_something_else_than_room() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    for student in ["a", "b", "c"] {
        rig.was_on(node, student).await;
    }
    rig.app.cordon(&call("CordonNode"), node, "").await.unwrap();
    let dora = rig.start("dora").await.unwrap();
    assert_eq!((dora.state, dora.status_reason), (State::Pending, Some(StatusReason::NoNodeReady)));
    rig.app.uncordon(&call("UncordonNode"), node, "").await.unwrap();
    let eve = rig.start("eve").await.unwrap();
    assert_eq!((eve.state, eve.status_message.as_str()), (State::Pending, "Waits for its turn."));
    // Until it is read again it is not known what starts take.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    for (student, position) in [("dora", 1), ("eve", 2)] {
        let shown = rig.app.get(&id(student)).await.unwrap();
        assert_eq!((shown.queue_position, shown.ready_at), (position, None), "{student}");
    }
    rig.app.place_waiting().await.unwrap();
    assert_eq!(rig.get("eve").await.state, State::Starting);
    rig.end().await;
}

#[tokio::test]
async fn a_start_behind_others_joins_the_line_and_says_so() {
    let rig = Rig::new().await;
    let node = rig.node(2).await;
    rig.start("a").await.unwrap();
    rig.start("b").await.unwrap();
    rig.start("c").await.unwrap();
    rig.obey(node).await;
    rig.stop("a").await;
    rig.obey(node).await;
    // A place is free, but it is for who waits already.
    let late = rig.start("late").await.unwrap();
    assert_eq!((late.state, late.status_message.as_str()), (State::Pending, "Waits for its turn."));
    rig.app.place_waiting().await.unwrap();
    assert_eq!([rig.get("c").await.state, rig.get("late").await.state], [State::Starting, State::Pending]);
    assert!(rig.get("late").await.status_message.contains("memory: 0 of 1 nodes have 1 GiB free"));
    rig.end().await;
}

#[tokio::test]
async fn starts_at_one_moment_spread_as_if_they_had_come_one_by_one() {
    let rig = Rig::new().await;
    let mut nodes = Vec::new();
    for _ in 0..4 {
        nodes.push(rig.node(32).await);
    }
    let names: Vec<_> = (0..40).map(|n| format!("s{n:02}")).collect();
    // Half of them at another replica, which places beside this one and beside the pass.
    let other = rig.replica();
    let starts = names.iter().enumerate().map(|(n, name)| {
        let app = if n % 2 == 0 { &rig.app } else { &other };
        async move { app.start(&call("StartWorkspace"), &id(name), None).await.unwrap() }
    });
    futures_util::future::join_all(starts).await;
    rig.app.place_waiting().await.unwrap();
    let mut counts = vec![0; nodes.len()];
    for name in &names {
        let node = rig.get(name).await.node.expect("there is room for all");
        counts[nodes.iter().position(|known| *known == node).unwrap()] += 1;
    }
    assert!(counts.iter().all(|count| (8..=12).contains(count)), "{counts:?}");
    rig.end().await;
}

#[tokio::test]
async fn a_node_that_has_the_image_is_preferred() {
    let rig = Rig::new().await;
    let nodes = [rig.node(8).await, rig.node(8).await, rig.node(8).await];
    let epoch = rig.epoch(nodes[2]).await;
    rig.app.note_images(nodes[2], epoch, &["carrel/tiny:test".into(), "other:1".into()]).await.unwrap();
    for student in ["a", "b", "c"] {
        assert_eq!(rig.start(student).await.unwrap().node, Some(nodes[2]));
    }
    assert!(
        !rig.app.note_images(nodes[2], epoch - 1, &[]).await.unwrap(),
        "a session that is over says nothing"
    );
    assert_eq!(rig.app.node(nodes[2]).await.unwrap().images, ["carrel/tiny:test", "other:1"]);
    rig.end().await;
}
