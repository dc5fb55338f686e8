//! The rules as this replica knows them, and how they change.
//!
//! What is shown may be a second old; what is decided is decided by the version that the deciding transaction finds.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use carrel_common::id::{CourseId, NodeId, StudentId};
use carrel_common::model::Signal;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::settle::settle;
use super::workspaces::{keep_answer, replay};
use super::{App, AppError, Call, IdleView, Result, Settings};
use crate::domain::activity::Activity;
use crate::domain::drain::Drain;
use crate::domain::event::{Actor, Entry, Subject};
use crate::domain::idle::{Clock, IdlePolicy, Look, Pause, by_the_clock_of_then};
use crate::domain::policy::{Defaults, Effective, Policy, PolicyBook, Scope};
use crate::domain::workspace::{Grounds, SignalEvidence, State, Workspace};
use crate::store::{StoredDrain, StoredPolicy, StoredRules, Work};

/// The policies, what could not be observed, and which nodes are being emptied, at one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The policies.
    pub book: PolicyBook,
    /// What could not be observed lately, sorted.
    pub pauses: Vec<Pause>,
    /// Nodes that are being emptied.
    pub drains: BTreeMap<NodeId, Drain>,
}

impl Rules {
    fn new(settings: &Settings, stored: StoredRules) -> Self {
        let StoredRules { version, policies, pauses, drains } = stored;
        let idle_moment = settings.drain_idle_moment;
        let drain = |StoredDrain { node, deadline_at, forced, reason }| {
            (node, Drain { deadline_at, forced, reason, idle_moment })
        };
        Self {
            book: PolicyBook { version, defaults: settings.defaults.clone(), policies },
            pauses,
            drains: drains.into_iter().map(drain).collect(),
        }
    }

    /// The times that hold for a workspace.
    pub fn times(&self, workspace: &Workspace) -> IdlePolicy {
        IdlePolicy {
            drain: workspace.node.and_then(|node| self.drains.get(&node)).cloned(),
            ..self.book.times(workspace.course.as_ref(), &workspace.student)
        }
    }

    /// When a workspace is stopped, as callers are told.
    pub fn clock(&self, workspace: &Workspace, activity: &Activity, now: OffsetDateTime) -> Clock {
        let policy = self.times(workspace);
        self.look(&policy, workspace, activity, now).clock()
    }

    /// Where the policies stand at a look, to be kept with what is decided on it.
    pub(super) fn grounds(&self, look: &Look<'_>) -> Grounds {
        let workspace = look.workspace;
        let Effective { values, origins } =
            self.book.effective(workspace.course.as_ref(), Some(&workspace.student));
        let why = |signal| values.signal_rules.get(&signal).map(|rule| rule.reason.clone());
        let seen = |signal| SignalEvidence {
            signal,
            last_at: *look.activity.seen.get(signal),
            counts: *look.policy.counts.get(signal),
            why: why(signal).unwrap_or_default(),
        };
        Grounds {
            policy_version: self.book.version,
            idle_timeout_origin: origins.get("idle_timeout").cloned().unwrap_or_default(),
            max_lifetime_origin: origins.get("max_lifetime").cloned().unwrap_or_default(),
            signals: Signal::ALL.into_iter().map(seen).collect(),
        }
    }

    /// When something was that is told with an age which leads to this time.
    pub(super) fn by_the_clock_of_then(&self, at: OffsetDateTime) -> OffsetDateTime {
        by_the_clock_of_then(&self.pauses, at)
    }

    /// A look at a workspace whose node has told all that it saw.
    pub(super) fn look<'a>(
        &'a self,
        policy: &'a IdlePolicy,
        workspace: &'a Workspace,
        activity: &'a Activity,
        now: OffsetDateTime,
    ) -> Look<'a> {
        Look { policy, pauses: &self.pauses, workspace, activity, heard: true, now }
    }
}

/// The newest rules that this replica has read.
#[derive(Debug, Clone)]
pub struct SharedRules(Arc<RwLock<Arc<Rules>>>);

impl SharedRules {
    /// Only the defaults, until they are read.
    pub fn new(defaults: Defaults) -> Self {
        let rules = Rules { book: PolicyBook::new(defaults), pauses: vec![], drains: BTreeMap::new() };
        Self(Arc::new(RwLock::new(Arc::new(rules))))
    }

