//! A workspace as it is shown: with its deadline, its place in line, and when it may be ready.

use std::collections::HashMap;
use std::sync::Arc;

use carrel_common::model::{Signal, Stage, StatusReason};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::line::Line;
use super::rules::Rules;
use super::{App, Result};
use crate::domain::idle::{Clock, Look, Times};
use crate::domain::workspace::{State, Workspace};
use crate::store::Known;

/// When a workspace will be stopped for idleness, and from what that follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdleView {
    /// The newest activity that counted.
    pub last: Option<(OffsetDateTime, Signal)>,
    /// Whether the clock runs, and when it ends.
    pub clock: Clock,
    /// `deadline_version`.
    pub version: i64,
    /// Version of the rules it was derived from.
    pub policy_version: i64,
    /// A warning is out, and holds.
    pub warned: bool,
    /// The version of the deadline that the warning was given at, which its events name, too; 0 when none is out.
    #[serde(default)]
    pub warning_version: i64,
    /// The latest time an extension can reach.
    pub extendable_until: OffsetDateTime,
    /// A declared job keeps it awake until then.
    pub awake_until: Option<OffsetDateTime>,
    /// The database's time of this statement.
    pub now: OffsetDateTime,
}

impl IdleView {
    /// Derived from the rules, the workspace and what is known of its activity.
    pub(super) fn of(rules: &Rules, workspace: &Workspace, known: &Known, now: OffsetDateTime) -> Self {
        let Known { activity, heard } = known;
        let policy = rules.times(workspace);
        let look = Look { heard: *heard, ..rules.look(&policy, workspace, activity, now) };
        let budget = now + policy.extension_budget;
        Self {
            last: look.last(),
            clock: look.clock(),
            version: activity.version,
            policy_version: rules.book.version,
            warned: look.warning().is_some(),
            warning_version: look.warning().map_or(0, |warning| warning.version),
            extendable_until: look.grant(budget).0,
            awake_until: look.awake_until(),
            now,
        }
    }

    /// Whether the warning or the stop is due: then it matters whether the node has told all that it saw.
    pub(super) fn is_due(&self) -> bool {
        let next = |times: Times| if self.warned { times.deadline_at } else { times.warning_at };
        self.clock.times().is_some_and(|times| next(times) <= self.now)
    }

    /// The same while the store is behind: nothing is decided by it.
    pub(super) fn while_behind(self, behind: bool) -> Self {
        if behind && self.clock != Clock::Off {
            Self { clock: Clock::Paused, warned: false, warning_version: 0, ..self }
        } else {
            self
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
    /// When its editor may answer; `None` when it is not on its way, or nothing tells.
    pub ready_at: Option<OffsetDateTime>,
}

impl App {
    /// Adds to workspaces what is derived at this moment.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn view(&self, workspaces: Vec<Workspace>) -> Result<Vec<WorkspaceView>> {
        let waits = workspaces.iter().any(in_line);
        let line = if waits { self.line().await? } else { Arc::default() };
        self.view_in(workspaces, &line).await
    }

    /// As [`App::view`], with the line as it was last seen here: for streams and starts, of which there are many.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn view_lately(&self, workspaces: Vec<Workspace>) -> Result<Vec<WorkspaceView>> {
        let mut line = self.board.line();
        if workspaces.iter().any(|w| in_line(w) && !line.contains_key(&w.uid)) {
            line = self.line_joined().await?;
        }
        self.view_in(workspaces, &line).await
    }

    async fn view_in(&self, workspaces: Vec<Workspace>, line: &Line) -> Result<Vec<WorkspaceView>> {
        let open: Vec<_> = workspaces.iter().filter(|w| w.open_for_activity()).map(|w| w.uid).collect();
        let (activities, now) = match open.is_empty() {
            true => (HashMap::new(), OffsetDateTime::UNIX_EPOCH),
            false => self.store.activities(open, self.settings.told_within()).await?,
        };
        let starts = workspaces.iter().any(|w| w.state == State::Starting);
        let outlook = if starts { self.outlook(now).await? } else { Arc::default() };
        let (rules, behind) = (self.rules.get(), self.state.is_behind());
        let shown = |workspace: Workspace| {
            let idle = workspace.open_for_activity().then(|| {
                let known = activities.get(&workspace.uid).copied().unwrap_or_default();
                IdleView::of(&rules, &workspace, &known, now).while_behind(behind)
            });
            let place = line.get(&workspace.uid).filter(|_| in_line(&workspace));
            let ready_at = match (workspace.state, workspace.stage) {
                // What a pull takes depends on the image: it is told in percent.
                (State::Starting, Some(Stage::Pulling)) => None,
                (State::Starting, _) => outlook.ready_after(workspace.state_since, now),
                _ => place.and_then(|place| place.ready_at),
            };
            let queue_position = place.map_or(0, |place| place.position);
            WorkspaceView { workspace, idle, queue_position, ready_at }
        };
        Ok(workspaces.into_iter().map(shown).collect())
    }

    /// The deadline that follows from activity that has just been recorded, as [`App::view`] shows it.
    pub(super) fn idle_after(
        &self,
        rules: &Rules,
        workspace: &Workspace,
        known: &Known,
        now: OffsetDateTime,
    ) -> IdleView {
        IdleView::of(rules, workspace, known, now).while_behind(self.state.is_behind())
    }

    /// As [`App::view`], for one.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn view_one(&self, workspace: Workspace) -> Result<WorkspaceView> {
        Ok(only(self.view(vec![workspace.clone()]).await?, workspace))
    }

    /// As [`App::view_lately`], for one.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn view_one_lately(&self, workspace: Workspace) -> Result<WorkspaceView> {
        Ok(only(self.view_lately(vec![workspace.clone()]).await?, workspace))
    }
}

fn only(mut views: Vec<WorkspaceView>, workspace: Workspace) -> WorkspaceView {
    let bare = WorkspaceView { workspace, idle: None, queue_position: 0, ready_at: None };
    views.pop().unwrap_or(bare)
}

fn in_line(workspace: &Workspace) -> bool {
    let held = workspace.status_reason == Some(StatusReason::ContainerHeld);
    workspace.state == State::Pending && workspace.node.is_none() && !held
}
