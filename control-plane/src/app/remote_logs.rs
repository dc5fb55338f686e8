//! Logs between replicas: the one that was asked leaves a wish in the database, the one that holds the node's session
//! serves it, piece by piece. Slower than a log of one's own by half a second, and nothing to configure: replicas need not
//! know or reach each other.

use std::collections::VecDeque;
use std::time::Duration;

use carrel_common::id::{NodeId, WorkspaceUid};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::logs::{LogPart, Pieces};
use super::{App, AppError, Result};
use crate::store::{Served, Store, StoredPiece};

/// Replicas look for wishes twice a second; one that holds the session has taken it on by then.
const TAKEN_WITHIN: Duration = Duration::from_secs(4);
/// How soon a piece that has come is read.
const POLL: Duration = Duration::from_millis(100);
/// Both ends say this often that they are there; the store gives up on one that was silent for ten times this.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

/// A log that another replica serves.
#[derive(Debug)]
pub(super) struct RemoteTail {
    store: Store,
    id: i64,
    ready: VecDeque<LogPart>,
    ended: bool,
    told_at: Instant,
}

impl RemoteTail {
    /// Leaves the wish, and waits until a replica has taken it on.
    ///
    /// # Errors
    /// [`AppError::NodeAway`] when none has the node's session; the database.
    pub(super) async fn open(
        store: &Store,
        node: NodeId,
        workspace: WorkspaceUid,
        lines: i32,
        follow: bool,
    ) -> Result<Self> {
        let id = store.ask_for_log(node, workspace, lines, follow).await?.ok_or(AppError::NodeAway)?;
        let began = Instant::now();
        while began.elapsed() < TAKEN_WITHIN {
            match store.want_log(id).await? {
                Served::NotYet => tokio::time::sleep(POLL).await,
                Served::NoMore => break,
                Served::Now => {
                    let ready = VecDeque::new();
                    return Ok(Self {
                        store: store.clone(),
                        id,
                        ready,
                        ended: false,
                        told_at: Instant::now(),
                    });
                }
            }
        }
        store.forget_log(id).await?;
        Err(AppError::NodeAway)
    }

    pub(super) async fn next(&mut self) -> Option<LogPart> {
        loop {
            if let Some(part) = self.ready.pop_front() {
                return Some(part);
            }
            if self.ended {
                return None;
            }
            if let Err(why) = self.fetch().await {
                self.ended = true;
                return Some(LogPart::Broken(why));
            }
        }
    }

    /// Reads what has come, or waits a moment.
    async fn fetch(&mut self) -> std::result::Result<(), String> {
        let pieces = self.store.take_log_pieces(self.id).await.map_err(|error| error.to_string())?;
        let is_news = !pieces.is_empty();
        for StoredPiece { generation, text, broken, is_end } in pieces {
            if !text.is_empty() {
                self.ready.push_back(LogPart::Text { generation, text });
            }
            self.ready.extend(broken.map(LogPart::Broken));
            self.ended |= is_end;
        }
        if self.told_at.elapsed() >= SIGN_OF_LIFE {
            self.told_at = Instant::now();
            let served = self.store.want_log(self.id).await.map_err(|error| error.to_string())?;
            if served == Served::NoMore && !is_news {
                return Err("the replica that read it is gone".into());
            }
        }
        if !is_news {
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    pub(super) async fn close(self) {
        if let Err(error) = self.store.forget_log(self.id).await {
            tracing::debug!(%error, "a log's wish stays until it is dropped as old");
        }
    }
}

/// A log that this replica has taken on for another.
#[derive(Debug)]
pub struct LogHandover {
    id: i64,
    pieces: Pieces,
}

impl App {
    /// Takes on the logs of nodes whose session is here.
    ///
    /// # Errors
    /// The database.
    pub async fn take_on_logs(&self) -> Result<Vec<LogHandover>> {
        let mut taken = Vec::new();
        for wanted in self.store.unserved_logs().await? {
            if !self.log_tails.holds(wanted.node) || !self.store.serve_log(wanted.id).await? {
                continue;
            }
            let asked = self.ask_session(wanted.node, wanted.workspace, wanted.lines, wanted.follow);
            match asked.await {
                Some(pieces) => taken.push(LogHandover { id: wanted.id, pieces }),
                None => self.end_handover(wanted.id, Some("the host went away".into())).await?,
            }
        }
        Ok(taken)
    }

    /// Hands one on until it ends, nobody reads it any more, or `stop`.
    ///
    /// # Errors
    /// The database.
    pub async fn hand_over(&self, mut handover: LogHandover, stop: CancellationToken) -> Result<()> {
        let mut sign_of_life = tokio::time::interval(SIGN_OF_LIFE);
        sign_of_life.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let id = handover.id;
        loop {
            let part = tokio::select! {
                // Cancel-safe: it loses nothing when another arm wins.
                part = handover.pieces.next() => part,
                // Cancel-safe: a tick that is not taken comes at once the next time.
                _ = sign_of_life.tick() => {
                    if self.store.go_on_serving_log(id).await? { continue } else { return Ok(()) }
                }
                () = stop.cancelled() => Some(LogPart::Broken("the replica that read it is shutting down".into())),
            };
            match part {
                None => return self.end_handover(id, None).await,
                Some(LogPart::Broken(why)) => return self.end_handover(id, Some(why)).await,
                Some(LogPart::Text { generation, text }) => {
                    let piece = StoredPiece { generation, text, broken: None, is_end: false };
                    if !self.store.add_log_piece(id, &piece).await? {
                        let why = "it was read more slowly than it came";
                        return self.end_handover(id, Some(why.into())).await;
                    }
                }
            }
        }
    }

    async fn end_handover(&self, id: i64, broken: Option<String>) -> Result<()> {
        let end = StoredPiece { generation: 0, text: String::new(), broken, is_end: true };
        self.store.add_log_piece(id, &end).await?;
        Ok(())
    }
}
