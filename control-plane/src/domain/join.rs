//! Who may enrol with a join token, and what a host must not have brought along.

use carrel_common::id::NodeId;
use carrel_common::model::Container;
use time::OffsetDateTime;

/// What is known of a join token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The node that may come back with it; `None`: a new one.
    pub node: Option<NodeId>,
    /// When it ends.
    pub expires_at: OffsetDateTime,
    /// Who has enrolled with it.
    pub used: Option<Use>,
}

/// Who has enrolled with a join token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    /// The node.
    pub node: NodeId,
    /// Names its key.
    pub key: String,
    /// The node's newest session at that time.
    pub session_epoch: i64,
}

/// As whom a host may enrol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// As a new node.
    New,
    /// As this one, which there is already.
    As(NodeId),
    /// As this one, which was told so before, unless it has had a session after this one: then it did hear it.
    Again(NodeId, i64),
}

/// As whom the bearer of a token may enrol, if at all. `key` names the key it holds.
///
/// A token is good once. Who has enrolled with it and asks again with the same key did not get the answer: it is given again.
pub fn admit(token: Option<&JoinToken>, key: &str, now: OffsetDateTime) -> Option<Admission> {
    let token = token.filter(|token| now < token.expires_at)?;
    match &token.used {
        Some(by) => (by.key == key).then_some(Admission::Again(by.node, by.session_epoch)),
        None => Some(token.node.map_or(Admission::New, Admission::As)),
    }
}

/// How many containers on a host are of another node than `node`: if it ran them on under a new name, nobody would stop
/// them when they are started elsewhere.
pub fn of_other_nodes(inventory: &[Container], node: Option<NodeId>) -> usize {
    inventory.iter().filter(|container| Some(container.node) != node).count()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use carrel_common::id::{Generation, WorkspaceUid};
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-24 12:00:00 UTC);

    fn token() -> JoinToken {
        JoinToken { node: None, expires_at: NOW + Duration::from_secs(1), used: None }
    }

    fn used_by(node: NodeId) -> Use {
        Use { node, key: "key".into(), session_epoch: 7 }
    }

    #[test]
    fn a_token_is_good_once_until_it_ends() {
        let node = NodeId::new();
        let bound = JoinToken { node: Some(node), ..token() };
        let used = JoinToken { used: Some(used_by(node)), ..token() };
        for (token, expected) in [
            (None, None),
            (Some(token()), Some(Admission::New)),
            (Some(bound), Some(Admission::As(node))),
            (Some(used.clone()), None),
            (Some(JoinToken { expires_at: NOW, ..token() }), None),
            (Some(JoinToken { expires_at: NOW, ..used }), None),
        ] {
            assert_eq!(admit(token.as_ref(), "other key", NOW), expected, "{token:?}");
        }
    }

    #[test]
    fn a_host_whose_answer_was_lost_gets_it_again() {
        let node = NodeId::new();
        let used = JoinToken { used: Some(used_by(node)), ..token() };
        assert_eq!(admit(Some(&used), "key", NOW), Some(Admission::Again(node, 7)));
    }

    #[test]
    fn a_host_may_keep_its_own_containers_only() {
        let (own, other) = (NodeId::new(), NodeId::new());
        let container = |node| Container {
            container_id: "c".into(),
            workspace: WorkspaceUid::new(),
            student: "ada".parse().expect("valid"),
            generation: Generation(1),
            incarnation: 1,
            node,
            running: false,
            placement: None,
            spec: None,
        };
        let inventory = [container(own), container(other), container(other)];
        assert_eq!(of_other_nodes(&inventory, Some(own)), 2);
        assert_eq!(of_other_nodes(&inventory, None), 3);
        assert_eq!(of_other_nodes(&[], None), 0);
    }
}
