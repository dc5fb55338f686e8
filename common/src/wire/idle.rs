//! Activity and deadlines.

use carrel_proto::v1 as pb;

use super::{WireError, duration, parse, present, span_of, variant};
use crate::id::Generation;
use crate::model::{ActivityReport, WorkspaceIdle};

impl From<ActivityReport> for pb::ActivityReport {
    fn from(report: ActivityReport) -> Self {
        let mut message = Self {
            workspace_uid: report.workspace.to_string(),
            generation: report.generation.0,
            age: Some(duration(report.age)),
            ..Self::default()
        };
        message.set_signal(report.signal.into());
        message
    }
}

impl TryFrom<pb::ActivityReport> for ActivityReport {
    type Error = WireError;
    fn try_from(m: pb::ActivityReport) -> Result<Self, WireError> {
        Ok(Self {
            workspace: parse("activity.workspace_uid", &m.workspace_uid)?,
            generation: Generation(m.generation),
            signal: variant::<pb::Signal>("activity.signal", m.signal)?.try_into()?,
            age: span_of("activity.age", &present("activity.age", m.age)?)?,
        })
    }
}

impl From<WorkspaceIdle> for pb::WorkspaceIdle {
    fn from(idle: WorkspaceIdle) -> Self {
        let mut message = Self {
            workspace_uid: idle.workspace.to_string(),
            generation: idle.generation.0,
            deadline_version: idle.deadline_version,
            warned: idle.warned,
            ..Self::default()
        };
        if let Some((remaining, reason)) = idle.remaining {
            message.remaining = Some(duration(remaining));
            message.set_reason(reason.into());
        }
        message
    }
}

impl TryFrom<pb::WorkspaceIdle> for WorkspaceIdle {
    type Error = WireError;
    fn try_from(m: pb::WorkspaceIdle) -> Result<Self, WireError> {
        let remaining = match &m.remaining {
            None => None,
            Some(span) => {
                let reason = variant::<pb::stop::Reason>("idle.reason", m.reason)?.try_into()?;
                Some((span_of("idle.remaining", span)?, reason))
            }
        };
        Ok(Self {
            workspace: parse("idle.workspace_uid", &m.workspace_uid)?,
            generation: Generation(m.generation),
            remaining,
            deadline_version: m.deadline_version,
            warned: m.warned,
        })
    }
}
