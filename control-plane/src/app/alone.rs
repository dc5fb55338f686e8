//! One of many: what goes wrong with it holds nobody else up.

use carrel_common::id::{NodeId, WorkspaceUid};

use super::Result;
use crate::store::is_news;

/// Whose step it was.
#[derive(Debug, Clone, Copy)]
pub enum Whose {
    /// A workspace's.
    Workspace(WorkspaceUid),
    /// A node's.
    Node(NodeId),
}

impl From<WorkspaceUid> for Whose {
    fn from(uid: WorkspaceUid) -> Self {
        Self::Workspace(uid)
    }
}

impl From<NodeId> for Whose {
    fn from(node: NodeId) -> Self {
        Self::Node(node)
    }
}

/// What one step of a pass over many came to. When that is an error of its own (its row cannot be read, or nothing can be made of
/// it) it is told, and the pass goes on with the others; as it does when somebody else came first.
///
/// # Errors
/// What all others would meet, too: [`super::AppError::concerns_all`].
pub fn alone<T: Default>(whose: impl Into<Whose>, done: Result<T>) -> Result<T> {
    let error = match done {
        Err(error) if !error.concerns_all() => error,
        done => return done,
    };
    match whose.into() {
        whose if error.is_conflict() => {
            tracing::debug!(?whose, %error, "somebody else came first; the next pass looks again")
        }
        whose if !is_news(format!("{whose:?}: {error}")) => {}
        Whose::Workspace(uid) => {
            tracing::error!(workspace.id = %uid, %error, "a workspace is left out of a pass")
        }
        Whose::Node(node) => tracing::error!(node.id = %node, %error, "a node is left out of a pass"),
    }
    Ok(T::default())
}
