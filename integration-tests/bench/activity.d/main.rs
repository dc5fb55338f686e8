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

use integration_tests::bench::assert_durable;
use integration_tests::own_postgres::OwnPostgres;
use integration_tests::settings;

use crate::desks::Desks;

/// What can be measured by itself, in the order of a whole run.
const PARTS: [&str; 4] = ["singles", "batches", "sweep", "policy"];

fn main() {
    // The thing underneath runs as a process of its own, like the control plane.
    if std::env::args().nth(1).as_deref() == Some("bare-server") {
        return singles::bare_server(&std::env::args().nth(2).expect("an address"));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let named: Vec<String> = std::env::args().skip(1).collect();
    let parts = if named.is_empty() { PARTS.map(str::to_owned).to_vec() } else { named };
    let met = runtime.expect("a runtime").block_on(run(parts));
    std::process::exit(i32::from(!met));
}

async fn run(parts: Vec<String>) -> bool {
    let running = settings::number("CARREL_BENCH_RUNNING", 100_000);
    let postgres = OwnPostgres::start().await;
    let desks = Desks::start(&postgres, running).await;
    assert_durable(desks.database()).await;
    println!("{running} running workspaces");
    let mut met = true;
    for part in parts {
        met &= match part.as_str() {
            "singles" => singles::measure(&desks, &postgres).await,
            "batches" => batches::measure(&desks).await,
            "sweep" => sweep::measure(&desks).await,
            "policy" => policy::measure(&desks).await,
            other => panic!("no part is called {other:?}: {PARTS:?}"),
        };
    }
    met
}
