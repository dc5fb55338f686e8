//! Containers that no order names.

use carrel_common::id::{Generation, NodeId, Pair, PlacementId};
use carrel_common::model::{Container, StopReason, Verdict};
use serde::{Deserialize, Serialize};

use super::nodes::still_told_by;
use super::settle::settle;
use super::workspaces::{keep_answer, replay};
use super::{App, AppError, Call, Result, alone};
use crate::domain::event::{Actor, Entry, Subject};
use crate::domain::node::NodeState;
use crate::domain::orphan::{self, may_adopt};
use crate::domain::reconcile::Placement;
use crate::domain::workspace::Workspace;
use crate::store::{Kept, Locked, Orphan, WITHHELD, Work};

/// What was decided about one orphan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// Docker's id.
    pub container_id: String,
    /// What is to be done.
    pub verdict: Verdict,
    /// Why: stable.
    pub reason: &'static str,
}

/// What an operator wants done with an orphan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// Stop and remove it.
    Stop,
    /// Take it into the store.
    Adopt,
}

/// What became of an orphan by an operator's word, or would become.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resolved {
    /// The container as it was.
    pub orphan: Orphan,
    /// The student's workspace as it is then; `None`: there is none.
    pub workspace: Option<Workspace>,
}

/// The reason of an operator's verdict.
const BY_ORDER: &str = "OPERATOR";

/// What the store knows of a container's student.
pub(super) struct Known {
    incarnation: i64,
    pub(super) desk: Option<Workspace>,
    pub(super) placement: Option<Placement>,
    newest: Option<Pair>,
    here: bool,
}

impl Known {
    /// As it is, the desk locked; a tombstone when there is no desk. A student without one gets none meanwhile: a first start would
    /// be placed beside what is being taken in here.
    pub(super) async fn of(work: &mut Work, node: NodeId, container: &Container) -> Result<Self> {
        let mut uid = work.find_uid(&container.student).await?;
        if uid.is_none() {
            work.lock_student(&container.student).await?;
            uid = work.find_uid(&container.student).await?;
        }
        let desk = match uid {
            Some(uid) => work.lock(uid).await?.map(|locked| locked.workspace),
            None => work.find_tombstone(&container.student).await?,
        };
        let incarnation = work.state().await?.incarnation;
        let Some(uid) = desk.as_ref().map(|desk| desk.uid) else {
            return Ok(Self { incarnation, desk, placement: None, newest: None, here: false });
        };
        let placement = work.find_placement(uid).await?;
        let newest = work.newest_pair(uid).await?;
        let here = work.was_placed_on(node, &container.student).await?;
        Ok(Self { incarnation, desk, placement, newest, here })
    }

    /// As the rules take it.
    pub(super) fn rules(&self) -> orphan::Known<'_> {
        orphan::Known {
            incarnation: self.incarnation,
            desk: self.desk.as_ref(),
            placement: self.placement.as_ref(),
            newest: self.newest,
            here: self.here,
        }
    }
}

/// Judges a container and keeps it as an orphan; `own`: while it runs its student is not placed.
pub(super) async fn keep(
    work: &mut Work,
    node: NodeId,
    container: &Container,
    known: &Known,
    own: bool,
    withheld: bool,
) -> Result<(Verdict, &'static str)> {
    let (verdict, reason) = orphan::judge(container, &known.rules());
    let held = match verdict {
        Verdict::Hold => Some(reason),
        // A stop is told when it was done.
        Verdict::Stop | Verdict::StopByOrder => withheld.then_some(WITHHELD),
    };
    let kept = Kept { verdict, reason, own, withheld: withheld && verdict == Verdict::Stop };
    // What is reported again and again is told once.
    let news = work.keep_orphan(node, container, &kept).await?;
    if let (Some(why), true) = (held, news) {
        let entry = told_of("orphan.held", Actor::ControlPlane, container).because(why);
        work.append(about(node, container), entry).await?;
    }
    Ok((verdict, reason))
}

fn about(node: NodeId, container: &Container) -> Subject {
    Subject { workspace: Some((container.workspace, container.student.clone())), node: Some(node) }
}

fn told_of(kind: &'static str, actor: Actor, container: &Container) -> Entry {
    Entry::new(kind, actor)
        .with("container_id", container.container_id.as_str())
        .with("generation", container.generation.0)
        .with("incarnation", container.incarnation)
}

