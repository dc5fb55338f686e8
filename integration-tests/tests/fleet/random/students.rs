//! One student: works for a while, forgets the desk or leaves it, comes back. Whatever is done is written down with its
//! answer.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use carrel_proto::v1::workspace::State;
use carrel_proto::v1::{self as pb, Signal};
use integration_tests::callers::Callers;
use integration_tests::chance::Chance;
use integration_tests::client::{Client, name_of, reason};
use integration_tests::inputs::{Answer, Asked, Line, Log};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tonic::{Code, Status};

use super::{Timing, micros};

/// Longer than any start or stop on a machine that is busy with all the others' and whose parts are killed.
const PATIENCE: Duration = Duration::from_secs(180);
/// An input that is not answered within this is given up.
const GIVEN_UP: Duration = Duration::from_secs(5);

const SIGNALS: [Signal; 3] = [Signal::LmsInput, Signal::EditorInput, Signal::KeepWorking];

pub(super) struct Student {
    name: String,
    callers: Callers,
    /// Of each replica: an input goes to any of them, once.
    clients: Vec<Client>,
    /// Where the agents keep their state, of one who works in the editor; empty for one who does not.
    editor: Vec<PathBuf>,
    /// Of the desk.
    uid: String,
    timing: Timing,
    log: Arc<Log>,
    /// No longer anything new.
    over: Arc<AtomicBool>,
    rng: StdRng,
}

impl Student {
    pub(super) fn new(
        name: String,
        addresses: &[String],
        editor: Vec<PathBuf>,
        timing: Timing,
        log: Arc<Log>,
        over: Arc<AtomicBool>,
        chance: &mut Chance,
    ) -> Self {
        let clients = addresses.iter().map(|address| Client::of(address)).collect();
        let rng = StdRng::seed_from_u64(chance.below(usize::MAX) as u64);
        let (callers, uid) = (Callers::of(addresses), String::new());
        Self { name, callers, clients, editor, uid, timing, log, over, rng }
    }

