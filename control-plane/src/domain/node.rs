//! Whether a node is heard of and fit to take workspaces.

use carrel_common::id::NodeId;
use carrel_common::model::{Health, NodeFacts};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// What a node's silence and health amount to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum NodeState {
    /// Heard of and healthy.
    Ready,
    /// Heard of, but its Docker or its storage is not healthy: nothing is placed there.
    Degraded,
    /// Not heard of: nothing is placed there, and nothing is decided about what runs there.
    Unreachable,
    /// Given up: nothing runs there any more, and its workspaces are moved or stopped. It comes back by a new session.
    Fenced,
}

impl NodeState {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ready, Self::Degraded, Self::Unreachable, Self::Fenced];

    /// As stored and as in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "READY",
            Self::Degraded => "DEGRADED",
            Self::Unreachable => "UNREACHABLE",
            Self::Fenced => "FENCED",
        }
    }
}

/// A Docker host.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Identity.
    pub id: NodeId,
    /// What its agent told.
    pub facts: NodeFacts,
    /// Health of Docker.
    pub docker: Health,
    /// Health of the share.
    pub storage: Health,
    /// What silence and health amounted to when it was last judged.
    pub state: NodeState,
    /// Names the newest session.
    pub session_epoch: i64,
    /// Rises with each start of its agent.
    pub boot_epoch: i64,
    /// Version of its desired set.
    pub desired_generation: i64,
    /// When the last heartbeat was committed.
    pub last_heartbeat_at: Option<OffsetDateTime>,
    /// When the certificate ends that it was given last; `None` in `--dev`.
    pub certificate_expires_at: Option<OffsetDateTime>,
    /// When it was taken out for good.
    pub removed_at: Option<OffsetDateTime>,
}

impl Node {
    /// State of a node that is heard of.
    pub fn heard_state(docker: &Health, storage: &Health) -> NodeState {
        if docker.problem.is_none() && storage.problem.is_none() {
            NodeState::Ready
        } else {
            NodeState::Degraded
        }
    }

    /// The first thing wrong with it: a stable reason, and a sentence with the next step.
    pub fn problem(&self) -> Option<(String, String)> {
        self.docker.problem.clone().or_else(|| self.storage.problem.clone())
    }
}
