//! The line to the control plane: dials, says Hello, holds the stream, dials again. It carries; what is done is decided elsewhere.
//!
//! Without a session everything runs on as it is. A control plane that does not know this node any more (its database was
//! emptied) is no reason to stop anything either: it is logged, and asked again now and then.

mod accept;
mod activity;
mod backoff;
mod images;
mod logs;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use carrel_common::certificate::is_of_unknown_authority;
use carrel_common::id::ProcessId;
use carrel_common::model::Verdict;
use carrel_common::wire::WireError;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use self::backoff::{Backoff, Ended, in_haste};
use crate::driver::host::Host;
use crate::driver::{Accepted, EngineState, Orphans};
use crate::enroll::{Identity, causes};
use crate::facts::{HostFacts, Told};
use crate::runtime::Runtime;
use crate::witness::Witness;

/// A dead network is noticed within these two together, whatever the operating system thinks of the connection.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(10));

/// A replica on the way down answers no handshake; the next one may.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// What the session needs.
#[derive(Debug)]
pub struct Session<R> {
    /// The host it speaks for.
    pub host: Arc<Host<R>>,
    /// Who the node is, with its newest certificate.
    pub identity: watch::Receiver<Arc<Identity>>,
    /// The control plane's replicas.
    pub endpoints: Vec<Endpoint>,
    /// What is known of the host.
    pub host_facts: HostFacts,
    /// What the operator says of the host.
    pub told: Told,
    /// The set that holds, for the driver.
    pub accepted: watch::Sender<Accepted>,
    /// Verdicts, for the driver.
    pub verdicts: mpsc::Sender<Vec<(String, Verdict)>>,
    /// Containers to report, from the driver.
    pub orphans: watch::Receiver<Option<Orphans>>,
    /// What is known of the container engine, from the driver.
    pub engine: watch::Receiver<EngineState>,
    /// Stops that the breaker holds back, from the driver.
    pub withheld: watch::Receiver<usize>,
    /// What the store has confirmed.
    pub witness: Arc<Witness>,
    /// This process.
    pub process: ProcessId,
}

/// How a session begins.
#[derive(Debug, Clone, Copy)]
struct Beginning {
    /// The first of this process.
    process_start: bool,
    /// By the monotonic clock, the end of the one before: nothing is launched after it.
    since: Duration,
}

/// The address of a replica, ready to be dialled.
///
/// # Errors
/// When it is no URL.
pub fn endpoint(url: &str) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(url.to_owned())?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true))
}

/// How a session, or the attempt at one, ended.
#[derive(Debug, thiserror::Error)]
enum Ending {
    #[error("the agent stops")]
    Stopped,
    #[error("the control plane cannot be reached: {}", causes(.0))]
    Unreachable(tonic::transport::Error),
    #[error("{}: {}", .0.code(), .0.message())]
    Status(Box<Status>),
    #[error("the control plane ended the stream")]
    Closed,
    #[error("the replica is leaving: {0}")]
    GoAway(String),
    #[error("another session of this node took over: is its identity in use on a second host?")]
    Superseded,
    #[error("the control plane stopped acking")]
    Silent,
    #[error("the lease has run out: everything ends before another session")]
    LeaseOver,
    #[error("the control plane takes no more messages")]
    Stuck,
    #[error("the control plane belongs to Carrel {theirs}, this node to {ours}")]
    OtherCluster { ours: String, theirs: String },
    #[error("a message cannot be understood: {0}")]
    Wire(#[from] WireError),
    #[error("the control plane did not say Welcome first")]
    NoWelcome,
}

impl Ending {
    fn class(&self) -> Ended {
        match self {
            Self::GoAway(_) => Ended::GoAway,
            Self::Status(status) => match status.code() {
                Code::Unauthenticated
                | Code::FailedPrecondition
                | Code::PermissionDenied
                | Code::Unimplemented => Ended::Refused,
                // Any other: a broken HTTP/2 connection shows as `Unknown`, for one.
                _ => Ended::Broken,
            },
            Self::OtherCluster { .. } | Self::Superseded => Ended::Refused,
            Self::Stopped
            | Self::Unreachable(_)
            | Self::Closed
            | Self::Silent
            | Self::LeaseOver
            | Self::Stuck
            | Self::Wire(_)
            | Self::NoWelcome => Ended::Broken,
        }
    }

