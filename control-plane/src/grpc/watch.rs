//! Streams that follow the event log: each read begins where the last one ended, so none is missed whoever nudges.

mod events;
mod held;
mod moves;
mod workspaces;

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::app::{App, AppError, Position};

pub(super) use self::events::events;
pub(super) use self::moves::Moves;
pub(super) use self::workspaces::WorkspaceWatch;

/// A slow reader holds this many messages; then it is waited for.
const BUFFER: usize = 256;
/// Events of other replicas, and nudges that were lost, are found this late.
const POLL: Duration = Duration::from_secs(1);

/// What ends the streams of this process.
#[derive(Debug, Clone)]
pub struct Following {
    /// Streams end when it is cancelled.
    pub stop: CancellationToken,
}

type Message<T> = Result<T, Status>;

/// Waits for news; false when it is time to end.
async fn news<T>(bell: &mut watch::Receiver<u64>, to: &mpsc::Sender<T>, stop: &CancellationToken) -> bool {
    tokio::select! {
        // Cancel-safe: a change that is not taken is seen by the next wait, and the poll reads all the same.
        _ = bell.changed() => true,
        () = tokio::time::sleep(POLL) => true,
        () = to.closed() => false,
        () = stop.cancelled() => false,
    }
}

fn token(incarnation: i64, position: Position) -> String {
    format!("{incarnation}.{position}")
}

/// A store that was declared restored has another log: who follows the one before begins anew.
fn same_log(app: &App, incarnation: i64) -> Result<(), AppError> {
    if app.state.incarnation() == incarnation { Ok(()) } else { Err(AppError::ResumeTokenTooOld) }
}
