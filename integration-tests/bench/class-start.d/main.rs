//! The benchmark behind `integration-tests/bench/class-start`; see there, and `docs/benchmarks.md` for figures.
//!
//! Through Carrel: StartWorkspace for students who have no desk yet, evenly over two seconds, until all are RUNNING on a watch that is open
//! already. Without: all at once, create, start, inspect for the port, and the agent's probe loop in the host's network, with the HostConfig of
//! a container that Carrel made there. What is made is removed before the next turn begins.
#![expect(clippy::disallowed_methods, reason = "it measures")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use integration_tests::bench::assert_durable;
use integration_tests::bench::bare::Bare;
use integration_tests::bench::class::Class;
use integration_tests::bench::figures::{Figures, shown};
use integration_tests::rig::{Rig, Shape};
use integration_tests::settings;

const HOSTS: u8 = 4;
/// Room of a host, and its share of the class.
const EACH: usize = 50;
const STUDENTS: usize = EACH * HOSTS as usize;
/// The class presses Start.
const WITHIN: Duration = Duration::from_secs(2);
/// Creations and starts at once on a host.
const AT_ONCE: usize = 6;
/// Of bare Docker's time, at most.
const TARGET: f64 = 1.15;
/// Docker goes on clearing up for a while.
const PAUSE: Duration = Duration::from_secs(2);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let met = runtime.expect("a runtime").block_on(run());
    std::process::exit(i32::from(!met));
}

async fn run() -> bool {
    let turns = settings::number("CARREL_BENCH_TURNS", 4);
    let shape = Shape::production(HOSTS, 1)
        .flag("log", "warn")
        // A tiny desk needs little.
        .flag("cpu-millicores", "100")
        .flag("memory", "64MiB")
        .agent_flag("log", "warn")
        .agent_flag("max-workspaces", &EACH.to_string())
        .agent_flag("start-concurrency", &AT_ONCE.to_string());
    let rig = Rig::start(shape).await;
    assert_durable(rig.database()).await;
    let mut class = Class::new(rig.client());
    // The first starts of a daemon and of an agent are like no other; the bare way learns its HostConfig from one on each host.
    class.start_many(2 * usize::from(HOSTS), WITHIN, nothing).await;
    let bare = bare_like_carrel(&rig).await;
    class.stop_all().await;
    start_bare(&rig, &bare, 2).await;
    stop_bare(&rig, &bare).await;

    println!("{STUDENTS} starts within {WITHIN:?} on {HOSTS} hosts, {turns} turns each way\n");
    println!(
        "| turn | | ready | on each host, of {EACH} | longest answer to StartWorkspace | all ready after |"
    );
    println!("|---|---|---|---|---|---|");
    let mut figures = Figures::default();
    for turn in 1..=turns {
        for way in 0..2 {
            tokio::time::sleep(PAUSE).await;
            // Who begins changes, so that neither always finds the machine as the other left it.
            if (turn + way) % 2 == 0 {
                let started = class.start_many(STUDENTS, WITHIN, nothing).await;
                let held = places(&rig).await;
                assert!(held.iter().all(|count| *count == EACH), "{held:?} places on the hosts");
                let answer = shown(started.longest_answer);
                println!("| {turn} | Carrel | {STUDENTS} | {held:?} | {answer} | {} |", shown(started.took));
                figures.carrel.push(started.took);
                class.stop_all().await;
            } else {
                let took = start_bare(&rig, &bare, EACH).await;
                println!(
                    "| {turn} | bare Docker | {STUDENTS} | {:?} | – | {} |",
                    [EACH; HOSTS as usize],
                    shown(took)
                );
                figures.bare.push(took);
                stop_bare(&rig, &bare).await;
            }
        }
    }
    let met = figures.print(&format!("{STUDENTS} students, all ready"), TARGET, None);
    // Before the hosts that its containers are on.
    drop(bare);
    met
}

/// RUNNING is what is waited for.
async fn nothing(_: integration_tests::client::Client, _: String) {}

/// One for each host.
async fn bare_like_carrel(rig: &Rig) -> Vec<Arc<Bare>> {
    let containers = rig.containers().await;
    let mut all = Vec::new();
    for (index, host) in rig.hosts().iter().enumerate() {
        let (_, example) = containers.iter().find(|(on, _)| *on == index).expect("one on each host");
        let files = rig.share().path().join(format!("bare-{index}"));
        all.push(Arc::new(Bare::like(&example.id, &host.docker(), files, AT_ONCE).await));
    }
    all
}

/// The time until so many on each host all answer.
async fn start_bare(rig: &Rig, bare: &[Arc<Bare>], each: usize) -> Duration {
    let begun = Instant::now();
    let starts = rig.hosts().iter().zip(bare).map(|(host, bare)| {
        let bare = Arc::clone(bare);
        host.within(move || async move { bare.start_many(each).await })
    });
    futures_util::future::join_all(starts).await;
    begun.elapsed()
}

async fn stop_bare(rig: &Rig, bare: &[Arc<Bare>]) {
    let stops = rig.hosts().iter().zip(bare).map(|(host, bare)| {
        let bare = Arc::clone(bare);
        host.within(move || async move { bare.stop_all().await })
    });
    futures_util::future::join_all(stops).await;
}

/// What each host holds: as many by the store as run there.
async fn places(rig: &Rig) -> Vec<usize> {
    let containers = rig.containers().await;
    let mut held = Vec::new();
    for (index, host) in rig.hosts().iter().enumerate() {
        let query = format!(
            "SELECT count(*)::text FROM placements p JOIN nodes n ON n.id = p.node_id
             WHERE n.facts->>'hostname' = '{}' AND p.released_at IS NULL",
            host.name()
        );
        let placed: usize = rig.database().text(&query).await.parse().expect("a number");
        let running = containers.iter().filter(|(on, found)| *on == index && found.running).count();
        assert_eq!(placed, running, "by the store, and by Docker");
        held.push(placed);
    }
    held
}
