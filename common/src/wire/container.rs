//! Containers with our labels, and what is to be done with one that no order names.

use carrel_proto::v1 as pb;

use super::{WireError, parse, variant};
use crate::id::Generation;
use crate::model::{Container, Verdict};

impl From<Container> for pb::Container {
    fn from(c: Container) -> Self {
        Self {
            container_id: c.container_id,
            workspace_uid: c.workspace.to_string(),
            student_id: c.student.to_string(),
            generation: c.generation.0,
            incarnation: c.incarnation,
            node_id: c.node.to_string(),
            running: c.running,
            placement_id: c.placement.map(|placement| placement.to_string()).unwrap_or_default(),
            spec: c.spec.map(Into::into),
        }
    }
}

impl TryFrom<pb::Container> for Container {
    type Error = WireError;
    fn try_from(c: pb::Container) -> Result<Self, WireError> {
        let placement = match c.placement_id.as_str() {
            "" => None,
            id => Some(parse("container.placement_id", id)?),
        };
        Ok(Self {
            placement,
            spec: c.spec.map(TryInto::try_into).transpose()?,
            workspace: parse("container.workspace_uid", &c.workspace_uid)?,
            student: parse("container.student_id", &c.student_id)?,
            generation: Generation(c.generation),
            incarnation: c.incarnation,
            node: parse("container.node_id", &c.node_id)?,
            running: c.running,
            container_id: c.container_id,
        })
    }
}

impl Verdict {
    /// As told to the node that has the container.
    pub fn told(self, container_id: String, reason: &str) -> pb::OrphanVerdict {
        use pb::orphan_verdict::Verdict as P;
        let (verdict, by_order) = match self {
            Self::Stop => (P::Stop, false),
            Self::StopByOrder => (P::Stop, true),
            Self::Hold => (P::Hold, false),
        };
        pb::OrphanVerdict { container_id, verdict: verdict.into(), reason: reason.to_owned(), by_order }
    }
}

impl TryFrom<&pb::OrphanVerdict> for Verdict {
    type Error = WireError;
    fn try_from(m: &pb::OrphanVerdict) -> Result<Self, WireError> {
        use pb::orphan_verdict::Verdict as P;
        match variant::<P>("verdict", m.verdict)? {
            P::Stop if m.by_order => Ok(Self::StopByOrder),
            P::Stop => Ok(Self::Stop),
            P::Hold => Ok(Self::Hold),
            P::Unspecified => Err(WireError::new("verdict", "must be set")),
        }
    }
}
