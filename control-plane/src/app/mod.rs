//! The use cases: what a call, a report or a loop does, from the first read to the nudge after the commit.
//!
//! Each is one transaction: lock, ask `domain` what follows, write, commit, then nudge whoever waits. Nothing here
//! chooses a gRPC code and nothing here writes SQL.

mod access;
mod alone;
mod behind;
mod deadlines;
mod drains;
mod enrolment;
mod error;
mod events;
mod failing;
mod fencing;
mod greeting;
mod heartbeats;
mod idle;
mod images;
mod line;
mod logs;
mod node_admin;
mod nodes;
mod nudge;
mod observations;
mod orphans;
mod placing;
mod pulse;
mod readiness;
mod remote_logs;
mod repeats;
mod restored;
mod rules;
mod settings;
mod settle;
mod view;
mod workspaces;

pub use alone::{Whose, alone};
pub use behind::SharedState;
pub use deadlines::Deadline;
pub use drains::{DrainOrder, Drained};
pub use enrolment::{Applicant, Certified, Credentials};
pub use error::{AppError, Result};
pub use fencing::NodeLoss;
pub use greeting::{Greeted, Greeting};
pub use heartbeats::{Heartbeats, Recorded};
pub use idle::IdleCheck;
pub use line::{Board, Line, LinePlace};
pub use logs::{LogOrder, LogPart, LogTails, Tail};
pub use nodes::{HeartbeatOutcome, SentSet};
pub use nudge::{IdleDue, Nudge};
pub use orphans::{Judged, Resolution, Resolved};
pub use pulse::LastReading;
pub use readiness::{Readiness, SharedReadiness};
pub use remote_logs::LogHandover;
pub use rules::{Explained, Rules, SharedRules, policy_etag};
pub use settings::Settings;
pub use view::{IdleView, WorkspaceView};
pub use workspaces::{Call, Extended, Extent};

// What the use cases take and give that is the store's: the doors know `app` alone.
pub use crate::store::{
    Beat, EventQuery, NodeLoad, Orphan, Position, StoreError, StoredEvent, StoredPolicy, WorkspaceQuery,
};

use std::sync::Arc;

use crate::authority::Authorities;
use crate::metrics::Metrics;
use crate::store::Store;

/// Everything a use case needs.
#[derive(Debug, Clone)]
pub struct App {
    /// The database.
    pub store: Store,
    /// Who signs nodes' certificates; `None` in plaintext.
    pub authorities: Option<Authorities>,
    /// How the database stands in time.
    pub state: SharedState,
    /// Times, limits, defaults.
    pub settings: Arc<Settings>,
    /// The policies, and what could not be observed.
    pub rules: SharedRules,
    /// The database's clock at the last sign of life.
    pub last_reading: LastReading,
    /// Who waits for what.
    pub nudge: Arc<Nudge>,
    /// What is counted.
    pub metrics: Metrics,
    /// Who stands where in line.
    pub board: Board,
    /// Activity on its way to the database.
    pub heartbeats: Heartbeats,
    /// Logs on their way from the nodes.
    pub log_tails: LogTails,
}
