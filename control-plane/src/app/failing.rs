//! Starts that fail on a node, and nodes that keep failing.

use carrel_common::id::{NodeId, WorkspaceUid};
use carrel_common::model::StatusReason;
use time::OffsetDateTime;

use super::settle::settle;
use super::{App, Result};
use crate::domain::behind::Evidence;
use crate::domain::event::{Actor, Entry, Subject};
use crate::domain::placement::{Fleet, Tries, Waiting, cordons_itself, could_be_the_nodes_fault};
use crate::domain::workspace::{Event, Report, State, Workspace};
use crate::store::{Blamed, Work};

/// Why a node is cordoned that no operator has cordoned.
const BY_CARREL: &str = "by Carrel: starts keep failing there that come up on other nodes";

/// What becomes of starts on one node, to be written once every workspace is locked: a node's row comes last.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    /// Failed, and perhaps by the node's fault.
    pub(super) blamed: Vec<Blamed>,
    /// Came up.
    pub(super) up: Vec<WorkspaceUid>,
    /// What shows that the store went back in time, and by what its incarnation knew: noted at the very end.
    pub(super) behind: Option<(Evidence, i64)>,
}

impl Outcomes {
    /// Writes what became of starts on a node; the nodes on which failures are proven by that, to be judged once it is committed.
    pub(super) async fn note(self, work: &mut Work, node: Option<NodeId>) -> Result<Vec<NodeId>> {
        for blamed in &self.blamed {
            work.start_failed(blamed).await?;
        }
        match node.filter(|_| !self.up.is_empty()) {
            Some(node) => Ok(work.starts_came_up(node, &self.up).await?),
            None => Ok(vec![]),
        }
    }
}

impl App {
    /// What an event comes to: the failure of a start that another node is to try is not the end of it.
    pub(super) async fn end_or_elsewhere(
        &self,
        work: &mut Work,
        workspace: &Workspace,
        event: Event,
        now: OffsetDateTime,
        outcomes: &mut Outcomes,
    ) -> Result<Event> {
        let (reason, message) = match &event {
            Event::Report(Report::Failed { reason, message, .. }) => (*reason, message.clone()),
            // A node that does not even say that it gave up fails its starts as well.
            Event::Overdue => {
                (StatusReason::StartTimeout, "The host did not bring the editor up in time.".to_owned())
            }
            _ => return Ok(event),
        };
        let Some((blamed, elsewhere)) = self.start_failed(work, workspace, reason, now).await? else {
            return Ok(event);
        };
        outcomes.blamed.push(blamed);
        Ok(if elsewhere { Event::TryElsewhere { reason, message } } else { event })
    }

    /// What a start that fails says of its node, and whether another node is to try it; `None` when it says nothing.
    async fn start_failed(
        &self,
        work: &mut Work,
        workspace: &Workspace,
        reason: StatusReason,
        now: OffsetDateTime,
    ) -> Result<Option<(Blamed, bool)>> {
        let is_a_start = workspace.state == State::Starting && workspace.ready_at.is_none();
        let Some(node) = workspace.node.filter(|_| is_a_start && could_be_the_nodes_fault(reason)) else {
            return Ok(None);
        };
        let waiting = Waiting::of(workspace);
        let nodes = work.candidates(std::slice::from_ref(&waiting.image), self.settings.limits).await?;
        let fleet = Fleet::new(self.settings.placement, nodes, []);
        let not_here = [node];
        let elsewhere = crate::domain::placement::Ask { avoid: &not_here, ..waiting.ask() };
        if reason == StatusReason::ImageUnavailable && !fleet.could_take_elsewhere(&elsewhere, true) {
            // Nobody has it: that is no node's fault.
            return Ok(None);
        }
        let again = Tries::of(self.settings.orders.start_timeout).elsewhere(workspace, reason, &fleet, now);
        self.metrics.start_failed(reason, again);
        Ok(Some((Blamed { workspace: workspace.uid, node, reason }, again)))
    }

    /// Takes those nodes out that have proven to keep failing, of some whose failures have just been proven. In a transaction of its
    /// own: a node that could not be judged now is judged with its next failure.
    pub(super) async fn judge_nodes(&self, failing: &[NodeId]) {
        if failing.is_empty() {
            return;
        }
        if let Err(error) = settle!(self.judge_nodes_once(failing)) {
            tracing::warn!(%error, "nodes on which starts fail were not judged");
        }
    }

    async fn judge_nodes_once(&self, failing: &[NodeId]) -> Result<()> {
        let mut work = self.store.begin().await?;
        work.judge_alone().await?;
        for node in failing {
            self.judge_node(&mut work, *node).await?;
        }
        self.nudge.ring(&work.commit().await?);
        Ok(())
    }

    async fn judge_node(&self, work: &mut Work, node: NodeId) -> Result<()> {
        let record = work.start_record(node).await?;
        let (ready, cordoned) = work.nodes_in_service().await?;
        if !cordons_itself(record, ready, cordoned) {
            return Ok(());
        }
        if work.lock_node(node).await?.is_none_or(|known| known.cordon.is_some()) {
            return Ok(());
        }
        work.cordon_node(node, BY_CARREL).await?;
        tracing::error!(node.id = %node, ?record, "the node keeps failing and was cordoned; an operator has to look");
        self.metrics.cordoned();
        let entry = Entry::new("node.cordoned", Actor::ControlPlane)
            .because("START_FAILURES")
            .with("why", BY_CARREL)
            .with("failed_in_a_row", record.in_a_row)
            .with("failed", record.failed)
            .with("came_up", record.came_up);
        work.append(Subject { workspace: None, node: Some(node) }, entry).await?;
        Ok(())
    }
}
