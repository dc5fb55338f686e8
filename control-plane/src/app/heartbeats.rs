//! Activity on its way to the database: gathered into batches, answered after the commit.
//!
//! The callers that arrive while a batch is being committed make up the next one, so the load sets the size of the batches
//! and one commit serves many. A large batch does not wait for the one before it: several are written at once.

mod answers;

use std::collections::HashMap;
use std::time::Duration;

use carrel_common::id::NodeId;
use carrel_common::model::{ActivityReport, Signal};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::settle::settle;
use super::workspaces::clock_was_set;
use super::{App, AppError, IdleView, Result};
use crate::domain::activity::{Activity, BySignal};
use crate::domain::workspace::Workspace;
use crate::store::{Beat, Beaten, Input, Job, Written};

/// With so many reports a batch is full: the bench shows no gain beyond. The last call is taken whole.
const BATCH: usize = 1000;
/// Batches that are written at once: as many as there are connections for them (`store`).
const WRITERS: usize = 4;
/// So many reports are worth a commit of their own beside those under way; fewer wait for the end of one, and share the next.
const WORTH_ANOTHER: [usize; WRITERS] = [1, 20, 250, 250];
/// Callers that may wait for the writer; more are told to come back.
const WAITING: usize = 4096;

/// What a report that was recorded led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// The deadline that follows.
    pub idle: IdleView,
    /// A job got less time than it asked for.
    pub clamped: bool,
}

/// What one report led to.
type Answer = Result<Recorded>;

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
        if beats.is_empty() {
            return Ok(vec![]);
        }
        let (answer, told) = oneshot::channel();
        let waiting = Waiting { beats, answer };
        self.heartbeats.queue.send(waiting).await.map_err(|_| AppError::ShuttingDown)?;
        told.await.map_err(|_| AppError::ShuttingDown)
    }

    /// Records what a node has seen itself, of the workspaces that run there; a batch of its own, as it comes with one
    /// heartbeat of the node.
    ///
    /// # Errors
    /// The database: then it is not known whether anything was recorded.
    pub async fn record_seen(&self, node: NodeId, seen: &[ActivityReport]) -> Result<()> {
        if seen.is_empty() {
            return Ok(());
        }
        let (rules, now) = self.steady_rules().await?;
        // After a step of the clock a node tells all again, and most of it was told before.
        let of_then = |report: &ActivityReport| {
            let told = now - report.age;
            let stepped = Duration::try_from(told - rules.by_the_clock_of_then(told)).unwrap_or_default();
            ActivityReport { age: report.age + stepped, ..*report }
        };
        let seen: Vec<_> = seen.iter().map(of_then).collect();
        let warned = self.store.record_seen(node, &seen).await?;
        for uid in warned {
            self.nudge.look_at(uid, now);
        }
        Ok(())
    }

    /// Writes what is handed in until `stop`, then finishes it.
    pub async fn write_heartbeats(&self, inbox: Inbox, stop: CancellationToken) {
        let Inbox(mut inbox) = inbox;
        let (mut writing, mut answering) = (FuturesUnordered::new(), JoinSet::new());
        let (mut gathered, mut size) = (Vec::new(), 0);
        // More may come; nothing new is taken.
        let (mut open, mut closing) = (true, false);
        while open || size > 0 || !writing.is_empty() {
            let worth = WORTH_ANOTHER.get(writing.len()).copied().unwrap_or(usize::MAX);
            let last = !open && size > 0 && writing.len() < WRITERS;
            if size >= worth || last {
                writing.push(self.write_batch(std::mem::take(&mut gathered)));
                size = 0;
            }
            tokio::select! {
                // Cancel-safe: a batch that is not done stays in `writing` or `answering`, recv loses nothing, a token stays cancelled.
                biased;
                Some(batch) = writing.next(), if !writing.is_empty() => {
                    // The database has the next batch to write meanwhile.
                    let app = self.clone();
                    answering.spawn(async move { app.answer_batch(batch).await });
                }
                Some(answered) = answering.join_next() => pass_on(answered),
                waiting = inbox.recv(), if open && size < BATCH => match waiting {
                    Some(waiting) => {
                        size += waiting.beats.len();
                        gathered.push(waiting);
                        // Whoever is about to hand something in does so first.
                        tokio::task::yield_now().await;
                        while size < BATCH && let Ok(waiting) = inbox.try_recv() {
                            size += waiting.beats.len();
                            gathered.push(waiting);
                        }
                    }
                    None => open = false,
                },
                () = stop.cancelled(), if !closing => {
                    closing = true;
                    inbox.close();
                }
            }
        }
        while let Some(answered) = answering.join_next().await {
            pass_on(answered);
        }
    }

    async fn write_batch(&self, waiting: Vec<Waiting>) -> Batch {
        let Gathered { input, jobs, places } =
            Gathered::of(waiting.iter().flat_map(|waiting| &waiting.beats));
        let (mut written, mut granted) = (Vec::new(), Vec::new());
        for round in input {
            let done = self.store.write_input(&round).await.map_err(AppError::from);
            written.push((round, done));
        }
        for round in &jobs {
            granted.push(settle!(self.record_jobs(round)));
        }
        Batch { waiting, places, input: written, jobs: granted }
    }

    /// Jobs are granted time from now, beside what they were granted before: the clock must be the same.
    async fn record_jobs(&self, jobs: &[Job]) -> Result<Vec<Beaten>> {
        let rules = self.rules.get();
        let grant = |job: &Job, workspace: &Workspace, activity: &Activity, now| {
            let policy = rules.times(workspace);
            // What does not count is known of, and keeps nobody awake.
            let budget = if policy.counts.job { policy.keep_awake_budget } else { Duration::ZERO };
            activity.awake.grant(budget, job.keep_awake, now)
        };
        let recorded = self.store.record_jobs(jobs, |standing| self.is_steady(standing), grant).await?;
        if recorded.is_none() {
            self.pulse().await?;
        }
        recorded.ok_or_else(clock_was_set)
    }
}

