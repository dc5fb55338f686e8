//! Messages to values and back. `TryFrom` in (a [`WireError`] names the field), `From` out.
//!
//! Only what both binaries exchange is here; the public API is rendered in the control plane's `grpc::convert`.

mod container;
mod health;
mod idle;

use std::time::Duration;

use carrel_proto::v1 as pb;
use time::OffsetDateTime;

use crate::id::{Generation, Pair};
use crate::model::{
    DesiredItem, DesiredPair, DesiredSet, HeartbeatCount, NodeFacts, Observation, Observed, Resources, Run,
    Signal, Stage, StatusReason, StopReason, WorkspaceSpec,
};

/// A message that means nothing: which field, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct WireError {
    /// The field, by its name in the .proto file.
    pub field: &'static str,
    /// One sentence.
    pub problem: String,
}

impl WireError {
    /// A problem of a field.
    pub fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self { field, problem: problem.into() }
    }
}

fn parse<T: std::str::FromStr<Err = crate::id::InvalidId>>(
    field: &'static str,
    text: &str,
) -> Result<T, WireError> {
    text.parse().map_err(|e: crate::id::InvalidId| WireError::new(field, e.0))
}

fn present<T>(field: &'static str, value: Option<T>) -> Result<T, WireError> {
    value.ok_or_else(|| WireError::new(field, "must be set"))
}

/// A time on the wire.
pub fn timestamp(at: OffsetDateTime) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: at.unix_timestamp(),
        nanos: i32::try_from(at.nanosecond()).unwrap_or_default(),
    }
}

/// A time from the wire.
///
/// # Errors
/// When it is out of the range of years 1 to 9999.
pub fn time_of(field: &'static str, at: &prost_types::Timestamp) -> Result<OffsetDateTime, WireError> {
    let nanos = i128::from(at.seconds) * 1_000_000_000 + i128::from(at.nanos);
    let in_range =
        (-62_135_596_800..=253_402_300_799).contains(&at.seconds) && (0..1_000_000_000).contains(&at.nanos);
    OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .ok()
        .filter(|_| in_range)
        .ok_or_else(|| WireError::new(field, "is not a time between the years 1 and 9999"))
}

/// A span on the wire; a span too long for it is the longest one.
pub fn duration(span: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(span.subsec_nanos()).unwrap_or_default(),
    }
}

/// A span from the wire.
///
/// # Errors
/// When it is negative or malformed.
pub fn span_of(field: &'static str, span: &prost_types::Duration) -> Result<Duration, WireError> {
    let seconds = u64::try_from(span.seconds).map_err(|_| WireError::new(field, "must not be negative"))?;
    let nanos = u32::try_from(span.nanos)
        .ok()
        .filter(|n| *n < 1_000_000_000)
        .ok_or_else(|| WireError::new(field, "must not be negative"))?;
    Ok(Duration::new(seconds, nanos))
}

macro_rules! enumeration {
    ($field:literal, $value:ident, $message:path, $( $variant:ident ),+ $(,)?) => {
        impl From<$value> for $message {
            fn from(value: $value) -> Self {
                match value { $( $value::$variant => Self::$variant ),+ }
            }
        }
        impl TryFrom<$message> for $value {
            type Error = WireError;
            fn try_from(message: $message) -> Result<Self, WireError> {
                match message {
                    $( <$message>::$variant => Ok(Self::$variant), )+
                    <$message>::Unspecified => Err(WireError::new($field, "must be set")),
                }
            }
        }
    };
}

enumeration!("signal", Signal, pb::Signal, LmsInput, EditorInput, KeepWorking, Job);
enumeration!(
    "stop_reason",
    StopReason,
    pb::stop::Reason,
    User,
    Idle,
    MaxLifetime,
    Drain,
    NodeLost,
    Operator,
    Oom,
    Exited,
    Deleted,
    Storage,
    StartFailed
);
enumeration!("stage", Stage, pb::progress::Stage, Queued, Pulling, Creating, Starting, Probing);
enumeration!(
    "reason",
    StatusReason,
    pb::workspace::StatusReason,
    NoNodeReady,
    NoCapacity,
    PreviousStopping,
    PreviousHostUnreachable,
    QueueTimeout,
    StartTimeout,
    StopTimeout,
    ImageUnavailable,
    StorageUnavailable,
    CrashLoop,
    Restarting,
    RuntimeError,
    NodeUnreachable,
    OutOfMemory,
    Deleting,
    StorageFenced,
    ContainerHeld,
);

