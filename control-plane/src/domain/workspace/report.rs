//! What the agent's word means in each state.

use std::time::Duration;

use carrel_common::model::{Stage, StatusReason, StopReason};
use time::OffsetDateTime;

use super::{Desired, Report, State, Workspace};
use crate::domain::event::{Actor, Entry};

impl Workspace {
    pub(super) fn report(&mut self, report: Report, now: OffsetDateTime) -> Vec<Entry> {
        match (self.state, report) {
            (_, Report::RefusedStop { endpoint, image_digest, spec }) if self.is_refusable() => {
                self.enter(State::Running, now);
                self.desired = Desired::Running;
                (self.force, self.stop) = (false, None);
                (self.endpoint, self.image_digest, self.spec) = (Some(endpoint), image_digest, spec);
                vec![Entry::new("workspace.stop_refused", Actor::Agent).because(StopReason::Idle)]
            }
            (_, Report::RefusedStop { endpoint, image_digest, .. }) => {
                self.report(Report::Running { endpoint, image_digest }, now)
            }
            (
                State::Starting | State::Running | State::Unreachable,
                Report::Starting { stage, pull_percent },
            ) => {
                if self.state == State::Starting && self.stage == Some(stage) {
                    self.pull_percent = self.pull_percent.max(pull_percent);
                    return vec![];
                }
                let withdrawn = self.withdraw_after_silence();
                // What was fetched stays so: the share of the start that is done does not fall when the pull is over.
                let was_pulled = self.pull_percent > 0 && stage != Stage::Pulling;
                let pull_percent = if was_pulled { 100 } else { pull_percent };
                // The longest stay is counted after the wait for its turn and after the pull, and anew when a running one has to
                // start again.
                let waited = matches!(self.stage, Some(Stage::Queued | Stage::Pulling));
                if self.state != State::Starting || waited {
                    self.enter(State::Starting, now);
                }
                (self.stage, self.pull_percent) = (Some(stage), pull_percent);
                let started =
                    (stage == Stage::Probing).then(|| Entry::new("workspace.started", Actor::Agent));
                withdrawn.into_iter().chain(started).collect()
            }
            (State::Running, Report::Running { endpoint, image_digest }) => {
                (self.endpoint, self.image_digest) = (Some(endpoint), image_digest);
                vec![]
            }
            (before @ (State::Starting | State::Unreachable), Report::Running { endpoint, image_digest }) => {
                let withdrawn = self.withdraw_after_silence();
                self.enter(State::Running, now);
                (self.endpoint, self.image_digest) = (Some(endpoint), image_digest);
                self.attempts = None;
                let first = self.ready_at.is_none();
                self.ready_at = self.ready_at.or(Some(now));
                let ready = Entry::new("workspace.ready", Actor::Agent).with("first", first);
                if before == State::Unreachable {
                    let mut log = vec![Entry::new("workspace.reachable", Actor::Agent)];
                    log.extend(withdrawn);
                    // It was on its way when its node fell silent: whoever waits for it is told.
                    log.extend(first.then_some(ready));
                    return log;
                }
                vec![ready]
            }
            (
                State::Starting | State::Running | State::Unreachable,
                Report::Restarting { exit_code, message },
            ) => {
                let withdrawn = self.withdraw_after_silence();
                self.enter(State::Starting, now);
                self.stage = Some(Stage::Starting);
                self.status_reason = Some(StatusReason::Restarting);
                self.status_message = message;
                let restarting =
                    Entry::new("workspace.restarting", Actor::Agent).with("exit_code", exit_code);
                withdrawn.into_iter().chain([restarting]).collect()
            }
            (
                State::Starting | State::Running | State::Unreachable,
                Report::Failed { reason, exit_code, message },
            ) => self.fail(reason, exit_code, message, Actor::Agent, now),
            (State::Starting, Report::Fenced { latest, .. }) => self.go_above(latest, now),
            // Two that both run would else stop each other in turn, for ever: going on here is for the student to say.
            (State::Running | State::Unreachable, Report::Fenced { message, .. }) => {
                self.fail(StatusReason::StorageFenced, None, message, Actor::Agent, now)
            }
            (_, Report::Gone { purge, exit_code }) => self.gone(purge, exit_code, now),
            // A late word about a container that is to go, or has been given up: what counts is `Gone`.
            (
                State::Stopped | State::Pending | State::Stopping | State::Failed,
                Report::Starting { .. }
                | Report::Running { .. }
                | Report::Restarting { .. }
                | Report::Failed { .. }
                | Report::Fenced { .. },
            ) => vec![],
        }
    }

