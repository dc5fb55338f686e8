//! The longest stays: every state that moves has one, so that nothing waits for an operator. And the pauses of what waits for one.

use std::time::Duration;

use carrel_common::model::Stage;

use super::{State, Workspace};

/// How long a workspace may be in a state that moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stays {
    /// In PENDING, and in STARTING while its node has not begun with it.
    pub pending: Duration,
    /// In STARTING while the image is pulled.
    pub pulling: Duration,
    /// In STARTING from then on.
    pub starting: Duration,
    /// In STOPPING.
    pub stopping: Duration,
}

/// Before files that could not be moved to the trash are tried again; each time twice as long, up to the longest.
const PURGE_PAUSE: Duration = Duration::from_secs(30);

/// The longest pause between two attempts to move files to the trash: an operator who has mended it need not wait for longer.
pub const LONGEST_PURGE_PAUSE: Duration = Duration::from_secs(8 * 60);

/// The pause after so many failures.
pub(super) fn purge_pause(failures: u32) -> Duration {
    PURGE_PAUSE.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(LONGEST_PURGE_PAUSE)
}

impl Workspace {
    /// How long it may stay as it is; `None` where it rests.
    pub fn longest_stay(&self, stays: &Stays) -> Option<Duration> {
        match (self.state, self.stage) {
            (State::Pending, _) | (State::Starting, Some(Stage::Queued)) => Some(stays.pending),
            (State::Starting, Some(Stage::Pulling)) => Some(stays.pulling),
            (State::Starting, _) => Some(stays.starting),
            (State::Stopping, _) => Some(stays.stopping),
            (State::Stopped | State::Running | State::Failed | State::Unreachable, _) => None,
        }
    }
}
