//! Activity and deadlines.

use carrel_proto::v1 as pb;

use super::{WireError, duration, parse, span_of, variant};
use crate::id::Generation;
use crate::model::WorkspaceIdle;

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
