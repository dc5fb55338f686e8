//! Nodes to messages.

use carrel_common::wire::{duration, timestamp};
use carrel_proto::v1 as pb;

use crate::app::{NodeLoad, Orphan};
use crate::domain::node::{Node, Standing};

/// What is said of a share that has nothing wrong with it.
const HEALTHY: &str = "HEALTHY";

fn state(standing: Standing) -> pb::node::State {
    match standing {
        Standing::Ready => pb::node::State::Ready,
        Standing::Degraded => pb::node::State::Degraded,
        Standing::Unreachable => pb::node::State::Unreachable,
        Standing::Fenced => pb::node::State::Fenced,
        Standing::Draining => pb::node::State::Draining,
        Standing::Drained => pb::node::State::Drained,
        Standing::Removed => pb::node::State::Removed,
    }
}

fn storage(node: &Node) -> pb::NodeStorage {
    let verdict = node.storage.problem.as_ref().map_or(HEALTHY, |(reason, _)| reason);
    let latency = node.storage.latency;
    pb::NodeStorage {
        verdict: verdict.to_owned(),
        age: Some(duration(node.storage.age)),
        checked_time: node.last_heartbeat_at.map(|at| timestamp(at - node.storage.age)),
        latency_p50: latency.map(|latency| duration(latency.p50)),
        latency_p99: latency.map(|latency| duration(latency.p99)),
    }
}

pub(super) fn node(load: NodeLoad) -> pb::Node {
    let NodeLoad { node, capacity, allocated, count, images, start_failures } = load;
    let problem = |(reason, message)| pb::NodeProblem { reason, message };
    let mut message = pb::Node {
        name: format!("nodes/{}", node.id),
        schedulable: node.cordon.is_none() && node.banned_since().is_none(),
        capacity: Some(capacity.into()),
        allocated: Some(allocated.into()),
        max_workspaces: node.facts.max_workspaces,
        running_count: count,
        images,
        start_failures_recent: i32::try_from(start_failures).unwrap_or(i32::MAX),
        storage: Some(storage(&node)),
        last_heartbeat_time: node.last_heartbeat_at.map(timestamp),
        degraded_reasons: node.problems().into_iter().map(problem).collect(),
        drain: node.drain.as_ref().map(|drain| pb::NodeDrain {
            deadline_time: Some(timestamp(drain.deadline_at)),
            reason: drain.reason.clone(),
            remaining: i32::try_from(count).unwrap_or(i32::MAX),
        }),
        create_time: Some(timestamp(node.created_at)),
        ban_time: node.banned_since().map(timestamp),
        certificate_expire_time: node.certificate_expires_at.map(timestamp),
        ..pb::Node::default()
    };
    message.set_state(state(node.standing()));
    message.cordon_reason = node.cordon.unwrap_or_default();
    let facts = node.facts;
    (message.hostname, message.advertise_address) = (facts.hostname, facts.advertise_address);
    (message.agent_version, message.docker_version) = (facts.agent_version, facts.docker_version);
    (message.zone, message.labels) = (facts.zone, facts.labels.into_iter().collect());
    message
}

pub(super) fn orphan(orphan: Orphan) -> pb::Orphan {
    let Orphan { node, container, reason, first_seen_at } = orphan;
    pb::Orphan {
        node: format!("nodes/{node}"),
        container_id: container.container_id,
        workspace: format!("workspaces/{}", container.student),
        generation: container.generation.0,
        incarnation: container.incarnation,
        running: container.running,
        reason,
        first_seen_time: Some(timestamp(first_seen_at)),
    }
}
