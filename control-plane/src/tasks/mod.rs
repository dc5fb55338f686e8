//! The loops. Each waits for its tick, a nudge or the end, runs one idempotent step, and logs what it did; an error is
//! logged and the next tick tries again. Tests call the steps.

mod authority;
mod idle_stopper;
mod lease_watcher;
mod watchers;

use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

pub use authority::keep_authority;
pub use idle_stopper::IdleStopper;
pub use lease_watcher::{release_lost, watch_leases};
pub use watchers::{
    drop_old, end_overdue, give_up_nodes, hand_logs_over, keep_pulse, place_waiting, see_to_drains,
    watch_database, watch_state,
};

/// Runs `once` at each tick and nudge until the end.
async fn run_loop<T, E, F>(
    name: &'static str,
    tick: Duration,
    nudge: &Notify,
    stop: CancellationToken,
    mut once: impl FnMut() -> F,
) where
    T: std::fmt::Debug,
    E: std::fmt::Display,
    F: Future<Output = Result<Option<T>, E>>,
{
    let mut ticks = tokio::time::interval(tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // Cancel-safe: ticks and nudges that are not taken stay.
            _ = ticks.tick() => {}
            () = nudge.notified() => {}
            () = stop.cancelled() => return,
        }
        match once().await {
            Ok(None) => {}
            Ok(Some(report)) => tracing::debug!(task = name, ?report, "done"),
            Err(error) => tracing::warn!(task = name, %error, "failed; the next tick tries again"),
        }
    }
}