/// A panic over a batch is the writer's, and so ends the process: the next batch would most likely meet it, too.
fn pass_on(answered: std::result::Result<(), JoinError>) {
    if let Some(panic) = answered.err().and_then(|error| error.try_into_panic().ok()) {
        std::panic::resume_unwind(panic);
    }
}

/// The reports of a batch, put together by student and incarnation: of several of one signal the youngest counts, of
/// several jobs the longest. Each statement, a round, names a student once, so there are as many as one student was reported
/// on in different incarnations: one, but for a caller that is behind.
#[derive(Debug, Default, PartialEq, Eq)]
struct Gathered {
    input: Vec<Vec<Input>>,
    jobs: Vec<Vec<Job>>,
    /// Where each report went, in order.
    places: Vec<Place>,
}

/// A batch that was committed, and what became of each statement.
#[derive(Debug)]
struct Batch {
    waiting: Vec<Waiting>,
    /// Where each report went, in order.
    places: Vec<Place>,
    input: Vec<(Vec<Input>, Result<Written>)>,
    jobs: Vec<Result<Vec<Beaten>>>,
}

/// Of what is gathered, in which statement, and where in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    round: usize,
    at: usize,
}

impl Gathered {
    fn of<'a>(beats: impl Iterator<Item = &'a Beat>) -> Self {
        let mut gathered = Self::default();
        let (mut input, mut jobs) = (HashMap::new(), HashMap::new());
        for beat in beats {
            let (key, generation) = (beat.student.key(), beat.generation);
            gathered.places.push(if beat.signal == Signal::Job {
                let job = Job { key: key.clone(), generation, age: beat.age, keep_awake: beat.keep_awake };
                let (place, known) = place(&mut gathered.jobs, jobs.entry(key).or_default(), job, |known| {
                    known.generation == generation
                });
                known.age = known.age.min(beat.age);
                known.keep_awake = known.keep_awake.max(beat.keep_awake);
                place
            } else {
                let new = Input { key: key.clone(), generation, ages: BySignal::default() };
                let (place, known) =
                    place(&mut gathered.input, input.entry(key).or_default(), new, |known| {
                        known.generation == generation
                    });
                let age = known.ages.get_mut(beat.signal);
                *age = Some(age.map_or(beat.age, |known| known.min(beat.age)));
                place
            });
        }
        gathered
    }
}

/// The item of a student that is the `same`, or the new one in the first round that does not name that student yet; `known`
/// are the places of the student's items, one a round.
fn place<'a, T>(
    rounds: &'a mut Vec<Vec<T>>,
    known: &mut Vec<usize>,
    new: T,
    same: impl Fn(&T) -> bool,
) -> (Place, &'a mut T) {
    let round =
        known.iter().enumerate().position(|(round, at)| same(&rounds[round][*at])).unwrap_or(known.len());
    if round == known.len() {
        if rounds.len() == round {
            rounds.push(Vec::new());
        }
        known.push(rounds[round].len());
        rounds[round].push(new);
    }
    let at = known[round];
    (Place { round, at }, &mut rounds[round][at])
}

#[cfg(test)]
mod tests {
    use carrel_common::id::Generation;

    use super::*;

    fn beat(student: &str, signal: Signal, age: u64, generation: Option<i64>) -> Beat {
        Beat {
            student: student.parse().expect("valid"),
            generation: generation.map(Generation),
            signal,
            age: Duration::from_secs(age),
            keep_awake: Duration::from_secs(age * 10),
        }
    }

    #[test]
    fn of_several_reports_of_one_signal_the_youngest_counts_and_no_statement_names_a_student_twice() {
        let beats = [
            beat("ada", Signal::LmsInput, 9, None),
            beat("ADA", Signal::LmsInput, 3, None),
            beat("ada", Signal::EditorInput, 5, None),
            beat("ada", Signal::LmsInput, 1, Some(4)),
            beat("ada", Signal::Job, 2, None),
            beat("ada", Signal::Job, 7, None),
        ];
        let seconds = |n| Some(Duration::from_secs(n));
        let of = |generation, lms_input, editor_input| Input {
            key: "ada".into(),
            generation,
            ages: BySignal { lms_input, editor_input, ..BySignal::default() },
        };
        let job = Job {
            key: "ada".into(),
            generation: None,
            age: Duration::from_secs(2),
            keep_awake: Duration::from_secs(70),
        };
        assert_eq!(
            Gathered::of(beats.iter()),
            Gathered {
                input: vec![
                    vec![of(None, seconds(3), seconds(5))],
                    vec![of(Some(Generation(4)), seconds(1), None)]
                ],
                jobs: vec![vec![job]],
                places: [(0, 0), (0, 0), (0, 0), (1, 0), (0, 0), (0, 0)]
                    .map(|(round, at)| Place { round, at })
                    .to_vec(),
            }
        );
    }
}
