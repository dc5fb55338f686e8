//! What the nodes are told of deadlines, and what they have taken note of.

use carrel_common::id::{Generation, NodeId, WorkspaceUid};
use carrel_common::model::StopReason;
use time::OffsetDateTime;

use super::{App, Result};

/// When one workspace will be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// The workspace.
    pub workspace: WorkspaceUid,
    /// The incarnation of the container.
    pub generation: Generation,
    /// When, and for what; `None` while the clock does not run.
    pub at: Option<(OffsetDateTime, StopReason)>,
    /// `deadline_version`.
    pub version: i64,
    /// When the warning that is out was given: names it.
    pub warned_at: Option<OffsetDateTime>,
}

impl App {
    /// When each workspace that runs on a node will be stopped, and the database's time.
    ///
    /// # Errors
    /// The database.
    pub async fn deadlines_on(&self, node: NodeId) -> Result<(Vec<Deadline>, OffsetDateTime)> {
        let rules = self.rules.get();
        let (running, now) = self.store.running_on(node).await?;
        let of = running.into_iter().map(|(workspace, activity)| {
            let policy = rules.times(&workspace);
            let look = rules.look(&policy, &workspace, &activity, now);
            Deadline {
                workspace: workspace.uid,
                generation: workspace.generation,
                at: look.clock().running().map(|times| (times.deadline_at, times.reason)),
                version: activity.version,
                warned_at: look.warning().map(|warning| warning.at),
            }
        });
        Ok((of.collect(), now))
    }

    /// Records that a node's session has these warnings, each named by when it was given: from then on they count as out.
    ///
    /// # Errors
    /// The database.
    pub async fn ack_warnings(&self, warnings: &[(WorkspaceUid, OffsetDateTime)]) -> Result<()> {
        if warnings.is_empty() {
            return Ok(());
        }
        Ok(self.store.ack_warnings(warnings).await?)
    }
}
