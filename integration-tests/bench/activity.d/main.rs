//! The benchmark behind `integration-tests/bench/activity`; see there, and `docs/benchmarks.md` for figures.
//!
//! Workspaces are written into the database as if an agent had brought them up: no container runs, since none takes part in what is
//! measured. Ways that are compared take turns in one run.
#![expect(clippy::disallowed_methods, reason = "it measures")]

mod batches;
mod desks;
mod figures;
mod policy;
mod singles;
mod sweep;

use integration_tests::own_postgres::OwnPostgres;
use integration_tests::settings;

use crate::desks::Desks;

fn main() {
    // The thing underneath runs as a process of its own, like the control plane.
    if std::env::args().nth(1).as_deref() == Some("bare-server") {
        return singles::bare_server(&std::env::args().nth(2).expect("an address"));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let met = runtime.expect("a runtime").block_on(run());
    std::process::exit(i32::from(!met));
}

async fn run() -> bool {
    let running = settings::number("CARREL_BENCH_RUNNING", 100_000);
    let postgres = OwnPostgres::start().await;
    let desks = Desks::start(&postgres, running).await;
    for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
        let value = desks.text(&format!("SELECT current_setting('{setting}')")).await;
        assert_eq!(value, "on", "{setting}: the figures are of a durable Postgres");
    }
    println!("{running} running workspaces");
    let met = [
        singles::measure(&desks).await,
        batches::measure(&desks).await,
        sweep::measure(&desks).await,
        policy::measure(&desks).await,
    ];
    met.iter().all(|met| *met)
}
