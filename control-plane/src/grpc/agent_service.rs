//! `AgentService`: who the caller is, enrolment and certificates here, the stream in `sessions`.

use std::sync::Arc;

use carrel_common::id::NodeId;
use carrel_common::model::{Container, NodeFacts};
use carrel_common::wire::WireError;
use carrel_proto::v1 as pb;
use carrel_proto::v1::agent_service_server::AgentService;
use tokio::sync::Semaphore;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::status::{bad_field, bad_metadata};
use super::to_status;
use crate::app::{App, AppError, Applicant, Credentials};
use crate::authority::ShownCertificate;
use crate::sessions::Sessions;

/// Hosts that enrol at once; others wait. Whoever reaches the listener can ask for it, a student's program too, and must not
/// take the connections to the database from those who work.
const ENROLLING: usize = 2;

/// The service.
#[derive(Debug, Clone)]
pub struct Agents {
    app: App,
    sessions: Sessions,
    enrolling: Arc<Semaphore>,
}

/// How a caller shows which node it is.
enum Shown {
    /// Over TLS.
    Certificate(ShownCertificate),
    /// In `--dev`, in plaintext on loopback.
    Secret(NodeId, String),
}

impl Agents {
    /// Streams are held by `sessions`.
    pub fn new(app: App, sessions: Sessions) -> Self {
        Self { app, sessions, enrolling: Arc::new(Semaphore::new(ENROLLING)) }
    }

    fn over_tls(&self) -> bool {
        self.app.authorities.is_some()
    }

    fn shown<T>(&self, request: &Request<T>) -> Result<Shown, Status> {
        if self.over_tls() {
            let shown = request.peer_certs().filter(|all| !all.is_empty());
            let shown = shown.ok_or_else(|| to_status(AppError::CertificateMissing))?;
            let refused = |_| to_status(AppError::CertificateRefused { why: "it names no node" });
            return ShownCertificate::new(shown).map(Shown::Certificate).map_err(refused);
        }
        let node = metadata(request, "carrel-node-id")?
            .parse()
            .map_err(|_| bad_metadata("metadata carrel-node-id is not a UUID".to_owned()))?;
        Ok(Shown::Secret(node, metadata(request, "carrel-node-secret")?.to_owned()))
    }

    async fn authenticate(&self, shown: Shown) -> Result<Credentials, Status> {
        match shown {
            Shown::Certificate(certificate) => self.app.authenticate_certificate(certificate),
            Shown::Secret(node, secret) => self.app.authenticate(node, &secret).await,
        }
        .map_err(to_status)
    }
}

fn metadata<'a, T>(request: &'a Request<T>, key: &str) -> Result<&'a str, Status> {
    request
        .metadata()
        .get(key)
        .and_then(|value| value.to_str().ok())
        .ok_or_else(|| bad_metadata(format!("metadata {key} is missing")))
}

fn applicant(request: pb::EnrollRequest) -> Result<Applicant, WireError> {
    let facts = NodeFacts::try_from(request.facts.unwrap_or_default())?;
    if facts.docker_id.is_empty() {
        return Err(WireError::new("facts.docker_id", "must be set: the node's identity is bound to it"));
    }
    let inventory =
        request.inventory.into_iter().map(Container::try_from).collect::<Result<Vec<_>, WireError>>()?;
    Ok(Applicant { facts, secret: request.join_token, csr_pem: request.csr_pem, inventory })
}

#[tonic::async_trait]
impl AgentService for Agents {
    async fn enroll(
        &self,
        request: Request<pb::EnrollRequest>,
    ) -> Result<Response<pb::EnrollResponse>, Status> {
        let request = request.into_inner();
        let cluster_id = self.app.state.cluster().to_string();
        if self.over_tls() {
            let host = applicant(request).map_err(bad_field)?;
            let _turn = self.enrolling.acquire().await.map_err(|_| to_status(AppError::ShuttingDown))?;
            let made = self.app.enroll_with_token(&host).await.map_err(to_status)?;
            return Ok(Response::new(pb::EnrollResponse {
                node_id: made.node.to_string(),
                secret: String::new(),
                cluster_id,
                certificate_pem: made.certificate_pem,
                ca_pem: made.ca_pem,
            }));
        }
        let facts = NodeFacts::try_from(request.facts.unwrap_or_default()).map_err(bad_field)?;
        let (node, secret) = self.app.enroll(&facts).await.map_err(to_status)?;
        let node_id = node.to_string();
        Ok(Response::new(pb::EnrollResponse { node_id, secret, cluster_id, ..pb::EnrollResponse::default() }))
    }

    async fn renew_certificate(
        &self,
        request: Request<pb::RenewCertificateRequest>,
    ) -> Result<Response<pb::RenewCertificateResponse>, Status> {
        let credentials = self.authenticate(self.shown(&request)?).await?;
        let csr_pem = request.into_inner().csr_pem;
        let made = self.app.renew_certificate(&credentials, &csr_pem).await.map_err(to_status)?;
        Ok(Response::new(pb::RenewCertificateResponse {
            certificate_pem: made.certificate_pem,
            ca_pem: made.ca_pem,
        }))
    }

    type SessionStream = ReceiverStream<Result<pb::SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let shown = self.shown(&request)?;
        let credentials = self.authenticate(shown).await?;
        Ok(Response::new(self.sessions.open(credentials, request.into_inner())))
    }
}
