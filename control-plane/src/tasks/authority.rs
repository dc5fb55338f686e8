//! Looks for another authority in its directory, and keeps the listener's certificate fresh.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::run_loop;
use crate::authority::Renewal;

/// An operator who has replaced the files waits for it.
const LOOK: Duration = Duration::from_secs(5);

/// Keeps the authority the newest.
pub async fn keep_authority(renewal: Renewal, stop: CancellationToken) {
    let renewal = Arc::new(renewal);
    run_loop("keep_authority", LOOK, &Notify::new(), stop, || {
        let renewal = Arc::clone(&renewal);
        async move {
            // Reading files blocks.
            let done = tokio::task::spawn_blocking(move || renewal.once()).await;
            let done = done.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
            if let Some(what) = done {
                tracing::info!("{what}");
            }
            Ok::<_, String>(done)
        }
    })
    .await;
}