impl App {
    /// What is to be done with everything that a node reports; what it no longer reports is forgotten, and told when it was to be
    /// stopped. `withheld`: those whose stop the node holds back, as there are so many.
    ///
    /// # Errors
    /// [`AppError::SessionSuperseded`]; the database. Then nothing is to be done with any of them.
    pub async fn judge_report(
        &self,
        node: NodeId,
        session_epoch: i64,
        containers: &[Container],
        withheld: &[String],
    ) -> Result<Vec<Judged>> {
        let session = (node, session_epoch);
        let mut judged = Vec::with_capacity(containers.len());
        for container in containers {
            let withheld = withheld.contains(&container.container_id);
            let once = settle!(self.judge_once(session, container, withheld)).map(Some);
            // Of one that is left out the node hears nothing, and leaves it alone.
            let Some((verdict, reason)) = alone(container.workspace, once)? else { continue };
            self.metrics.orphan(verdict);
            tracing::warn!(
                node.id = %node, workspace.id = %container.workspace, generation = container.generation.0,
                container.id = %container.container_id, ?verdict, reason, "an orphan was judged",
            );
            judged.push(Judged { container_id: container.container_id.clone(), verdict, reason });
        }
        self.forget_unreported(session, containers).await?;
        Ok(judged)
    }

    async fn forget_unreported(&self, session: (NodeId, i64), containers: &[Container]) -> Result<()> {
        let node = session.0;
        let reported = containers.iter().map(|container| container.container_id.clone()).collect();
        let mut work = self.store.begin().await?;
        let stopped = work.forget_orphans_but(node, reported).await?;
        still_told_by(&mut work, session).await?;
        for (container, reason) in stopped {
            let entry = told_of("orphan.stopped", Actor::Agent, &container).because(reason);
            work.append(about(node, &container), entry).await?;
        }
        self.nudge.ring(&work.commit().await?);
        Ok(())
    }

    /// What operators want done with the orphans of a node.
    ///
    /// # Errors
    /// The database.
    pub async fn resolved_orphans(&self, node: NodeId) -> Result<Vec<Judged>> {
        let stop = |container_id| Judged { container_id, verdict: Verdict::StopByOrder, reason: BY_ORDER };
        Ok(self.store.orphans_to_stop(node).await?.into_iter().map(stop).collect())
    }

    async fn judge_once(
        &self,
        session: (NodeId, i64),
        container: &Container,
        withheld: bool,
    ) -> Result<(Verdict, &'static str)> {
        let (mut work, node) = (self.store.begin().await?, session.0);
        if work.state().await?.behind.is_some() {
            // Nothing is known to be over by a store that has forgotten, no order of before counts, and nothing is taken into it.
            return Ok((Verdict::Hold, "STORE_BEHIND"));
        }
        if work.is_to_stop(node, &container.container_id).await? {
            return Ok((Verdict::StopByOrder, BY_ORDER));
        }
        let known = Known::of(&mut work, node, container).await?;
        still_told_by(&mut work, session).await?;
        let own = known.here;
        let judged = keep(&mut work, node, container, &known, own, withheld).await?;
        self.nudge.ring(&work.commit().await?);
        Ok(judged)
    }

    /// A page of the orphans that wait for an operator, and the place to ask for the next with.
    ///
    /// # Errors
    /// The database.
    pub async fn orphans(
        &self,
        node: Option<NodeId>,
        after: Option<(NodeId, String)>,
        page_size: usize,
    ) -> Result<(Vec<Orphan>, Option<(NodeId, String)>)> {
        let limit = i64::try_from(page_size).unwrap_or(i64::MAX).saturating_add(1);
        let mut found = self.store.list_orphans(node, after, limit).await?;
        let more = found.len() > page_size;
        found.truncate(page_size);
        let next = found.last().filter(|_| more);
        let next = next.map(|orphan| (orphan.node, orphan.container.container_id.clone()));
        Ok((found, next))
    }

