//! One session: from Hello to the end of the stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use carrel_common::model::{DesiredSet, Health, Verdict};
use carrel_common::wire::{WireError, span_of};
use carrel_proto::v1 as pb;
use carrel_proto::v1::agent_service_client::AgentServiceClient;
use carrel_proto::v1::session_request::Message as Up;
use carrel_proto::v1::session_response::Message as Down;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

use super::accept::{Offer, judge};
use super::activity::ToldActivity;
use super::backoff::in_haste;
use super::images::ImagesTold;
use super::{Beginning, Ending, Session, logs};
use crate::activity::Seen;
use crate::driver::{Accepted, EngineState, Orphans};
use crate::enroll::{Identity, Proof};
use crate::facts;
use crate::fence::Terms;
use crate::fence::lease::{LeaseError, Standing};
use crate::runtime::Runtime;

/// The control plane answers a Hello after a transaction.
const WELCOME_WITHIN: Duration = Duration::from_secs(10);

/// An attempt at a session: dialling, Docker's answer, the Welcome.
const ATTEMPT: Duration = Duration::from_secs(16);

/// Messages that may wait for the network. Reports replace each other, so a healthy stream never comes near.
const WAITING: usize = 256;

/// Pieces of logs that may wait, each up to 64 KiB: a log is read no faster than it is sent.
const LOG_PIECES_WAITING: usize = 8;

/// Orphans are reported again this often: an operator may have decided meanwhile.
const ORPHANS_AGAIN: Duration = Duration::from_secs(30);

/// A stream ends after so many heartbeat intervals without an ack.
const SILENT_INTERVALS: u32 = 3;

/// Docker is asked before a Hello, for so long at most.
const ENGINE_WITHIN: Duration = Duration::from_secs(3);

struct Live<'a, R> {
    session: &'a mut Session<R>,
    up: mpsc::Sender<pb::SessionRequest>,
    log_pieces: mpsc::Sender<pb::SessionRequest>,
    log_tasks: JoinSet<()>,
    log_handles: BTreeMap<i64, AbortHandle>,
    interval: Duration,
    terms: Terms,
    sequence: i64,
    last_acked: i64,
    /// When each heartbeat that is not acked yet was sent, by the clock of the lease.
    sent_at: BTreeMap<i64, Duration>,
    progress_at: Duration,
    was_healthy: bool,
    images: ImagesTold,
    told_no_orphans: bool,
    activity: ToldActivity,
}

fn status(status: Status) -> Ending {
    Ending::Status(Box::new(status))
}

impl<R: Runtime> Session<R> {
    /// How it ended, and whether it ever stood.
    pub(super) async fn one(
        &mut self,
        endpoint: &Endpoint,
        beginning: Beginning,
        stop: &CancellationToken,
    ) -> (Ending, bool) {
        let within = in_haste(ATTEMPT, self.host.lease.left());
        let opening = tokio::time::timeout(within, self.open(endpoint, beginning));
        let (mut live, mut down) = match stop.run_until_cancelled(opening).await {
            None => return (Ending::Stopped, false),
            Some(Err(_)) => return (Ending::NoWelcome, false),
            Some(Ok(Err(ending))) => return (ending, false),
            Some(Ok(Ok(opened))) => opened,
        };
        (live.hold(&mut down, stop).await, true)
    }