    /// Nobody could see a warning while the node was silent: its lead begins anew.
    fn withdraw_after_silence(&mut self) -> Option<Entry> {
        let warning = self.warning.take_if(|_| self.state == State::Unreachable)?;
        Some(warning.withdrawn())
    }

    /// Since when nobody could be seen to work in what ran before: the time until it is left behind is no idleness. Where its
    /// program alone has ended a warning that is out stands: what ends again and again would else never be stopped.
    pub fn unseen_since(&self, silent_for: Duration) -> Option<OffsetDateTime> {
        match self.state {
            State::Unreachable => Some(self.state_since - silent_for),
            State::Starting => {
                Some(self.state_since).filter(|_| self.ready_at.is_some() && self.warning.is_none())
            }
            State::Stopped | State::Pending | State::Running | State::Stopping | State::Failed => None,
        }
    }

    /// Its node was given up, which is proof as well. What ran is started anew elsewhere when somebody works in it, else stopped; what was
    /// on its way out is out.
    pub(super) fn lose_node(&mut self, in_use: bool, now: OffsetDateTime) -> Vec<Entry> {
        if !self.state.wants_container() {
            return self.gone(Ok(false), None, now);
        }
        let lost = self.node.take();
        if !in_use {
            self.note_stop(
                StopReason::NodeLost,
                "Its host was lost. Press Start to go on.".into(),
                None,
                now,
            );
            return self.rest(Actor::ControlPlane, None, now);
        }
        let (spec, traceparent) = (self.spec.clone(), self.traceparent.clone());
        let requested = self.begin(spec, traceparent, Actor::ControlPlane, now);
        self.status_message = "Its host was lost; it starts anew on another one.".into();
        let moved = Entry::new("workspace.moved", Actor::ControlPlane)
            .because(StopReason::NodeLost)
            .with("from", lost.map(|node| format!("nodes/{node}")));
        vec![moved, requested]
    }

    /// Whether its node may still say that it is in use: it is being stopped for want of activity, and for nothing else.
    pub fn is_refusable(&self) -> bool {
        let under_way = match self.state {
            State::Stopping => true,
            State::Failed => self.status_reason == Some(StatusReason::StopTimeout),
            State::Stopped | State::Pending | State::Starting | State::Running | State::Unreachable => false,
        };
        let idle = self.stop.as_ref().is_some_and(|stop| stop.reason == StopReason::Idle);
        under_way && idle && !self.force && self.deletion.is_none() && self.node.is_some()
    }

    /// The proof that the placement is over.
    fn gone(
        &mut self,
        purge: Result<bool, String>,
        exit_code: Option<i32>,
        now: OffsetDateTime,
    ) -> Vec<Entry> {
        self.node = None;
        if let Some(deletion) = self.deletion {
            return match purge {
                Err(problem) if deletion.purge_files => self.fail_purge(deletion, problem, now),
                // The order to purge crossed this report: it is placed.
                Ok(false) if deletion.purge_files => vec![],
                purge => self.finish_delete(purge == Ok(true), now),
            };
        }
        match self.state {
            State::Stopping if self.desired == Desired::Running => {
                let mut log = self.rest(Actor::Agent, exit_code, now);
                let (spec, traceparent) = (self.spec.clone(), self.traceparent.clone());
                log.push(self.begin(spec, traceparent, Actor::ControlPlane, now));
                log
            }
            State::Stopping => self.rest(Actor::Agent, exit_code, now),
            State::Failed if self.status_reason == Some(StatusReason::StopTimeout) => {
                self.rest(Actor::Agent, exit_code, now)
            }
            State::Pending => {
                (self.status_reason, self.stage) = (None, Some(Stage::Queued));
                self.status_message.clear();
                vec![]
            }
            State::Starting | State::Running | State::Unreachable => self.fail(
                StatusReason::RuntimeError,
                exit_code,
                "The host lost the container. Press Start to try again.".into(),
                Actor::Agent,
                now,
            ),
            State::Stopped | State::Failed => vec![],
        }
    }
}
