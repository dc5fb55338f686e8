//! Finding a node for what waits.
//!
//! A start is placed at once, in its own transaction, unless somebody waits: then it joins the line, and a pass over the
//! line places it. A pass reads the nodes once, decides in memory, and claims many places in one transaction, node by node, each
//! checked again under its node's lock. A start waits for nobody: one that finds its node's row in the hands of another transaction
//! joins the line, so of those that come at one moment one is placed alone, and the others in the pass.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use carrel_common::id::{NodeId, WorkspaceUid};
use carrel_common::model::{Resources, StatusReason};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use time::OffsetDateTime;

use super::workspaces::rfc3339;
use super::{App, AppError, Result, alone};
use crate::domain::event::Entry;
use crate::domain::node::NodeState;
use crate::domain::placement::{self, Fleet, Held, NoPlace, Strategy, Turn, Waiting};
use crate::domain::workspace::{Event, State, Workspace};
use crate::store::{Change, Claim, InLine, Locked, Work};

/// Claimed, or told why they wait, in one transaction: long enough to be cheap, short enough that no heartbeat of their
/// nodes waits for long.
const AT_ONCE: usize = 500;

/// Of these transactions, so many are under way together: the database works at some while the next is made.
const ABREAST: usize = 3;

/// Purges tried in one pass; the rest is tried in the next.
const PURGES: i64 = 50;

/// A start looks so often for a better node while a pass or other replicas place at the same moment; then it takes what it has.
const LOOKS: usize = 16;

impl App {
    /// Places a workspace that has just been asked for, or has it wait; an error when no node could take it whatever
    /// becomes free or comes back, so that the caller hears of it.
    pub(super) async fn place(
        &self,
        work: &mut Work,
        workspace: Workspace,
        now: OffsetDateTime,
    ) -> Result<(Workspace, Vec<Entry>)> {
        if self.may_run_unseen(work, workspace.uid).await? {
            self.metrics.queued();
            let (reason, message) = self.unseen(now);
            return Ok(workspace.apply(Event::Wait { reason, message }, now)?);
        }
        let somebody_waits = work.somebody_waits(workspace.uid, now).await?;
        match self.claim(work, &workspace, somebody_waits).await? {
            Ok(node) => {
                self.metrics.placed(workspace.started_at, now);
                Ok(workspace.apply(Event::Place { node }, now)?)
            }
            Err(NoPlace::NoneReady(out)) if !out.may_pass() => Err(no_healthy_node(work).await?),
            Err(NoPlace::TooLarge) => {
                let Resources { cpu_millicores, memory_bytes, .. } = workspace.spec.resources;
                Err(AppError::LimitsBeyondNodes { cpu_millicores, memory_bytes })
            }
            Err(
                none @ (NoPlace::NoneReady(_)
                | NoPlace::Full { .. }
                | NoPlace::FailedOnAll
                | NoPlace::NotItsTurn
                | NoPlace::ContainerHeld(_)),
            ) => {
                self.metrics.queued();
                let (reason, message) = none.explain();
                Ok(workspace.apply(Event::Wait { reason, message }, now)?)
            }
        }
    }

    /// Chooses a node, locks it, looks again, and claims the place. Starts at one moment all see the same best node: who finds it
    /// locked joins the line; who finds it taken by the time it has the lock goes on to the next, so that they spread as if they
    /// had come one by one.
    async fn claim(
        &self,
        work: &mut Work,
        workspace: &Workspace,
        somebody_waits: bool,
    ) -> Result<std::result::Result<NodeId, NoPlace>> {
        if let Some(held) = work.held_containers().await?.remove(&workspace.uid) {
            return Ok(Err(NoPlace::ContainerHeld(held)));
        }
        let waiting = Waiting::of(workspace);
        let ask = waiting.ask();
        let images = std::slice::from_ref(&waiting.image);
        let limits = self.settings.limits;
        let nodes = work.candidates(images, limits).await?;
        let several_zones = nodes.windows(2).any(|pair| pair[0].zone != pair[1].zone);
        let places = if several_zones { work.places_of_course(ask.course).await? } else { vec![] };
        let mut fleet = Fleet::new(self.settings.placement, nodes, places);
        if somebody_waits {
            return Ok(Err(fleet.place(&ask).err().unwrap_or(NoPlace::NotItsTurn)));
        }
        for look in 1..=LOOKS {
            let node = match fleet.place(&ask) {
                Ok(node) => node,
                Err(none) => return Ok(Err(none)),
            };
            work.try_out().await?;
            let Some(fresh) = work.try_lock_candidate(node, images, limits).await? else {
                return Ok(Err(NoPlace::NotItsTurn));
            };
            fleet.refresh(fresh);
            if fleet.place(&ask) == Ok(node) || (look == LOOKS && fleet.take_on(node, &ask)) {
                work.insert_placement(workspace, node, waiting.need).await?;
                return Ok(Ok(node));
            }
            work.take_back().await?;
        }
        Ok(Err(NoPlace::NotItsTurn))
    }

