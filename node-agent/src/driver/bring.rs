//! Brings one workspace up: directory, container, fence file, start, and the probe until the editor answers; restarts it within the budget
//! when its program ends meanwhile. Nothing here decides whether a workspace should run.
//!
//! It can be cancelled between two Docker calls and during the probe, never amid a call: whether that had its effect would be
//! unknown.

use std::time::Duration;

use carrel_common::model::{DesiredItem, Observed, Run, Stage};
use carrel_common::telemetry;
use tokio::sync::{SemaphorePermit, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::Accepted;
use super::failure::{self, Failure};
use super::host::Host;
use super::images::Pull;
use super::remove;
use crate::fence::lease::LeaseError;
use crate::reconcile::crash::Verdict;
use crate::reconcile::{From, Settled};
use crate::reports::Report;
use crate::runtime::{Inspected, Phase, Plan, Runtime, RuntimeError};
use crate::storage::fence_file::Token;
use crate::storage::fences::Claim;

/// Docker refuses for reasons that pass (a daemon that is going down, a port just taken); so long it is given to.
const REFUSAL_PAUSES: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_millis(500), Duration::from_secs(1)];

/// A pull is told in steps of so many percent, and no faster than that: each word is a transaction of the control plane.
const PULL_STEP: (u8, Duration) = (5, Duration::from_secs(1));

/// Before a start whose last call has an unknown result is looked at again.
const UNKNOWN_PAUSE: Duration = Duration::from_millis(500);

/// How a start ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// As remembered.
    Settled(Settled),
    /// It was told to end.
    Cancelled,
}

/// One start.
pub(super) struct Bring<'a, R> {
    pub(super) host: &'a Host<R>,
    pub(super) item: DesiredItem,
    pub(super) cancel: CancellationToken,
    /// What is ordered now, and whether the session stands in which that was.
    pub(super) accepted: watch::Receiver<Accepted>,
    /// The first exit found is not the program's fault: Docker or the host went down.
    pub(super) forgiven: bool,
    /// What is remembered within this start.
    pub(super) so_far: SoFar,
}

/// What is remembered within one start.
#[derive(Debug, Default)]
pub(super) struct SoFar {
    /// A pull was tried.
    pulled: bool,
    /// How the program ended before; told with every later report, as the control plane may see only the newest.
    last_exit: Option<(Option<i32>, bool)>,
}

/// What a step leads to.
pub(super) enum Step {
    Go(From),
    Probe { id: String, endpoint: String, image: String, left: Duration },
    Ready { id: String, endpoint: String, image: String },
}

/// Why a start ends before the editor answers.
pub(super) enum End {
    Failed(Failure),
    Unknown(RuntimeError),
    Refused(RuntimeError),
    Cancelled,
}

impl std::convert::From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl std::convert::From<RuntimeError> for End {
    fn from(error: RuntimeError) -> Self {
        match error {
            RuntimeError::ImageMissing { .. } => Self::Failed(failure::image_unavailable(&error)),
            // A later container has the name: the next listing finds it, and it is held and reported.
            RuntimeError::Beyond { .. } => Self::Unknown(error),
            error if error.result_unknown() => Self::Unknown(error),
            error => Self::Refused(error),
        }
    }
}

impl<'a, R: Runtime> Bring<'a, R> {
    /// Runs it to its end and reports what became of it.
    pub(super) async fn run(mut self, from: From) -> Outcome {
        let fresh = matches!(from, From::Nothing | From::Created(_));
        let begun = self.host.clock.monotonic();
        let mut hints = self.host.hints.subscribe();
        let mut next = Ok(Step::Go(from));
        let mut refusals = REFUSAL_PAUSES.iter();
        loop {
            if self.cancel.is_cancelled() {
                return Outcome::Cancelled;
            }
            next = match next {
                Ok(Step::Go(from)) => self.step(from).await,
                Ok(Step::Probe { id, endpoint, image, left }) => {
                    let span = tracing::info_span!("container.probe", otel.kind = "client");
                    self.probe(id, endpoint, image, left, &mut hints).instrument(span).await
                }
                Ok(Step::Ready { id, endpoint, image }) => {
                    let took = self.host.clock.monotonic().saturating_sub(begun);
                    self.running(&id, endpoint, image, fresh.then_some(took));
                    return Outcome::Settled(Settled::Running { container_id: id });
                }
                Err(End::Cancelled) => return Outcome::Cancelled,
                Err(End::Failed(failure)) => return self.failed(failure),
                Err(End::Unknown(error)) => {
                    tracing::warn!(%error, "the start is put off");
                    let not_before = self.host.clock.monotonic() + UNKNOWN_PAUSE;
                    return Outcome::Settled(Settled::Retry { not_before });
                }
                Err(End::Refused(error)) => match refusals.next() {
                    None => return self.failed(failure::refused(&error)),
                    Some(pause) => self.again_after(*pause, &error).await,
                },
            };
        }
    }

