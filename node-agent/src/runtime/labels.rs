//! The labels of our containers, to text and back. Labels are the agent's memory: what is not in them is forgotten.

use std::collections::HashMap;

use carrel_common::id::Generation;
use carrel_common::model::Container;

use super::{Found, Phase, Plan};

/// Label with the cluster's id.
pub const CLUSTER: &str = "carrel.cluster";
/// Label with the incarnation of the store that ordered the container.
pub const INCARNATION: &str = "carrel.incarnation";
/// Label with the id of the node that made it.
pub const NODE: &str = "carrel.node";
/// Label with the workspace's uid.
pub const WORKSPACE: &str = "carrel.workspace";
/// Label with the student's id.
pub const STUDENT: &str = "carrel.student";
/// Label with the generation.
pub const GENERATION: &str = "carrel.generation";
/// Label with the id of the placement.
pub const PLACEMENT: &str = "carrel.placement";
/// Label with the digest of the spec.
pub const SPEC: &str = "carrel.spec";
/// Label with the spec itself, as JSON: a store that was restored adopts the container as it is.
pub const MADE_OF: &str = "carrel.made_of";

/// The labels of a container made from `plan`.
pub fn of_plan(plan: &Plan) -> HashMap<String, String> {
    let item = &plan.item;
    [
        (CLUSTER, plan.scope.cluster.to_string()),
        (INCARNATION, item.incarnation.to_string()),
        (NODE, plan.scope.node.to_string()),
        (WORKSPACE, item.workspace.to_string()),
        (STUDENT, item.student.to_string()),
        (GENERATION, item.generation.to_string()),
        (PLACEMENT, item.placement.to_string()),
        (SPEC, item.spec.digest()),
        (MADE_OF, serde_json::to_string(&item.spec).unwrap_or_default()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

/// What the labels of a container say; `None` when they are not all there and well formed: then it is not ours to touch.
pub fn parse(id: &str, labels: &HashMap<String, String>, phase: Phase) -> Option<Found> {
    let label = |key: &str| labels.get(key).map(String::as_str);
    Some(Found {
        container: Container {
            container_id: id.to_owned(),
            workspace: label(WORKSPACE)?.parse().ok()?,
            student: label(STUDENT)?.parse().ok()?,
            generation: Generation(label(GENERATION)?.parse().ok()?),
            incarnation: label(INCARNATION)?.parse().ok()?,
            node: label(NODE)?.parse().ok()?,
            running: phase == Phase::Running,
            placement: label(PLACEMENT).and_then(|id| id.parse().ok()),
            spec: label(MADE_OF).and_then(|text| serde_json::from_str(text).ok()),
        },
        spec_digest: label(SPEC)?.to_owned(),
        phase,
    })
}