fn variant<M: TryFrom<i32>>(field: &'static str, number: i32) -> Result<M, WireError> {
    M::try_from(number).map_err(|_| WireError::new(field, format!("{number} is not a known value")))
}

impl From<Resources> for pb::Resources {
    fn from(r: Resources) -> Self {
        Self { cpu_millicores: r.cpu_millicores, memory_bytes: r.memory_bytes, pids: r.pids }
    }
}

impl From<WorkspaceSpec> for pb::WorkspaceSpec {
    fn from(spec: WorkspaceSpec) -> Self {
        Self {
            image: spec.image,
            resources: Some(spec.resources.into()),
            probe_port: i32::from(spec.probe_port),
            probe_path: spec.probe_path,
        }
    }
}

impl TryFrom<pb::WorkspaceSpec> for WorkspaceSpec {
    type Error = WireError;
    fn try_from(spec: pb::WorkspaceSpec) -> Result<Self, WireError> {
        let r = present("spec.resources", spec.resources)?;
        if r.cpu_millicores <= 0 || r.memory_bytes <= 0 || r.pids <= 0 {
            return Err(WireError::new("spec.resources", "every limit must be positive"));
        }
        Ok(Self {
            image: spec.image,
            resources: Resources {
                cpu_millicores: r.cpu_millicores,
                memory_bytes: r.memory_bytes,
                pids: r.pids,
            },
            probe_port: u16::try_from(spec.probe_port)
                .map_err(|_| WireError::new("spec.probe_port", "must be 1 to 65535"))?,
            probe_path: spec.probe_path,
        })
    }
}

impl From<NodeFacts> for pb::NodeFacts {
    fn from(f: NodeFacts) -> Self {
        Self {
            hostname: f.hostname,
            machine_id: f.machine_id,
            boot_id: f.boot_id,
            docker_id: f.docker_id,
            docker_version: f.docker_version,
            agent_version: f.agent_version,
            cpu_millicores: f.cpu_millicores,
            memory_bytes: f.memory_bytes,
            max_workspaces: f.max_workspaces,
            advertise_address: f.advertise_address,
            zone: f.zone,
            labels: f.labels.into_iter().collect(),
            hardware_id: f.hardware_id,
        }
    }
}

impl TryFrom<pb::NodeFacts> for NodeFacts {
    type Error = WireError;
    fn try_from(f: pb::NodeFacts) -> Result<Self, WireError> {
        if f.machine_id.is_empty() {
            return Err(WireError::new("facts.machine_id", "must not be empty"));
        }
        if f.cpu_millicores <= 0 || f.memory_bytes <= 0 || f.max_workspaces <= 0 {
            return Err(WireError::new(
                "facts",
                "cpu_millicores, memory_bytes and max_workspaces must be positive",
            ));
        }
        Ok(Self {
            hostname: f.hostname,
            machine_id: f.machine_id,
            boot_id: f.boot_id,
            docker_id: f.docker_id,
            docker_version: f.docker_version,
            agent_version: f.agent_version,
            cpu_millicores: f.cpu_millicores,
            memory_bytes: f.memory_bytes,
            max_workspaces: f.max_workspaces,
            advertise_address: f.advertise_address,
            zone: f.zone,
            labels: f.labels.into_iter().collect(),
            hardware_id: f.hardware_id,
        })
    }
}

impl From<DesiredPair> for pb::DesiredPair {
    fn from(pair: DesiredPair) -> Self {
        Self { incarnation: pair.incarnation, desired_generation: pair.generation }
    }
}

impl From<pb::DesiredPair> for DesiredPair {
    fn from(pair: pb::DesiredPair) -> Self {
        Self { incarnation: pair.incarnation, generation: pair.desired_generation }
    }
}

impl From<Pair> for pb::DesiredPair {
    fn from(pair: Pair) -> Self {
        Self { incarnation: pair.incarnation, desired_generation: pair.generation.0 }
    }
}

