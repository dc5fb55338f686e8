//! The rows of the failure table on a fleet: hosts, replicas and Postgres that are killed, frozen and cut off.
//!
//! Each test is named by its row in `docs/failures.md` and has a rig of its own, with leases compressed to seconds. Moments
//! and victims are drawn: `CARREL_SEED` gives those of a former run again. What takes long is in modules called `full`,
//! which only `integration-tests/run full` runs.
#![expect(clippy::unwrap_used, reason = "also in what the tests share, a panic is a failed test")]
#![expect(clippy::disallowed_methods, reason = "tests read the real time and spawn freely")]

mod agents;
mod clocks;
mod drains;
mod hosts;
mod leases;
mod random;
mod replicas;
mod restored;
mod rig;
mod shares;
mod starts;

use std::time::{Duration, Instant};

use integration_tests::rig::Rig;

/// Waits until something is so.
async fn until<F: Future<Output = bool>>(
    what: &str,
    within: Duration,
    mut is_so: impl FnMut() -> F,
) -> Duration {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < within, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    start.elapsed()
}

/// A writer writes each 20 ms; a machine of two cores that is busy with a rig delays it by this much at most.
const BUSY: Duration = Duration::from_secs(5);

/// The desks wrote on without a stop: each in one run, without a pause.
fn assert_undisturbed(rig: &Rig, students: &[&str]) {
    for student in students {
        let history = rig.share().writes(student);
        let [run] = &history.runs[..] else { panic!("{student} was stopped: {history:#?}") };
        assert!(run.longest_pause < BUSY, "{student} stood still for {:?}", run.longest_pause);
    }
}
