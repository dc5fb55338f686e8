//! One agent's stream, from its Hello to its end.

use std::time::Duration;

use carrel_common::id::NodeId;
use carrel_common::model::{ActivityReport, Container, Health, NodeFacts, Observation, Observed, Signal};
use carrel_common::telemetry::set_parent;
use carrel_common::wire::{WireError, duration, timestamp};
use carrel_proto::v1 as pb;
use carrel_proto::v1::session_request::Message as FromAgent;
use carrel_proto::v1::session_response::Message as ToAgent;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::Held;
use super::deadlines::Deadlines;
use super::logs::Tails;
use crate::app::{App, AppError, Credentials, Greeted, Greeting, HeartbeatOutcome, SentSet};
use crate::grpc::{bad_field, to_status};

/// Looks for a new version of the desired set this often, in case a nudge was lost or another replica's.
const POLL: Duration = Duration::from_secs(1);
/// An agent that does not say Hello, or take a message, for this long is gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// Ends after this many heartbeat intervals without one.
const MISSED_HEARTBEATS: u32 = 3;

/// How a session ends.
enum End {
    /// The agent closed it, or went away.
    Gone,
    /// The agent was told to dial again.
    Left,
    /// The agent is told this.
    Told(Box<Status>),
}

impl From<AppError> for End {
    fn from(error: AppError) -> Self {
        Self::Told(Box::new(to_status(error)))
    }
}

impl From<WireError> for End {
    fn from(error: WireError) -> Self {
        Self::Told(Box::new(bad_field(error)))
    }
}

pub(super) struct Session {
    app: App,
    node: NodeId,
    to: mpsc::Sender<Result<pb::SessionResponse, Status>>,
    stop: CancellationToken,
    held: Held,
    /// Cancelled when another session takes over.
    superseded: CancellationToken,
    credentials: Credentials,
    epoch: i64,
    /// The agent has had an ack in this session, and the store knows it.
    lease_settled: bool,
    /// Something was told in this session.
    observed: bool,
    /// Of the store, when the session was accepted.
    incarnation: i64,
    /// Its orders wait for an inventory that Docker has answered.
    awaited: bool,
    sent: Option<SentSet>,
    /// The images that were ordered last.
    images: Option<Vec<String>>,
    tails: Tails,
    deadlines: Deadlines,
}

impl Session {
    pub(super) fn new(
        app: App,
        credentials: Credentials,
        to: mpsc::Sender<Result<pb::SessionResponse, Status>>,
        stop: CancellationToken,
        held: Held,
    ) -> Self {
        Self {
            app,
            node: credentials.node,
            credentials,
            to,
            stop,
            held,
            superseded: CancellationToken::new(),
            epoch: 0,
            lease_settled: false,
            observed: false,
            incarnation: 0,
            awaited: false,
            sent: None,
            images: None,
            tails: Tails::default(),
            deadlines: Deadlines::default(),
        }
    }

    pub(super) async fn run(mut self, mut incoming: Streaming<pb::SessionRequest>) {
        let held = self.hold(&mut incoming).await;
        // Whoever ended it: the agent may have been restarted by the time it dials again.
        if let Err(error) = self.app.session_broke(self.node, self.epoch).await {
            tracing::warn!(node.id = %self.node, %error, "that a session ended was not noted; it shows by missing heartbeats");
        }
        match held {
            Ok(()) | Err(End::Left) => tracing::info!(node.id = %self.node, "session ended"),
            Err(End::Gone) => {
                tracing::info!(node.id = %self.node, "session ended by the agent, or the network")
            }
            Err(End::Told(status)) => {
                tracing::warn!(node.id = %self.node, code = ?status.code(), "session ended: {}", status.message());
                self.to.send(Err(*status)).await.ok();
            }
        }
    }

