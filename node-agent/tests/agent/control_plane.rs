//! A control plane of one node: keeps what the agent told it, and sends the sets a test makes up.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use carrel_common::id::{ClusterId, Generation, NodeId, WorkspaceUid};
use carrel_common::model::{DesiredItem, DesiredPair, DesiredSet, Observation};
use carrel_proto::v1 as pb;
use carrel_proto::v1::agent_service_server::{AgentService, AgentServiceServer};
use carrel_proto::v1::session_request::Message as Up;
use carrel_proto::v1::session_response::Message as Down;
use futures_util::Stream;
use node_agent::fence::Terms;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};

/// Everything may be slow on a machine that builds at the same time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What the agent said.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) hellos: Vec<pb::Hello>,
    pub(crate) observations: Vec<Observation>,
    pub(crate) heartbeats: Vec<pb::Heartbeat>,
    pub(crate) orphans: Vec<pb::OrphanReport>,
    pub(crate) withheld: Vec<i32>,
    pub(crate) refused: Vec<pb::DesiredRefused>,
    pub(crate) pieces: Vec<pb::LogPiece>,
    pub(crate) idle_acks: Vec<i64>,
}

#[derive(Debug)]
struct State {
    cluster: ClusterId,
    node: NodeId,
    secret: String,
    known: bool,
    set: DesiredSet,
    send_sets: bool,
    ack_heartbeats: bool,
    terms: Terms,
    heard: Heard,
    verdict: Option<pb::orphan_verdict::Verdict>,
    beat_each: Duration,
    session: Option<mpsc::UnboundedSender<Result<pb::SessionResponse, Status>>>,
    sessions: i64,
}

/// The control plane; ends when dropped.
#[derive(Debug)]
pub(crate) struct ControlPlane {
    shared: Arc<Shared>,
    pub(crate) url: String,
    _server: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    news: watch::Sender<u64>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
    fn poke(&self) {
        self.news.send_modify(|n| *n += 1);
    }
}

fn down(message: Down) -> Result<pb::SessionResponse, Status> {
    Ok(pb::SessionResponse { message: Some(message) })
}

impl ControlPlane {
    pub(crate) async fn start() -> Self {
        let state = State {
            cluster: ClusterId::new(),
            node: NodeId::new(),
            secret: "secret".into(),
            known: true,
            set: DesiredSet::new(DesiredPair { incarnation: 1, generation: 1 }, Vec::new()),
            send_sets: true,
            ack_heartbeats: true,
            terms: Terms { fence_after: Duration::from_secs(600), stop_budget: Duration::from_secs(30) },
            heard: Heard::default(),
            verdict: Some(pb::orphan_verdict::Verdict::Hold),
            beat_each: Duration::from_millis(500),
            session: None,
            sessions: 0,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), news: watch::Sender::new(0) });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let service = AgentServiceServer::new(Service(Arc::clone(&shared)));
        let mut server = JoinSet::new();
        server.spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await
                .expect("serve");
        });
        Self { shared, url, _server: server }
    }

    pub(crate) fn cluster(&self) -> ClusterId {
        self.shared.lock().cluster
    }

    pub(crate) fn node(&self) -> NodeId {
        self.shared.lock().node
    }

    /// A new set with these items, one generation up.
    pub(crate) fn want(&self, items: Vec<DesiredItem>) {
        let mut state = self.shared.lock();
        let DesiredPair { incarnation, generation } = state.set.pair;
        state.set = DesiredSet::new(DesiredPair { incarnation, generation: generation + 1 }, items);
        let set = state.set.clone();
        state.send(Down::Desired(set.into()));
    }

    /// Sends a set as it is, whatever its pair.
    pub(crate) fn offer(&self, set: DesiredSet) {
        self.shared.lock().send(Down::Desired(set.into()));
    }

    pub(crate) fn set(&self) -> DesiredSet {
        self.shared.lock().set.clone()
    }

    /// Whether a session gets a set at its start.
    pub(crate) fn send_sets(&self, send: bool) {
        self.shared.lock().send_sets = send;
    }

    /// Whether heartbeats are acked, as they are not while the database is away.
    pub(crate) fn ack_heartbeats(&self, ack: bool) {
        self.shared.lock().ack_heartbeats = ack;
    }

    /// What the sessions from now on promise.
    pub(crate) fn lease_for(&self, terms: Terms) {
        self.shared.lock().terms = terms;
    }

    pub(crate) fn answer_orphans(&self, verdict: Option<pb::orphan_verdict::Verdict>) {
        self.shared.lock().verdict = verdict;
    }

    /// Forgets the node, as an emptied database does.
    pub(crate) fn forget_node(&self) {
        let mut state = self.shared.lock();
        state.known = false;
        state.session = None;
    }

    /// Breaks the session off.
    pub(crate) fn hang_up(&self) {
        self.shared.lock().session = None;
    }

    /// The heartbeat interval of the sessions from now on.
    pub(crate) fn beat_each(&self, interval: Duration) {
        self.shared.lock().beat_each = interval;
    }

    pub(crate) fn send(&self, message: Down) {
        self.shared.lock().send(message);
    }

    /// Waits until `look` finds something in what was heard.
    pub(crate) async fn hear<T>(&self, what: &str, look: impl Fn(&Heard) -> Option<T>) -> T {
        let mut news = self.shared.news.subscribe();
        let wait = async {
            loop {
                if let Some(found) = look(&self.shared.lock().heard) {
                    return found;
                }
                news.changed().await.expect("the sender lives as long as this");
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(found) => found,
            Err(_) => {
                let heard = self.heard(|heard| format!("{:#?}", heard.observations));
                panic!("never heard {what}; observations: {heard}")
            }
        }
    }

    /// What was heard so far.
    pub(crate) fn heard<T>(&self, look: impl Fn(&Heard) -> T) -> T {
        look(&self.shared.lock().heard)
    }

    /// The newest observation of an incarnation that `is` holds of.
    pub(crate) async fn observe(
        &self,
        what: &str,
        (workspace, generation): (WorkspaceUid, i64),
        is: impl Fn(&Observation) -> bool,
    ) -> Observation {
        let about = |o: &&Observation| o.workspace == workspace && o.generation == Generation(generation);
        self.hear(what, |heard| heard.observations.iter().rev().filter(about).find(|o| is(o)).cloned()).await
    }
}