    /// Looks what is there after a refusal, and goes on from that.
    async fn again_after(&self, pause: Duration, error: &RuntimeError) -> Result<Step, End> {
        tracing::warn!(%error, "refused; trying again");
        if self.cancel.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return Err(End::Cancelled);
        }
        self.host.runtime.ensure_network(self.host.scope).await?;
        let found = self.host.runtime.list(self.host.scope.cluster, Some(self.item.workspace)).await?;
        let same = found.into_iter().find(|found| found.container.pair() == self.item.pair());
        match same {
            None => {}
            Some(found) if found.phase == Phase::Running => {
                let id = found.container.container_id.clone();
                let look = self.host.runtime.inspect(&id, self.item.spec.probe_port).await?;
                if look.is_none_or(|look| look.phase != Phase::Running || look.endpoint.is_some()) {
                    return Ok(Step::Go(From::Running(id)));
                }
                // Not for a moment only: nobody can ever reach it. A daemon that was killed has left such behind.
                remove::take_away(self.host, &found.container, remove::GRACE, self.item.spec.probe_port)
                    .await?;
            }
            // Made anew: a daemon that was killed amid a start refuses this container for ever ("task already exists").
            Some(found) => {
                let id = found.container.container_id;
                if found.phase == Phase::Exited {
                    self.host.keep_log(&id, self.item.workspace, self.item.generation).await;
                }
                self.host.removed(&id).await?;
            }
        }
        Ok(Step::Go(From::Nothing))
    }

    async fn step(&mut self, from: From) -> Result<Step, End> {
        match from {
            From::Nothing => {
                self.report(Report::of(Observed::Starting(Stage::Creating)));
                self.create_and_start().await
            }
            From::Created(id) => {
                let permit = self.permit(Some(Stage::Starting)).await?;
                self.report(Report::of(Observed::Starting(Stage::Starting)));
                self.start_again(id, permit).await
            }
            From::Running(id) => self.adopt(id).await,
            From::Exited(id) => self.restart(id).await,
        }
    }

    /// A place among the starts that may go on at once. With `then`, waiting for it is told, and so is what comes after: the time
    /// that a start may take does not run while it waits for its turn.
    async fn permit(&self, then: Option<Stage>) -> Result<SemaphorePermit<'a>, End> {
        if let Ok(permit) = self.host.starts.try_acquire() {
            return Ok(permit);
        }
        if then.is_some() {
            self.report(Report::of(Observed::Starting(Stage::Queued)));
        }
        let begun = self.host.clock.monotonic();
        let permit = self.cancel.run_until_cancelled(self.host.starts.acquire()).await;
        self.phase("queue", begun);
        // The semaphore is never closed.
        let permit = permit.and_then(Result::ok).ok_or(End::Cancelled)?;
        if let Some(stage) = then {
            self.report(Report::of(Observed::Starting(stage)));
        }
        Ok(permit)
    }

    async fn directory(&self) -> Result<std::path::PathBuf, End> {
        let begun = self.host.clock.monotonic();
        let made = self.host.storage.student_dir(&self.item.student).await;
        self.phase("storage", begun);
        made.map_err(|problem| failure::storage(problem).into())
    }

    /// The share lets this container be started: nothing is started before that was read back.
    async fn fence(&self) -> Result<(), End> {
        let begun = self.host.clock.monotonic();
        let own = Token { pair: self.item.pair(), placement: Some(self.item.placement) };
        let claim = self.host.storage.claim(&self.item.student, own).await;
        self.phase("fence", begun);
        match claim {
            Ok(Claim::Held) => Ok(()),
            Ok(Claim::Fenced(later)) => {
                self.host.metrics.fenced("start");
                Err(failure::fenced(later).into())
            }
            Err(problem) => Err(failure::storage(problem).into()),
        }
    }

    /// The directory in which the container's programs say that there was input.
    async fn desk(&self) -> Result<std::path::PathBuf, End> {
        let desks = std::sync::Arc::clone(&self.host.desks);
        let (workspace, generation) = (self.item.workspace, self.item.generation);
        let made = tokio::task::spawn_blocking(move || desks.ensure(workspace, generation)).await;
        let problem = match made {
            Ok(Ok(path)) => return Ok(path),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        Err(failure::desk(&problem).into())
    }

    async fn create_and_start(&mut self) -> Result<Step, End> {
        let permit = self.permit(Some(Stage::Creating)).await?;
        let project_dir = self.directory().await?;
        let desk_dir = self.desk().await?;
        self.ordered()?;
        let plan = Plan { scope: self.host.scope, item: self.item.clone(), project_dir, desk_dir };
        let begun = self.host.clock.monotonic();
        let span = tracing::info_span!("container.create", otel.kind = "client");
        // Beside each other: a container that is made and never started writes nothing.
        let (created, fenced) = tokio::join!(
            async {
                let created = self.host.runtime.ensure_created(&plan).instrument(span).await;
                self.phase("create", begun);
                created
            },
            self.fence()
        );
        fenced?;
        if let Err(RuntimeError::ImageMissing { .. }) = created
            && !std::mem::replace(&mut self.so_far.pulled, true)
        {
            // Others need not wait for a pull.
            drop(permit);
            self.pull().await?;
            return Ok(Step::Go(From::Nothing));
        }
        let created = created?;
        if !created.new {
            tracing::info!(container = created.id, "the container was there already");
            let look = self.host.runtime.inspect(&created.id, self.item.spec.probe_port).await?;
            match look.map(|look| look.phase) {
                Some(Phase::Running) => return Ok(Step::Go(From::Running(created.id))),
                Some(Phase::Exited) => return Ok(Step::Go(From::Exited(created.id))),
                Some(Phase::Created) | None => {}
            }
        }
        let step = self.start(created.id).await;
        drop(permit);
        step
    }

    /// Waits for the image, which may be on its way already, and tells how far it is.
    async fn pull(&self) -> Result<(), End> {
        let tell = |percent| {
            self.report(Report { pull_percent: percent, ..Report::of(Observed::Starting(Stage::Pulling)) });
        };
        let begun = self.host.clock.monotonic();
        let mut pull = self.host.images.want(&self.item.spec.image).await.ok_or(End::Cancelled)?;
        tell(0);
        let (mut told, mut told_at) = (0, begun);
        loop {
            let state = pull.borrow_and_update().clone();
            let percent = match state {
                Pull::Percent(percent) => percent,
                Pull::Done(result) => {
                    self.phase("pull", begun);
                    return Ok(result?);
                }
            };
            let now = self.host.clock.monotonic();
            let worth = percent >= told + PULL_STEP.0;
            let in_time = (told_at + PULL_STEP.1).saturating_sub(now);
            if worth && in_time.is_zero() {
                tell(percent);
                (told, told_at) = (percent, now);
            }
            // Cancel-safe, all three: a watch loses nothing but what is overtaken.
            tokio::select! {
                () = self.cancel.cancelled() => return Err(End::Cancelled),
                changed = pull.changed() => if changed.is_err() {
                    // It died by a defect of the agent; the start is looked at again.
                    let problem = "the pull broke off".to_owned();
                    return Err(RuntimeError::Unreachable { operation: "pull", problem }.into());
                },
                () = tokio::time::sleep(in_time), if worth && !in_time.is_zero() => {}
            }
        }
    }

    /// Starts a container that was made before: what it stands on may have gone since.
    async fn start_again(&self, id: String, _permit: SemaphorePermit<'a>) -> Result<Step, End> {
        self.directory().await?;
        self.ordered()?;
        self.fence().await?;
        self.desk().await?;
        self.start(id).await
    }

    /// The session stands, and its set orders this start. What an earlier session ordered may be given to another host by a store that
    /// forgot it, or is about to be; the fence file alone would let both run until the next look, as it is read and written in two steps.
    fn ordered(&self) -> Result<(), End> {
        let accepted = self.accepted.borrow();
        let this = |item: &DesiredItem| {
            let runs = matches!(item.run, Run::Running { .. });
            item.workspace == self.item.workspace && item.pair() == self.item.pair() && runs
        };
        let ordered = accepted.fresh && accepted.set.iter().flat_map(|set| &set.items).any(this);
        if ordered && !self.cancel.is_cancelled() { Ok(()) } else { Err(End::Cancelled) }
    }

    /// Starts a container and finds where it is reached: one call each.
    async fn start(&self, id: String) -> Result<Step, End> {
        self.ordered()?;
        match self.host.leased(&id).await {
            Ok(()) => {}
            // It is tried again when there is a lease.
            Err(LeaseError::NotHeld) => return Err(End::Cancelled),
            Err(LeaseError::Files(error)) => return Err(failure::lease(&error).into()),
        }
        let begun = self.host.clock.monotonic();
        let span = tracing::info_span!("container.start", otel.kind = "client");
        let started = async {
            self.host.runtime.ensure_started(&id).await?;
            self.host.runtime.inspect(&id, self.item.spec.probe_port).await
        };
        let started = started.instrument(span).await;
        self.phase("start", begun);
        if let Err(RuntimeError::Remake { .. }) = started {
            self.host.removed(&id).await?;
            return Ok(Step::Go(From::Nothing));
        }
        let Some(look) = started? else { return Ok(Step::Go(From::Nothing)) };
        let Run::Running { start_timeout } = self.item.run else { return Err(End::Cancelled) };
        self.report(Report {
            image_digest: look.image_id.clone(),
            ..Report::of(Observed::Starting(Stage::Probing))
        });
        reached(id, look, start_timeout)
    }

    /// Takes over a container that runs. One that has run for longer than a start may take has answered before: a host that is
    /// busy at this moment is no reason to call it failed.
    async fn adopt(&self, id: String) -> Result<Step, End> {
        let Some(look) = self.host.runtime.inspect(&id, self.item.spec.probe_port).await? else {
            return Ok(Step::Go(From::Nothing));
        };
        let Run::Running { start_timeout } = self.item.run else { return Err(End::Cancelled) };
        let now = self.host.clock.now();
        let age = look.started_at.and_then(|at| Duration::try_from(now - at).ok()).unwrap_or_default();
        let left = start_timeout.saturating_sub(age);
        match reached(id, look, left)? {
            Step::Probe { id, endpoint, image, left } if left.is_zero() => {
                Ok(Step::Ready { id, endpoint, image })
            }
            step => Ok(step),
        }
    }

    /// Starts a program that has ended again, or gives up.
    async fn restart(&mut self, id: String) -> Result<Step, End> {
        let Some(end) = self.host.runtime.inspect(&id, self.item.spec.probe_port).await? else {
            return Ok(Step::Go(From::Nothing));
        };
        if end.phase == Phase::Running {
            return Ok(Step::Go(From::Running(id)));
        }
        let counted = !std::mem::take(&mut self.forgiven);
        let (workspace, pair) = (self.item.workspace, self.item.pair());
        let now = self.host.clock.monotonic();
        let budget = self.host.limits.budget;
        let verdict = if counted {
            self.host.exits().decide(budget, workspace, pair, &end.finished_at, now)
        } else {
            Verdict::Restart
        };
        tracing::warn!(exit_code = ?end.exit_code, oom_killed = end.oom_killed, counted, ?verdict, "the program ended");
        if verdict == Verdict::GiveUp {
            return Err(failure::crashed(&end, &self.item, budget).into());
        }
        self.host.metrics.restarted(counted);
        self.so_far.last_exit = Some((end.exit_code, end.oom_killed));
        self.report(Report {
            exit_code: end.exit_code,
            oom_killed: end.oom_killed,
            message: failure::restarting(&end),
            image_digest: end.image_id,
            ..Report::of(Observed::Restarting)
        });
        let permit = self.permit(None).await?;
        self.start_again(id, permit).await
    }

    pub(super) fn phase(&self, phase: &'static str, begun: Duration) {
        self.host.metrics.start_phase(phase, self.host.clock.monotonic().saturating_sub(begun));
    }

    fn report(&self, report: Report) {
        let traceparent = telemetry::current_traceparent();
        let mut report = Report { traceparent, ..report };
        if let (None, Some(last)) = (report.exit_code, self.so_far.last_exit) {
            (report.exit_code, report.oom_killed) = last;
        }
        self.host.reports.report(self.item.workspace, self.item.pair(), report);
    }

    /// `took`: how long the start took; `None` when it was adopted or restarted.
    fn running(&self, id: &str, endpoint: String, image: String, took: Option<Duration>) {
        tracing::info!(container = id, endpoint, ?took, "running");
        if let Some(took) = took {
            self.host.metrics.start_phase("total", took);
            self.host.metrics.started("running");
        }
        self.report(Report { image_digest: image, ..Report::of(Observed::Running { endpoint }) });
    }

    fn failed(&self, failure: Failure) -> Outcome {
        let Failure { reason, message, exit_code, oom_killed, share } = failure;
        tracing::warn!(?reason, ?exit_code, oom_killed, "failed: {message}");
        self.host.metrics.started(failure::label(reason));
        self.report(Report { exit_code, oom_killed, message, share, ..Report::of(Observed::Failed(reason)) });
        Outcome::Settled(Settled::Failed)
    }
}

/// A container that runs is probed where it is reached.
fn reached(id: String, look: Inspected, left: Duration) -> Result<Step, End> {
    match (look.phase, look.endpoint) {
        (Phase::Running, Some(endpoint)) => Ok(Step::Probe { id, endpoint, image: look.image_id, left }),
        (Phase::Running, None) => Err(RuntimeError::NoAddress.into()),
        (Phase::Exited | Phase::Created, _) => Ok(Step::Go(From::Exited(id))),
    }
}

#[cfg(test)]
mod tests;
