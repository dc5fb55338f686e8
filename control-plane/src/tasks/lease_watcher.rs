//! The loops that give silent nodes up, and move what they held.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::run_loop;
use crate::app::{App, AppError, alone};
use crate::domain::lease::Watcher;

/// A workspace moves late by one look at most; so many looks fit into the wait for it.
const LOOKS: u32 = 20;

/// Not more often than the small leases of tests need, and often enough that a look or two may fail before the watch begins anew.
const TICK: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// Watches every node's renewals by this process's own clock, and gives up those that stand still.
pub async fn watch_leases(app: App, stop: CancellationToken) {
    let terms = app.settings.lease;
    let tick = (terms.replace_after / LOOKS).clamp(TICK.0, TICK.1);
    let (watcher, began) = (Mutex::new(Watcher::new(terms)), Instant::now());
    run_loop("watch_leases", tick, &Notify::new(), stop, || async {
        let (timeline, nodes) = app.watch_nodes().await?;
        let findings = {
            let mut watcher = watcher.lock().unwrap_or_else(PoisonError::into_inner);
            watcher.take(began.elapsed(), &timeline, &nodes)
        };
        app.metrics.replacements_held(findings.held.len());
        for node in &findings.held {
            alone(*node, app.hold_replacement(*node).await)?;
        }
        let mut fenced = 0;
        for (node, renewals) in findings.due {
            fenced += usize::from(alone(node, app.fence_node(node, renewals).await)?);
        }
        Ok::<_, AppError>((fenced > 0).then_some(fenced))
    })
    .await;
}

/// Moves or stops what nodes that were given up held; takes up where another replica left off.
pub async fn release_lost(app: App, stop: CancellationToken) {
    let nudge = std::sync::Arc::clone(&app.nudge);
    run_loop("release_lost", Duration::from_secs(1), &nudge.lost, stop, || async {
        app.release_lost().await.map(|concerned| (concerned > 0).then_some(concerned))
    })
    .await;
}
