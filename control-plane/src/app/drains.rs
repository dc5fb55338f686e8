//! Emptying nodes: warn everyone, have each workspace leave at its idle moment, and see to it that the node is empty by
//! the deadline.
//!
//! A drain is a rule like a policy: it raises the version of the rules, so every replica derives every deadline on that
//! node anew, and the loop that warns and stops the idle does the rest.

use std::time::Duration;

use carrel_common::id::{NodeId, StudentId, WorkspaceUid};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::node_admin::{about, left_on};
use super::settle::settle;
use super::workspaces::{keep_answer, replay, rfc3339};
use super::{App, AppError, Call, Result, Rules, alone};
use crate::domain::drain::{Drain, falls_into_quiet};
use crate::domain::event::{Actor, Entry};
use crate::domain::idle::Look;
use crate::domain::workspace::{Event, IdleEvidence, State, Workspace};
use crate::store::{Locked, NodeLoad, Work};

/// What is asked of a drain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainOrder {
    /// Everything is gone after this long.
    pub within: Duration,
    /// Also when the deadline falls into an exam.
    pub force: bool,
    /// Why; shown to students.
    pub reason: String,
    /// Say what it would do, and do nothing.
    pub validate_only: bool,
}

/// What a drain does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drained {
    /// The node.
    pub node: NodeLoad,
    /// Whom it concerns, sorted.
    pub students: Vec<StudentId>,
    /// Those of them who would go on elsewhere if their moment were now: somebody works there, or it is on its way up.
    #[serde(default)]
    pub moved: Vec<StudentId>,
    /// Those of them who would be stopped, as nobody worked there lately.
    #[serde(default)]
    pub stopped: Vec<StudentId>,
}

impl App {
    /// Empties a node.
    ///
    /// # Errors
    /// [`AppError::DrainTooShort`], [`AppError::DrainInQuietWindow`], [`AppError::StoreBehind`], and the rest of [`AppError`].
    pub async fn drain(&self, call: &Call, id: NodeId, order: &DrainOrder) -> Result<Drained> {
        settle!(self.drain_once(call, id, order))
    }

    async fn drain_once(&self, call: &Call, id: NodeId, order: &DrainOrder) -> Result<Drained> {
        let mut work = self.store.begin().await?;
        if let Some(answer) = replay(&mut work, call).await? {
            return Ok(answer);
        }
        self.refuse_while_behind(&mut work).await?;
        work.change_rules().await?;
        let node = self.lock_present(&mut work, id).await?;
        let there = work.placed_on(id).await?;
        let rules = self.rules_after(&mut work).await?;
        let now = work.now().await?;
        let deadline_at = now + order.within;
        self.check_drain(&rules, &there, deadline_at, order)?;
        let (moved, stopped) = fates(&mut work, &rules, &there, now).await?;
        let mut students: Vec<_> = there.into_iter().map(|workspace| workspace.student).collect();
        students.sort();
        let cordon = node.cordon.unwrap_or_else(|| format!("drained: {}", order.reason));
        work.cordon_node(id, &cordon).await?;
        work.drain_node(id, deadline_at, order.force, &order.reason).await?;
        let entry = Entry::new("node.draining", Actor::Operator)
            .with("deadline_time", rfc3339(deadline_at))
            .with("workspaces", students.len())
            .with("why", order.reason.as_str());
        work.append(about(id), entry).await?;
        note_if_empty(&mut work, id).await?;
        let answer = Drained { node: self.load(&mut work, id).await?, students, moved, stopped };
        if order.validate_only {
            // As it would be: nothing of it is committed.
            return Ok(answer);
        }
        keep_answer(&mut work, call, &answer).await?;
        let rules = self.rules_after(&mut work).await?;
        let touched = work.commit().await?;
        // Everyone is warned at once.
        self.know(rules);
        self.nudge.ring(&touched);
        tracing::info!(node.id = %id, workspaces = answer.students.len(), "node is being drained");
        Ok(answer)
    }

    /// Refuses a drain that could not warn everyone, or that would end in an exam.
    fn check_drain(
        &self,
        rules: &Rules,
        there: &[Workspace],
        deadline_at: OffsetDateTime,
        order: &DrainOrder,
    ) -> Result<()> {
        let concerned = there.iter().filter(|workspace| workspace.state.wants_container());
        let times: Vec<_> = concerned.map(|workspace| (workspace, rules.times(workspace))).collect();
        let longest_lead = times.iter().map(|(_, policy)| policy.warning_lead).max().unwrap_or_default();
        if order.within < longest_lead {
            return Err(AppError::DrainTooShort { longest_lead });
        }
        let mut in_quiet: Vec<StudentId> = times
            .into_iter()
            .filter(|(_, policy)| falls_into_quiet(deadline_at, policy))
            .map(|(workspace, _)| workspace.student.clone())
            .collect();
        if order.force || in_quiet.is_empty() {
            return Ok(());
        }
        in_quiet.sort();
        Err(AppError::DrainInQuietWindow { students: in_quiet })
    }

