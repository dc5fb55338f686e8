//! Logs asked of a session: which request is whose.

use std::collections::HashMap;

use carrel_proto::v1 as pb;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::app::{LogOrder, LogPart};

/// The logs that are under way on one session.
#[derive(Debug, Default)]
pub(super) struct Tails {
    next: i64,
    /// One that is dropped before the end was said has broken off.
    wanted: HashMap<i64, mpsc::Sender<Option<LogPart>>>,
}

impl Tails {
    /// A new one, as the agent is asked for it.
    pub(super) fn ask(&mut self, order: LogOrder) -> pb::LogRequest {
        self.next += 1;
        self.wanted.insert(self.next, order.to);
        pb::LogRequest {
            request: self.next,
            workspace_uid: order.workspace.to_string(),
            lines: order.lines,
            follow: order.follow,
        }
    }

    /// Hands a piece on; a cancel for the agent when nobody wants more of it.
    pub(super) fn take(&mut self, piece: pb::LogPiece) -> Option<pb::LogCancel> {
        let request = piece.request;
        let Some(to) = self.wanted.get(&request) else {
            return (!piece.end).then_some(pb::LogCancel { request });
        };
        let mut handed = Ok(());
        if !piece.text.is_empty() {
            handed = to.try_send(Some(LogPart::Text { generation: piece.generation, text: piece.text }));
        }
        if handed.is_ok() && !piece.error.is_empty() {
            handed = to.try_send(Some(LogPart::Broken(piece.error)));
        } else if handed.is_ok() && piece.end {
            handed = to.try_send(None);
        }
        if piece.end {
            self.wanted.remove(&request);
            return None;
        }
        match handed {
            Ok(()) => None,
            Err(TrySendError::Closed(_) | TrySendError::Full(_)) => {
                // A reader that does not keep up must not hold up the session: its log breaks off.
                self.wanted.remove(&request);
                Some(pb::LogCancel { request })
            }
        }
    }

    /// Those whose reader went away.
    pub(super) fn unwanted(&mut self) -> Vec<pb::LogCancel> {
        let gone: Vec<i64> = self.wanted.iter().filter(|(_, to)| to.is_closed()).map(|(id, _)| *id).collect();
        gone.iter().for_each(|id| _ = self.wanted.remove(id));
        gone.into_iter().map(|request| pb::LogCancel { request }).collect()
    }
}
