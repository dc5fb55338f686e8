//! Two wills at the same moment: heartbeat against idle stop, start against stop, from several clients.
//!
//! `CARREL_RACE_ROUNDS` sets how often (default: what takes less than a minute).

use std::sync::Arc;
use std::time::{Duration, Instant};

use carrel_proto::v1 as pb;
use carrel_proto::v1::stop::Reason;
use carrel_proto::v1::workspace::{DesiredState, State};
use integration_tests::client::{Client, millis, reason};
use integration_tests::cluster::{Cluster, Options};
use integration_tests::settings;
use tonic::Code;

const TIMEOUT_MS: i64 = 1_500;
const DESKS: u64 = 4;
const CLIENTS: usize = 3;

fn rounds() -> u64 {
    settings::number("CARREL_RACE_ROUNDS", 40)
}

/// What one desk went through.
#[derive(Default)]
struct Story {
    /// `last_active_time` of every heartbeat that was acked.
    acked: Vec<i64>,
    refused: u64,
    stops: u64,
}

/// Heartbeats from several clients around the deadline of one desk.
async fn beat_around_deadlines(clients: Vec<Client>, student: String, rounds: u64) -> Story {
    let mut story = Story::default();
    let mut workspace = clients[0].start_and_wait(&student).await;
    for round in 0..rounds {
        let remaining = workspace.idle.as_ref().and_then(|idle| idle.remaining).expect("it runs");
        let remaining =
            Duration::new(remaining.seconds.try_into().unwrap(), remaining.nanos.try_into().unwrap());
        let spread = rand::random_range(0..120);
        tokio::time::sleep(
            (remaining + Duration::from_millis(20)).saturating_sub(Duration::from_millis(spread)),
        )
        .await;
        let beats = clients.iter().map(|client| async {
            tokio::time::sleep(Duration::from_millis(rand::random_range(0..40))).await;
            client.try_heartbeat(&student).await
        });
        for answer in futures_util::future::join_all(beats).await {
            match answer {
                Ok(idle) => story.acked.push(millis(idle.last_active_time)),
                Err(status) => {
                    assert_eq!(
                        (status.code(), reason(&status).as_str()),
                        (Code::FailedPrecondition, "WORKSPACE_NOT_RUNNING"),
                        "{status}"
                    );
                    story.refused += 1;
                }
            }
        }
        let now = clients[0].get(&student).await;
        if now.desired_state() == DesiredState::Stopped {
            let stop = now.stop.clone().expect("it was stopped");
            assert_eq!(stop.reason(), Reason::Idle, "{now:#?}");
            let evidence = stop.evidence.expect("an idle stop has evidence");
            let (decided, newest) =
                (millis(evidence.decision_time), story.acked.iter().max().copied().unwrap_or_default());
            assert!(
                decided - newest >= TIMEOUT_MS,
                "round {round}: {student} was stopped {} ms after activity that was acked: {evidence:?}",
                decided - newest
            );
            story.stops += 1;
        }
        // Also when the stop is still under way: Start pressed then ends in RUNNING.
        workspace = clients[1 % clients.len()].start_and_wait(&student).await;
    }
    story
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acked_heartbeat_always_wins_against_the_idle_stop() {
    let cluster = Cluster::start(Options::new().idle("1500ms", "500ms").flag("stop-grace", "1s")).await;
    let desks = (0..DESKS).map(|desk| {
        let clients = (0..CLIENTS).map(|_| cluster.client()).collect();
        tokio::spawn(beat_around_deadlines(clients, format!("s{desk}"), rounds().div_ceil(DESKS)))
    });
    let mut total = Story::default();
    for desk in desks.collect::<Vec<_>>() {
        let story = desk.await.expect("no violation");
        total.acked.extend(story.acked);
        total.refused += story.refused;
        total.stops += story.stops;
    }
    eprintln!(
        "{} rounds: {} acked, {} refused, {} stops",
        rounds(),
        total.acked.len(),
        total.refused,
        total.stops
    );
    assert!(!total.acked.is_empty(), "the race was never won by a heartbeat");
    let events = cluster.client().list_events(pb::EventFilter::default()).await;
    let stoppings = events.iter().filter(|event| event.r#type == "workspace.stopping").count();
    assert!(stoppings as u64 >= total.stops, "each stop is in the log");
}

/// Each client presses Start or Stop at about the same moment; then the desk must come to rest in one of both.
async fn press_at_once(cluster: Arc<Cluster>, student: String, rounds: u64) -> (u64, u64) {
    let clients: Vec<_> = (0..CLIENTS).map(|_| cluster.client()).collect();
    let (mut running, mut stopped) = (0, 0);
    clients[0].start(&student).await;
    for round in 0..rounds {
        let presses = clients.iter().map(|client| async {
            let mut presses = Vec::new();
            for _ in 0..2 {
                tokio::time::sleep(Duration::from_millis(rand::random_range(0..60))).await;
                let answer = if rand::random() {
                    client.try_start(&student).await
                } else {
                    client.try_stop(&student).await
                };
                presses.push(answer.expect("both are accepted in every state"));
            }
            presses
        });
        let answers = futures_util::future::join_all(presses).await.concat();
        let last = answers.iter().max_by_key(|workspace| workspace.version).expect("answers").clone();
        let start = Instant::now();
        let rest = clients[0]
            .wait_until(&student, "at rest", |w| {
                !w.reconciling && matches!(w.state(), State::Running | State::Stopped)
            })
            .await;
        assert_eq!(
            rest.desired_state(),
            last.desired_state(),
            "round {round}: the last word counts: {rest:#?}\n{last:#?}"
        );
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "round {round}: at rest only after {:?}",
            start.elapsed()
        );
        let found = cluster.containers_of(&student).await;
        if rest.state() == State::Running {
            running += 1;
            assert_eq!(
                found.iter().map(|c| (c.running, c.generation)).collect::<Vec<_>>(),
                [(true, rest.generation)],
                "round {round}"
            );
        } else {
            stopped += 1;
            assert_eq!(found, [], "round {round}");
        }
    }
    (running, stopped)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_against_stop_ends_in_one_of_both_and_one_container() {
    let cluster = Arc::new(Cluster::start(Options::new().flag("stop-grace", "1s")).await);
    let desks = (0..DESKS).map(|desk| {
        tokio::spawn(press_at_once(cluster.clone(), format!("s{desk}"), rounds().div_ceil(DESKS)))
    });
    let (mut running, mut stopped) = (0, 0);
    for desk in desks.collect::<Vec<_>>() {
        let ended = desk.await.expect("no violation");
        running += ended.0;
        stopped += ended.1;
    }
    eprintln!("{} rounds: {running} ended running, {stopped} stopped", rounds());
}
