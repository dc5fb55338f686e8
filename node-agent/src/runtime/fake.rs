//! A container engine in memory. It keeps real state, its programs answer HTTP on real ports, and it passes the same contract as
//! Docker. Tests can take it down, or hang or spoil its calls for one student.
//!
//! An image's tag says how its program behaves, as with the tiny image: `test` answers, `deaf` does not, `crash` ends at once
//! with 3; others are missing. `carrel/tiny` and `tiny` are here; those of other names are pulled, each half when a test says so.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener as StdListener;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use carrel_common::id::{ClusterId, WorkspaceUid};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::BroadcastStream;

use super::{
    Created, EngineFacts, Found, Hint, Inspected, LogOptions, Phase, Plan, Runtime, RuntimeError, Scope,
    labels,
};

#[derive(Debug)]
struct Kept {
    name: String,
    plan: Plan,
    phase: Phase,
    exit_code: Option<i32>,
    exits: u32,
    endpoint: Option<String>,
    program: JoinSet<()>,
}

#[derive(Debug, Default)]
struct State {
    containers: BTreeMap<String, Kept>,
    networks: BTreeSet<String>,
    made: u32,
    down: bool,
    hung: BTreeSet<String>,
    spoilt: BTreeSet<String>,
    pulled: BTreeSet<String>,
    halves: usize,
    endless_logs: bool,
    /// So many starts more give no address.
    unaddressed: usize,
    calls: Vec<&'static str>,
}

#[derive(Debug, Clone)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    hints: broadcast::Sender<Hint>,
    /// Changes when more of a pull may come through.
    pulls: watch::Sender<u32>,
    /// Changes when the daemon goes: subscribers of its events lose their connection.
    generation: watch::Sender<u32>,
}