    /// Value of the metric's label.
    fn label(&self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Unreachable(_) => "unreachable",
            Self::Status(_) if self.class() == Ended::Refused => "refused",
            Self::Status(_) | Self::Closed => "broken",
            Self::GoAway(_) => "go_away",
            Self::Superseded => "superseded",
            Self::Silent | Self::Stuck => "silent",
            Self::LeaseOver => "lease_over",
            Self::OtherCluster { .. } => "refused",
            Self::Wire(_) | Self::NoWelcome => "protocol",
        }
    }
}

impl<R: Runtime> Session<R> {
    /// Holds a session until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        // Not all agents of a fleet begin with the replica that stands first in their list.
        let mut attempt = rand::random_range(0..self.endpoints.len());
        let mut beginning = Beginning { process_start: true, since: Duration::ZERO };
        while !stop.is_cancelled() {
            // What ran under a lease that is over may have been given to another host: it ends before the control plane hears of us.
            if stop.run_until_cancelled(self.host.lease.fenced()).await.is_none() {
                return;
            }
            let endpoint = self.endpoints[attempt % self.endpoints.len()].clone();
            attempt += 1;
            let (ending, stood) = self.one(&endpoint, beginning, &stop).await;
            if stood {
                beginning = Beginning { process_start: false, since: self.host.clock.monotonic() };
            }
            self.accepted.send_modify(|accepted| accepted.fresh = false);
            self.host.metrics.session(ending.label());
            if stood {
                backoff.reset();
            }
            let ended = self.identity.borrow().has_ended(self.host.clock.now());
            // With a certificate that has ended every attempt is refused.
            let class = if ended { Ended::Refused } else { ending.class() };
            let pause = in_haste(backoff.next(class, rand::random()), self.host.lease.left());
            self.tell(&ending, &endpoint, pause);
            stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
    }

    fn tell(&self, ending: &Ending, endpoint: &Endpoint, pause: Duration) {
        let (node, cluster, endpoint) = (self.host.scope.node, self.host.scope.cluster, endpoint.uri());
        let ended = self.identity.borrow().has_ended(self.host.clock.now());
        match ending {
            Ending::Stopped => tracing::info!(node.id = %node, "session closed"),
            other if ended => tracing::error!(
                node.id = %node, %endpoint, ?pause,
                "no session: {other}. The node's certificate has ended. Nothing is stopped for that, only by the lease as ever. To come back as the same node: ask an \
                 operator for a join token for it (CreateJoinToken with node nodes/{node}) and restart the agent with --join-token-file"
            ),
            Ending::Unreachable(error) if is_of_unknown_authority(error) => tracing::error!(
                node.id = %node, %endpoint, ?pause,
                "no session: {ending}. Who answers there is of no authority that this node trusts: another control plane, or its authority was replaced. Nothing \
                 is stopped for that, only by the lease as ever. If it was replaced, to come back as the same node: ask an operator for a join token for it \
                 (CreateJoinToken with node nodes/{node}) and restart the agent with --join-token-file"
            ),
            Ending::Status(status) if status.code() == Code::Unauthenticated => tracing::error!(
                node.id = %node, %endpoint, ?pause,
                "the control plane does not know this node ({}). All containers run on. If its database was lost: \
                 `control-plane declare-restored --cluster-id {cluster}`. To enrol this host anew, first stop the agent and remove its \
                 containers (docker rm -f $(docker ps -aq --filter label=carrel.cluster={cluster})): without the state directory nobody \
                 ends them with the lease. Then empty the state directory, and restart the fence and the agent, over TLS with a join token",
                status.message()
            ),
            other if other.class() == Ended::Refused => {
                tracing::error!(node.id = %node, %endpoint, ?pause, "no session: {other}");
            }
            other => tracing::warn!(node.id = %node, %endpoint, ?pause, "no session: {other}"),
        }
    }
}
