//! Rows about hosts that are silent for longer than their lease: whatever is wrong with them, they end what they run before
//! it runs elsewhere.

use std::time::{Duration, Instant};

use carrel_proto::v1::workspace::State;
use integration_tests::chance::Chance;
use integration_tests::client::Client;
use integration_tests::process::Signal;
use integration_tests::rig::{Desk, Loss, Rig, Shape};

use crate::{BUSY, until};

/// F + S of the rig's leases: nothing runs on a silent host any more this long after its last acked heartbeat.
const ENDED: Duration = Duration::from_secs(10);
/// F + S + M, a look each second by the replica, a start on a busy machine.
const MOVED: Duration = Duration::from_secs(45);
/// Between the last write of the old desk and the first of the new one there is at least a part of M.
const APART: Duration = Duration::from_millis(500);

/// A rig of two hosts, on one of which a writer works.
async fn with_a_writer() -> (Rig, Client, Desk) {
    let rig = Rig::start(Shape::new(2, 1).short_leases().writers()).await;
    let client = rig.client();
    client.start_and_wait("ada").await;
    let desk = rig.desk("ada").await;
    (rig, client, desk)
}

/// Its host is silent from now on: its desk ends there, and then goes on on the other host. Gives how long each took.
async fn moves(rig: &Rig, client: &Client, before: &Desk) {
    let start = Instant::now();
    client.wait_for("ada", State::Unreachable).await;
    let wrote = async || rig.share().writes("ada").runs[0].last_nanos;
    // By what it writes, since its Docker may not answer.
    let (mut last, mut since) = (wrote().await, Instant::now());
    while since.elapsed() < Duration::from_secs(1) {
        assert!(start.elapsed() < ENDED + BUSY, "it still writes after {:?}", start.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = wrote().await;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    let stopped = start.elapsed() - since.elapsed();
    let is_moved = |w: &carrel_proto::v1::Workspace| {
        w.state() == State::Running && w.generation == before.generation + 1
    };
    client.wait_within(MOVED, "ada", "running elsewhere", is_moved).await;
    eprintln!("silent: ended after {stopped:?}, elsewhere after {:?}", start.elapsed());
    let all = rig.containers_of("ada").await;
    let running: Vec<_> = all.iter().filter(|(_, found)| found.running).map(|(host, _)| *host).collect();
    assert_eq!(running, [1 - before.host], "{all:#?}");
    until("the new one writes", Duration::from_secs(10), async || rig.share().writes("ada").runs.len() == 2)
        .await;
    let history = rig.share().writes("ada");
    let pairs = [(1, before.generation), (1, before.generation + 1)];
    assert_eq!(history.pairs(), pairs);
    assert!(history.handovers()[0] >= APART, "{history:#?}");
}

/// The host is heard again: what is over is removed there, and the desk goes on where it is.
async fn comes_back(rig: &mut Rig, client: &Client, before: &Desk, sessions: i64) {
    rig.wait_for_agent(before.host, sessions).await;
    until("the old one is removed", Duration::from_secs(15), async || {
        rig.containers_of("ada").await.len() == 1
    })
    .await;
    let after = rig.desk("ada").await;
    assert_ne!(after.host, before.host);
    until("in service", Duration::from_secs(10), async || rig.state_of(before.host).await == "READY").await;
    client.start_and_wait("bob").await;
    assert_eq!(rig.desk("bob").await.host, before.host);
    let history = rig.share().writes("ada");
    assert_eq!(history.runs.len(), 2, "nobody else wrote: {history:#?}");
    assert_eq!(client.get("ada").await.generation, before.generation + 1);
}

/// An agent is killed and not restarted; the fence beside it, if that is killed too, is: systemd does it.
async fn is_left(fence_too: bool) {
    let mut chance = Chance::of("row 2");
    let (mut rig, client, before) = with_a_writer().await;
    tokio::time::sleep(chance.millis(0..1500)).await;
    let sessions = rig.sessions_of(before.host).await;
    rig.host(before.host).kill_agent();
    if fence_too {
        rig.host(before.host).kill_fence();
        tokio::time::sleep(chance.millis(0..2000)).await;
        rig.host(before.host).spawn_fence();
    }
    moves(&rig, &client, &before).await;
    rig.host(before.host).spawn_agent();
    comes_back(&mut rig, &client, &before, sessions).await;
}

#[tokio::test]
async fn row_02_what_an_agent_leaves_that_is_not_restarted_is_ended_by_the_fence() {
    is_left(false).await;
}

/// The host's link goes down, or everything is swallowed.
async fn is_cut_off(black_hole: bool) {
    let mut chance = Chance::of("row 8");
    let (mut rig, client, before) = with_a_writer().await;
    tokio::time::sleep(chance.millis(0..1500)).await;
    let sessions = rig.sessions_of(before.host).await;
    let host = rig.host(before.host);
    if black_hole {
        host.lose(Loss::Incoming);
        host.lose(Loss::Outgoing);
    } else {
        host.cut();
    }
    moves(&rig, &client, &before).await;
    let host = rig.host(before.host);
    if black_hole {
        host.regain(Loss::Incoming);
        host.regain(Loss::Outgoing);
    } else {
        host.mend();
    }
    comes_back(&mut rig, &client, &before, sessions).await;
}

#[tokio::test]
async fn row_08_a_node_cut_off_for_longer_than_its_lease_has_ended_all_before_it_runs_elsewhere() {
    is_cut_off(false).await;
}

/// One direction is lost for long: one writer at a time, and all is well when it is back, wherever the desk is then.
async fn loses(what: Loss) {
    let mut chance = Chance::of("row 9");
    let (mut rig, client, before) = with_a_writer().await;
    tokio::time::sleep(chance.millis(0..1500)).await;
    let sessions = rig.sessions_of(before.host).await;
    rig.host(before.host).lose(what);
    moves(&rig, &client, &before).await;
    rig.host(before.host).regain(what);
    comes_back(&mut rig, &client, &before, sessions).await;
}

#[tokio::test]
async fn row_09_acks_that_do_not_reach_the_node_renew_no_lease() {
    loses(Loss::Incoming).await;
}

#[tokio::test]
async fn row_10_what_a_frozen_agent_runs_is_ended_by_the_fence_and_it_fences_before_it_speaks() {
    let mut chance = Chance::of("row 10");
    let (mut rig, client, before) = with_a_writer().await;
    tokio::time::sleep(chance.millis(0..1500)).await;
    let sessions = rig.sessions_of(before.host).await;
    rig.host(before.host).agent().signal(Signal::STOP);
    moves(&rig, &client, &before).await;
    rig.host(before.host).agent().signal(Signal::CONT);
    comes_back(&mut rig, &client, &before, sessions).await;
}

mod full {
    use super::*;

    #[tokio::test]
    async fn row_02_a_fence_that_is_killed_too_ends_it_when_it_is_back() {
        is_left(true).await;
    }

    #[tokio::test]
    async fn row_08_a_node_in_a_black_hole_has_ended_all_before_it_runs_elsewhere() {
        is_cut_off(true).await;
    }

    #[tokio::test]
    async fn row_09_heartbeats_that_do_not_reach_the_control_plane_renew_no_lease() {
        loses(Loss::Outgoing).await;
    }
}
