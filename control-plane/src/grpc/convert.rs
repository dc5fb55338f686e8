//! Values to messages of the public API.

use carrel_common::model::Stage;
use carrel_common::wire::{duration, timestamp};
use carrel_proto::v1 as pb;
use prost_types::value::Kind;

use crate::app::StoredEvent;
use crate::app::{IdleView, WorkspaceView};
use crate::domain::idle::{Clock, Times};
use crate::domain::workspace::{Desired, IdleEvidence, SignalEvidence, State, Stop};

pub(super) fn state(state: State) -> pb::workspace::State {
    match state {
        State::Stopped => pb::workspace::State::Stopped,
        State::Pending => pb::workspace::State::Pending,
        State::Starting => pb::workspace::State::Starting,
        State::Running => pb::workspace::State::Running,
        State::Stopping => pb::workspace::State::Stopping,
        State::Failed => pb::workspace::State::Failed,
        State::Unreachable => pb::workspace::State::Unreachable,
    }
}

pub(super) fn idle(view: &IdleView) -> pb::Idle {
    let mut message = pb::Idle {
        last_active_time: view.last.map(|(at, _)| timestamp(at)),
        deadline_version: view.version,
        policy_version: view.policy_version,
        extendable_until_time: Some(timestamp(view.extendable_until)),
        awake_until_time: view.awake_until.map(timestamp),
        warned: view.warned,
        warning_version: view.warning_version,
        ..pb::Idle::default()
    };
    if let Some((_, signal)) = view.last {
        message.set_last_signal(signal.into());
    }
    match view.clock {
        Clock::Off => message.set_clock(pb::idle::Clock::Off),
        Clock::Paused => message.set_clock(pb::idle::Clock::PausedUnobservable),
        Clock::Quiet(_) => message.set_clock(pb::idle::Clock::PausedQuiet),
        Clock::Running(_) => message.set_clock(pb::idle::Clock::Running),
    }
    if let Some(Times { warning_at, deadline_at, reason }) = view.clock.times() {
        message.warning_time = Some(timestamp(warning_at));
        message.deadline_time = Some(timestamp(deadline_at));
        message.remaining = Some(duration((deadline_at - view.now).try_into().unwrap_or_default()));
        message.set_reason(reason.into());
    }
    message
}

fn signal_evidence(e: &SignalEvidence) -> pb::SignalEvidence {
    let mut message = pb::SignalEvidence {
        last_time: e.last_at.map(timestamp),
        counts: e.counts,
        why: e.why.clone(),
        ..pb::SignalEvidence::default()
    };
    message.set_signal(e.signal.into());
    message
}

pub(super) fn evidence(e: &IdleEvidence) -> pb::IdleEvidence {
    let mut message = pb::IdleEvidence {
        last_active_time: e.last_active_at.map(timestamp),
        basis_time: Some(timestamp(e.basis_at)),
        ready_time: e.ready_at.map(timestamp),
        extended_until_time: e.extended_until.map(timestamp),
        awake_until_time: e.awake_until.map(timestamp),
        warning_lead: Some(e.warning_lead).filter(|span| !span.is_zero()).map(duration),
        idle_timeout: Some(duration(e.idle_timeout)),
        max_lifetime: Some(e.max_lifetime).filter(|span| !span.is_zero()).map(duration),
        deadline_time: Some(timestamp(e.deadline_at)),
        warning_time: Some(timestamp(e.warned_at)),
        warning_acked_time: e.warning_acked_at.map(timestamp),
        decision_time: Some(timestamp(e.decided_at)),
        policy_version: e.grounds.policy_version,
        idle_timeout_origin: e.grounds.idle_timeout_origin.clone(),
        max_lifetime_origin: e.grounds.max_lifetime_origin.clone(),
        signals: e.grounds.signals.iter().map(signal_evidence).collect(),
        ..pb::IdleEvidence::default()
    };
    if let Some(signal) = e.last_signal {
        message.set_last_signal(signal.into());
    }
    message
}

pub(super) fn stop(stop: &Stop) -> pb::Stop {
    let mut message = pb::Stop {
        time: Some(timestamp(stop.at)),
        exit_code: stop.exit_code,
        message: stop.message.clone(),
        evidence: stop.evidence.as_ref().map(evidence),
        ..pb::Stop::default()
    };
    message.set_reason(stop.reason.into());
    message
}

/// Shown from its place on. A node tells stages in another order when it waits for its turn or for an image: none of them is less.
const PLACED_PERCENT: i32 = 10;
/// A pull takes most of the start that needs one; what comes after it shares the rest of the bar, so that it never falls.
const PULLED_PERCENT: i32 = 80;

