//! What the agents report.

use std::time::Duration;

use carrel_common::id::{Generation, NodeId, Pair, WorkspaceUid};
use carrel_common::model::{Observation, Observed, Signal, StatusReason};

use super::failing::Outcomes;
use super::nodes::still_told_by;
use super::settle::settle;
use super::workspaces::rfc3339;
use super::{App, AppError, Result, alone};
use crate::domain::activity::Activity;
use crate::domain::behind::Evidence;
use crate::domain::reconcile::Placement;
use crate::domain::workspace::{Event, Report, State, Workspace};
use crate::store::{Locked, Work};

impl App {
    /// Commits a batch of reports; what may be acked: the highest sequence of each workspace. A workspace of which nothing can be
    /// made is left out: the next session tells of it again.
    ///
    /// # Errors
    /// [`super::AppError`]; then nothing more may be acked. A session that another one has taken over from is refused: its late
    /// reports would undo what the new one told.
    pub async fn observe(
        &self,
        node: NodeId,
        session_epoch: i64,
        batch: &[Observation],
    ) -> Result<Vec<(WorkspaceUid, i64)>> {
        let mut batch: Vec<_> = batch.iter().collect();
        // What is told of one workspace stands together, in the order in which it was told.
        batch.sort_by_key(|o| (o.workspace, o.generation, o.sequence));
        // Unlike `concerns_all` a conflict as well: what is not acked is told again by the next session alone, so this one ends.
        let of_all = |error: &AppError| error.is_passing() || matches!(error, AppError::SessionSuperseded(_));
        match settle!(self.observe_once(node, session_epoch, &batch)) {
            Err(error) if !of_all(&error) => {}
            done => return done,
        }
        // It is about one of them: each is looked at by itself.
        let mut acked = Vec::with_capacity(batch.len());
        for told in batch.chunk_by(|a, b| a.workspace == b.workspace) {
            match settle!(self.observe_once(node, session_epoch, told)) {
                Err(error) if of_all(&error) => return Err(error),
                done => acked.extend(alone(told[0].workspace, done)?),
            }
        }
        Ok(acked)
    }

    /// All of them in one transaction.
    async fn observe_once(
        &self,
        node: NodeId,
        session_epoch: i64,
        batch: &[&Observation],
    ) -> Result<Vec<(WorkspaceUid, i64)>> {
        let news = self.without_repeats(node, batch.to_vec()).await?;
        if news.iter().any(|told| matches!(told.state, Observed::RefusedStop { .. })) {
            // The order may have met a clock that was set since it was decided.
            self.steady_rules().await?;
        }
        let mut work = self.store.begin().await?;
        let mut uids: Vec<_> = news.iter().map(|observation| observation.workspace).collect();
        uids.dedup();
        if uids.len() > 1 {
            // Several are locked at once: their order is that of their students, whom a report does not name.
            work.lock_many(&uids).await?;
        }
        let (mut changes, mut outcomes) = (Vec::new(), Outcomes::default());
        for observation in &news {
            if let Some(change) = self.observe_one(&mut work, node, observation, &mut outcomes).await? {
                changes.push(change);
            }
        }
        still_told_by(&mut work, (node, session_epoch)).await?;
        for (before, after) in &mut changes {
            let again =
                before.state == State::Stopping && after.state == State::Pending && after.node.is_none();
            if again && let Some(placed) = self.keep_place(&mut work, after, node).await? {
                *after = placed;
            }
        }
        let shown = outcomes.behind.take();
        let failing = outcomes.note(&mut work, Some(node)).await?;
        if let Some((evidence, incarnation)) = shown {
            self.note_behind(&mut work, node, &evidence, incarnation, 0).await?;
        }
        self.nudge.ring(&work.commit().await?);
        for (before, after) in &changes {
            self.note(before, after);
        }
        self.judge_nodes(&failing).await;
        Ok(batch.iter().map(|o| (o.workspace, o.sequence)).collect())
    }

    async fn observe_one(
        &self,
        work: &mut Work,
        node: NodeId,
        seen: &Observation,
        outcomes: &mut Outcomes,
    ) -> Result<Option<(Workspace, Workspace)>> {
        let Some(Locked { workspace: before, activity, now }) = work.lock(seen.workspace).await? else {
            return Ok(None);
        };
        // A node may report on its own workspaces only.
        let placement = work.find_placement(before.uid).await?.filter(|placement| placement.node == node);
        let Some(placement) = placement else { return Ok(None) };
        let lost = || self.node_lost(&before, &activity, now);
        let given = given(work, &before, seen, outcomes).await?;
        let Some(event) = concerns(&placement, &before, seen, given, lost) else { return Ok(None) };
        if matches!(event, Event::Report(Report::Gone { .. }) | Event::NodeLost { .. }) {
            let took = Duration::try_from(now - before.state_since).unwrap_or_default();
            work.release_placement(&placement, (before.state == State::Stopping).then_some(took)).await?;
        }
        let event = self.end_or_elsewhere(work, &before, event, now, outcomes).await?;
        let (mut next, mut log) = before.apply(event, now)?;
        // Seen there, and not known here when the stop was decided.
        let refused_for = match &seen.state {
            Observed::RefusedStop { seen_ago, .. } if before.is_refusable() => {
                Some(self.rules.get().by_the_clock_of_then(now - *seen_ago))
            }
            _ => None,
        };
        if let Some(at) = refused_for {
            log = log.into_iter().map(|entry| entry.with("last_active_time", rfc3339(at))).collect();
        }
        if before.ready_at.is_none() && next.ready_at.is_some() {
            outcomes.up.push(next.uid);
        }
        let left = next.state_since != before.state_since && next.state.wants_container();
        if let Some(since) = before.unseen_since(self.settings.unreachable_after).filter(|_| left) {
            // The idle clock stood still.
            // As this transaction finds them: a pause that is not known yet would count twice.
            let rules = self.rules_in(work).await?.unwrap_or_else(|| self.rules.get());
            let policy = rules.times(&before);
            let look = rules.look(&policy, &before, &activity, now);
            next.resumed_at = look.after_silence(since);
        }
        let after = work.save(&before, next, log, now).await?;
        if let Some(at) = refused_for {
            work.touch(before.uid, Signal::EditorInput, at).await?;
        }
        Ok(Some((before, after)))
    }