    /// As they are known.
    pub fn get(&self) -> Arc<Rules> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Only the defaults again: what was read was of another store.
    pub(super) fn forget(&self, defaults: Defaults) {
        let rules = Rules { book: PolicyBook::new(defaults), pauses: vec![], drains: BTreeMap::new() };
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
    }

    /// Whether they are newer than what was known.
    fn put(&self, rules: &Arc<Rules>) -> bool {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let newer = known.book.version < rules.book.version;
        if newer {
            *known = Arc::clone(rules);
        }
        newer
    }
}

/// What a call that changed a policy was answered with; whose the policy is, the call says.
#[derive(Debug, Serialize, Deserialize)]
struct Answered {
    policy: Policy,
    version: i64,
    #[serde(with = "time::serde::rfc3339")]
    updated_at: OffsetDateTime,
}

/// Why a workspace is, or is not, stopped.
#[derive(Debug, Clone, PartialEq)]
pub struct Explained {
    /// The workspace.
    pub workspace: Workspace,
    /// Its activity.
    pub activity: Activity,
    /// Its deadline.
    pub idle: IdleView,
    /// A warning or a stop is due, but its node has yet to tell what it saw, or it is starting again.
    pub unheard: bool,
    /// What holds.
    pub policy: Effective,
}

impl App {
    /// Reads the rules when they have changed; whether they had.
    ///
    /// # Errors
    /// The database.
    pub async fn refresh_rules(&self) -> Result<bool> {
        if self.store.rules_version().await? == self.rules.get().book.version {
            return Ok(false);
        }
        self.know(Rules::new(&self.settings, self.store.rules().await?));
        Ok(true)
    }

    /// The rules as a transaction finds them; `None` while no replica gives signs of life, so that nothing may be
    /// decided: there may have been activity that nobody could record. And while a step of the clock is not accounted for, or the
    /// store is behind and does not know what is.
    pub(super) async fn rules_in(&self, work: &mut Work) -> Result<Option<Arc<Rules>>> {
        let standing = work.standing().await?;
        if standing.behind || !self.is_steady(&standing) {
            return Ok(None);
        }
        self.rules_of(work, standing.version).await.map(Some)
    }

    /// The rules as a transaction that changes what runs finds them; it is refused while the store is behind.
    pub(super) async fn rules_unless_behind(&self, work: &mut Work) -> Result<Arc<Rules>> {
        let standing = work.standing().await?;
        if standing.behind {
            self.refuse_while_behind(work).await?;
        }
        self.rules_of(work, standing.version).await
    }

    async fn rules_of(&self, work: &mut Work, version: i64) -> Result<Arc<Rules>> {
        let known = self.rules.get();
        if known.book.version == version {
            return Ok(known);
        }
        Ok(self.know(Rules::new(&self.settings, work.rules().await?)))
    }

    /// Newer rules move deadlines, whoever reads them first, and for whatever: the next sign of life finds nothing new then.
    pub(super) fn know(&self, rules: Rules) -> Arc<Rules> {
        let rules = Arc::new(rules);
        if self.rules.put(&rules) {
            self.nudge.sweep.notify_one();
        }
        rules
    }

    /// The rules as a transaction that changes them leaves them.
    pub(super) async fn rules_after(&self, work: &mut Work) -> Result<Rules> {
        Ok(Rules::new(&self.settings, work.rules().await?))
    }

    /// Sets a policy, whole.
    ///
    /// # Errors
    /// [`AppError::StaleEtag`], [`AppError::PolicyContradiction`], the database.
    pub async fn set_policy(
        &self,
        call: &Call,
        scope: &Scope,
        etag: &str,
        policy: &Policy,
    ) -> Result<StoredPolicy> {
        settle!(self.change_policy(call, scope, etag, Some(policy)))
    }

    /// Removes a policy; as it was.
    ///
    /// # Errors
    /// [`AppError::PolicyNotFound`], [`AppError::StaleEtag`], [`AppError::PolicyContradiction`], the database.
    pub async fn delete_policy(&self, call: &Call, scope: &Scope, etag: &str) -> Result<StoredPolicy> {
        settle!(self.change_policy(call, scope, etag, None))
    }

