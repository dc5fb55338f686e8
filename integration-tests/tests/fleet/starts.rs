//! Rows about starts: half done when the agent dies or Docker hangs, and more of them than places.

use std::time::Duration;

use carrel_proto::v1::workspace::State;
use integration_tests::chance::Chance;
use integration_tests::process::Signal;
use integration_tests::rig::{Rig, Shape};

use crate::until;

/// For a start, or for what follows from one, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn row_12_a_crash_between_create_and_report_leaves_one_container_which_is_adopted() {
    let mut chance = Chance::of("row 12");
    let mut rig = Rig::start(Shape::new(1, 1).writers()).await;
    let client = rig.client();
    for round in 0..4 {
        let student = format!("s{round}");
        let sessions = rig.sessions_of(0).await;
        client.start(&student).await;
        until("it is made", PATIENCE, async || !rig.containers_of(&student).await.is_empty()).await;
        let (_, made) = rig.containers_of(&student).await.remove(0);
        tokio::time::sleep(chance.millis(0..300)).await;
        rig.host(0).kill_agent();
        tokio::time::sleep(chance.millis(0..1500)).await;
        rig.host(0).spawn_agent();
        rig.wait_for_agent(0, sessions).await;
        assert_eq!(client.wait_for(&student, State::Running).await.generation, 1);
        let desk = rig.desk(&student).await;
        assert_eq!((desk.id, desk.generation), (made.id, 1), "the same container");
        rig.share().writes(&student);
    }
}

#[tokio::test]
async fn row_20_of_a_hundred_starts_for_ten_places_ninety_wait_in_order() {
    const STARTS: usize = 100;
    const EACH: usize = 5;
    let rig = Rig::start(Shape::new(2, 2).agent_flag("max-workspaces", &EACH.to_string())).await;
    let (client, callers) = (rig.client(), rig.callers());
    let student = |n: usize| format!("s{n:03}");
    for n in 0..STARTS {
        // By either replica, one after the other, so that there is an order.
        rig.replicas()[n % 2].client().start(&student(n)).await;
    }
    for n in 0..2 * EACH {
        callers.wait_for(&student(n), State::Running).await;
    }
    let is_full = async || {
        let all = rig.containers().await;
        let on = |host| all.iter().filter(|(index, _)| *index == host).count();
        assert!([0, 1].into_iter().all(|host| on(host) <= EACH), "overcommitted: {all:#?}");
        all.len() == 2 * EACH
    };
    assert!(is_full().await);
    for n in 2 * EACH..STARTS {
        let waiting = client.get(&student(n)).await;
        let position = waiting.progress.as_ref().map(|progress| progress.queue_position);
        let expected = i32::try_from(n + 1 - 2 * EACH).ok();
        assert_eq!((waiting.state(), position), (State::Pending, expected), "{waiting:?}");
        assert!(!waiting.status_message.is_empty(), "it says what is short: {waiting:?}");
    }
    // Whoever is first in line gets the next place.
    for n in 0..4 {
        client.stop_and_wait(&student(n)).await;
        let next = 2 * EACH + n;
        callers.wait_for(&student(next), State::Running).await;
        assert_eq!(client.get(&student(next + 1)).await.state(), State::Pending);
        assert!(is_full().await);
    }
}

mod full {
    use super::*;

    #[tokio::test]
    async fn row_12_a_start_that_timed_out_but_was_done_never_makes_two_containers() {
        let mut chance = Chance::of("row 12, timed out");
        let mut rig = Rig::start(Shape::new(1, 1).writers().agent_flag("docker-timeout", "2s")).await;
        let client = rig.client();
        for round in 0..4 {
            let student = format!("s{round}");
            client.start(&student).await;
            tokio::time::sleep(chance.millis(0..400)).await;
            rig.host(0).dockerd().signal(Signal::STOP);
            tokio::time::sleep(chance.millis(2500..4000)).await;
            rig.host(0).dockerd().signal(Signal::CONT);
            let settled = client
                .wait_within(PATIENCE, &student, "settled", |w| {
                    matches!(w.state(), State::Running | State::Failed)
                })
                .await;
            if settled.state() == State::Failed {
                assert!(!settled.status_message.is_empty(), "{settled:?}");
                let starts = async || client.try_start(&student).await.is_ok();
                until("it is started again", PATIENCE, starts).await;
                client.wait_within(PATIENCE, &student, "up", |w| w.state() == State::Running).await;
            }
            let is_one = async || rig.containers_of(&student).await.len() == 1;
            until("one container", PATIENCE, is_one).await;
            rig.desk(&student).await;
            rig.share().writes(&student);
        }
    }
}