impl From<pb::DesiredPair> for Pair {
    fn from(pair: pb::DesiredPair) -> Self {
        Self { incarnation: pair.incarnation, generation: Generation(pair.desired_generation) }
    }
}

impl From<HeartbeatCount> for pb::HeartbeatCount {
    fn from(count: HeartbeatCount) -> Self {
        Self { incarnation: count.incarnation, heartbeats: count.heartbeats }
    }
}

impl From<pb::HeartbeatCount> for HeartbeatCount {
    fn from(count: pb::HeartbeatCount) -> Self {
        Self { incarnation: count.incarnation, heartbeats: count.heartbeats }
    }
}

impl From<DesiredItem> for pb::DesiredItem {
    fn from(item: DesiredItem) -> Self {
        let mut message = Self {
            workspace_uid: item.workspace.to_string(),
            student_id: item.student.to_string(),
            generation: item.generation.0,
            incarnation: item.incarnation,
            placement_id: item.placement.to_string(),
            spec: Some(item.spec.into()),
            traceparent: item.traceparent,
            idle_basis_age: item.idle_basis_age.map(duration),
            ..Self::default()
        };
        match item.run {
            Run::Running { start_timeout } => {
                message.set_run(pb::desired_item::Run::Running);
                message.start_timeout = Some(duration(start_timeout));
            }
            Run::Stopped { reason, grace, purge_files } => {
                message.set_run(pb::desired_item::Run::Stopped);
                message.set_stop_reason(reason.into());
                message.stop_grace = Some(duration(grace));
                message.purge_files = purge_files;
            }
        }
        message
    }
}

impl TryFrom<pb::DesiredItem> for DesiredItem {
    type Error = WireError;
    fn try_from(m: pb::DesiredItem) -> Result<Self, WireError> {
        let run = match variant::<pb::desired_item::Run>("item.run", m.run)? {
            pb::desired_item::Run::Running => Run::Running {
                start_timeout: span_of(
                    "item.start_timeout",
                    &present("item.start_timeout", m.start_timeout)?,
                )?,
            },
            pb::desired_item::Run::Stopped => Run::Stopped {
                reason: variant::<pb::stop::Reason>("item.stop_reason", m.stop_reason)?.try_into()?,
                grace: span_of("item.stop_grace", &present("item.stop_grace", m.stop_grace)?)?,
                purge_files: m.purge_files,
            },
            pb::desired_item::Run::Unspecified => return Err(WireError::new("item.run", "must be set")),
        };
        Ok(Self {
            workspace: parse("item.workspace_uid", &m.workspace_uid)?,
            student: parse("item.student_id", &m.student_id)?,
            generation: Generation(m.generation),
            incarnation: m.incarnation,
            placement: parse("item.placement_id", &m.placement_id)?,
            spec: present("item.spec", m.spec)?.try_into()?,
            run,
            traceparent: m.traceparent,
            idle_basis_age: m.idle_basis_age.map(|age| span_of("item.idle_basis_age", &age)).transpose()?,
        })
    }
}