    async fn hold(&mut self, incoming: &mut Streaming<pb::SessionRequest>) -> Result<(), End> {
        self.greet(incoming).await?;
        let bell = self.app.nudge.node(self.node);
        let warnings = self.app.nudge.deadlines(self.node);
        let mut orders = self.app.log_tails.serve(self.node);
        self.publish().await?;
        self.order_images().await?;
        self.tell_deadlines().await?;
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let silence = self.app.settings.heartbeat_interval * MISSED_HEARTBEATS;
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                // Cancel-safe: tonic keeps a message that is not yet complete.
                message = incoming.message() => {
                    let Some(message) = message.map_err(|_| End::Gone)?.and_then(|m| m.message) else {
                        return Err(End::Gone);
                    };
                    if matches!(message, FromAgent::Heartbeat(_)) {
                        heard = Instant::now();
                    }
                    self.take(message).await?;
                }
                // Cancel-safe: a nudge that is not taken stays.
                () = bell.notified() => self.publish().await?,
                // Cancel-safe: a nudge that is not taken stays.
                () = warnings.notified() => self.tell_deadlines().await?,
                // Cancel-safe: an order that is not taken stays in its channel.
                Some(order) = orders.recv() => {
                    let request = self.tails.ask(order);
                    self.send(ToAgent::LogRequest(request)).await?;
                }
                // Cancel-safe: a tick that is not taken comes at once the next time.
                _ = poll.tick() => {
                    if heard.elapsed() > silence {
                        return Err(AppError::HeartbeatsMissed.into());
                    }
                    if !self.app.is_vouched_for(&mut self.credentials) {
                        let reason = "the authority that vouched for this session is trusted no more";
                        return self.dial_again(reason).await;
                    }
                    let orders = self.app.store.orders_state(self.node).await.map_err(AppError::from)?;
                    let Some(orders) = orders else { return Err(AppError::NodeBanned(self.node).into()) };
                    if orders.pair.incarnation != self.incarnation {
                        return self.begin_anew().await;
                    }
                    if !orders.held && self.sent.as_ref().is_none_or(|sent| sent.pair != orders.pair) {
                        self.publish().await?;
                    }
                    self.order_images().await?;
                    self.tell_deadlines().await?;
                    for cancel in self.tails.unwanted() {
                        self.send(ToAgent::LogCancel(cancel)).await?;
                    }
                }
                () = self.superseded.cancelled() => {
                    let time = self.app.store.now().await.ok().map(timestamp);
                    self.send(ToAgent::Superseded(pb::Superseded { time })).await?;
                    return Err(AppError::SessionSuperseded(self.node).into());
                }
                () = self.stop.cancelled() => {
                    self.send(ToAgent::GoAway(pb::GoAway { reason: "this replica is shutting down".into() })).await?;
                    return Ok(());
                }
            }
        }
    }

    /// Hello and Welcome.
    async fn greet(&mut self, incoming: &mut Streaming<pb::SessionRequest>) -> Result<(), End> {
        let first =
            timeout(PATIENCE, incoming.message()).await.map_err(|_| End::Gone)?.map_err(|_| End::Gone)?;
        let Some(FromAgent::Hello(hello)) = first.and_then(|m| m.message) else {
            return Err(WireError::new("message", "the first must be Hello").into());
        };
        let greeting = greeting(hello)?;
        // A Hello whose agent has gone becomes no session: it would end the one that the agent has begun meanwhile.
        let accepted = tokio::select! {
            biased;
            // Cancel-safe: what is not committed is undone; what is, the next Hello finds, and that nobody is there shows by
            // missing heartbeats.
            () = self.to.closed() => return Err(End::Gone),
            accepted = self.app.accept_session(&self.credentials, &greeting) => accepted?,
        };
        let Greeted { session, state, awaited } = accepted;
        (self.epoch, self.incarnation, self.awaited) = (session.session_epoch, state.incarnation, awaited);
        self.superseded = self.held.take_over(self.node);
        tracing::info!(
            node.id = %self.node, hostname = greeting.facts.hostname, session_epoch = self.epoch,
            containers = greeting.containers.len(), behind = state.behind.is_some(), awaited, "session accepted",
        );
        let settings = &self.app.settings;
        let welcome = pb::Welcome {
            session_epoch: session.session_epoch,
            boot_epoch: session.boot_epoch,
            incarnation: state.incarnation,
            heartbeat_interval: Some(duration(settings.heartbeat_interval)),
            cluster_id: state.cluster.to_string(),
            fence_after: Some(duration(settings.lease.fence_after)),
            stop_budget: Some(duration(settings.lease.stop_budget)),
            behind: state.behind.is_some(),
        };
        self.send(ToAgent::Welcome(welcome)).await
    }

    async fn send(&self, message: ToAgent) -> Result<(), End> {
        let message = Ok(pb::SessionResponse { message: Some(message) });
        match timeout(PATIENCE, self.to.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(End::Gone),
        }
    }

    /// Sends the node's desired set as it is now; nothing while nothing may be ordered.
    async fn publish(&mut self) -> Result<(), End> {
        let set = match self.app.desired_set(self.node, self.sent.as_ref()).await {
            Err(AppError::InventoryAwaited(_)) => return Ok(()),
            set => set?,
        };
        let Some(set) = set else { return Ok(()) };
        // A set of another incarnation belongs into a session whose Hello that one has heard.
        if set.pair.incarnation != self.incarnation {
            return self.begin_anew().await;
        }
        self.sent = Some(SentSet::from(&set));
        self.send(ToAgent::Desired(set.into())).await?;
        // An operator's word on an orphan raises the version of the set, too.
        let resolved = self.app.resolved_orphans(self.node).await?;
        if resolved.is_empty() {
            return Ok(());
        }
        let verdicts = resolved.into_iter().map(|j| j.verdict.told(j.container_id, j.reason)).collect();
        self.send(ToAgent::OrphanVerdicts(pb::OrphanVerdicts { verdicts })).await
    }

    /// Tells which images are to be ready, when that is news.
    async fn order_images(&mut self) -> Result<(), End> {
        let references = self.app.images_wanted();
        if self.images.as_ref() == Some(&references) {
            return Ok(());
        }
        self.images = Some(references.clone());
        self.send(ToAgent::ImageOrder(pb::ImageOrder { references })).await
    }

    /// Sends the deadlines that are not as they were told: all, the first time.
    async fn tell_deadlines(&mut self) -> Result<(), End> {
        let (running, now) = self.app.deadlines_on(self.node).await?;
        match self.deadlines.news(running, now) {
            Some(state) => self.send(ToAgent::IdleState(state)).await,
            None => Ok(()),
        }
    }

    /// The store was declared restored: the agent tells all that it runs once more.
    async fn begin_anew(&self) -> Result<(), End> {
        self.dial_again("the store was declared restored: tell everything anew").await
    }

    async fn dial_again(&self, reason: &str) -> Result<(), End> {
        self.send(ToAgent::GoAway(pb::GoAway { reason: reason.into() })).await?;
        Err(End::Left)
    }

    async fn take(&mut self, message: FromAgent) -> Result<(), End> {
        match message {
            FromAgent::Hello(_) => Err(WireError::new("message", "a second Hello").into()),
            FromAgent::Heartbeat(heartbeat) => self.heartbeat(heartbeat).await,
            FromAgent::Observations(observations) => self.observations(observations).await,
            FromAgent::Orphans(report) => self.orphans(report).await,
            FromAgent::LogPiece(piece) => match self.tails.take(piece) {
                Some(cancel) => self.send(ToAgent::LogCancel(cancel)).await,
                None => Ok(()),
            },
            FromAgent::IdleStateAck(ack) => {
                let arrived = self.deadlines.acked(ack.sequence);
                Ok(self.app.ack_warnings(&arrived).await?)
            }
            FromAgent::Withheld(withheld) => {
                Ok(self.app.withhold(self.node, self.epoch, withheld.stops).await?)
            }
            FromAgent::DesiredRefused(refused) => self.refused(refused).await,
        }
    }

    async fn refused(&self, refused: pb::DesiredRefused) -> Result<(), End> {
        tracing::error!(node.id = %self.node, ?refused, "the agent refused a desired set");
        let (offered, accepted) = (refused.offered.unwrap_or_default(), refused.accepted.unwrap_or_default());
        let refused = (offered.into(), accepted.into());
        Ok(self.app.set_refused(self.node, refused, self.incarnation).await?)
    }

    async fn heartbeat(&mut self, heartbeat: pb::Heartbeat) -> Result<(), End> {
        let health = |part: Option<pb::ComponentHealth>| Health::try_from(part.unwrap_or_default());
        let (docker, storage) = (health(heartbeat.docker)?, health(heartbeat.storage)?);
        let activity: Vec<ActivityReport> =
            heartbeat.activity.into_iter().map(TryInto::try_into).collect::<Result<_, WireError>>()?;
        if activity.iter().any(|report| report.signal != Signal::EditorInput) {
            return Err(
                WireError::new("heartbeat.activity.signal", "an agent sees EDITOR_INPUT alone").into()
            );
        }
        // Before the heartbeat's own commit: the ack says that all is kept, and it itself that the node has told all it saw.
        self.app.record_seen(self.node, &activity).await?;
        if let Some(images) = heartbeat.images
            && !self.app.note_images(self.node, self.epoch, &images.references).await?
        {
            return Err(AppError::SessionSuperseded(self.node).into());
        }
        match self.app.heartbeat_node(self.node, self.epoch, &docker, &storage).await? {
            HeartbeatOutcome::Superseded => Err(AppError::SessionSuperseded(self.node).into()),
            outcome @ (HeartbeatOutcome::Committed(count) | HeartbeatOutcome::BackFromSilence(count)) => {
                if heartbeat.last_acked > 0 && !std::mem::replace(&mut self.lease_settled, true) {
                    self.app.settle_lease(self.node, self.epoch).await?;
                }
                let ack = pb::HeartbeatAck { sequence: heartbeat.sequence, count: Some(count.into()) };
                self.send(ToAgent::HeartbeatAck(ack)).await?;
                let told_before = heartbeat.sequence > 1 || self.observed;
                if matches!(outcome, HeartbeatOutcome::BackFromSilence(_)) && told_before {
                    // What was decided during the silence has to meet everything that is true now.
                    return Err(AppError::BackFromSilence.into());
                }
                if self.awaited && docker.problem.is_none() {
                    // Now its inventory tells what is there and what is not.
                    return Err(AppError::DockerIsBack.into());
                }
                Ok(())
            }
        }
    }

    async fn observations(&mut self, message: pb::Observations) -> Result<(), End> {
        let batch: Vec<Observation> =
            message.observations.into_iter().map(Observation::try_from).collect::<Result<_, _>>()?;
        // The end of a start belongs to the trace of the call that asked for it.
        let spans: Vec<tracing::Span> = batch
            .iter()
            .filter(|o| matches!(o.state, Observed::Running { .. }) && !o.traceparent.is_empty())
            .map(|o| {
                let span = tracing::info_span!("workspace.ready", workspace.id = %o.workspace, generation = o.generation.0, node.id = %self.node);
                set_parent(&span, &o.traceparent);
                span
            })
            .collect();
        self.observed = true;
        let acked = self.app.observe(self.node, self.epoch, &batch).await?;
        drop(spans);
        let acked = acked
            .into_iter()
            .map(|(uid, sequence)| pb::observation_ack::Acked { workspace_uid: uid.to_string(), sequence })
            .collect();
        self.send(ToAgent::ObservationAck(pb::ObservationAck { acked })).await
    }

    async fn orphans(&mut self, report: pb::OrphanReport) -> Result<(), End> {
        let containers: Vec<Container> =
            report.containers.into_iter().map(Container::try_from).collect::<Result<_, _>>()?;
        let judged = self.app.judge_report(self.node, self.epoch, &containers, &report.withheld).await?;
        let verdicts = judged.into_iter().map(|j| j.verdict.told(j.container_id, j.reason)).collect();
        self.send(ToAgent::OrphanVerdicts(pb::OrphanVerdicts { verdicts })).await
    }
}

fn greeting(hello: pb::Hello) -> Result<Greeting, carrel_common::wire::WireError> {
    use carrel_common::wire::WireError;
    let cluster = (!hello.cluster_id.is_empty()).then(|| hello.cluster_id.parse()).transpose();
    Ok(Greeting {
        facts: NodeFacts::try_from(hello.facts.unwrap_or_default())?,
        process_start: hello.process_start,
        process: hello.process_id,
        cluster: cluster
            .map_err(|e: carrel_common::id::InvalidId| WireError::new("hello.cluster_id", e.0))?,
        accepted: hello.accepted.map(Into::into),
        acked: hello.acked.map(Into::into),
        containers: hello.inventory.into_iter().map(Container::try_from).collect::<Result<_, _>>()?,
        current: hello.inventory_current,
    })
}
