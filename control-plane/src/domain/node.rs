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

/// What a node can be used for, as operators see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Standing {
    /// Heard of and healthy.
    Ready,
    /// Heard of, but not healthy.
    Degraded,
    /// Not heard of.
    Unreachable,
    /// Given up: its lease ran out, or it was confirmed dead.
    Fenced,
    /// Being emptied.
    Draining,
    /// Empty after a drain.
    Drained,
    /// Taken out for good.
    Removed,
}

/// A node being emptied, or emptied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDrain {
    /// Everything is gone from it by then.
    #[serde(with = "time::serde::rfc3339")]
    pub deadline_at: OffsetDateTime,
    /// Why.
    pub reason: String,
    /// When it was empty.
    #[serde(with = "time::serde::rfc3339::option")]
    pub drained_at: Option<OffsetDateTime>,
}

/// A Docker host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// Heartbeats that were counted, over all sessions.
    pub heartbeats: i64,
    /// When the last heartbeat was committed.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_heartbeat_at: Option<OffsetDateTime>,
    /// When the certificate ends that it was given last; `None` in `--dev`.
    #[serde(with = "time::serde::rfc3339::option")]
    pub certificate_expires_at: Option<OffsetDateTime>,
    /// Why nothing is placed there; `None`: it is schedulable.
    pub cordon: Option<String>,
    /// The drain under way, or done.
    pub drain: Option<NodeDrain>,
    /// When it was banned before it could be taken out.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub banned_at: Option<OffsetDateTime>,
    /// When it was taken out for good.
    #[serde(with = "time::serde::rfc3339::option")]
    pub removed_at: Option<OffsetDateTime>,
    /// When it enrolled.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// The agent process that holds its session, or held the last one.
    pub holder: Holder,
    /// Another process that says it is this node.
    pub challenge: Option<Challenge>,
    /// Stops that no order backs and that its agent held back; 0: none.
    pub stops_withheld: i32,
}

/// The agent process that holds a node's session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Random, of the process; empty when the agent is older than this word.
    pub process: String,
    /// Its stream stands, as far as is known.
    pub connected: bool,
}

/// An agent process that says it is a node which another process speaks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// Random, of the process.
    pub process: String,
    /// When it first came.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// Operators were told.
    pub told: bool,
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

    /// Since when nothing counts that is said in its name; `None`: its identity is good.
    pub fn banned_since(&self) -> Option<OffsetDateTime> {
        self.banned_at.or(self.removed_at)
    }

    /// What it can be used for: what is final first, then silence, then what an operator wants, then health.
    pub fn standing(&self) -> Standing {
        if self.removed_at.is_some() {
            return Standing::Removed;
        }
        match (self.state, &self.drain) {
            (NodeState::Unreachable, _) => Standing::Unreachable,
            (NodeState::Fenced, _) => Standing::Fenced,
            (_, Some(NodeDrain { drained_at: Some(_), .. })) => Standing::Drained,
            (_, Some(_)) => Standing::Draining,
            (NodeState::Degraded, None) => Standing::Degraded,
            (NodeState::Ready, None) => Standing::Ready,
        }
    }

    /// Everything wrong with it: stable reasons, each with a sentence.
    pub fn problems(&self) -> Vec<(String, String)> {
        let withheld = (self.stops_withheld > 0).then(|| {
            let stops = self.stops_withheld;
            let why =
                format!("{stops} stops without an order at once: none was carried out; see ListOrphans");
            ("STOPS_WITHHELD".to_owned(), why)
        });
        let unhealthy = [&self.docker, &self.storage].into_iter().filter_map(|health| health.problem.clone());
        unhealthy.chain(withheld).collect()
    }

    /// The first thing wrong with it: a stable reason, and a sentence with the next step.
    pub fn problem(&self) -> Option<(String, String)> {
        self.docker.problem.clone().or_else(|| self.storage.problem.clone())
    }
}

#[cfg(test)]
pub(in crate::domain) mod tests {
    use time::macros::datetime;

    use super::*;

    pub(in crate::domain) const T0: OffsetDateTime = datetime!(2026-03-02 10:00:00 UTC);

    /// One that is well, and has never had a session.
    pub(in crate::domain) fn node() -> Node {
        let healthy = Health { problem: None, age: std::time::Duration::ZERO, latency: None };
        let facts = NodeFacts {
            hostname: "h".into(),
            machine_id: "machine".into(),
            boot_id: "boot".into(),
            docker_id: "docker".into(),
            docker_version: "20".into(),
            agent_version: "0".into(),
            cpu_millicores: 2000,
            memory_bytes: 1 << 30,
            max_workspaces: 250,
            advertise_address: "127.0.0.1".into(),
            zone: String::new(),
            labels: std::collections::BTreeMap::new(),
            hardware_id: "hardware".into(),
        };
        Node {
            id: NodeId(uuid::Uuid::nil()),
            facts,
            docker: healthy.clone(),
            storage: healthy,
            state: NodeState::Ready,
            session_epoch: 1,
            boot_epoch: 1,
            desired_generation: 1,
            last_heartbeat_at: Some(T0),
            certificate_expires_at: None,
            cordon: None,
            drain: None,
            banned_at: None,
            removed_at: None,
            created_at: T0,
            heartbeats: 0,
            holder: Holder { process: String::new(), connected: false },
            challenge: None,
            stops_withheld: 0,
        }
    }

    #[test]
    fn what_is_final_is_shown_first_then_silence_then_a_drain_then_health() {
        let mut node = node();
        assert_eq!(node.standing(), Standing::Ready);
        node.state = NodeState::Degraded;
        assert_eq!(node.standing(), Standing::Degraded);
        node.drain = Some(NodeDrain { deadline_at: T0, reason: "new kernel".into(), drained_at: None });
        assert_eq!(node.standing(), Standing::Draining);
        node.drain = Some(NodeDrain { deadline_at: T0, reason: "new kernel".into(), drained_at: Some(T0) });
        assert_eq!(node.standing(), Standing::Drained);
        node.state = NodeState::Unreachable;
        assert_eq!(node.standing(), Standing::Unreachable);
        node.state = NodeState::Fenced;
        assert_eq!(node.standing(), Standing::Fenced);
        node.removed_at = Some(T0);
        assert_eq!(node.standing(), Standing::Removed);
    }

    #[test]
    fn a_cordon_is_no_state_of_its_own() {
        let cordoned = Node { cordon: Some("a disk makes noises".into()), ..node() };
        assert_eq!(cordoned.standing(), Standing::Ready);
    }
}