    /// Counts, logs and times what a report, or the loss of a node, changed.
    pub(super) fn note(&self, before: &Workspace, after: &Workspace) {
        if before.state == after.state {
            return;
        }
        let seconds = |from: Option<time::OffsetDateTime>| {
            from.map_or(0.0, |from| (after.updated_at - from).as_seconds_f64().max(0.0))
        };
        tracing::info!(
            workspace.id = %after.uid, generation = after.generation.0, node.id = ?after.node.map(|n| n.to_string()),
            from = before.state.as_str(), to = after.state.as_str(), "workspace changed",
        );
        match after.state {
            State::Running => {
                if before.ready_at.is_none() {
                    self.metrics.start_phase("ready", seconds(after.started_at));
                }
                // When its first warning could be due; the look says when to come again.
                let clock = self.rules.get().clock(after, &Activity::default(), after.updated_at);
                let first = clock.times().map_or(after.updated_at, |times| times.warning_at);
                self.nudge.look_at(after.uid, first);
            }
            State::Stopped | State::Failed => {
                if let Some(stop) = &after.stop {
                    self.metrics.stopped(stop.reason);
                }
            }
            State::Pending | State::Starting | State::Stopping | State::Unreachable => {}
        }
    }
}

/// The latest pair that this store has given the student, when the share says that there is a later one than its node was
/// told of. What is later than that, or of a placement that this store never made, it has not given: it has gone back in time, and
/// then there is none.
async fn given(
    work: &mut Work,
    desk: &Workspace,
    seen: &Observation,
    outcomes: &mut Outcomes,
) -> Result<Option<Pair>> {
    let (Observed::Failed(StatusReason::StorageFenced), Some(share)) = (&seen.state, seen.share_pair) else {
        return Ok(None);
    };
    let incarnation = work.state().await?.incarnation;
    let key = desk.student.key();
    let generation = work.generations(vec![key.clone()]).await?.remove(&key).unwrap_or(desk.generation);
    let given = Pair { incarnation, generation };
    let mut evidence = Evidence::of_share(&desk.student, share, given);
    // Of an earlier pair than its own no agent gives way; and the store forgets the placements of desks that are no more.
    let own = if seen.incarnation == 0 { Pair { incarnation, ..seen.pair() } } else { seen.pair() };
    if let (None, Some(placement)) = (&evidence, seen.share_placement)
        && share >= own
        && !work.placement_is_known(placement).await?
    {
        evidence = Evidence::of_twin(&desk.student, share, placement, incarnation);
    }
    Ok(match evidence {
        Some(evidence) => {
            outcomes.behind = Some((evidence, incarnation));
            None
        }
        None => Some(given),
    })
}

/// What a report means for the workspace, if it means anything: it is about the generation that holds the placement.
fn concerns(
    placement: &Placement,
    workspace: &Workspace,
    seen: &Observation,
    given: Option<Pair>,
    lost: impl FnOnce() -> Event,
) -> Option<Event> {
    // That (1, 5) is gone proves nothing about (2, 5).
    let of_another_time = seen.incarnation != 0 && seen.incarnation != placement.incarnation;
    if seen.generation != placement.generation || of_another_time {
        return None;
    }
    let present = seen.generation == workspace.generation;
    let report = match &seen.state {
        // Its node ended it as its own lease was over: the same as if the control plane had given the node up.
        Observed::Fenced => return Some(lost()),
        // Of an older generation only its end counts.
        Observed::Gone { purge } => Report::Gone { purge: purge.clone(), exit_code: seen.exit_code },
        _ if !present => return None,
        Observed::Starting(stage) => Report::Starting { stage: *stage, pull_percent: seen.pull_percent },
        Observed::Running { endpoint } => {
            Report::Running { endpoint: endpoint.clone(), image_digest: seen.image_digest.clone() }
        }
        Observed::RefusedStop { endpoint, .. } => Report::RefusedStop {
            endpoint: endpoint.clone(),
            image_digest: seen.image_digest.clone(),
            spec: placement.spec.clone(),
        },
        Observed::Restarting => {
            Report::Restarting { exit_code: seen.exit_code, message: seen.message.clone() }
        }
        Observed::Failed(reason) => match latest(seen, given) {
            Some(latest) => Report::Fenced { latest, message: seen.message.clone() },
            None => {
                Report::Failed { reason: *reason, exit_code: seen.exit_code, message: seen.message.clone() }
            }
        },
    };
    Some(Event::Report(report))
}

/// The generation that the share knows, when the next one of this store would be later. What this store has not `given` is none of
/// its own: it went back in time itself, and no number that it could count on to helps.
fn latest(seen: &Observation, given: Option<Pair>) -> Option<Generation> {
    seen.share_pair.filter(|pair| given.is_some_and(|given| *pair <= given)).map(|pair| pair.generation)
}
