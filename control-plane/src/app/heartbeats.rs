//! Activity on its way to the database: gathered into batches, answered after the commit.
//!
//! One writer a process: the callers that arrive while a batch is being committed make up the next one, so the load
//! sets the size of the batches and one commit serves many.

use std::collections::HashMap;

use carrel_common::id::StudentId;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{App, AppError, IdleView, Result};
use crate::store::{Beat, Beaten};

/// Reports in one statement at most; the bench shows no gain beyond.
const BATCH: usize = 1000;
/// Callers that may wait for the writer; more are told to come back.
const WAITING: usize = 4096;

/// What one student's report led to.
type Answer = Result<IdleView>;

#[derive(Debug)]
struct Waiting {
    beats: Vec<Beat>,
    answer: oneshot::Sender<Vec<Answer>>,
}

/// Where reports are handed in.
#[derive(Debug, Clone)]
pub struct Heartbeats {
    queue: mpsc::Sender<Waiting>,
}

/// Where the writer takes them.
#[derive(Debug)]
pub struct Inbox(mpsc::Receiver<Waiting>);

impl Heartbeats {
    /// The two ends.
    pub fn new() -> (Self, Inbox) {
        let (queue, inbox) = mpsc::channel(WAITING);
        (Self { queue }, Inbox(inbox))
    }
}

impl App {
    /// Records activity; one answer for each report, in order, after the commit.
    ///
    /// # Errors
    /// [`AppError::ShuttingDown`]. What concerns one report is in its answer.
    pub async fn record(&self, beats: Vec<Beat>) -> Result<Vec<Answer>> {
        let (answer, told) = oneshot::channel();
        let waiting = Waiting { beats, answer };
        self.heartbeats.queue.send(waiting).await.map_err(|_| AppError::ShuttingDown)?;
        told.await.map_err(|_| AppError::ShuttingDown)
    }

    /// The writer: runs until `stop`, then finishes what was handed in.
    pub async fn write_heartbeats(&self, inbox: Inbox, stop: CancellationToken) {
        let Inbox(mut inbox) = inbox;
        let mut carried = None;
        loop {
            let first = match carried.take() {
                Some(waiting) => waiting,
                None => tokio::select! {
                    // Cancel-safe: recv loses nothing when the other arm wins.
                    waiting = inbox.recv() => match waiting { Some(waiting) => waiting, None => return },
                    () = stop.cancelled() => match inbox.try_recv() { Ok(waiting) => waiting, Err(_) => return },
                },
            };
            let mut size = first.beats.len();
            let mut batch = vec![first];
            while size < BATCH {
                let Ok(next) = inbox.try_recv() else { break };
                if size + next.beats.len() > BATCH {
                    carried = Some(next);
                    break;
                }
                size += next.beats.len();
                batch.push(next);
            }
            self.write_batch(batch).await;
        }
    }

    async fn write_batch(&self, batch: Vec<Waiting>) {
        // Of several reports of one student the youngest is the one that counts.
        let mut youngest: HashMap<String, &Beat> = HashMap::new();
        for beat in batch.iter().flat_map(|waiting| &waiting.beats) {
            let known = youngest.entry(beat.student.key()).or_insert(beat);
            if beat.age < known.age {
                *known = beat;
            }
        }
        let beats: Vec<Beat> = youngest.into_values().cloned().collect();
        let recorded = match self.store.record_beats(&beats).await {
            Ok(recorded) => Ok(recorded.into_iter().collect::<HashMap<_, _>>()),
            Err(error) => Err(AppError::from(error)),
        };
        for waiting in batch {
            let answers = waiting
                .beats
                .iter()
                .map(|beat| match &recorded {
                    Ok(recorded) => self.answer(&beat.student, recorded.get(&beat.student.key())),
                    Err(error) => Err(error.clone()),
                })
                .collect();
            // A caller that went away needs no answer; what it reported counts all the same.
            waiting.answer.send(answers).ok();
        }
    }

    fn answer(&self, student: &StudentId, beaten: Option<&Beaten>) -> Answer {
        match beaten {
            Some(Beaten::Recorded { workspace, activity, now }) => {
                self.metrics.heartbeat("recorded");
                if workspace.warning.is_some() {
                    self.nudge.look_at(workspace.uid, *now);
                }
                Ok(IdleView::new(&self.rules.get(), workspace, activity, *now))
            }
            Some(Beaten::NotRunning { stop }) => {
                self.metrics.heartbeat("not_running");
                Err(AppError::NotRunning { state: None, stop: stop.clone().map(Box::new) })
            }
            Some(Beaten::NotFound) | None => {
                self.metrics.heartbeat("not_found");
                Err(AppError::WorkspaceNotFound(student.clone()))
            }
        }
    }
}