    async fn open(
        &mut self,
        endpoint: &Endpoint,
        beginning: Beginning,
    ) -> Result<(Live<'_, R>, Streaming<pb::SessionResponse>), Ending> {
        let identity = Arc::clone(&self.identity.borrow());
        let dialled = identity.endpoint(endpoint).map_err(Ending::Unreachable)?;
        let channel = dialled.connect().await.map_err(Ending::Unreachable)?;
        let (up, from_up) = mpsc::channel(WAITING);
        let (log_pieces, from_logs) = mpsc::channel(LOG_PIECES_WAITING);
        let hello = self.hello(beginning).await;
        up.try_send(message(Up::Hello(hello))).map_err(|_| Ending::Stuck)?;
        let outgoing =
            futures_util::stream::select(ReceiverStream::new(from_up), ReceiverStream::new(from_logs));
        let request = with_secret(&identity, Request::new(outgoing))?;
        let (down, welcome) = tokio::time::timeout(WELCOME_WITHIN, first_answer(channel, request))
            .await
            .map_err(|_| Ending::NoWelcome)??;
        let (interval, terms) = self.check_welcome(&welcome)?;
        let now = self.host.clock.monotonic();
        let (node, epoch, boot) = (identity.node, welcome.session_epoch, welcome.boot_epoch);
        tracing::info!(node.id = %node, endpoint = %endpoint.uri(), epoch, boot, ?interval, ?terms, "session stands");
        if welcome.behind {
            tracing::error!(
                "the control plane's database has gone back in time; all runs on, and nothing is ordered until an operator has \
                 declared it restored"
            );
        }
        if let Some(facts) = &self.engine.borrow().facts {
            self.witness.bound_to(&facts.id);
            self.host.belongs_to(&facts.id);
        }
        self.host.reports.renew();
        let live = Live {
            session: self,
            up,
            log_pieces,
            log_tasks: JoinSet::new(),
            log_handles: BTreeMap::new(),
            interval,
            terms,
            sequence: 0,
            last_acked: 0,
            sent_at: BTreeMap::new(),
            progress_at: now,
            was_healthy: true,
            images: ImagesTold::default(),
            told_no_orphans: false,
            activity: ToldActivity::default(),
        };
        Ok((live, down))
    }

    async fn hello(&mut self, beginning: Beginning) -> pb::Hello {
        // All that runs is told: what was launched up to the end of the session before is in a listing that began later. A node
        // whose Docker is away says Hello, too.
        let tells_all = |engine: &EngineState| engine.listed_at.is_some_and(|at| at >= beginning.since);
        let asked = self.engine.wait_for(|engine| engine.problem.is_some() || tells_all(engine));
        let _ = tokio::time::timeout(ENGINE_WITHIN, asked).await;
        let engine = self.engine.borrow().clone();
        let testimony = self.witness.testimony();
        pb::Hello {
            facts: Some(facts::of_node(&self.host_facts, engine.facts.as_ref(), &self.told).into()),
            inventory_current: engine.problem.is_none() && tells_all(&engine),
            inventory: engine.inventory.into_iter().map(Into::into).collect(),
            accepted: testimony.accepted.map(Into::into),
            process_start: beginning.process_start,
            cluster_id: self.host.scope.cluster.to_string(),
            process_id: self.process.to_string(),
            acked: testimony.acked.map(Into::into),
        }
    }

    fn check_welcome(&self, welcome: &pb::Welcome) -> Result<(Duration, Terms), Ending> {
        let ours = self.host.scope.cluster.to_string();
        if welcome.cluster_id != ours {
            return Err(Ending::OtherCluster { ours, theirs: welcome.cluster_id.clone() });
        }
        let some_time = |field, span: &Option<_>| match span.as_ref().map(|span| span_of(field, span)) {
            Some(Ok(span)) if !span.is_zero() => Ok(span),
            Some(Err(error)) => Err(error),
            Some(Ok(_)) | None => Err(WireError::new(field, "must be longer than nothing")),
        };
        let interval = some_time("welcome.heartbeat_interval", &welcome.heartbeat_interval)?;
        let terms = Terms {
            fence_after: some_time("welcome.fence_after", &welcome.fence_after)?,
            stop_budget: some_time("welcome.stop_budget", &welcome.stop_budget)?,
        };
        Ok((interval, terms))
    }
}

/// In `--dev` the secret says who calls; over TLS the certificate has.
fn with_secret<T>(identity: &Identity, mut request: Request<T>) -> Result<Request<T>, Ending> {
    let Proof::Secret(secret) = &identity.proof else { return Ok(request) };
    let value = |text: &str| {
        AsciiMetadataValue::try_from(text).map_err(|_| WireError::new("secret", "is not printable ASCII"))
    };
    let metadata = request.metadata_mut();
    metadata.insert("carrel-node-id", value(&identity.node.to_string())?);
    metadata.insert("carrel-node-secret", value(&secret.0)?);
    Ok(request)
}

type Outgoing =
    futures_util::stream::Select<ReceiverStream<pb::SessionRequest>, ReceiverStream<pb::SessionRequest>>;

