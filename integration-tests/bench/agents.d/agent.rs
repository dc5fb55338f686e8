//! One simulated agent: its sessions, one after another.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use carrel_proto::v1 as pb;
use carrel_proto::v1::agent_service_client::AgentServiceClient;
use carrel_proto::v1::session_request::Message as Up;
use carrel_proto::v1::session_response::Message as Down;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Request, Status, Streaming};

use crate::desks::Desks;
use crate::tally::Tally;

/// Share of the desks somebody types in between two heartbeats.
const ACTIVE: f64 = 0.6;
/// As a real agent: tried again after up to 100 ms, doubled up to 8 s.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(8));
/// As a real agent: a stream ends after so many intervals without an ack.
const SILENT_INTERVALS: u32 = 3;

pub(crate) struct Agent {
    pub(crate) endpoint: Endpoint,
    pub(crate) node: String,
    pub(crate) secret: String,
    pub(crate) facts: pb::NodeFacts,
    pub(crate) desks: Arc<Mutex<Desks>>,
    pub(crate) tally: Arc<Tally>,
}

struct Live<'a> {
    agent: &'a Agent,
    up: mpsc::Sender<pb::SessionRequest>,
    sequence: i64,
    last_acked: i64,
    sent_at: BTreeMap<i64, Instant>,
    progress: Instant,
}

impl Agent {
    pub(crate) async fn run(self) {
        let (mut accepted, mut failures, mut process_start) = (None, 0_u32, true);
        loop {
            if let Ok((live, down, interval)) = self.open(accepted, process_start).await {
                (failures, process_start) = (0, false);
                let _ = live.hold(down, interval, &mut accepted).await;
            }
            let longest = BACKOFF.0.saturating_mul(1 << failures.min(16)).min(BACKOFF.1);
            failures += 1;
            tokio::time::sleep(longest.mul_f64(rand::random())).await;
        }
    }

    fn desks(&self) -> std::sync::MutexGuard<'_, Desks> {
        self.desks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn open(
        &self,
        accepted: Option<pb::DesiredPair>,
        process_start: bool,
    ) -> Result<(Live<'_>, Streaming<pb::SessionResponse>, Duration), Status> {
        let unreachable = |error: tonic::transport::Error| Status::unavailable(error.to_string());
        let channel = self.endpoint.connect().await.map_err(unreachable)?;
        let (up, from_up) = mpsc::channel(64);
        let inventory = self.desks().inventory(&self.node);
        let hello = pb::Hello {
            facts: Some(self.facts.clone()),
            inventory,
            accepted,
            process_start,
            inventory_current: true,
            ..Default::default()
        };
        let mut request = Request::new(ReceiverStream::new(from_up));
        let value = |text: &str| text.parse().expect("ASCII");
        request.metadata_mut().insert("carrel-node-id", value(&self.node));
        request.metadata_mut().insert("carrel-node-secret", value(&self.secret));
        let live = Live {
            agent: self,
            up,
            sequence: 0,
            last_acked: 0,
            sent_at: BTreeMap::new(),
            progress: Instant::now(),
        };
        live.send(Up::Hello(hello))?;
        let mut client = AgentServiceClient::new(channel);
        let mut down = client.session(request).await?.into_inner();
        let Some(Down::Welcome(welcome)) = down.message().await?.and_then(|answer| answer.message) else {
            return Err(Status::aborted("no welcome"));
        };
        let interval = welcome.heartbeat_interval.and_then(|span| Duration::try_from(span).ok());
        live.observations(self.desks().tell_all())?;
        Ok((live, down, interval.expect("an interval")))
    }
}

impl Live<'_> {
    async fn hold(
        mut self,
        mut down: Streaming<pb::SessionResponse>,
        interval: Duration,
        accepted: &mut Option<pb::DesiredPair>,
    ) -> Result<(), Status> {
        let mut beat = tokio::time::Instant::now();
        let mut look = tokio::time::interval(Duration::from_millis(100));
        let ended = loop {
            // Cancel-safe: a message that is not read is read the next time.
            let done = tokio::select! {
                answer = down.message() => match answer {
                    Ok(Some(answer)) => self.answer(answer.message, accepted),
                    Ok(None) => Err(Status::aborted("closed")),
                    Err(status) => Err(status),
                },
                () = tokio::time::sleep_until(beat) => {
                    beat += interval.mul_f64(0.9 + 0.2 * rand::random::<f64>());
                    self.heartbeat()
                }
                _ = look.tick() => {
                    let up = self.agent.desks().ready();
                    self.observations(up)
                }
            };
            if let Err(status) = done {
                break Err(status);
            }
            if self.progress.elapsed() > interval * SILENT_INTERVALS {
                break Err(Status::deadline_exceeded("silent"));
            }
        };
        if self.last_acked > 0 {
            self.agent.tally.fell();
        }
        ended
    }

    fn send(&self, message: Up) -> Result<(), Status> {
        let message = pb::SessionRequest { message: Some(message) };
        self.up.try_send(message).map_err(|_| Status::aborted("nobody takes messages"))
    }

    fn observations(&self, observations: Vec<pb::Observation>) -> Result<(), Status> {
        if observations.is_empty() {
            return Ok(());
        }
        self.send(Up::Observations(pb::Observations { observations }))
    }

    fn heartbeat(&mut self) -> Result<(), Status> {
        let first = self.last_acked == 0;
        self.sequence += 1;
        let healthy = || {
            Some(pb::ComponentHealth {
                healthy: true,
                age: Some(prost_types::Duration::default()),
                ..Default::default()
            })
        };
        self.sent_at.insert(self.sequence, Instant::now());
        self.send(Up::Heartbeat(pb::Heartbeat {
            sequence: self.sequence,
            last_acked: self.last_acked,
            docker: healthy(),
            storage: healthy(),
            activity: self.agent.desks().activity(ACTIVE, first),
            images: first.then(|| pb::ImageList { references: vec!["carrel/workspace:dev".into()] }),
        }))
    }

    fn answer(&mut self, answer: Option<Down>, accepted: &mut Option<pb::DesiredPair>) -> Result<(), Status> {
        match answer {
            Some(Down::HeartbeatAck(ack)) => {
                if self.last_acked == 0 {
                    self.agent.tally.stands();
                }
                self.last_acked = self.last_acked.max(ack.sequence);
                self.progress = Instant::now();
                if let Some(sent_at) = self.sent_at.remove(&ack.sequence) {
                    self.agent.tally.acked(sent_at.elapsed());
                }
                self.sent_at.retain(|sequence, _| *sequence > ack.sequence);
                Ok(())
            }
            Some(Down::Desired(desired)) => {
                *accepted = desired.pair;
                let told = self.agent.desks().take(desired.items);
                self.observations(told)
            }
            Some(Down::ObservationAck(ack)) => {
                self.agent.desks().acked(&ack.acked);
                Ok(())
            }
            Some(Down::IdleState(state)) => {
                self.send(Up::IdleStateAck(pb::IdleStateAck { sequence: state.sequence }))
            }
            Some(Down::Superseded(_) | Down::GoAway(_)) => Err(Status::aborted("replaced")),
            // Nobody asks for logs, and every image is there.
            _ => Ok(()),
        }
    }
}
