//! An idle stop that does not know what was seen here is not carried out.
//!
//! The control plane decides on what it was told; what a student did since the last heartbeat it cannot know. So the look is
//! taken at the last moment, before the first signal is sent to the program.

use std::sync::Arc;
use std::time::Duration;

use carrel_common::model::{DesiredItem, DesiredPair, Observed};

use super::host::Host;
use super::remove::retry;
use crate::reconcile::{Settled, refuses};
use crate::reports::Report;
use crate::runtime::{Phase, Runtime, RuntimeError};

/// `None`: the stop is to be carried out. `ordered`: the pair of the set that orders it, accepted at `taken_at`.
pub(super) async fn idle_stop<R: Runtime>(
    host: &Host<R>,
    item: &DesiredItem,
    taken_at: Duration,
    ordered: DesiredPair,
) -> Option<Settled> {
    let basis_age = item.idle_basis_age?;
    let (desks, now) = (Arc::clone(&host.desks), host.clock.monotonic());
    let (workspace, generation) = (item.workspace, item.generation);
    let look = tokio::task::spawn_blocking(move || desks.look_at(workspace, generation, now));
    let seen_at = look.await.ok().flatten()?;
    if !refuses(seen_at, basis_age, taken_at) {
        return None;
    }
    // A process that has just begun looks only at what it is ordered to run: of this one it has told nothing.
    if !host.reports.knows(workspace, item.pair()) {
        match running(host, item).await {
            Ok(Some(report)) => host.reports.report(workspace, item.pair(), report),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "whether an idle stop is to be refused cannot be told; trying again");
                return Some(retry(host));
            }
        }
    }
    // One that does not answer has nothing that could go on.
    if !host.reports.refuse_stop(workspace, item.pair(), seen_at) {
        return None;
    }
    tracing::info!(seen_ago = ?now.saturating_sub(seen_at), "an idle stop is refused: there was activity since");
    host.metrics.refused_stop();
    Some(Settled::Refused { pair: ordered })
}

/// What is to be told of the item's container when it runs.
async fn running<R: Runtime>(host: &Host<R>, item: &DesiredItem) -> Result<Option<Report>, RuntimeError> {
    let listed = host.runtime.list(host.scope.cluster, Some(item.workspace)).await?;
    let Some(found) = listed.into_iter().find(|found| found.container.pair() == item.pair()) else {
        return Ok(None);
    };
    let look = host.runtime.inspect(&found.container.container_id, item.spec.probe_port).await?;
    let running = look.filter(|look| look.phase == Phase::Running);
    Ok(running.and_then(|look| {
        let endpoint = look.endpoint?;
        Some(Report { image_digest: look.image_id, ..Report::of(Observed::Running { endpoint }) })
    }))
}