    /// What becomes of a workspace whose idle moment on a node that is being emptied has come.
    pub(super) fn leaves(&self, rules: &Rules, look: &Look<'_>, evidence: IdleEvidence) -> Event {
        let why = look.policy.drain.as_ref().map_or("", |drain| drain.reason.as_str());
        if look.is_in_use() {
            return self.moves(rules, look.workspace, why, Some(evidence));
        }
        Event::Stop {
            reason: carrel_common::model::StopReason::Drain,
            force: false,
            message: format!("Stopped because its host is being emptied ({why}) and nobody worked in it."),
            evidence: Some(evidence),
        }
    }

    fn moves(
        &self,
        rules: &Rules,
        workspace: &Workspace,
        why: &str,
        evidence: Option<IdleEvidence>,
    ) -> Event {
        Event::Move {
            message: format!("Moves to another host, because the one it is on is being emptied ({why})."),
            evidence,
            spec: rules.book.spec(workspace.course.as_ref(), &workspace.student),
        }
    }

    /// One look at the nodes that are being emptied: starts that are cut short, and nodes that are empty now; how many
    /// of both.
    ///
    /// # Errors
    /// The database.
    pub async fn see_to_drains(&self) -> Result<usize> {
        let mut seen = 0;
        if self.store.state().await?.behind.is_some() {
            return Ok(seen);
        }
        for id in self.store.draining_nodes().await? {
            seen += alone(id, self.see_to_drain(id).await)?;
        }
        Ok(seen)
    }

    async fn see_to_drain(&self, id: NodeId) -> Result<usize> {
        let mut seen = 0;
        for uid in self.store.starting_on(id).await? {
            seen += usize::from(alone(uid, self.cut_start(uid, id).await)?);
        }
        let mut work = self.store.begin().await?;
        let draining = work.lock_node(id).await?.and_then(|node| node.drain);
        if draining.is_some_and(|drain| drain.drained_at.is_none()) && note_if_empty(&mut work, id).await? {
            seen += 1;
            self.nudge.ring(&work.commit().await?);
            tracing::info!(node.id = %id, "node is drained");
        }
        Ok(seen)
    }

    async fn cut_start(&self, uid: WorkspaceUid, node: NodeId) -> Result<bool> {
        let mut work = self.store.begin().await?;
        let Some(Locked { workspace: before, now, .. }) = work.lock(uid).await? else { return Ok(false) };
        let Some(rules) = self.rules_in(&mut work).await? else { return Ok(false) };
        let policy = rules.times(&before);
        let cut = |drain: &&Drain| drain.cuts_a_start(&policy, now);
        // Somebody may work in one that starts again: it is warned when it is up, and leaves late.
        let starts_here =
            before.state == State::Starting && before.ready_at.is_none() && before.node == Some(node);
        let Some(drain) = policy.drain.as_ref().filter(|drain| starts_here && cut(drain)) else {
            return Ok(false);
        };
        let (next, log) = before.apply(self.moves(&rules, &before, &drain.reason, None), now)?;
        work.save(&before, next, log, now).await?;
        self.nudge.ring(&work.commit().await?);
        Ok(true)
    }
}

/// Who would be moved and who would be stopped if everybody's moment were now, sorted. Whoever is on the way out is neither.
async fn fates(
    work: &mut Work,
    rules: &Rules,
    there: &[Workspace],
    now: OffsetDateTime,
) -> Result<(Vec<StudentId>, Vec<StudentId>)> {
    let concerned: Vec<_> = there.iter().filter(|workspace| workspace.state.wants_container()).collect();
    let uids: Vec<_> = concerned.iter().map(|workspace| workspace.uid).collect();
    let activities = work.activities(&uids).await?;
    let (mut moved, mut stopped) = (vec![], vec![]);
    for workspace in concerned {
        let activity = activities.get(&workspace.uid).copied().unwrap_or_default();
        let policy = rules.times(workspace);
        let goes_on =
            workspace.state == State::Starting || rules.look(&policy, workspace, &activity, now).is_in_use();
        let fate = if goes_on { &mut moved } else { &mut stopped };
        fate.push(workspace.student.clone());
    }
    moved.sort();
    stopped.sort();
    Ok((moved, stopped))
}

/// Notes that a locked node that is being emptied is empty; whether it is. What follows is a reboot, so it is not while the store does
/// not know what runs there: it is behind, or was declared restored and the node has yet to tell.
async fn note_if_empty(work: &mut Work, id: NodeId) -> Result<bool> {
    let known = work.state().await?.behind.is_none() && !work.awaits(id).await?;
    let empty = known && left_on(work, id).await? == 0;
    if empty {
        work.note_drained(id).await?;
        work.append(about(id), Entry::new("node.drained", Actor::ControlPlane)).await?;
    }
    Ok(empty)
}
