//! Logs on their way from the nodes: who holds which node's session, and who asked for what.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use carrel_common::id::{NodeId, StudentId, WorkspaceUid};
use tokio::sync::mpsc;

use super::remote_logs::RemoteTail;
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
    /// Where the pieces go, and `None` after the last; closed: no longer wanted.
    pub to: mpsc::Sender<Option<LogPart>>,
}

/// The pieces as a session sends them.
#[derive(Debug)]
pub(super) struct Pieces {
    sent: mpsc::Receiver<Option<LogPart>>,
    over: bool,
}

impl Pieces {
    /// The next piece; `None` when all is told. Who goes away without saying that it was the end has left something out, whether
    /// it had begun or not. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<LogPart> {
        if self.over {
            return None;
        }
        let lost = "the host's connection ended, or it was read more slowly than it came";
        let part = self.sent.recv().await.unwrap_or_else(|| Some(LogPart::Broken(lost.into())));
        self.over = !matches!(part, Some(LogPart::Text { .. }));
        part
    }
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
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.get(&node).filter(|session| !session.is_closed()).cloned()
    }

    /// Whether this replica holds the node's session.
    pub(super) fn holds(&self, node: NodeId) -> bool {
        self.session(node).is_some()
    }
}

/// A log as it is read, wherever the node's session is.
#[derive(Debug)]
pub struct Tail(Source);

#[derive(Debug)]
enum Source {
    /// With this replica.
    Here(Pieces),
    /// With another one.
    Elsewhere(RemoteTail),
}

impl Tail {
    /// The next piece; `None` when all is told. A piece may be lost when this is cancelled.
    pub async fn next(&mut self) -> Option<LogPart> {
        match &mut self.0 {
            Source::Here(pieces) => pieces.next().await,
            Source::Elsewhere(remote) => remote.next().await,
        }
    }

    /// Nobody wants more of it.
    pub async fn close(self) {
        if let Source::Elsewhere(remote) = self.0 {
            remote.close().await;
        }
    }
}

impl App {
    /// Asks the node that holds, or last held, a workspace for its output.
    ///
    /// # Errors
    /// [`AppError::NodeAway`], [`AppError::NeverRan`], [`AppError::WorkspaceNotFound`], the database.
    pub async fn tail(&self, student: &StudentId, lines: i32, follow: bool) -> Result<Tail> {
        let found = self.store.find_workspace(student).await?;
        let workspace = found.ok_or_else(|| AppError::WorkspaceNotFound(student.clone()))?;
        let node = workspace.node.or(workspace.last_node).ok_or(AppError::NeverRan)?;
        match self.ask_session(node, workspace.uid, lines, follow).await {
            Some(pieces) => Ok(Tail(Source::Here(pieces))),
            None => {
                let remote = RemoteTail::open(&self.store, node, workspace.uid, lines, follow).await?;
                Ok(Tail(Source::Elsewhere(remote)))
            }
        }
    }

    /// Asks the session of this process that holds the node; `None` when there is none.
    pub(super) async fn ask_session(
        &self,
        node: NodeId,
        workspace: WorkspaceUid,
        lines: i32,
        follow: bool,
    ) -> Option<Pieces> {
        let session = self.log_tails.session(node)?;
        let (to, sent) = mpsc::channel(BUFFER);
        session.send(LogOrder { workspace, lines, follow, to }).await.ok()?;
        Some(Pieces { sent, over: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> LogPart {
        LogPart::Text { generation: 1, text: text.into() }
    }

    #[tokio::test]
    async fn a_log_has_ended_only_when_that_was_said() {
        let (to, sent) = mpsc::channel(4);
        let mut pieces = Pieces { sent, over: false };
        for part in [Some(said("one")), None] {
            to.send(part).await.expect("it is read");
        }
        drop(to);
        assert_eq!(
            [pieces.next().await, pieces.next().await, pieces.next().await],
            [Some(said("one")), None, None]
        );
    }

    #[tokio::test]
    async fn a_log_whose_session_went_away_is_broken_even_before_its_first_line() {
        let (_, sent) = mpsc::channel(4);
        let mut pieces = Pieces { sent, over: false };
        assert!(matches!(pieces.next().await, Some(LogPart::Broken(_))));
        assert_eq!(pieces.next().await, None);
    }
}