    /// Lives until it is over.
    pub(super) async fn live(mut self, first: Duration) {
        tokio::time::sleep(first).await;
        while !self.is_over() {
            let Some(generation) = self.begin().await else { return };
            self.work(generation).await;
            match self.rng.random_range(0..10) {
                // Presses Stop.
                0 => {
                    self.callers.stop(&self.name).await;
                }
                // Forgets it, and comes back about when it is stopped.
                1..4 => self.come_back(generation).await,
                // Forgets it.
                _ => {}
            }
            self.until_stopped().await;
            let away = self.timing.away.mul_f64(self.rng.random_range(0.2..1.0));
            self.pause(away).await;
        }
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Waits, but not longer than there is something to wait for.
    async fn pause(&self, span: Duration) {
        let start = Instant::now();
        while start.elapsed() < span && !self.is_over() {
            tokio::time::sleep(Duration::from_millis(200).min(span.saturating_sub(start.elapsed()))).await;
        }
    }

    /// Starts the desk and waits until it runs; `None` when it is over meanwhile.
    async fn begin(&mut self) -> Option<i64> {
        let started = self.callers.start(&self.name).await;
        let start = Instant::now();
        loop {
            let now = self.callers.get(&self.name).await;
            if now.state() == State::Running && now.generation >= started.generation {
                self.uid = now.uid;
                return Some(now.generation);
            }
            if self.is_over() {
                return None;
            }
            assert!(start.elapsed() < PATIENCE, "{} does not run: {now:#?}", self.name);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Inputs at random distances, some long enough for a warning, until the desk is stopped or it is enough.
    async fn work(&mut self, generation: i64) {
        let (idle, lead) = (self.timing.idle, self.timing.lead);
        let end = Instant::now() + self.timing.work.mul_f64(self.rng.random_range(0.1..1.0));
        while Instant::now() < end && !self.is_over() {
            let gap = match self.rng.random_range(0..20) {
                0 => idle - lead + lead.mul_f64(self.rng.random_range(0.0..1.0)),
                1..5 => idle.mul_f64(self.rng.random_range(0.1..0.5)),
                _ => Duration::from_millis(self.rng.random_range(200..4000)),
            };
            self.pause(gap).await;
            let runs = match self.rng.random_range(0..30) {
                0 => self.extend(generation).await,
                1 => self.declare_a_job(generation).await,
                _ => self.input(generation).await,
            };
            if !runs {
                return;
            }
        }
    }

    /// An input as near to the deadline as can be aimed at.
    async fn come_back(&mut self, generation: i64) {
        let aim = self.timing.idle + Duration::from_millis(self.rng.random_range(0..600));
        self.pause(aim.saturating_sub(Duration::from_millis(300))).await;
        if !self.is_over() {
            self.input(generation).await;
        }
    }

    async fn until_stopped(&self) {
        let start = Instant::now();
        while !self.is_over() {
            let now = self.callers.get(&self.name).await;
            if now.state() == State::Stopped {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{} is not stopped: {now:#?}", self.name);
            let look = Duration::from_millis(1000 + u64::from(now.state() == State::Running) * 1000);
            tokio::time::sleep(look).await;
        }
    }

    /// Whether the desk still runs, as far as is known.
    async fn input(&mut self, generation: i64) -> bool {
        if !self.editor.is_empty() {
            return self.touch(generation);
        }
        let signal = SIGNALS[self.rng.random_range(0..SIGNALS.len())];
        let age = match self.rng.random_range(0..5) {
            0 => Duration::from_millis(self.rng.random_range(0..3000)),
            _ => Duration::ZERO,
        };
        let asked = Asked::Input { signal: signal.as_str_name().to_owned(), age: micros(age) };
        let request = pb::RecordHeartbeatRequest {
            name: name_of(&self.name),
            signal: signal.into(),
            age: Some(age.try_into().unwrap()),
            generation,
            ..Default::default()
        };
        let mut client = self.any().workspaces;
        self.ask(generation, asked, async move { client.record_heartbeat(request).await.map(|_| ()) }).await
    }

    /// As the editor does; no matter whether an agent runs that sees it.
    fn touch(&self, generation: i64) -> bool {
        let desk = format!("desks/{}/activity/input", self.uid);
        let sent = self.log.stamp();
        let touched = self.editor.iter().any(|state| {
            let input = std::fs::File::options().write(true).open(state.join(&desk));
            input.and_then(|input| input.set_modified(SystemTime::now())).is_ok()
        });
        if touched {
            let (student, answered) = (self.name.clone(), self.log.stamp());
            let (asked, answer) = (Asked::Touch, Answer::Acked);
            self.log.write(&Line::Asked { student, generation, asked, sent, answered, answer });
        }
        touched
    }

    async fn extend(&mut self, generation: i64) -> bool {
        let by = self.timing.idle.mul_f64(self.rng.random_range(0.5..2.0));
        let asked = Asked::Extension { by: micros(by) };
        let extent = Some(pb::extend_workspace_request::Extent::By(by.try_into().unwrap()));
        let request = pb::ExtendWorkspaceRequest { name: name_of(&self.name), extent, ..Default::default() };
        let mut client = self.any().workspaces;
        self.ask(generation, asked, async move { client.extend_workspace(request).await.map(|_| ()) }).await
    }

    async fn declare_a_job(&mut self, generation: i64) -> bool {
        let by = self.timing.idle.mul_f64(self.rng.random_range(0.5..2.0));
        let asked = Asked::Job { by: micros(by) };
        let request = pb::RecordHeartbeatRequest {
            name: name_of(&self.name),
            signal: Signal::Job.into(),
            keep_awake: Some(by.try_into().unwrap()),
            generation,
            ..Default::default()
        };
        let mut client = self.any().workspaces;
        self.ask(generation, asked, async move { client.record_heartbeat(request).await.map(|_| ()) }).await
    }

    fn any(&mut self) -> Client {
        self.clients[self.rng.random_range(0..self.clients.len())].clone()
    }

    /// Asks once, and writes down what came of it.
    async fn ask(
        &self,
        generation: i64,
        asked: Asked,
        call: impl Future<Output = Result<(), Status>>,
    ) -> bool {
        let sent = self.log.stamp();
        let answer = match tokio::time::timeout(GIVEN_UP, call).await {
            Ok(Ok(())) => Answer::Acked,
            Ok(Err(status)) if status.code() == Code::FailedPrecondition => Answer::Refused(reason(&status)),
            Ok(Err(status)) => Answer::Unknown(format!("{:?}", status.code())),
            Err(_) => Answer::Unknown("no answer".into()),
        };
        let runs = !matches!(answer, Answer::Refused(_));
        let (student, answered) = (self.name.clone(), self.log.stamp());
        self.log.write(&Line::Asked { student, generation, asked, sent, answered, answer });
        runs
    }
}
