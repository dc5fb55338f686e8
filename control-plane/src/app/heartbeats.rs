//! Activity on its way to the database: gathered into batches, answered after the commit.
//!
//! The callers that arrive while a batch is being committed make up the next one, so the load sets the size of the batches
//! and one commit serves many. A large batch does not wait for the one before it: several are written at once.

use std::collections::HashMap;
use std::time::Duration;

use carrel_common::id::{Generation, NodeId};
use carrel_common::model::{ActivityReport, Signal};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::settle::settle;
use super::workspaces::clock_was_set;
use super::{App, AppError, IdleView, Result};
use crate::domain::activity::{Activity, BySignal, falls_short};
use crate::domain::workspace::Workspace;
use crate::store::{Beat, Beaten, Input, Job};

/// With so many reports a batch is full: the bench shows no gain beyond. The last call is taken whole.
const BATCH: usize = 1000;
/// Batches that are written at once: a quarter of the connections of the pool.
const WRITERS: usize = 4;
/// So many reports are worth a commit of their own beside those under way; fewer wait for the end of one, and share the next.
const WORTH_ANOTHER: [usize; WRITERS] = [1, 32, 250, 250];
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
        let (warned, now) = self.store.record_seen(node, seen).await?;
        for uid in warned {
            self.nudge.look_at(uid, now);
        }
        Ok(())
    }

    /// Writes what is handed in until `stop`, then finishes it.
    pub async fn write_heartbeats(&self, inbox: Inbox, stop: CancellationToken) {
        let Inbox(mut inbox) = inbox;
        let mut writing = FuturesUnordered::new();
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
                // Cancel-safe: a batch that is not done stays in `writing`, recv loses nothing, a token stays cancelled.
                biased;
                Some(()) = writing.next(), if !writing.is_empty() => {}
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
    }

    async fn write_batch(&self, batch: Vec<Waiting>) {
        let Gathered { input, jobs } = Gathered::of(batch.iter().flat_map(|waiting| &waiting.beats));
        let mut told = HashMap::new();
        for input in input {
            let recorded = self.store.record_input(&input).await.map_err(AppError::from);
            let who = input.into_iter().map(|input| (input.key, input.generation, false));
            told.extend(spread(who, recorded));
        }
        for jobs in jobs {
            let recorded = settle!(self.record_jobs(&jobs));
            let who = jobs.into_iter().map(|job| (job.key, job.generation, true));
            told.extend(spread(who, recorded));
        }
        for waiting in batch {
            let answers = waiting.beats.iter().map(|beat| match told.get(&who(beat)) {
                Some(Err(error)) => Err(error.clone()),
                Some(Ok(beaten)) => self.answer(beat, beaten),
                None => self.answer(beat, &Beaten::NotFound),
            });
            // A caller that went away needs no answer; what it reported counts all the same.
            waiting.answer.send(answers.collect()).ok();
        }
    }

    /// Jobs are granted time from now, beside what they were granted before: the clock must be the same.
    async fn record_jobs(&self, jobs: &[Job]) -> Result<HashMap<String, Beaten>> {
        let rules = self.rules.get();
        let grant = |job: &Job, workspace: &Workspace, activity: &Activity, now| {
            let policy = rules.times(workspace);
            // What does not count is known of, and keeps nobody awake.
            let budget = if policy.counts.job { policy.keep_awake_budget } else { Duration::ZERO };
            activity.awake.grant(budget, job.keep_awake, now)
        };
        let recorded = self.store.record_jobs(jobs, |standing| self.is_steady(standing), grant).await?;
        if recorded.is_none() && self.pulse().await? {
            self.nudge.sweep.notify_one();
        }
        recorded.ok_or_else(clock_was_set)
    }

    fn answer(&self, beat: &Beat, beaten: &Beaten) -> Answer {
        match beaten {
            Beaten::Recorded { workspace, activity, now } => {
                self.metrics.heartbeat("recorded");
                if workspace.warning.is_some() {
                    self.nudge.look_at(workspace.uid, *now);
                }
                let idle = IdleView::new(&self.rules.get(), workspace, activity, *now);
                let clamped =
                    beat.signal == Signal::Job && falls_short(idle.awake_until, beat.keep_awake, *now);
                Ok(Recorded { idle, clamped })
            }
            Beaten::NotRunning { stop } => {
                self.metrics.heartbeat("not_running");
                Err(AppError::NotRunning { state: None, stop: stop.clone().map(Box::new) })
            }
            Beaten::OtherGeneration { present } => {
                self.metrics.heartbeat("not_running");
                Err(AppError::GenerationOver { present: *present })
            }
            Beaten::NotFound => {
                self.metrics.heartbeat("not_found");
                Err(AppError::WorkspaceNotFound(beat.student.clone()))
            }
        }
    }
}

