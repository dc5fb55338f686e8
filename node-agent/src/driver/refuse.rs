//! An idle stop that does not know what was seen here is not carried out.
//!
//! The control plane decides on what it was told; what a student did since the last heartbeat it cannot know. So the look is
//! taken at the last moment, before the first signal is sent to the program.

use std::sync::Arc;
use std::time::Duration;

use carrel_common::model::{DesiredItem, DesiredPair};

use super::host::Host;
use crate::reconcile::{Settled, refuses};
use crate::runtime::Runtime;

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
    // One that does not answer has nothing that could go on.
    if !host.reports.refuse_stop(workspace, item.pair(), seen_at) {
        return None;
    }
    tracing::info!(seen_ago = ?now.saturating_sub(seen_at), "an idle stop is refused: there was activity since");
    host.metrics.refused_stop();
    Some(Settled::Refused { pair: ordered })
}