/// Rough share of a start, for a progress bar: measured shares of a start on an idle host, after what was `fetched` of its image.
fn percent(state: State, stage: Stage, fetched: u8) -> i32 {
    let after_the_pull = match stage {
        _ if state == State::Pending => return 0,
        Stage::Queued | Stage::Pulling | Stage::Creating => 0,
        Stage::Starting => 10,
        Stage::Probing => 30,
    };
    match i32::from(fetched) {
        0 => PLACED_PERCENT + after_the_pull,
        fetched => {
            let pull = PLACED_PERCENT + fetched * (PULLED_PERCENT - PLACED_PERCENT) / 100;
            pull + after_the_pull * (100 - PULLED_PERCENT) / (100 - PLACED_PERCENT)
        }
    }
}

pub(super) fn workspace(view: WorkspaceView) -> pb::Workspace {
    let w = view.workspace;
    let progress = w.stage.filter(|_| matches!(w.state, State::Pending | State::Starting)).map(|stage| {
        let position = i32::try_from(view.queue_position).unwrap_or(i32::MAX);
        pb::Progress {
            stage: pb::progress::Stage::from(stage).into(),
            percent: percent(w.state, stage, w.pull_percent),
            queue_position: position,
            estimated_ready_time: view.ready_at.map(timestamp),
        }
    });
    let mut message = pb::Workspace {
        name: format!("workspaces/{}", w.student),
        uid: w.uid.to_string(),
        etag: w.etag(),
        reconciling: w.reconciling(),
        student_id: w.student.to_string(),
        course_id: w.course.map(|course| course.to_string()).unwrap_or_default(),
        generation: w.generation.0,
        version: w.version,
        status_message: w.status_message,
        progress,
        node: w.node.map(|node| format!("nodes/{node}")).unwrap_or_default(),
        idle: view.idle.as_ref().map(idle),
        stop: w.stop.as_ref().map(stop),
        resources: Some(w.spec.resources.into()),
        image: w.spec.image,
        image_digest: w.image_digest,
        create_time: Some(timestamp(w.created_at)),
        start_time: w.started_at.map(timestamp),
        ready_time: w.ready_at.map(timestamp),
        update_time: Some(timestamp(w.updated_at)),
        ..pb::Workspace::default()
    };
    message.set_state(state(w.state));
    message.set_desired_state(match w.desired {
        Desired::Stopped => pb::workspace::DesiredState::Stopped,
        Desired::Running => pb::workspace::DesiredState::Running,
    });
    if let Some(reason) = w.status_reason {
        message.set_status_reason(reason.into());
    }
    message
}

fn json(value: serde_json::Value) -> prost_types::Value {
    let kind = match value {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(b) => Kind::BoolValue(b),
        serde_json::Value::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or_default()),
        serde_json::Value::String(s) => Kind::StringValue(s),
        serde_json::Value::Array(values) => {
            Kind::ListValue(prost_types::ListValue { values: values.into_iter().map(json).collect() })
        }
        serde_json::Value::Object(map) => Kind::StructValue(object(map)),
    };
    prost_types::Value { kind: Some(kind) }
}

fn object(map: serde_json::Map<String, serde_json::Value>) -> prost_types::Struct {
    prost_types::Struct { fields: map.into_iter().map(|(key, value)| (key, json(value))).collect() }
}

pub(super) fn event(e: StoredEvent) -> pb::Event {
    pb::Event {
        position: e.position.id,
        time: Some(timestamp(e.at)),
        r#type: e.kind,
        workspace: e.student.map(|student| format!("workspaces/{student}")).unwrap_or_default(),
        node: e.node.map(|node| format!("nodes/{node}")).unwrap_or_default(),
        actor: e.actor,
        reason: e.reason,
        data: match e.data {
            serde_json::Value::Object(map) => Some(object(map)),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_of_a_start_never_falls_in_whatever_order_a_node_tells() {
        use Stage::{Creating, Probing, Pulling, Queued, Starting};
        let placed = |stage, fetched| percent(State::Starting, stage, fetched);
        let before = [percent(State::Pending, Queued, 0), placed(Creating, 0), placed(Queued, 0)];
        let without_a_pull = [placed(Creating, 0), placed(Starting, 0), placed(Probing, 0)];
        assert_eq!([before, without_a_pull].concat(), [0, 10, 10, 10, 20, 40]);
        let pulled = (0..=100).map(|fetched| placed(Pulling, fetched));
        let after = [Queued, Creating, Starting, Probing].map(|stage| placed(stage, 100));
        let with_one: Vec<_> = before.into_iter().chain(pulled).chain(after).collect();
        assert!(with_one.is_sorted() && with_one.ends_with(&[80, 80, 82, 86]), "{with_one:?}");
    }
}