impl State {
    fn send(&mut self, message: Down) {
        if let Some(session) = &self.session
            && session.send(down(message)).is_err()
        {
            self.session = None;
        }
    }
}

struct Service(Arc<Shared>);

#[tonic::async_trait]
impl AgentService for Service {
    async fn enroll(&self, _: Request<pb::EnrollRequest>) -> Result<Response<pb::EnrollResponse>, Status> {
        let state = self.0.lock();
        Ok(Response::new(pb::EnrollResponse {
            node_id: state.node.to_string(),
            secret: state.secret.clone(),
            cluster_id: state.cluster.to_string(),
            ..pb::EnrollResponse::default()
        }))
    }

    async fn renew_certificate(
        &self,
        _: Request<pb::RenewCertificateRequest>,
    ) -> Result<Response<pb::RenewCertificateResponse>, Status> {
        Err(Status::unimplemented("plaintext"))
    }

    type SessionStream = Pin<Box<dyn Stream<Item = Result<pb::SessionResponse, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (to_agent, outgoing) = mpsc::unbounded_channel();
        {
            let mut state = self.0.lock();
            let is = |key: &str, value: &str| {
                request.metadata().get(key).is_some_and(|v| v.as_bytes() == value.as_bytes())
            };
            let (node, secret) = (state.node.to_string(), state.secret.clone());
            if !state.known || !is("carrel-node-id", &node) || !is("carrel-node-secret", &secret) {
                return Err(Status::unauthenticated("unknown node"));
            }
            state.sessions += 1;
            state.session = Some(to_agent);
        }
        let (shared, incoming) = (Arc::clone(&self.0), request.into_inner());
        let epoch = shared.lock().sessions;
        // Lives as long as the stream that it feeds.
        let mut reader = JoinSet::new();
        reader.spawn(listen(shared, incoming, epoch));
        let outgoing = UnboundedReceiverStream::new(outgoing);
        let stream = futures_util::stream::unfold((outgoing, reader), |(mut outgoing, reader)| async move {
            use futures_util::StreamExt as _;
            outgoing.next().await.map(|item| (item, (outgoing, reader)))
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

async fn listen(shared: Arc<Shared>, mut incoming: Streaming<pb::SessionRequest>, epoch: i64) {
    while let Ok(Some(request)) = incoming.message().await {
        let Some(message) = request.message else { continue };
        let mut state = shared.lock();
        if state.sessions != epoch {
            return;
        }
        state.take(message, epoch);
        drop(state);
        shared.poke();
    }
}

impl State {
    fn take(&mut self, message: Up, epoch: i64) {
        match message {
            Up::Hello(hello) => {
                self.heard.hellos.push(hello);
                self.send(Down::Welcome(pb::Welcome {
                    session_epoch: epoch,
                    boot_epoch: 1,
                    incarnation: 1,
                    heartbeat_interval: Some(prost_duration(self.beat_each)),
                    cluster_id: self.cluster.to_string(),
                    fence_after: Some(prost_duration(self.terms.fence_after)),
                    stop_budget: Some(prost_duration(self.terms.stop_budget)),
                    ..pb::Welcome::default()
                }));
                if self.send_sets {
                    let set = self.set.clone();
                    self.send(Down::Desired(set.into()));
                }
            }
            Up::Heartbeat(beat) => {
                let ack = pb::HeartbeatAck { sequence: beat.sequence, count: None };
                self.heard.heartbeats.push(beat);
                if self.ack_heartbeats {
                    self.send(Down::HeartbeatAck(ack));
                }
            }
            Up::Observations(batch) => {
                let acked = batch.observations.iter().map(|o| pb::observation_ack::Acked {
                    workspace_uid: o.workspace_uid.clone(),
                    sequence: o.sequence,
                });
                let ack = pb::ObservationAck { acked: acked.collect() };
                let parsed =
                    batch.observations.into_iter().map(|o| Observation::try_from(o).expect("well formed"));
                self.heard.observations.extend(parsed);
                self.send(Down::ObservationAck(ack));
            }
            Up::Orphans(report) => {
                let verdict = self.verdict;
                let of = |c: &pb::Container| {
                    let mut answer = pb::OrphanVerdict {
                        container_id: c.container_id.clone(),
                        reason: "test".into(),
                        ..Default::default()
                    };
                    answer.set_verdict(verdict?);
                    Some(answer)
                };
                let verdicts: Vec<_> = report.containers.iter().filter_map(of).collect();
                self.heard.orphans.push(report);
                if !verdicts.is_empty() {
                    self.send(Down::OrphanVerdicts(pb::OrphanVerdicts { verdicts }));
                }
            }
            Up::LogPiece(piece) => self.heard.pieces.push(piece),
            Up::IdleStateAck(ack) => self.heard.idle_acks.push(ack.sequence),
            Up::Withheld(withheld) => self.heard.withheld.push(withheld.stops),
            Up::DesiredRefused(refused) => self.heard.refused.push(refused),
        }
    }
}

fn prost_duration(span: Duration) -> prost_types::Duration {
    carrel_common::wire::duration(span)
}