/// What a report is answered by: the student, the incarnation it names, and whether it is a job.
type Who = (String, Option<Generation>, bool);

fn who(beat: &Beat) -> Who {
    (beat.student.key(), beat.generation, beat.signal == Signal::Job)
}

/// What became of one statement, for each that it named.
fn spread(
    who: impl Iterator<Item = Who>,
    recorded: Result<HashMap<String, Beaten>>,
) -> Vec<(Who, Result<Beaten>)> {
    match recorded {
        Ok(mut beaten) => who
            .filter_map(|who| {
                let found = beaten.remove(&who.0)?;
                Some((who, Ok(found)))
            })
            .collect(),
        Err(error) => who.map(|who| (who, Err(error.clone()))).collect(),
    }
}

/// The reports of a batch, put together by student and incarnation: of several of one signal the youngest counts, of
/// several jobs the longest. Each statement names a student once, so there are as many as one student was reported on in
/// different incarnations: one, but for a caller that is behind.
#[derive(Debug, Default, PartialEq, Eq)]
struct Gathered {
    input: Vec<Vec<Input>>,
    jobs: Vec<Vec<Job>>,
}

impl Gathered {
    fn of<'a>(beats: impl Iterator<Item = &'a Beat>) -> Self {
        let mut input: HashMap<String, Vec<Input>> = HashMap::new();
        let mut jobs: HashMap<String, Vec<Job>> = HashMap::new();
        for beat in beats {
            let (key, generation) = (beat.student.key(), beat.generation);
            if beat.signal == Signal::Job {
                let known = jobs.entry(key.clone()).or_default();
                let job = Job { key, generation, age: beat.age, keep_awake: beat.keep_awake };
                match known.iter_mut().find(|known| known.generation == generation) {
                    Some(known) => {
                        known.age = known.age.min(job.age);
                        known.keep_awake = known.keep_awake.max(job.keep_awake);
                    }
                    None => known.push(job),
                }
                continue;
            }
            let known = input.entry(key.clone()).or_default();
            let at = known.iter().position(|known| known.generation == generation).unwrap_or_else(|| {
                known.push(Input { key, generation, ages: BySignal::default() });
                known.len() - 1
            });
            let age = known[at].ages.get_mut(beat.signal);
            *age = Some(age.map_or(beat.age, |known| known.min(beat.age)));
        }
        Self { input: in_rounds(input), jobs: in_rounds(jobs) }
    }
}

/// The first of each, then the second of each, and so on.
fn in_rounds<T>(lists: HashMap<String, Vec<T>>) -> Vec<Vec<T>> {
    let mut rounds: Vec<Vec<T>> = Vec::new();
    for (round, item) in lists.into_values().flat_map(|list| list.into_iter().enumerate()) {
        if rounds.len() <= round {
            rounds.resize_with(round + 1, Vec::new);
        }
        rounds[round].push(item);
    }
    rounds
}

#[cfg(test)]
mod tests {
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
            }
        );
    }
}
