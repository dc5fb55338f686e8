//! Live agent streams: who is connected here.
//!
//! A session publishes the node's desired set (always the whole set, always the newest) and takes what the agent
//! reports; everything it decides is decided in `app`. One node has one session in this process: a new one ends the
//! one before it, once it is accepted: a stranger with a copy of the node's identity ends nothing.

mod deadlines;
mod logs;
mod session;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use carrel_common::id::NodeId;
use carrel_proto::v1 as pb;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Status, Streaming};

use crate::app::{App, Credentials};

/// Messages on their way to a slow agent; then it is waited for.
const BUFFER: usize = 64;

/// The sessions of this process.
#[derive(Debug, Clone)]
pub struct Sessions {
    app: App,
    stop: CancellationToken,
    tasks: TaskTracker,
    held: Held,
}

/// Whose sessions are held here, and what ends each.
#[derive(Debug, Clone, Default)]
struct Held(Arc<Mutex<HashMap<NodeId, CancellationToken>>>);

impl Held {
    /// A session that was accepted takes over from the one before it; gives what will end it in turn.
    fn take_over(&self, node: NodeId) -> CancellationToken {
        let superseded = CancellationToken::new();
        let before = {
            let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            held.insert(node, superseded.clone())
        };
        if let Some(before) = before {
            before.cancel();
        }
        superseded
    }
}

impl Sessions {
    /// Sessions end when `stop` is cancelled; they run in `tasks`.
    pub fn new(app: App, stop: CancellationToken, tasks: TaskTracker) -> Self {
        Self { app, stop, tasks, held: Held::default() }
    }

    /// Holds the stream of a node that has shown who it is.
    pub(crate) fn open(
        &self,
        credentials: Credentials,
        incoming: Streaming<pb::SessionRequest>,
    ) -> ReceiverStream<Result<pb::SessionResponse, Status>> {
        let (to, stream) = mpsc::channel(BUFFER);
        let session =
            session::Session::new(self.app.clone(), credentials, to, self.stop.clone(), self.held.clone());
        self.tasks.spawn(session.run(incoming));
        ReceiverStream::new(stream)
    }
}
