//! Rows about agents: killed, frozen, cut off.

use std::time::{Duration, Instant};

use carrel_proto::v1 as pb;
use carrel_proto::v1::workspace::State;
use integration_tests::chance::Chance;
use integration_tests::rig::{Loss, Rig, Shape};

use crate::{assert_undisturbed, until};

#[tokio::test]
async fn row_01_an_agent_that_is_killed_and_started_again_adopts_its_containers() {
    let mut chance = Chance::of("row 1");
    let mut rig = Rig::start(Shape::new(1, 1).writers()).await;
    let client = rig.client();
    for student in ["ada", "bob"] {
        client.start_and_wait(student).await;
    }
    let before = [rig.desk("ada").await, rig.desk("bob").await];
    // At once; longer than a silent node is given.
    for dead_for in [chance.millis(0..200), chance.millis(3500..4500)] {
        tokio::time::sleep(chance.millis(0..700)).await;
        let sessions = rig.sessions_of(0).await;
        rig.host(0).kill_agent();
        tokio::time::sleep(dead_for).await;
        rig.host(0).spawn_agent();
        rig.wait_for_agent(0, sessions).await;
        for student in ["ada", "bob"] {
            assert_eq!(client.wait_for(student, State::Running).await.generation, 1);
        }
        assert_eq!([rig.desk("ada").await, rig.desk("bob").await], before, "dead for {dead_for:?}");
    }
    assert_undisturbed(&rig, &["ada", "bob"]);
    client.stop_and_wait("ada").await;
    assert_eq!(rig.containers_of("ada").await, []);
}

#[tokio::test]
async fn row_07_a_node_cut_off_for_less_than_its_lease_keeps_running() {
    let mut chance = Chance::of("row 7");
    let mut rig = Rig::start(Shape::new(2, 1).writers()).await;
    let client = rig.client();
    for student in ["ada", "bob"] {
        client.start_and_wait(student).await;
    }
    let before = [rig.desk("ada").await, rig.desk("bob").await];
    let [cut_off, other] = [before[0].host, before[1].host];
    for black_hole in [false, true] {
        tokio::time::sleep(chance.millis(0..700)).await;
        let sessions = rig.sessions_of(cut_off).await;
        let host = rig.host(cut_off);
        if black_hole {
            host.lose(Loss::Incoming);
            host.lose(Loss::Outgoing);
        } else {
            host.cut();
        }
        client.wait_for("ada", State::Unreachable).await;
        assert_eq!(client.get("bob").await.state(), State::Running);
        // What starts now goes to the other host.
        client.start_and_wait("eve").await;
        assert_eq!(rig.desk("eve").await.host, other);
        client.stop_and_wait("eve").await;
        tokio::time::sleep(chance.millis(0..1000)).await;
        let host = rig.host(cut_off);
        if black_hole {
            host.regain(Loss::Incoming);
            host.regain(Loss::Outgoing);
        } else {
            host.mend();
        }
        rig.wait_for_agent(cut_off, sessions).await;
        assert_eq!(client.wait_for("ada", State::Running).await.generation, 1, "black hole: {black_hole}");
        assert_eq!([rig.desk("ada").await, rig.desk("bob").await], before, "healed without a restart");
    }
    assert_undisturbed(&rig, &["ada", "bob"]);
    until("it obeys", Duration::from_secs(10), async || client.try_stop("ada").await.is_ok()).await;
    client.wait_for("ada", State::Stopped).await;
}

#[tokio::test]
async fn row_11_a_cloned_host_is_refused_and_the_one_it_imitates_works_on() {
    let mut chance = Chance::of("row 11");
    let mut rig = Rig::start_without_agents(Shape::new(2, 1).writers()).await;
    rig.host(0).spawn_agent();
    rig.host(0).spawn_fence();
    rig.wait_for_agent(0, 0).await;
    let client = rig.client();
    client.start_and_wait("ada").await;
    let (before, sessions) = (rig.desk("ada").await, rig.sessions_of(0).await);
    // Another machine by its id; one that is told apart by its Docker only.
    for (machine_id_too, told_apart_by) in [(false, "machine id"), (true, "Docker daemon id")] {
        rig.hosts()[1].copy_disk_of(&rig.hosts()[0], machine_id_too);
        rig.host(1).spawn_agent();
        let tried = Instant::now();
        while !rig.host(1).agent().log_tail(200).contains(told_apart_by) {
            assert!(tried.elapsed() < Duration::from_secs(30), "the clone is not refused: {told_apart_by}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(chance.millis(1000..4000)).await;
        rig.host(1).kill_agent();
    }
    let filter = pb::EventFilter { types: vec!["node.identity_refused".into()], ..Default::default() };
    let told = client.list_events(filter).await;
    assert!(
        told.len() == 1 && told[0].reason == "NODE_IDENTITY_CHANGED",
        "operators are told, once: {told:?}"
    );
    assert_eq!(rig.database().text("SELECT count(*)::text FROM nodes").await, "1");
    assert_eq!((rig.sessions_of(0).await, rig.state_of(0).await.as_str()), (sessions, "READY"));
    assert_eq!(rig.desk("ada").await, before);
    assert_undisturbed(&rig, &["ada"]);
    client.stop_and_wait("ada").await;
}