    /// Does with an orphan what an operator says; with `validate_only` it says what that would be, and does nothing.
    ///
    /// # Errors
    /// [`AppError::OrphanNotFound`], [`AppError::OrphanCannotBeAdopted`]; the database.
    pub async fn resolve_orphan(
        &self,
        call: &Call,
        (node, container_id): (NodeId, &str),
        resolution: Resolution,
        why: &str,
        validate_only: bool,
    ) -> Result<Resolved> {
        let once = || async {
            let mut work = self.store.begin().await?;
            if let Some(answer) = replay(&mut work, call).await? {
                return Ok(answer);
            }
            let missing = || AppError::OrphanNotFound { node, container_id: container_id.to_owned() };
            let orphan = work.find_orphan(node, container_id).await?.ok_or_else(missing)?;
            let container = &orphan.container;
            self.refuse_while_behind(&mut work).await?;
            let known = Known::of(&mut work, node, container).await?;
            if resolution == Resolution::Adopt {
                may_adopt(container, &known.rules())
                    .map_err(|why| AppError::OrphanCannotBeAdopted { why })?;
            }
            // After the workspace, in the order of locks; somebody may have been first.
            work.lock_orphan(node, container_id).await?.ok_or_else(missing)?;
            let (word, workspace) = match resolution {
                Resolution::Stop => {
                    work.stop_orphan(node, container_id).await?;
                    ("STOP", known.desk.filter(|desk| desk.deleted_at.is_none()))
                }
                Resolution::Adopt => {
                    let adopted = self.adopt(&mut work, node, container, &known).await?;
                    work.forget_orphan(node, container_id).await?;
                    refuse_where_nothing_stands(&mut work, node).await?;
                    ("ADOPT", adopted)
                }
            };
            let entry = Entry::new("orphan.resolved", Actor::Operator)
                .because(StopReason::Operator)
                .with("resolution", word)
                .with("container_id", container_id)
                .with("generation", container.generation.0)
                .with("why", why);
            work.append(about(node, container), entry).await?;
            let resolved = Resolved { orphan, workspace };
            if validate_only {
                // As it would be: nothing of it is committed.
                return Ok(resolved);
            }
            keep_answer(&mut work, call, &resolved).await?;
            self.nudge.ring(&work.commit().await?);
            tracing::warn!(node.id = %node, container.id = container_id, resolution = word, "an operator resolved an orphan");
            Ok(resolved)
        };
        settle!(once())
    }

    /// Takes what runs into the store: its row is made or raised, and its idle clock begins when it answers. What the store
    /// had placed of an earlier time is over, which the container proves.
    pub(super) async fn adopt(
        &self,
        work: &mut Work,
        node: NodeId,
        container: &Container,
        known: &Known,
    ) -> Result<Option<Workspace>> {
        let now = work.now().await?;
        if let Some(placement) = &known.placement {
            work.release_placement(placement, None).await?;
        }
        let other =
            known.desk.as_ref().filter(|desk| desk.uid != container.workspace && desk.deleted_at.is_none());
        if let Some(other) = other {
            let (next, log) = other.replaced(now);
            work.save(other, next, log, now).await?;
        }
        let spec = match &container.spec {
            Some(spec) => spec.clone(),
            None => self.rules.get().book.spec(None, &container.student),
        };
        let make = Workspace::new(container.workspace, container.student.clone(), Generation(0), spec, now);
        let uid = work.find_or_make(make).await?;
        let Some(Locked { workspace: before, now, .. }) = work.lock(uid).await? else { return Ok(None) };
        let (next, log) = before.adopted(container, node, now);
        // The share and the container know the placement by its name: a container that is adopted keeps it.
        let placement = match container.placement {
            Some(placement) if !work.placement_is_known(placement).await? => placement,
            // A label that was copied, or none: the name of another's placement is no name of its own.
            Some(_) | None => PlacementId::new(),
        };
        let place = (node, next.spec.resources);
        work.insert_placement_as(placement, Some(container.incarnation), &next, place).await?;
        let adopted = work.save(&before, next, log, now).await?;
        // Node rows come last in the order of locks.
        work.drains_again(node).await?;
        Ok(Some(adopted))
    }
}

/// Nothing stands on a node that was given up: nobody would give it up once more; nor on one that was banned, or taken out, of which
/// nothing is heard any more. Asked last, as node rows come last in the order of locks: who gives the node up at this moment was before, or finds
/// what is done here.
async fn refuse_where_nothing_stands(work: &mut Work, node: NodeId) -> Result<()> {
    let why = match work.lock_node(node).await? {
        Some(node) if node.banned_since().is_some() => "its node was banned or removed",
        Some(node) if node.state == NodeState::Fenced => {
            "its node was given up, and what ran there has ended; a node that is back tells what it runs"
        }
        _ => return Ok(()),
    };
    Err(AppError::OrphanCannotBeAdopted { why })
}