async fn first_answer(
    channel: Channel,
    request: Request<Outgoing>,
) -> Result<(Streaming<pb::SessionResponse>, pb::Welcome), Ending> {
    let mut down = AgentServiceClient::new(channel)
        .max_decoding_message_size(64 << 20)
        .session(request)
        .await
        .map_err(status)?
        .into_inner();
    match down.message().await.map_err(status)?.and_then(|answer| answer.message) {
        Some(Down::Welcome(welcome)) => Ok((down, welcome)),
        Some(Down::GoAway(leaving)) => Err(Ending::GoAway(leaving.reason)),
        Some(_) => Err(Ending::NoWelcome),
        None => Err(Ending::Closed),
    }
}

fn message(message: Up) -> pb::SessionRequest {
    pb::SessionRequest { message: Some(message) }
}

impl<R: Runtime> Live<'_, R> {
    async fn hold(&mut self, down: &mut Streaming<pb::SessionResponse>, stop: &CancellationToken) -> Ending {
        let mut beat_in = Duration::ZERO;
        let mut beat_from = self.now();
        let mut orphans_from = self.now();
        let mut images = self.session.host.images.here();
        if let Err(ending) = self.withheld() {
            return ending;
        }
        loop {
            let now = self.now();
            let beat = beat_in.saturating_sub(now.saturating_sub(beat_from));
            let orphans = ORPHANS_AGAIN.saturating_sub(now.saturating_sub(orphans_from));
            let silent =
                (self.interval * SILENT_INTERVALS).saturating_sub(now.saturating_sub(self.progress_at));
            let lease = self.session.host.lease.left().unwrap_or(Duration::MAX);
            // Cancel-safe: `message`, `changed`, `news` and `join_next` lose nothing when another arm is taken.
            let done = tokio::select! {
                () = stop.cancelled() => Err(Ending::Stopped),
                answer = down.message() => match answer {
                    Err(error) => Err(status(error)),
                    Ok(None) => Err(Ending::Closed),
                    Ok(Some(pb::SessionResponse { message: None })) => Ok(()),
                    Ok(Some(pb::SessionResponse { message: Some(answer) })) => self.answer(answer).await,
                },
                () = self.session.host.reports.news() => self.observations(),
                () = self.session.host.desks.news() => self.activity_seen(),
                () = tokio::time::sleep(beat) => {
                    (beat_from, beat_in) = (self.now(), self.interval.mul_f64(0.9 + 0.2 * rand::random::<f64>()));
                    self.heartbeat()
                }
                Ok(()) = self.session.engine.changed() => self.engine_changed(),
                // At once: a placement waits for nothing that is here.
                Ok(()) = images.changed() => self.heartbeat(),
                // The share's, too: else a node that was mended would wait for the next heartbeat.
                () = self.session.host.storage.turned() => self.heartbeat(),
                Ok(()) = self.session.withheld.changed() => self.withheld(),
                Ok(()) = self.session.orphans.changed() => {
                    orphans_from = self.now();
                    self.orphans()
                }
                () = tokio::time::sleep(orphans) => {
                    orphans_from = self.now();
                    self.orphans()
                }
                () = tokio::time::sleep(silent) => Err(Ending::Silent),
                () = tokio::time::sleep(lease) => self.still_leased(),
                Some(_) = self.log_tasks.join_next() => {
                    self.log_handles.retain(|_, handle| !handle.is_finished());
                    Ok(())
                }
            };
            if let Err(ending) = done {
                return ending;
            }
        }
    }

    fn now(&self) -> Duration {
        self.session.host.clock.monotonic()
    }

    /// Never waits: a peer that takes no messages must not hold up the rest.
    fn send(&self, up: Up) -> Result<(), Ending> {
        self.up.try_send(message(up)).map_err(|_| Ending::Stuck)
    }

    async fn answer(&mut self, answer: Down) -> Result<(), Ending> {
        match answer {
            Down::HeartbeatAck(ack) => {
                if let Some(count) = ack.count {
                    self.session.witness.acked(count.into());
                }
                self.acked(ack.sequence).await
            }
            Down::Desired(desired) => self.desired(desired.try_into()?),
            Down::ObservationAck(ack) => {
                for acked in ack.acked {
                    let workspace = acked.workspace_uid.parse();
                    let workspace =
                        workspace.map_err(|_| WireError::new("acked.workspace_uid", "is not a UUID"))?;
                    self.session.host.reports.ack(workspace, acked.sequence);
                }
                Ok(())
            }
            Down::OrphanVerdicts(verdicts) => {
                let told = verdicts.verdicts.into_iter();
                let verdicts = told
                    .map(|told| Verdict::try_from(&told).map(|verdict| (told.container_id, verdict)))
                    .collect::<Result<Vec<_>, WireError>>()?;
                // The driver takes them without delay; it is gone only when the agent stops.
                self.session.verdicts.send(verdicts).await.map_err(|_| Ending::Stopped)
            }
            Down::LogRequest(request) => self.log(request),
            Down::LogCancel(cancel) => {
                if let Some(handle) = self.log_handles.remove(&cancel.request) {
                    handle.abort();
                }
                Ok(())
            }
            Down::ImageOrder(order) => {
                self.session.host.images.order(order.references);
                Ok(())
            }
            Down::IdleState(state) => self.idle_state(state),
            Down::Superseded(_) => Err(Ending::Superseded),
            Down::GoAway(leaving) => Err(Ending::GoAway(leaving.reason)),
            Down::Welcome(_) => Err(WireError::new("welcome", "came twice").into()),
        }
    }

    /// The lease is counted from the sending of what was acked, whenever the ack arrives.
    async fn acked(&mut self, sequence: i64) -> Result<(), Ending> {
        let Some(sent_at) = self.sent_at.remove(&sequence) else { return Ok(()) };
        self.sent_at.retain(|other, _| *other > sequence);
        self.last_acked = self.last_acked.max(sequence);
        self.progress_at = self.now();
        self.images.ack(sequence);
        self.session.host.desks.told(self.activity.acked(sequence));
        let (lease, terms) = (std::sync::Arc::clone(&self.session.host.lease), self.terms);
        match tokio::task::spawn_blocking(move || lease.renew(sent_at, terms)).await {
            Ok(Ok(())) => {}
            Ok(Err(LeaseError::NotHeld)) => return Err(Ending::LeaseOver),
            Ok(Err(LeaseError::Files(error))) => {
                tracing::error!(%error, "the lease is not renewed: its file cannot be written");
            }
            Err(error) => tracing::error!(%error, "the lease is not renewed; this is a defect of the agent"),
        }
        Ok(())
    }

    /// An agent that slept through the end of its lease has to end everything before it says another word.
    fn still_leased(&self) -> Result<(), Ending> {
        if self.session.host.lease.standing() == Standing::Over { Err(Ending::LeaseOver) } else { Ok(()) }
    }

    fn desired(&mut self, offered: DesiredSet) -> Result<(), Ending> {
        let holds = self.session.accepted.borrow().set.clone();
        let floor = self.session.witness.testimony().accepted;
        match judge(holds.as_deref(), floor, &offered) {
            Offer::Take => {
                self.session.witness.accepted(offered.pair);
                tracing::debug!(pair = ?offered.pair, items = offered.items.len(), "desired set taken");
                let set = Some(Arc::new(offered));
                let taken_at = self.now();
                self.session.accepted.send_replace(Accepted { set, fresh: true, taken_at });
            }
            Offer::Same => self.session.accepted.send_modify(|accepted| accepted.fresh = true),
            Offer::Refuse { accepted } => {
                tracing::warn!(offered = ?offered.pair, ?accepted, "desired set refused: older, or other than the accepted one");
                self.session.host.metrics.refused_set();
                let offered = Some(offered.pair.into());
                self.send(Up::DesiredRefused(pb::DesiredRefused {
                    offered,
                    accepted: Some(accepted.into()),
                }))?;
            }
        }
        Ok(())
    }

    /// The ack is what a warning counts as given from.
    fn idle_state(&self, state: pb::IdleState) -> Result<(), Ending> {
        let pb::IdleState { sequence, workspaces } = state;
        let said = workspaces.into_iter().map(TryInto::try_into).collect::<Result<_, WireError>>()?;
        self.session.host.deadlines.take(said, self.now());
        self.send(Up::IdleStateAck(pb::IdleStateAck { sequence }))
    }

    fn observations(&self) -> Result<(), Ending> {
        let unsent = self.session.host.reports.take_unsent(self.now());
        if unsent.is_empty() {
            return Ok(());
        }
        let observations = unsent.into_iter().map(Into::into).collect();
        self.send(Up::Observations(pb::Observations { observations }))
    }

    fn docker_health(&self) -> Health {
        let engine = self.session.engine.borrow();
        let away = |why: String| Some(("DOCKER_UNREACHABLE".to_owned(), why));
        let problem = match (&engine.problem, engine.asked_at) {
            (Some(problem), _) if engine.other_daemon => Some((
                "DOCKER_CHANGED".to_owned(),
                format!("{problem}; give it back its data directory, or enrol this host anew"),
            )),
            (Some(problem), _) => away(format!("{problem}; start the Docker daemon or look at its log")),
            (None, None) => away("Docker has not been asked yet".to_owned()),
            (None, Some(_)) => None,
        };
        let age = engine.asked_at.map(|at| self.now().saturating_sub(at)).unwrap_or_default();
        Health { problem, age, latency: None }
    }

    fn heartbeat(&mut self) -> Result<(), Ending> {
        self.still_leased()?;
        self.sequence += 1;
        self.sent_at.insert(self.sequence, self.session.host.lease.now());
        let activity = self.activity.tell(&self.session.host.desks, self.sequence, self.now());
        let docker = self.docker_health();
        let storage = self.session.host.storage.health();
        self.was_healthy = docker.problem.is_none();
        let here = self.session.host.images.here();
        let images = self.images.news(self.sequence, here.borrow().as_ref());
        self.send(Up::Heartbeat(pb::Heartbeat {
            sequence: self.sequence,
            last_acked: self.last_acked,
            docker: Some(docker.into()),
            storage: Some(storage.into()),
            images,
            activity: activity.into_iter().map(Into::into).collect(),
        }))
    }

    /// What is seen while a warning is out is told at once: the next heartbeat could be too late for the deadline.
    fn activity_seen(&mut self) -> Result<(), Ending> {
        let host = &self.session.host;
        let warned = |seen: &Seen| host.deadlines.is_warned(seen.workspace, seen.generation);
        if self.activity.untold(&host.desks).iter().any(warned) { self.heartbeat() } else { Ok(()) }
    }

    /// Docker's coming and going is told at once, not with the next heartbeat.
    fn engine_changed(&mut self) -> Result<(), Ending> {
        let healthy = self.docker_health().problem.is_none();
        if healthy == self.was_healthy { Ok(()) } else { self.heartbeat() }
    }

    /// How many stops the breaker holds back; told in each session, also when there are none.
    fn withheld(&mut self) -> Result<(), Ending> {
        let stops = *self.session.withheld.borrow_and_update();
        self.send(Up::Withheld(pb::Withheld { stops: i32::try_from(stops).unwrap_or(i32::MAX) }))
    }

    fn orphans(&mut self) -> Result<(), Ending> {
        let orphans = self.session.orphans.borrow_and_update().clone();
        // By the set of a session before this one they may be named.
        let Some(Orphans { containers, withheld }) = orphans.filter(|_| self.session.accepted.borrow().fresh)
        else {
            return Ok(());
        };
        // That there are none is told as well, once: the control plane forgets what is no longer reported. Only Docker can
        // know it.
        let none = containers.is_empty();
        if none && (self.told_no_orphans || self.docker_health().problem.is_some()) {
            return Ok(());
        }
        self.told_no_orphans = none;
        let containers = containers.into_iter().map(Into::into).collect();
        self.send(Up::Orphans(pb::OrphanReport { containers, withheld }))
    }

    fn log(&mut self, request: pb::LogRequest) -> Result<(), Ending> {
        let workspace = request.workspace_uid.parse();
        let workspace =
            workspace.map_err(|_| WireError::new("log_request.workspace_uid", "is not a UUID"))?;
        let wanted = logs::Wanted {
            request: request.request,
            workspace,
            lines: u32::try_from(request.lines).unwrap_or(0),
            follow: request.follow,
        };
        let (host, pieces) = (Arc::clone(&self.session.host), self.log_pieces.clone());
        let handle = self.log_tasks.spawn(async move { logs::tell(&*host, wanted, pieces).await });
        self.log_handles.insert(request.request, handle);
        Ok(())
    }
}
