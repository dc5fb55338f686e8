//! The benchmark behind `integration-tests/bench/start-latency`; see there, and `docs/benchmarks.md` for figures.
//!
//! One start through Carrel: StartWorkspace for a student who has no desk yet, RUNNING on a watch that is open already,
//! CreateAccess, one GET that answers 200. One start without: create, start, inspect for the port, and the agent's probe
//! loop, with the HostConfig of a container that Carrel made. What is made is removed before the next one begins.

use std::time::Duration;

use integration_tests::bench::assert_durable;
use integration_tests::bench::bare::{Bare, answers};
use integration_tests::bench::class::Class;
use integration_tests::bench::figures::Figures;
use integration_tests::client::Client;
use integration_tests::cluster::{Cluster, Options};
use integration_tests::settings;

/// A class presses Start.
const AT_ONCE: usize = 20;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(run());
}

async fn run() {
    let count = usize::try_from(settings::number("CARREL_BENCH_COUNT", 50)).expect("a count");
    let bursts = usize::try_from(settings::number("CARREL_BENCH_BURSTS", 5)).expect("a count");
    let image = settings::optional("CARREL_BENCH_IMAGE").unwrap_or_else(settings::workspace_image);
    let cluster = Cluster::start(Options::production().image(&image)).await;
    assert_durable(cluster.database()).await;
    let mut carrel = Class::new(cluster.client());
    // The first starts of a daemon and of an agent are like no other; the bare way learns its HostConfig from one.
    carrel.start_many(2, Duration::ZERO, open).await;
    let example = cluster.containers().await.into_iter().find(|found| found.running).expect("one runs");
    let bare = Bare::like(&example.id, cluster.docker(), cluster.dir().join("bare"), AT_ONCE).await;
    carrel.stop_all().await;
    bare.start_many(2).await;
    bare.stop_all().await;

    println!("{image}, {} at a time, {count} each way, taking turns", 1);
    let mut single = Figures::default();
    for round in 0..count {
        for turn in 0..2 {
            // Who begins changes, so that neither always finds the machine as the other left it.
            if (round + turn) % 2 == 0 {
                single.carrel.push(carrel.start_many(1, Duration::ZERO, open).await.took);
                carrel.stop_all().await;
            } else {
                single.bare.push(bare.start_many(1).await);
                bare.stop_all().await;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        progress(round + 1, count);
    }
    println!("{image}, {AT_ONCE} at a time, {bursts} each way, taking turns");
    let mut burst = Figures::default();
    for round in 0..bursts {
        for turn in 0..2 {
            if (round + turn) % 2 == 0 {
                burst.carrel.push(carrel.start_many(AT_ONCE, Duration::ZERO, open).await.took);
                carrel.stop_all().await;
            } else {
                burst.bare.push(bare.start_many(AT_ONCE).await);
                bare.stop_all().await;
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        progress(round + 1, bursts);
    }
    let met = [
        single.print("one by one", 1.10, Some(Duration::from_millis(40))),
        burst.print(&format!("{AT_ONCE} at once, all done"), 1.10, None),
    ];
    drop(cluster);
    std::process::exit(if met == [true, true] { 0 } else { 1 });
}

/// What the LMS does next: asks for the address and sends the browser there.
async fn open(client: Client, student: String) {
    let url = client.access(&student).await;
    let address = url.trim_start_matches("http://").split(['/', '?']).next().expect("an address");
    assert!(answers(address).await, "{url} does not answer");
}

fn progress(done: usize, all: usize) {
    if done.is_multiple_of(10) || done == all {
        eprintln!("  {done} of {all}");
    }
}