    /// One pass over the line, and over purges, which need a node but no room; how many were placed.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn place_waiting(&self) -> Result<usize> {
        let mut placed = 0;
        if self.store.state().await?.behind.is_some() {
            return Ok(placed);
        }
        for uid in self.store.purges_waiting(PURGES).await? {
            placed += usize::from(alone(uid, self.place_purge(uid).await)?);
        }
        let (all, now) = self.store.waiting().await?;
        let mut line = Vec::with_capacity(all.len());
        let mut told = BTreeMap::new();
        let mut turns = Vec::new();
        for InLine { waiting, told: last, held } in all {
            told.insert(waiting.uid, last);
            match held {
                Some(held) => {
                    turns.push(Turn { uid: waiting.uid, outcome: Err(NoPlace::ContainerHeld(held)) });
                }
                None => line.push(waiting),
            }
        }
        let unseen = self.hidden(&line).await?;
        // They hold up nobody: others are known to run nowhere.
        let (hidden, mut line): (Vec<_>, Vec<_>) = line.into_iter().partition(|w| unseen.contains(&w.uid));
        if !line.is_empty() {
            turns.extend(self.plan(&mut line, now).await?);
        }
        let mut wins = Vec::new();
        let mut waits = Vec::new();
        let short = |turn: &&Turn| matches!(turn.outcome, Err(NoPlace::Full { .. }));
        let short = turns.iter().filter(short).map(|turn| turn.uid).collect();
        let hidden_wait = hidden.iter().map(|hidden| (hidden.uid, Err(self.unseen(now))));
        let turns = turns.into_iter().map(|turn| (turn.uid, turn.outcome.map_err(|none| none.explain())));
        for (uid, outcome) in turns.chain(hidden_wait) {
            match outcome {
                Ok(node) => wins.push((uid, node)),
                Err((reason, message)) => {
                    if told.get(&uid).is_none_or(|(r, m)| (*r, m) != (reason, &message)) {
                        waits.push((uid, Event::Wait { reason, message }));
                    }
                }
            }
        }
        let mut done = BTreeSet::new();
        let (mut batches, mut claiming) = (by_node(wins).into_iter(), FuturesUnordered::new());
        let mut failed = Ok(());
        loop {
            while failed.is_ok()
                && claiming.len() < ABREAST
                && let Some(batch) = batches.next()
            {
                claiming.push(self.claim_all(batch));
            }
            match claiming.next().await {
                Some(Ok(claimed)) => done.extend(claimed),
                // What is under way is seen to its end.
                Some(Err(error)) => failed = Err(error),
                None => break,
            }
        }
        failed?;
        for chunk in waits.chunks(AT_ONCE) {
            match self.have_wait(chunk).await {
                Err(error) if error.is_conflict() => {}
                Err(error) if error.is_passing() => return Err(error),
                Err(_) => {
                    for wait in chunk {
                        alone(wait.0, self.have_wait(std::slice::from_ref(wait)).await)?;
                    }
                }
                Ok(()) => {}
            }
        }
        let left: Vec<_> = line.into_iter().filter(|w| !done.contains(&w.uid)).chain(hidden).collect();
        self.publish_line(&left, &short, &unseen, now).await?;
        Ok(placed + done.len())
    }

    /// Brings those who wait in line, and decides who gets which place.
    async fn plan(&self, line: &mut [Waiting], now: OffsetDateTime) -> Result<Vec<Turn>> {
        let images: BTreeSet<_> = line.iter().map(|w| w.image.clone()).collect();
        let images: Vec<_> = images.into_iter().collect();
        let mut work = self.store.begin().await?;
        let nodes = work.candidates(&images, self.settings.limits).await?;
        let places = work.course_places().await?;
        drop(work);
        let mut held = Held::new();
        for (_, course, count) in &places {
            *held.entry(course.clone()).or_default() += count;
        }
        placement::in_line(line, &held);
        let mut fleet = Fleet::new(self.settings.placement, nodes, places);
        Ok(placement::plan(line, &mut fleet, now))
    }

    /// As [`App::claim_many`]; where something is wrong with one of them, that one alone stays where it is.
    async fn claim_all(&self, wins: Vec<Win>) -> Result<Vec<WorkspaceUid>> {
        match self.claim_many(&wins).await {
            Err(error) if error.is_conflict() => {
                self.metrics.lost_race();
                Ok(vec![])
            }
            Err(error) if !error.is_passing() => {
                let mut done = vec![];
                for win in &wins {
                    done.extend(alone(win.0, self.claim_many(std::slice::from_ref(win)).await)?);
                }
                Ok(done)
            }
            claimed => claimed,
        }
    }

    /// Claims places that a pass decided on; those that still could be had.
    async fn claim_many(&self, wins: &[Win]) -> Result<Vec<WorkspaceUid>> {
        let uids: Vec<_> = wins.iter().map(|(uid, _)| *uid).collect();
        let nodes: BTreeSet<_> = wins.iter().map(|(_, node)| *node).collect();
        let nodes: Vec<_> = nodes.into_iter().collect();
        let mut work = self.store.begin().await?;
        let (locked, now) = work.lock_many(&uids).await?;
        // The store may have been found behind, or declared restored, since the pass began.
        if work.state().await?.behind.is_some() {
            return Ok(vec![]);
        }
        let unseen = work.may_run_unseen(uids, self.settings.lease.replace_after).await?;
        let held = work.held_containers().await?;
        let candidates = work.lock_candidates(&nodes, &[], self.settings.limits).await?;
        let mut fleet = Fleet::new(Strategy::default(), candidates, []);
        let free = |w: &Workspace| waits(w) && !held.contains_key(&w.uid) && !unseen.contains(&w.uid);
        let still = locked.into_iter().filter(free);
        let mut still: HashMap<_, _> = still.map(|workspace| (workspace.uid, workspace)).collect();
        let (mut changes, mut claims) = (Vec::with_capacity(wins.len()), Vec::with_capacity(wins.len()));
        for (uid, node) in wins.iter().copied() {
            let Some(before) = still.remove(&uid) else { continue };
            let waiting = Waiting::of(&before);
            // Another replica may have placed there meanwhile; then the next pass finds another node.
            if fleet.take_on(node, &waiting.ask()) {
                let (after, log) = before.apply(Event::Place { node }, now)?;
                claims.push(Claim { workspace: uid, node, resources: waiting.need });
                changes.push(Change { before, after, log });
            }
        }
        let since: Vec<_> = changes.iter().map(|change| change.after.started_at).collect();
        work.save_many(changes, now).await?;
        work.insert_placements(&claims).await?;
        self.nudge.ring(&work.commit().await?);
        for since in since {
            self.metrics.placed(since, now);
        }
        Ok(claims.into_iter().map(|claim| claim.workspace).collect())
    }

    /// Tells those who wait why.
    async fn have_wait(&self, waiting: &[(WorkspaceUid, Event)]) -> Result<()> {
        let events: BTreeMap<_, _> = waiting.iter().map(|(uid, event)| (*uid, event)).collect();
        let uids: Vec<_> = events.keys().copied().collect();
        let mut work = self.store.begin().await?;
        let (locked, now) = work.lock_many(&uids).await?;
        let mut changes = Vec::with_capacity(locked.len());
        for before in locked.into_iter().filter(waits) {
            let Some(event) = events.get(&before.uid) else { continue };
            let (after, log) = before.apply((*event).clone(), now)?;
            changes.push(Change { before, after, log });
        }
        work.save_many(changes, now).await?;
        let mut touched = work.commit().await?;
        // That somebody waits is what this pass began with; it is no reason for another.
        touched.queue = false;
        self.nudge.ring(&touched);
        Ok(())
    }

    /// A restart goes on where it ran: its place has just become free in this transaction, and is nobody else's before it was its own
    /// again. `None`: that node may not take it any more, or the store does not know enough to place anything, so it stands in line.
    /// Every workspace of the transaction is locked.
    pub(super) async fn keep_place(
        &self,
        work: &mut Work,
        workspace: &Workspace,
        node: NodeId,
    ) -> Result<Option<Workspace>> {
        if work.state().await?.behind.is_some()
            || self.may_run_unseen(work, workspace.uid).await?
            || work.held_containers().await?.contains_key(&workspace.uid)
        {
            return Ok(None);
        }
        let candidates = work.lock_candidates(&[node], &[], self.settings.limits).await?;
        let mut fleet = Fleet::new(self.settings.placement, candidates, []);
        let waiting = Waiting::of(workspace);
        if !fleet.take_on(node, &waiting.ask()) {
            return Ok(None);
        }
        work.insert_placement(workspace, node, waiting.need).await?;
        let now = work.now().await?;
        let (next, log) = workspace.apply(Event::Place { node }, now)?;
        self.metrics.placed(workspace.started_at, now);
        Ok(Some(work.save(workspace, next, log, now).await?))
    }

    /// Those in line that may run on a host that has not told since the database was restored.
    pub(super) async fn hidden(&self, line: &[Waiting]) -> Result<HashSet<WorkspaceUid>> {
        let uids = line.iter().map(|waiting| waiting.uid).collect();
        Ok(self.store.may_run_unseen(uids, self.settings.lease.replace_after).await?)
    }

    /// The same of one, as the transaction that would place it finds it.
    async fn may_run_unseen(&self, work: &mut Work, uid: WorkspaceUid) -> Result<bool> {
        let found = work.may_run_unseen(vec![uid], self.settings.lease.replace_after).await?;
        Ok(!found.is_empty())
    }

    /// Why they wait.
    fn unseen(&self, now: OffsetDateTime) -> (Option<StatusReason>, String) {
        let message = match self.unknown_hosts_are_over_at(now) {
            Some(at) => format!(
                "The database was restored, and it may run on a host that has not told. Waits at least until {}.",
                rfc3339(at.truncate_to_second())
            ),
            None => "Waits until every host has told what it runs: the database was restored.".to_owned(),
        };
        (Some(StatusReason::PreviousHostUnreachable), message)
    }

    /// When a host that the restored store does not know has stopped everything by itself; `None`: it has.
    pub(super) fn unknown_hosts_are_over_at(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        let over_at = self.state.get().declared_at? + self.settings.lease.replace_after;
        Some(over_at).filter(|at| *at > now)
    }

    async fn place_purge(&self, uid: WorkspaceUid) -> Result<bool> {
        let mut work = self.store.begin().await?;
        let Some(Locked { workspace: before, now, .. }) = work.lock(uid).await? else { return Ok(false) };
        let rests = before.deletion.is_none_or(|deletion| deletion.rests(now));
        if before.node.is_some() || before.deleted_at.is_some() || rests {
            return Ok(false);
        }
        if self.may_run_unseen(&mut work, uid).await? {
            return Ok(false);
        }
        let Ok(node) = self.claim(&mut work, &before, false).await? else { return Ok(false) };
        let (next, log) = before.apply(Event::Place { node }, now)?;
        work.save(&before, next, log, now).await?;
        self.nudge.ring(&work.commit().await?);
        Ok(true)
    }
}