impl From<DesiredSet> for pb::Desired {
    fn from(set: DesiredSet) -> Self {
        Self {
            pair: Some(set.pair.into()),
            digest: set.digest,
            items: set.items.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::Desired> for DesiredSet {
    type Error = WireError;
    fn try_from(m: pb::Desired) -> Result<Self, WireError> {
        Ok(Self {
            pair: present("desired.pair", m.pair)?.into(),
            digest: m.digest,
            items: m.items.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        })
    }
}

impl DesiredSet {
    /// A set with its digest: of what must never differ under one pair. That is what follows from the store; how long a start or a
    /// stop may take is a setting, which replicas have differently while it is being changed. Nor is the trace context part of it,
    /// or the age of an idle stop's basis: they change nothing that should run.
    pub fn new(pair: DesiredPair, mut items: Vec<DesiredItem>) -> Self {
        use sha2::{Digest as _, Sha256};
        items.sort_by_key(|item| item.workspace);
        let mut hash = Sha256::new();
        for item in &items {
            let run = match &item.run {
                Run::Running { start_timeout: _ } => "run".to_owned(),
                Run::Stopped { reason, grace: _, purge_files } => format!("stop {reason:?} {purge_files}"),
            };
            hash.update(format!(
                "{} {} {} {} {} {} {run}\n",
                item.workspace,
                item.student,
                item.incarnation,
                item.generation,
                item.placement,
                item.spec.digest(),
            ));
        }
        Self { pair, digest: crate::id::hex(&hash.finalize()), items }
    }
}

impl From<Observation> for pb::Observation {
    fn from(o: Observation) -> Self {
        let mut message = Self {
            workspace_uid: o.workspace.to_string(),
            generation: o.generation.0,
            incarnation: o.incarnation,
            sequence: o.sequence,
            exit_code: o.exit_code,
            oom_killed: o.oom_killed,
            message: o.message,
            image_digest: o.image_digest,
            traceparent: o.traceparent,
            pull_percent: i32::from(o.pull_percent),
            share_pair: o.share_pair.map(Into::into),
            share_placement_id: o.share_placement.map(|id| id.to_string()).unwrap_or_default(),
            ..Self::default()
        };
        match o.state {
            Observed::Starting(stage) => {
                message.set_state(pb::observation::State::Starting);
                message.set_stage(stage.into());
            }
            Observed::Running { endpoint } => {
                message.set_state(pb::observation::State::Running);
                message.endpoint = endpoint;
            }
            Observed::RefusedStop { endpoint, seen_ago } => {
                message.set_state(pb::observation::State::Running);
                message.endpoint = endpoint;
                message.refused_idle_stop = Some(duration(seen_ago));
            }
            Observed::Restarting => message.set_state(pb::observation::State::Restarting),
            Observed::Failed(reason) => {
                message.set_state(pb::observation::State::Failed);
                message.set_reason(reason.into());
            }
            Observed::Gone { purge } => {
                message.set_state(pb::observation::State::Gone);
                match purge {
                    Ok(purged) => message.purged = purged,
                    Err(problem) => message.purge_error = problem,
                }
            }
            Observed::Fenced => {
                message.set_state(pb::observation::State::Gone);
                message.lease_over = true;
            }
        }
        message
    }
}

impl TryFrom<pb::Observation> for Observation {
    type Error = WireError;
    fn try_from(m: pb::Observation) -> Result<Self, WireError> {
        let state = match variant::<pb::observation::State>("observation.state", m.state)? {
            pb::observation::State::Starting => {
                Observed::Starting(variant::<pb::progress::Stage>("observation.stage", m.stage)?.try_into()?)
            }
            pb::observation::State::Running if m.endpoint.is_empty() => {
                return Err(WireError::new("observation.endpoint", "must be set with RUNNING"));
            }
            pb::observation::State::Running => match m.refused_idle_stop {
                None => Observed::Running { endpoint: m.endpoint },
                Some(ago) => Observed::RefusedStop {
                    endpoint: m.endpoint,
                    seen_ago: span_of("observation.refused_idle_stop", &ago)?,
                },
            },
            pb::observation::State::Restarting => Observed::Restarting,
            pb::observation::State::Failed => {
                let reason = variant::<pb::workspace::StatusReason>("observation.reason", m.reason)?;
                Observed::Failed(reason.try_into()?)
            }
            pb::observation::State::Gone if m.lease_over => Observed::Fenced,
            pb::observation::State::Gone if m.purge_error.is_empty() => {
                Observed::Gone { purge: Ok(m.purged) }
            }
            pb::observation::State::Gone => Observed::Gone { purge: Err(m.purge_error) },
            pb::observation::State::Unspecified => {
                return Err(WireError::new("observation.state", "must be set"));
            }
        };
        Ok(Self {
            workspace: parse("observation.workspace_uid", &m.workspace_uid)?,
            generation: Generation(m.generation),
            incarnation: m.incarnation,
            sequence: m.sequence,
            state,
            exit_code: m.exit_code,
            oom_killed: m.oom_killed,
            message: m.message,
            image_digest: m.image_digest,
            traceparent: m.traceparent,
            pull_percent: u8::try_from(m.pull_percent.min(100))
                .map_err(|_| WireError::new("observation.pull_percent", "must be 0 to 100"))?,
            share_pair: m.share_pair.map(Into::into),
            share_placement: (!m.share_placement_id.is_empty())
                .then(|| parse("observation.share_placement_id", &m.share_placement_id))
                .transpose()?,
        })
    }
}

#[cfg(test)]
mod tests;
