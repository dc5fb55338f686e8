//! `AgentService`: enrolment here, the stream in `sessions`.

use carrel_common::id::NodeId;
use carrel_common::model::NodeFacts;
use carrel_proto::v1 as pb;
use carrel_proto::v1::agent_service_server::AgentService;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::status::bad_field;
use super::to_status;
use crate::app::App;
use crate::sessions::Sessions;

/// The service.
#[derive(Debug, Clone)]
pub struct Agents {
    app: App,
    sessions: Sessions,
}

impl Agents {
    /// Streams are held by `sessions`.
    pub fn new(app: App, sessions: Sessions) -> Self {
        Self { app, sessions }
    }
}

fn metadata<'a, T>(request: &'a Request<T>, key: &str) -> Result<&'a str, Status> {
    request
        .metadata()
        .get(key)
        .and_then(|value| value.to_str().ok())
        .ok_or_else(|| Status::unauthenticated(format!("metadata {key} is missing")))
}

#[tonic::async_trait]
impl AgentService for Agents {
    async fn enroll(
        &self,
        request: Request<pb::EnrollRequest>,
    ) -> Result<Response<pb::EnrollResponse>, Status> {
        let facts = NodeFacts::try_from(request.into_inner().facts.unwrap_or_default()).map_err(bad_field)?;
        let (node, secret) = self.app.enroll(&facts).await.map_err(to_status)?;
        Ok(Response::new(pb::EnrollResponse {
            node_id: node.to_string(),
            secret,
            cluster_id: self.app.settings.cluster.to_string(),
            ..pb::EnrollResponse::default()
        }))
    }

    async fn renew_certificate(
        &self,
        _: Request<pb::RenewCertificateRequest>,
    ) -> Result<Response<pb::RenewCertificateResponse>, Status> {
        Err(Status::unimplemented("there are no certificates in --dev"))
    }

    type SessionStream = ReceiverStream<Result<pb::SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let node: NodeId = metadata(&request, "carrel-node-id")?
            .parse()
            .map_err(|_| Status::unauthenticated("metadata carrel-node-id is not a UUID"))?;
        let secret = metadata(&request, "carrel-node-secret")?.to_owned();
        self.app.authenticate(node, &secret).await.map_err(to_status)?;
        Ok(Response::new(self.sessions.open(node, request.into_inner())))
    }
}
