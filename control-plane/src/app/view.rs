//! A workspace as it is shown: with its deadline and its place in the queue.

use std::collections::HashMap;

use carrel_common::id::WorkspaceUid;
use carrel_common::model::Signal;
use time::OffsetDateTime;

use super::rules::{Rules, warned};
use super::{App, Result};
use crate::domain::activity::Activity;
use crate::domain::idle::Clock;
use crate::domain::workspace::{State, Workspace};

/// When a workspace will be stopped for idleness, and from what that follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdleView {
    /// The newest activity that counted.
    pub last: Option<(OffsetDateTime, Signal)>,
    /// Whether the clock runs, and when it ends.
    pub clock: Clock,
    /// `deadline_version`.
    pub version: i64,
    /// Version of the rules it was derived from.
    pub policy_version: i64,
    /// A warning is out.
    pub warned: bool,
    /// The latest time an extension can reach.
    pub extendable_until: OffsetDateTime,
    /// A declared job keeps it awake until then.
    pub awake_until: Option<OffsetDateTime>,
    /// The database's time of this statement.
    pub now: OffsetDateTime,
}

impl IdleView {
    /// Derived from the rules, the workspace and its activity.
    pub fn new(rules: &Rules, workspace: &Workspace, activity: &Activity, now: OffsetDateTime) -> Self {
        let policy = rules.times(workspace);
        let look = rules.look(&policy, workspace, activity, now);
        let clock = look.clock();
        let budget = now + policy.extension_budget;
        Self {
            last: look.last(),
            clock,
            version: activity.version,
            policy_version: rules.book.version,
            warned: warned(workspace, clock),
            extendable_until: policy.grant(workspace.ready_at, budget, now).0,
            awake_until: look.awake_until(),
            now,
        }
    }
}

/// A workspace as it is shown.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkspaceView {
    /// The workspace.
    pub workspace: Workspace,
    /// Its deadline; `None` while it is not meant to run.
    pub idle: Option<IdleView>,
    /// Its place in the queue, from 1; 0 when it does not wait.
    pub queue_position: i64,
}

impl App {
    /// Adds to workspaces what is derived.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn view(&self, workspaces: Vec<Workspace>) -> Result<Vec<WorkspaceView>> {
        let open: Vec<_> = workspaces.iter().filter(|w| w.open_for_activity()).map(|w| w.uid).collect();
        let (activities, now) = match open.is_empty() {
            true => (HashMap::new(), OffsetDateTime::UNIX_EPOCH),
            false => self.store.activities(open).await?,
        };
        let positions: HashMap<WorkspaceUid, i64> = match workspaces.iter().any(|w| w.state == State::Pending)
        {
            true => self.store.queue_positions().await?,
            false => HashMap::new(),
        };
        let rules = self.rules.get();
        let shown = |workspace: Workspace| {
            let idle = workspace.open_for_activity().then(|| {
                let activity = activities.get(&workspace.uid).copied().unwrap_or_default();
                IdleView::new(&rules, &workspace, &activity, now)
            });
            let queue_position = positions.get(&workspace.uid).copied().unwrap_or(0);
            WorkspaceView { workspace, idle, queue_position }
        };
        Ok(workspaces.into_iter().map(shown).collect())
    }

    /// As [`App::view`], for one.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn view_one(&self, workspace: Workspace) -> Result<WorkspaceView> {
        let fallback = WorkspaceView { workspace: workspace.clone(), idle: None, queue_position: 0 };
        Ok(self.view(vec![workspace]).await?.pop().unwrap_or(fallback))
    }
}
