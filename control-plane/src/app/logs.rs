//! Logs on their way from the nodes: who holds which node's session, and who asked for what.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use carrel_common::id::{NodeId, StudentId, WorkspaceUid};
use tokio::sync::mpsc;

use super::{App, AppError, Result};

/// Pieces that may wait for a slow reader; beyond, the log is cut off and says so.
const BUFFER: usize = 64;

/// A piece of a log, or its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogPart {
    /// Whole lines of one generation.
    Text {
        /// Which.
        generation: i64,
        /// The lines.
        text: String,
    },
    /// It broke off, and why.
    Broken(String),
}

/// A log that is asked for.
#[derive(Debug)]
pub struct LogOrder {
    /// The workspace.
    pub workspace: WorkspaceUid,
    /// Last lines wanted.
    pub lines: i32,
    /// Go on with what comes.
    pub follow: bool,
    /// Where the pieces go; closed: no longer wanted.
    pub to: mpsc::Sender<LogPart>,
}

/// The sessions of this replica that can be asked for logs.
#[derive(Debug, Clone, Default)]
pub struct LogTails {
    sessions: Arc<Mutex<HashMap<NodeId, mpsc::Sender<LogOrder>>>>,
}

impl LogTails {
    /// A session takes over a node's logs.
    pub fn serve(&self, node: NodeId) -> mpsc::Receiver<LogOrder> {
        let (orders, taken) = mpsc::channel(16);
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).insert(node, orders);
        taken
    }

    fn session(&self, node: NodeId) -> Option<mpsc::Sender<LogOrder>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).get(&node).cloned()
    }
}

impl App {
    /// Asks the node that holds, or last held, a workspace for its output.
    ///
    /// # Errors
    /// [`AppError::NodeAway`], [`AppError::NeverRan`], [`AppError::WorkspaceNotFound`], the database.
    pub async fn tail(
        &self,
        student: &StudentId,
        lines: i32,
        follow: bool,
    ) -> Result<mpsc::Receiver<LogPart>> {
        let found = self.store.find_workspace(student).await?;
        let workspace = found.ok_or_else(|| AppError::WorkspaceNotFound(student.clone()))?;
        let node = workspace.node.or(workspace.last_node).ok_or(AppError::NeverRan)?;
        let session = self.log_tails.session(node).ok_or(AppError::NodeAway)?;
        let (to, pieces) = mpsc::channel(BUFFER);
        let order = LogOrder { workspace: workspace.uid, lines, follow, to };
        session.send(order).await.map_err(|_| AppError::NodeAway)?;
        Ok(pieces)
    }
}