    async fn change_policy(
        &self,
        call: &Call,
        scope: &Scope,
        etag: &str,
        policy: Option<&Policy>,
    ) -> Result<StoredPolicy> {
        let mut work = self.store.begin().await?;
        if let Some(Answered { policy, version, updated_at }) = replay(&mut work, call).await? {
            return Ok(StoredPolicy { scope: scope.clone(), policy, version, updated_at });
        }
        work.change_rules().await?;
        let before = work.find_policy(scope).await?;
        let present = before.as_ref().map(policy_etag).unwrap_or_default();
        if !etag.is_empty() && etag != present {
            return Err(AppError::StaleEtag { given: etag.to_owned(), present });
        }
        match policy {
            Some(policy) => work.set_policy(scope, policy).await?,
            None if before.is_none() => return Err(AppError::PolicyNotFound(scope.clone())),
            None => work.delete_policy(scope).await?,
        }
        let rules = self.rules_after(&mut work).await?;
        rules.book.check().map_err(|contradiction| {
            let field = contradiction.field(scope);
            AppError::PolicyContradiction { contradiction, field }
        })?;
        let entry = Entry::new("policy.changed", Actor::Caller)
            .with("policy", format!("policies/{scope}"))
            .with("policy_version", rules.book.version)
            .with("deleted", policy.is_none());
        work.append(Subject::default(), entry).await?;
        let after = work
            .find_policy(scope)
            .await?
            .or(before)
            .ok_or_else(|| AppError::PolicyNotFound(scope.clone()))?;
        let StoredPolicy { policy, version, updated_at, .. } = after.clone();
        keep_answer(&mut work, call, &Answered { policy, version, updated_at }).await?;
        let touched = work.commit().await?;
        self.know(rules);
        self.nudge.ring(&touched);
        Ok(after)
    }

    /// One policy.
    ///
    /// # Errors
    /// [`AppError::PolicyNotFound`], the database.
    pub async fn policy(&self, scope: &Scope) -> Result<StoredPolicy> {
        self.store.find_policy(scope).await?.ok_or_else(|| AppError::PolicyNotFound(scope.clone()))
    }

    /// A page of policies, and the name to ask for the next with.
    ///
    /// # Errors
    /// The database.
    pub async fn policies(
        &self,
        after: &str,
        page_size: usize,
    ) -> Result<(Vec<StoredPolicy>, Option<String>)> {
        Ok(self.store.list_policies(after, page_size).await?)
    }

    /// What holds for a student of a course, and the version of the rules.
    ///
    /// # Errors
    /// The database.
    pub async fn effective(
        &self,
        course: Option<&CourseId>,
        student: Option<&StudentId>,
    ) -> Result<(Effective, i64)> {
        self.refresh_rules().await?;
        let rules = self.rules.get();
        Ok((rules.book.effective(course, student), rules.book.version))
    }

    /// Why a workspace is, or is not, stopped for idleness.
    ///
    /// # Errors
    /// [`AppError::WorkspaceNotFound`], the database.
    pub async fn explain_idle(&self, student: &StudentId) -> Result<Explained> {
        self.refresh_rules().await?;
        let rules = self.rules.get();
        let found = self.store.find_workspace(student).await?;
        let workspace = found.ok_or_else(|| AppError::WorkspaceNotFound(student.clone()))?;
        let (mut activities, now) =
            self.store.activities(vec![workspace.uid], self.settings.told_within()).await?;
        let known = activities.remove(&workspace.uid).unwrap_or_default();
        let idle = IdleView::of(&rules, &workspace, &known, now);
        let unheard = idle.clock == Clock::Paused && workspace.state != State::Unreachable;
        let behind = self.state.is_behind();
        let (idle, unheard) = (idle.while_behind(behind), unheard && !behind);
        let activity = known.activity;
        let policy = rules.book.effective(workspace.course.as_ref(), Some(student));
        Ok(Explained { workspace, activity, idle, unheard, policy })
    }
}

/// Opaque to callers; changes with every change.
pub fn policy_etag(policy: &StoredPolicy) -> String {
    format!("{}.{}", policy.version, policy.updated_at.unix_timestamp_nanos() / 1000)
}
