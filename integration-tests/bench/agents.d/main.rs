//! The benchmark behind `integration-tests/bench/agents`; see there, and `docs/benchmarks.md` for figures.
//!
//! The agents are simulated in this process: no container runs, but every message is one that a real agent would send.
#![expect(clippy::disallowed_methods, reason = "it measures")]

mod agent;
mod desks;
mod fleet;
mod load;
mod tally;

use std::time::{Duration, Instant};

use integration_tests::bench::assert_durable;
use integration_tests::bench::replica::Replica;
use integration_tests::own_postgres::OwnPostgres;
use integration_tests::settings;

use crate::fleet::Fleet;

/// Workspaces an agent holds at the beginning.
const DESKS: u32 = 100;
/// The replica's share of one core at most, with the largest fleet.
const MOST_CPU: f64 = 0.60;
/// Its memory at most, MiB.
const MOST_MEMORY: f64 = 400.0;
/// After a kill of the replica every agent is back within this.
const BACK_WITHIN: Duration = Duration::from_secs(60);
/// Until the first sessions have told all they hold.
const SETTLING: Duration = Duration::from_secs(30);

/// What came of one size.
struct Figures {
    agents: u32,
    cpu: f64,
    memory: f64,
    peak: f64,
    back: Duration,
    /// Sessions that ended while nothing was killed.
    broken: u32,
    acks: [Duration; 2],
    starts: [Duration; 2],
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let sizes = settings::optional("CARREL_BENCH_AGENTS").unwrap_or_else(|| "100,300,1000".into());
    let watched = Duration::from_secs(settings::number("CARREL_BENCH_SECONDS", 120));
    let mut all = Vec::new();
    for size in sizes.split(',') {
        let agents = size.trim().parse().expect("CARREL_BENCH_AGENTS is a list of numbers");
        all.push(measure(agents, watched).await);
    }
    std::process::exit(i32::from(!tell(&all)));
}

async fn measure(agents: u32, watched: Duration) -> Figures {
    eprintln!("{agents} agents with {DESKS} workspaces each");
    let postgres = OwnPostgres::start().await;
    let mut replica = Replica::start(&postgres, &[]).await;
    assert_durable(replica.database()).await;
    let fleet = Fleet::start(&replica, agents, DESKS).await;
    let tally = fleet.tally();
    tally.until_standing(agents, Duration::from_secs(120)).await;
    let load = load::begin(&replica, u64::from(agents) * u64::from(DESKS));
    tokio::time::sleep(SETTLING).await;

    tally.forget();
    let (from, busy) = (Instant::now(), replica.busy());
    let mut memory = 0.0_f64;
    while from.elapsed() < watched {
        tokio::time::sleep(Duration::from_secs(1)).await;
        memory = memory.max(replica.memory());
    }
    let cpu = (replica.busy() - busy).as_secs_f64() / from.elapsed().as_secs_f64();
    let (acks, broken) = (tally.acks(), tally.broken());
    let starts = load.end().await;

    replica.kill_and_start();
    tally.until_standing(0, Duration::from_secs(5)).await;
    let from = Instant::now();
    tally.until_standing(agents, Duration::from_secs(300)).await;
    let back = from.elapsed();
    let lost =
        replica.database().text("SELECT count(*)::text FROM workspaces WHERE state = $$RUNNING$$").await;
    let held = fleet.held().to_string();
    assert_eq!(lost, held, "workspaces that run by the store, and by the agents");
    Figures { agents, cpu, memory, peak: replica.peak_memory(), back, broken, acks, starts }
}

/// Prints them; whether the largest fleet keeps the targets.
fn tell(all: &[Figures]) -> bool {
    println!(
        "\n| agents | workspaces | replica, of one core | its memory | at most, with the restart | all back after a kill | sessions broken before | heartbeat to ack p50, p99 | start to RUNNING p50, p99 |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let mut met = true;
    for f in all {
        println!(
            "| {} | {} | {:.0} % | {:.0} MiB | {:.0} MiB | {:.1?} | {} | {:.0?}, {:.0?} | {:.0?}, {:.0?} |",
            f.agents,
            f.agents * DESKS,
            f.cpu * 100.0,
            f.memory,
            f.peak,
            f.back,
            f.broken,
            f.acks[0],
            f.acks[1],
            f.starts[0],
            f.starts[1]
        );
        met &= f.cpu < MOST_CPU && f.memory < MOST_MEMORY && f.back < BACK_WITHIN && f.broken == 0;
    }
    println!(
        "\nTargets: below {:.0} % of one core, below {MOST_MEMORY:.0} MiB, all back within {BACK_WITHIN:?}, no session broken: {}",
        MOST_CPU * 100.0,
        if met { "met" } else { "MISSED" }
    );
    met
}
