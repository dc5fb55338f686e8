//! What becomes of a desk when a container turns up that the store did not know of, or when the store was restored from a copy.
//! Beside the state machine: here the store learns, and nothing happens to what runs.

use carrel_common::id::NodeId;
use carrel_common::model::{Container, Stage, StopReason};
use time::OffsetDateTime;

use super::{Desired, Event, IllegalTransition, State, Step, Workspace};
use crate::domain::event::{Actor, Entry};

impl Workspace {
    /// The desk around a container that runs without the store knowing: its idle clock begins when it answers.
    pub fn adopted(&self, container: &Container, node: NodeId, now: OffsetDateTime) -> Step {
        let mut next = self.clone();
        let spec = container.spec.clone().unwrap_or_else(|| self.spec.clone());
        next.begin(spec, String::new(), Actor::ControlPlane, now);
        next.generation = container.generation;
        next.answers_soon(now);
        (next.node, next.last_node) = (Some(node), Some(node));
        (next, vec![Entry::new("workspace.adopted", Actor::ControlPlane)])
    }

    /// The desk whose container was found where a restored store has it: it runs, whatever the copy says, unless it is being
    /// deleted or a later generation was asked for; and its idle clock begins now.
    pub fn confirmed(&self, container: &Container, now: OffsetDateTime) -> Step {
        if self.deletion.is_some() || self.generation != container.generation {
            return (self.clone(), vec![]);
        }
        let mut next = self.clone();
        if self.state != State::Running {
            next.answers_soon(now);
            (next.desired, next.force) = (Desired::Running, false);
        }
        (next.warning, next.resumed_at) = (None, Some(now));
        (next, vec![Entry::new("workspace.adopted", Actor::ControlPlane).because("AS_IN_THE_STORE")])
    }

    /// The desk that a restored store has on a node which does not have its container: it is stopped, and the agent proves that
    /// nothing of it runs. Never started anew: it may have gone on elsewhere since the copy was made.
    ///
    /// # Errors
    /// None in these states; a stop means something in all of them.
    pub fn missing(&self, now: OffsetDateTime) -> Result<Step, IllegalTransition> {
        if !self.state.wants_container() {
            return Ok((self.clone(), vec![]));
        }
        let message =
            "The database was restored from a copy in which it ran; it did not run any more.".to_owned();
        self.apply(Event::Stop { reason: StopReason::Operator, force: false, message, evidence: None }, now)
    }

    /// The desk of a restored store in whose place a later one of the same student runs.
    pub fn replaced(&self, now: OffsetDateTime) -> Step {
        let mut next = self.clone();
        next.node = None;
        let mut log = next.delete(false, now);
        log.retain(|entry| entry.kind == "workspace.deleted");
        (next, log)
    }

    fn answers_soon(&mut self, now: OffsetDateTime) {
        self.enter(State::Starting, now);
        self.stage = Some(Stage::Probing);
    }
}
