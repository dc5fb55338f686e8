//! The state machine: the match lists every legal pair of state and event, and names the illegal ones.

use carrel_common::model::{Stage, StatusReason, StopReason};
use time::OffsetDateTime;

use super::{Desired, Event, IllegalTransition, State, Step, Workspace};
use crate::domain::event::{Actor, Entry};

impl Workspace {
    /// One step.
    ///
    /// # Errors
    /// [`IllegalTransition`] when the event means nothing in this state; nothing has changed then.
    pub fn apply(&self, event: Event, now: OffsetDateTime) -> Result<Step, IllegalTransition> {
        use State::{Failed, Pending, Running, Starting, Stopped, Stopping, Unreachable};
        let mut next = self.clone();
        let log = match (self.state, event) {
            (_, Event::Start { .. } | Event::Restart { .. }) if self.deletion.is_some() => {
                return Err(IllegalTransition::Deleting);
            }
            (Stopped | Failed, Event::Start { course, spec, traceparent }) => {
                next.course = course.or(next.course);
                vec![next.begin(spec, traceparent, Actor::Caller, now)]
            }
            (Stopped | Failed, Event::Restart { spec, traceparent }) => {
                vec![next.begin(spec, traceparent, Actor::Caller, now)]
            }
            (Pending | Starting | Running | Unreachable, Event::Start { course, .. }) => {
                next.course = course.or(next.course);
                vec![]
            }
            (Stopping, Event::Start { course, spec, traceparent }) => {
                next.course = course.or(next.course);
                next.want_running(spec, traceparent)
            }
            (Stopping, Event::Restart { spec, traceparent }) => {
                // Another generation is wanted, so the node is not to go on with this one.
                if next.is_refusable() {
                    next.note_stop(StopReason::User, "Restarted.".into(), None, now);
                }
                next.want_running(spec, traceparent)
            }
            (Pending, Event::Restart { .. }) => vec![],
            (Starting | Running | Unreachable, Event::Restart { spec, traceparent }) => {
                let mut log = next.wind_down(StopReason::User, false, "Restarted.".into(), None, now);
                log.extend(next.want_running(spec, traceparent));
                log
            }

            (Starting | Running | Unreachable, Event::Move { message, evidence, spec }) => {
                next.move_away(message, evidence, spec, now)
            }
            (Stopped | Pending | Stopping | Failed, Event::Move { .. }) => vec![],

            (Stopped, Event::Stop { .. }) => vec![],
            // Nothing runs; only its files have yet to be moved.
            (Failed, Event::Stop { .. }) if self.deletion.is_some() && self.node.is_none() => vec![],
            (Pending | Failed, Event::Stop { reason, message, .. }) if self.node.is_none() => {
                next.note_stop(reason, message, None, now);
                next.rest(Actor::Caller, None, now)
            }
            (
                Pending | Failed | Starting | Running | Unreachable,
                Event::Stop { reason, force, message, evidence },
            ) => next.wind_down(reason, force, message, evidence, now),
            (Stopping, Event::Stop { reason, force, message, evidence }) => {
                // Somebody's word outweighs the want of activity: the node is not to refuse it.
                if next.is_refusable() && reason != StopReason::Idle {
                    next.note_stop(reason, message, evidence, now);
                }
                next.desired = Desired::Stopped;
                next.force |= force;
                vec![]
            }

            (_, Event::Delete { purge_files }) => next.delete(purge_files, now),

            (Pending, Event::Place { node }) if self.node.is_none() => {
                next.enter(Starting, now);
                (next.node, next.last_node, next.stage) = (Some(node), Some(node), Some(Stage::Creating));
                vec![Entry::new("workspace.placed", Actor::ControlPlane)]
            }
            // A purge needs a node although nothing ran: the node confirms `Gone` when the files are in the trash.
            (Stopping | Failed, Event::Place { node }) if self.node.is_none() && self.deletion.is_some() => {
                next.node = Some(node);
                vec![]
            }
            (Starting, Event::TryElsewhere { reason, message }) => next.try_elsewhere(reason, message, now),
            (Pending, Event::Wait { reason, message }) => {
                (next.status_reason, next.status_message) = (reason, message);
                vec![]
            }

            (_, Event::Report(report)) => next.report(report, now),

            (Starting | Running, Event::NodeSilent) => {
                next.enter(Unreachable, now);
                next.status_reason = Some(StatusReason::NodeUnreachable);
                next.status_message = "The host does not answer; your session may still be running.".into();
                vec![Entry::new("workspace.unreachable", Actor::ControlPlane)]
            }
            (Pending, Event::NodeSilent) => {
                next.status_reason = Some(StatusReason::PreviousHostUnreachable);
                next.status_message =
                    "Waits for the host that held it before, which does not answer: until that is back, or given up."
                        .into();
                vec![]
            }
            (Stopped | Stopping | Failed | Unreachable, Event::NodeSilent) => vec![],

            (_, Event::NodeLost { .. }) if self.node.is_none() => vec![],
            (_, Event::NodeLost { in_use }) => next.lose_node(in_use, now),

            // No place was lacking: an operator is, and nothing that the student does helps.
            (Pending, Event::Overdue) if self.status_reason == Some(StatusReason::ContainerHeld) => next.fail(
                StatusReason::ContainerHeld,
                None,
                "Not started, as another container of this student still runs. An operator has to resolve it \
                 (ListOrphans, ResolveOrphan); then press Start."
                    .into(),
                Actor::ControlPlane,
                now,
            ),
            (Pending, Event::Overdue) => next.fail(
                StatusReason::QueueTimeout,
                None,
                "No place became free in time. Press Start to try again.".into(),
                Actor::ControlPlane,
                now,
            ),
            (Starting, Event::Overdue) => next.fail(
                StatusReason::StartTimeout,
                None,
                "The editor did not answer in time. Press Start to try again.".into(),
                Actor::ControlPlane,
                now,
            ),
            (Stopping, Event::Overdue) if self.desired == Desired::Running => {
                let (spec, traceparent) = (next.spec.clone(), next.traceparent.clone());
                vec![next.begin(spec, traceparent, Actor::ControlPlane, now)]
            }
            (Stopping, Event::Overdue) => {
                next.enter(Failed, now);
                next.status_reason = Some(StatusReason::StopTimeout);
                next.status_message = "The container did not go in time; its host goes on trying.".into();
                vec![Entry::new("workspace.failed", Actor::ControlPlane).because(StatusReason::StopTimeout)]
            }

            (
                state @ (Stopped | Starting | Running | Stopping | Failed | Unreachable),
                Event::Wait { .. },
            ) => return Err(IllegalTransition::NotInThisState { state, event: "Wait" }),
            (
                state @ (Stopped | Pending | Running | Stopping | Failed | Unreachable),
                Event::TryElsewhere { .. },
            ) => return Err(IllegalTransition::NotInThisState { state, event: "TryElsewhere" }),
            (state, Event::Place { .. }) => {
                return Err(IllegalTransition::NotInThisState { state, event: "Place" });
            }
            (state @ (Stopped | Running | Failed | Unreachable), Event::Overdue) => {
                return Err(IllegalTransition::NotInThisState { state, event: "Overdue" });
            }
        };
        Ok((next, log))
    }
}