/// One whose turn it is, and the node that takes it.
type Win = (WorkspaceUid, NodeId);

/// What is claimed in one transaction: all that a node takes, and no more than [`AT_ONCE`] unless one node takes them. So a node is
/// locked once in a pass, its agent hears of them together, and no two transactions want the same node. On each node, who comes
/// first in line comes first.
fn by_node(mut wins: Vec<Win>) -> Vec<Vec<Win>> {
    wins.sort_by_key(|(_, node)| *node);
    let mut batches: Vec<Vec<Win>> = vec![];
    for of_node in wins.chunk_by(|(_, one), (_, next)| one == next) {
        match batches.last_mut() {
            Some(last) if last.len() + of_node.len() <= AT_ONCE => last.extend(of_node),
            Some(_) | None => batches.push(of_node.to_vec()),
        }
    }
    batches
}

/// Whether it is in line.
fn waits(workspace: &Workspace) -> bool {
    workspace.state == State::Pending && workspace.node.is_none() && workspace.deleted_at.is_none()
}

/// Why nobody can take anything.
async fn no_healthy_node(work: &mut Work) -> Result<AppError> {
    let nodes = work.list_nodes().await?;
    let problem = nodes.iter().filter(|n| n.state == NodeState::Degraded).find_map(|n| n.problem());
    Ok(match problem {
        Some((reason, message)) => AppError::NoHealthyNode {
            // Docker comes back by itself; a share that is missing or closed wants an operator.
            passing: !reason.starts_with("STORAGE_"),
            message: format!("No host can take workspaces: {message}"),
            reason,
        },
        None => AppError::NoHealthyNode {
            reason: "NO_NODE_READY".into(),
            message: "No host is connected. Look at the node agents' logs.".into(),
            passing: true,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_a_node_takes_is_claimed_together_in_the_order_of_the_line() {
        let id = |n: usize| uuid::Uuid::from_u128(n as u128);
        let win = |(place, node): (usize, usize)| (WorkspaceUid(id(10_000 - place)), NodeId(id(node)));
        let sizes = [200, 200, 200, 600, 20];
        let mut line: Vec<_> = (0..600).flat_map(|n| (0..5).filter(move |node| n < sizes[*node])).collect();
        line.rotate_left(1);
        let wins: Vec<_> = line.into_iter().enumerate().map(win).collect();
        let batches = by_node(wins.clone());
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [400, 200, 600, 20]);
        for node in (0..5).map(|node| NodeId(id(node))) {
            let of_node = |wins: &[Win]| wins.iter().filter(|(_, n)| *n == node).copied().collect::<Vec<_>>();
            let claimed: Vec<_> =
                batches.iter().map(|batch| of_node(batch)).filter(|wins| !wins.is_empty()).collect();
            assert_eq!(claimed, [of_node(&wins)]);
        }
        assert!(by_node(vec![]).is_empty());
    }
}
