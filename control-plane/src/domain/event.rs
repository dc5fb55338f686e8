//! What the event log tells.

use carrel_common::id::{NodeId, StudentId, WorkspaceUid};
use serde_json::{Map, Value};

/// Who caused an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// A caller of the API.
    Caller,
    /// The idle policy.
    Policy,
    /// A node agent's report.
    Agent,
    /// An operator, through `NodeService` or a command on the control plane's host.
    Operator,
    /// Carrel itself: a longest stay, a silent node, a free place.
    ControlPlane,
}

impl Actor {
    /// As in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Policy => "policy",
            Self::Agent => "agent",
            Self::Operator => "operator",
            Self::ControlPlane => "control-plane",
        }
    }
}

/// One entry of the log, before it has a position and a time.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// `workspace.started`, `node.connected`, …
    pub kind: &'static str,
    /// Who caused it.
    pub actor: Actor,
    /// Stable, for programs; may be empty.
    pub reason: String,
    /// More, by kind.
    pub data: Map<String, Value>,
}

impl Entry {
    /// An entry without a reason or data.
    pub fn new(kind: &'static str, actor: Actor) -> Self {
        Self { kind, actor, reason: String::new(), data: Map::new() }
    }

    /// With a reason, by its name in the API.
    pub fn because(mut self, reason: impl serde::Serialize) -> Self {
        if let Ok(Value::String(text)) = serde_json::to_value(reason) {
            self.reason = text;
        }
        self
    }

    /// With one more datum; nulls and empty texts are left out.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        let value = value.into();
        if !value.is_null() && value != Value::String(String::new()) {
            self.data.insert(key.to_owned(), value);
        }
        self
    }
}

/// What an entry is about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Subject {
    /// The workspace.
    pub workspace: Option<(WorkspaceUid, StudentId)>,
    /// The node.
    pub node: Option<NodeId>,
}
