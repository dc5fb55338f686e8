//! Answers a request for a log: the one kept of the incarnation before, then the container's, when there is one.

use carrel_common::id::{Generation, WorkspaceUid};
use carrel_common::model::Container;
use carrel_proto::v1 as pb;
use carrel_proto::v1::session_request::Message as Up;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;

use crate::driver::host::Host;
use crate::logs::{Lines, last_lines};
use crate::runtime::{LogOptions, Runtime};

/// A log asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) request: i64,
    pub(super) workspace: WorkspaceUid,
    /// Last lines at most.
    pub(super) lines: u32,
    pub(super) follow: bool,
}

/// Where pieces go. It holds few of them: a slow reader slows the reading.
type Pieces = mpsc::Sender<pb::SessionRequest>;

/// The session is over: nobody wants the rest.
struct Unwanted;

struct Teller {
    request: i64,
    generation: Generation,
    pieces: Pieces,
}

impl Teller {
    async fn send(&self, text: String, end: bool, error: String) -> Result<(), Unwanted> {
        let piece = pb::LogPiece { request: self.request, generation: self.generation.0, text, end, error };
        let message = pb::SessionRequest { message: Some(Up::LogPiece(piece)) };
        self.pieces.send(message).await.map_err(|_| Unwanted)
    }

    async fn text(&self, text: String) -> Result<(), Unwanted> {
        self.send(text, false, String::new()).await
    }
}

/// Tells the log to its end, or until the task is aborted.
pub(super) async fn tell<R: Runtime>(host: &Host<R>, wanted: Wanted, pieces: Pieces) {
    let mut teller = Teller { request: wanted.request, generation: Generation(0), pieces };
    let error = match tell_all(host, wanted, &mut teller).await {
        Ok(error) => error,
        Err(Unwanted) => return,
    };
    // Nobody left to tell is fine.
    let _ = teller.send(String::new(), true, error).await;
}

/// The error to end with; empty when all was told.
async fn tell_all<R: Runtime>(
    host: &Host<R>,
    wanted: Wanted,
    teller: &mut Teller,
) -> Result<String, Unwanted> {
    let found = match host.runtime.list(host.scope.cluster, Some(wanted.workspace)).await {
        Ok(found) => found,
        Err(error) => return Ok(error.to_string()),
    };
    let current = found.into_iter().map(|found| found.container).max_by_key(Container::pair);
    // What it said before it crashed is wanted most when the next one runs already.
    let before = saved(host, wanted, current.as_ref().map(|container| container.generation), teller).await?;
    let Some(container) = current else { return Ok(before) };
    teller.generation = container.generation;
    let options = LogOptions { lines: Some(wanted.lines), follow: wanted.follow };
    let mut output = host.runtime.logs(&container.container_id, options);
    let mut lines = Lines::default();
    let mut told = false;
    while let Some(chunk) = output.next().await {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            // Docker refuses the log of a container that is being removed; its end was kept before that.
            Err(error) if !told => {
                let kept = saved(host, wanted, None, teller).await?;
                let same = kept.is_empty() && teller.generation == container.generation;
                return Ok(if same { String::new() } else { error.to_string() });
            }
            Err(error) => return Ok(error.to_string()),
        };
        told = true;
        for piece in lines.push(&chunk) {
            teller.text(piece).await?;
        }
    }
    if let Some(rest) = lines.finish() {
        teller.text(rest).await?;
    }
    Ok(String::new())
}

/// Tells the newest log kept, unless it is of the incarnation that is told anyway. The error when there is none.
async fn saved<R: Runtime>(
    host: &Host<R>,
    wanted: Wanted,
    current: Option<Generation>,
    teller: &mut Teller,
) -> Result<String, Unwanted> {
    let (logs, workspace) = (host.saved_logs.clone(), wanted.workspace);
    let read = tokio::task::spawn_blocking(move || logs.newest(workspace)).await;
    let (generation, text) = match read {
        Ok(Ok(Some(newest))) => newest,
        Ok(Ok(None)) => return Ok("this node has no log of this workspace".into()),
        Ok(Err(error)) => return Ok(format!("the log cannot be read: {error}")),
        Err(error) => return Ok(format!("the log cannot be read: {error}")),
    };
    if current == Some(generation) {
        return Ok(String::new());
    }
    teller.generation = generation;
    let text = last_lines(&text, usize::try_from(wanted.lines).unwrap_or(usize::MAX));
    let mut lines = Lines::default();
    for piece in lines.push(text) {
        teller.text(piece).await?;
    }
    if let Some(rest) = lines.finish() {
        teller.text(rest).await?;
    }
    Ok(String::new())
}