impl Fake {
    pub(crate) fn new() -> Self {
        Self {
            state: Arc::default(),
            hints: broadcast::channel(64).0,
            pulls: watch::Sender::new(0),
            generation: watch::Sender::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Takes the daemon down, with every program, or brings it back.
    pub(crate) fn set_down(&self, down: bool) {
        let mut state = self.lock();
        state.down = down;
        if down {
            for kept in state.containers.values_mut().filter(|kept| kept.phase == Phase::Running) {
                kept.end(255);
            }
            self.generation.send_modify(|n| *n += 1);
        }
    }

    /// Calls about this student's container never come back.
    pub(crate) fn hang(&self, student: &str) {
        self.lock().hung.insert(student.to_owned());
    }

    /// This student's container can be looked at no more, as one whose layer is lost.
    pub(crate) fn spoil(&self, student: &str) {
        self.lock().spoilt.insert(student.to_owned());
    }

    /// The next starts, so many, give their containers no address, as a daemon that is killed amid a start.
    pub(crate) fn give_no_address(&self, starts: usize) {
        self.lock().unaddressed = starts;
    }

    /// No log that is read comes to its end from now on.
    pub(crate) fn never_end_a_log(&self) {
        self.lock().endless_logs = true;
    }

    /// So many halves of pulls come through from now on.
    pub(crate) fn let_through(&self, halves: usize) {
        self.lock().halves = halves;
        self.pulls.send_modify(|n| *n += 1);
    }

    /// Waits for the next half of a pull.
    async fn half(&self) {
        let mut pulls = self.pulls.subscribe();
        loop {
            {
                let mut state = self.lock();
                if state.halves > 0 {
                    state.halves -= 1;
                    return;
                }
            }
            // The sender lives in `self`.
            let _ = pulls.changed().await;
        }
    }

    /// The program ends by itself.
    pub(crate) fn crash(&self, id: &str, code: i32) {
        if let Some(kept) = self.lock().containers.get_mut(id) {
            kept.end(code);
        }
        let _ = self.hints.send(Hint::Died(id.to_owned()));
    }

    pub(crate) fn ids(&self) -> Vec<String> {
        self.lock().containers.keys().cloned().collect()
    }

    /// How often a verb was called.
    pub(crate) fn calls(&self, verb: &str) -> usize {
        self.lock().calls.iter().filter(|call| **call == verb).count()
    }

    async fn enter(&self, operation: &'static str, student: Option<&str>) -> Result<(), RuntimeError> {
        let hung = {
            let mut state = self.lock();
            state.calls.push(operation);
            if state.down {
                return Err(RuntimeError::Unreachable { operation, problem: "it is down".into() });
            }
            student.is_some_and(|student| state.hung.contains(student))
        };
        if hung {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    async fn enter_about(&self, operation: &'static str, id: &str) -> Result<(), RuntimeError> {
        let student = self.lock().containers.get(id).map(|kept| kept.plan.item.student.to_string());
        self.enter(operation, student.as_deref()).await
    }
}

impl Kept {
    fn end(&mut self, code: i32) {
        (self.phase, self.exit_code, self.endpoint) = (Phase::Exited, Some(code), None);
        self.exits += 1;
        self.program.abort_all();
    }

    fn found(&self, id: &str) -> Option<Found> {
        labels::parse(id, &labels::of_plan(&self.plan), self.phase)
    }
}

const MODES: [&str; 3] = ["test", "deaf", "crash"];

/// Images that were never pulled.
const HERE: [&str; 2] = ["carrel/tiny", "tiny"];

fn mode(image: &str) -> Option<&str> {
    let (_, tag) = image.rsplit_once(':')?;
    MODES.contains(&tag).then_some(tag)
}

impl State {
    fn images(&self) -> Vec<String> {
        let made = HERE.iter().flat_map(|name| MODES.iter().map(move |mode| format!("{name}:{mode}")));
        let mut all: Vec<_> = made.chain(self.pulled.iter().cloned()).collect();
        all.sort();
        all
    }
}

async fn answer(listener: StdListener) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    while let Ok((mut stream, _)) = listener.accept().await {
        let _ = stream.read(&mut [0; 1024]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    }
}

impl Runtime for Fake {
    async fn facts(&self) -> Result<EngineFacts, RuntimeError> {
        self.enter("info", None).await?;
        Ok(EngineFacts { id: "FAKE".into(), version: "1".into(), cpus: 2, memory_bytes: 4 << 30 })
    }

    async fn ensure_network(&self, scope: Scope) -> Result<(), RuntimeError> {
        self.enter("inspect_network", None).await?;
        self.lock().networks.insert(scope.network());
        Ok(())
    }

    async fn list(
        &self,
        cluster: ClusterId,
        workspace: Option<WorkspaceUid>,
    ) -> Result<Vec<Found>, RuntimeError> {
        self.enter("list", None).await?;
        let state = self.lock();
        let ours = state.containers.iter().filter(|(_, kept)| kept.plan.scope.cluster == cluster);
        let wanted = ours.filter(|(_, kept)| workspace.is_none_or(|uid| uid == kept.plan.item.workspace));
        Ok(wanted.filter_map(|(id, kept)| kept.found(id)).collect())
    }

    async fn ensure_created(&self, plan: &Plan) -> Result<Created, RuntimeError> {
        self.enter("create", Some(plan.item.student.as_str())).await?;
        let mut state = self.lock();
        let name = plan.container_name();
        if let Some((id, kept)) = state.containers.iter().find(|(_, kept)| kept.name == name) {
            let id = id.clone();
            match kept.plan.item.pair().cmp(&plan.item.pair()) {
                Ordering::Equal => return Ok(Created { id, new: false }),
                Ordering::Greater => return Err(RuntimeError::Beyond { name, holder: id }),
                Ordering::Less => state.containers.remove(&id),
            };
        }
        let image = &plan.item.spec.image;
        if !state.images().contains(image) {
            return Err(RuntimeError::ImageMissing {
                image: image.clone(),
                problem: "it is not here".into(),
            });
        }
        state.made += 1;
        let id = format!("{:064}", state.made);
        let kept = Kept {
            name,
            plan: plan.clone(),
            phase: Phase::Created,
            exit_code: None,
            exits: 0,
            endpoint: None,
            program: JoinSet::new(),
        };
        state.containers.insert(id.clone(), kept);
        Ok(Created { id, new: true })
    }

    async fn images(&self) -> Result<Vec<String>, RuntimeError> {
        self.enter("list_images", None).await?;
        Ok(self.lock().images())
    }

    async fn ensure_image(
        &self,
        image: &str,
        percent: &(dyn Fn(u8) + Send + Sync),
    ) -> Result<(), RuntimeError> {
        if self.lock().images().iter().any(|here| here == image) {
            return Ok(());
        }
        self.enter("pull", None).await?;
        if mode(image).is_none() {
            return Err(RuntimeError::ImageMissing {
                image: image.to_owned(),
                problem: "nobody has it".into(),
            });
        }
        for done in [50, 100] {
            self.half().await;
            percent(done);
        }
        self.lock().pulled.insert(image.to_owned());
        Ok(())
    }

    async fn ensure_started(&self, id: &str) -> Result<(), RuntimeError> {
        self.enter_about("start", id).await?;
        let mut state = self.lock();
        let State { containers, unaddressed, .. } = &mut *state;
        let Some(kept) = containers.get_mut(id) else {
            return Err(RuntimeError::NotFound { operation: "start" });
        };
        if kept.phase == Phase::Running {
            return Ok(());
        }
        let listener = StdListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("nonblocking");
        let address = listener.local_addr().expect("address").to_string();
        kept.endpoint = unaddressed.checked_sub(1).map_or(Some(address), |left| {
            *unaddressed = left;
            None
        });
        (kept.phase, kept.exit_code) = (Phase::Running, None);
        let _ = self.hints.send(Hint::Started(id.to_owned()));
        match mode(&kept.plan.item.spec.image) {
            Some("test") => {
                kept.program.spawn(answer(listener));
            }
            Some("crash") => {
                kept.end(3);
                let _ = self.hints.send(Hint::Died(id.to_owned()));
            }
            _ => {}
        }
        Ok(())
    }

    async fn inspect(&self, id: &str, _: u16) -> Result<Option<Inspected>, RuntimeError> {
        self.enter_about("inspect", id).await?;
        let state = self.lock();
        let Some(kept) = state.containers.get(id) else { return Ok(None) };
        if state.spoilt.contains(kept.plan.item.student.as_str()) {
            let problem = "its layer is lost".to_owned();
            return Err(RuntimeError::Refused { operation: "inspect", problem });
        }
        Ok(Some(Inspected {
            id: id.to_owned(),
            phase: kept.phase,
            endpoint: kept.endpoint.clone(),
            exit_code: kept.exit_code,
            oom_killed: false,
            started_at: (kept.phase != Phase::Created).then_some(OffsetDateTime::UNIX_EPOCH),
            finished_at: if kept.exits > 0 { kept.exits.to_string() } else { String::new() },
            image_id: "sha256:fake".into(),
            error: String::new(),
        }))
    }

    async fn ensure_stopped(&self, id: &str, _: Duration) -> Result<(), RuntimeError> {
        self.enter_about("stop", id).await?;
        if let Some(kept) = self.lock().containers.get_mut(id).filter(|kept| kept.phase == Phase::Running) {
            kept.end(0);
            let _ = self.hints.send(Hint::Died(id.to_owned()));
        }
        Ok(())
    }

    async fn ensure_removed(&self, id: &str) -> Result<(), RuntimeError> {
        self.enter_about("remove", id).await?;
        if self.lock().containers.remove(id).is_some() {
            let _ = self.hints.send(Hint::Removed(id.to_owned()));
        }
        Ok(())
    }

    fn logs(&self, id: &str, _: LogOptions) -> BoxStream<'static, Result<Bytes, RuntimeError>> {
        let state = self.lock();
        let told = match state.containers.get(id) {
            None => Err(RuntimeError::NotFound { operation: "logs" }),
            Some(kept) => Ok(Bytes::from(format!("tiny: generation {}\n", kept.plan.item.generation))),
        };
        let told = futures_util::stream::iter([told]);
        if state.endless_logs { told.chain(futures_util::stream::pending()).boxed() } else { told.boxed() }
    }

    fn hints(&self, _: ClusterId) -> BoxStream<'static, Result<Hint, RuntimeError>> {
        if self.lock().down {
            let gone = RuntimeError::Unreachable { operation: "events", problem: "it is down".into() };
            return futures_util::stream::iter([Err(gone)]).boxed();
        }
        let mut generation = self.generation.subscribe();
        generation.mark_unchanged();
        let hints =
            BroadcastStream::new(self.hints.subscribe()).filter_map(|hint| async { hint.ok().map(Ok) });
        let gone = Box::pin(async move {
            let _ = generation.changed().await;
        });
        hints.take_until(gone).boxed()
    }
}
