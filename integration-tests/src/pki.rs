//! The authority of a cluster of a test's own, and agents without an agent: what a host, or somebody who is none, can say.

use std::path::Path;

use carrel_common::certificate::CONTROL_PLANE_NAME;
use carrel_common::join::JoinToken;
use carrel_proto::v1 as pb;
use carrel_proto::v1::agent_service_client::AgentServiceClient;
use carrel_proto::v1::node_service_client::NodeServiceClient;
use rcgen::{CertificateParams, KeyPair};
use tonic::Status;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Error, Identity};

use crate::{process, settings};

/// `control-plane ca …`
pub fn ca(args: &[&str], dir: &Path) {
    let dir = dir.to_str().expect("UTF-8");
    process::run(settings::binary("control-plane"), &[&["ca"], args, &["--ca-dir", dir]].concat());
}

/// CreateJoinToken at the API's address.
pub async fn join_token(address: &str, node: &str) -> Result<String, Status> {
    let channel = Endpoint::from_shared(format!("http://{address}")).expect("an address").connect_lazy();
    let request = pb::CreateJoinTokenRequest { node: node.into(), ..Default::default() };
    let response = NodeServiceClient::new(channel).create_join_token(request).await?;
    Ok(response.into_inner().token)
}

/// A connection to the agents' listener that trusts these authorities, and shows this certificate and key.
pub async fn dial(url: &str, ca_pem: &str, shown: Option<(&str, &str)>) -> Result<Channel, Error> {
    let mut tls =
        ClientTlsConfig::new().domain_name(CONTROL_PLANE_NAME).ca_certificate(Certificate::from_pem(ca_pem));
    if let Some((certificate, key)) = shown {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    Endpoint::from_shared(url.to_owned())?.tls_config(tls)?.connect().await
}

/// A host that enrols as an agent would.
#[derive(Debug)]
pub struct Host {
    /// What it says of itself.
    pub facts: pb::NodeFacts,
    /// Containers that it says it has.
    pub inventory: Vec<pb::Container>,
    key: KeyPair,
}

impl Host {
    /// With this Docker daemon.
    pub fn new(docker_id: &str) -> Self {
        let facts = pb::NodeFacts {
            hostname: format!("host-{docker_id}"),
            machine_id: format!("machine-{docker_id}"),
            docker_id: docker_id.into(),
            boot_id: "b".into(),
            cpu_millicores: 2000,
            memory_bytes: 1 << 30,
            max_workspaces: 10,
            advertise_address: "127.0.0.1".into(),
            ..Default::default()
        };
        Self { facts, inventory: Vec::new(), key: KeyPair::generate().expect("a key") }
    }

    /// Its request for a certificate, PEM.
    pub fn csr(&self) -> String {
        let request = CertificateParams::default().serialize_request(&self.key).expect("a request");
        request.pem().expect("PEM")
    }

    /// Its key, PEM.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// Enrols with a token at the agents' listener.
    pub async fn enroll(&self, url: &str, token: &str) -> Result<pb::EnrollResponse, Status> {
        let token: JoinToken = token.parse().expect("a token");
        let channel = dial(url, &token.ca_pem(), None).await.expect("the listener answers");
        let request = pb::EnrollRequest {
            facts: Some(self.facts.clone()),
            join_token: token.secret,
            csr_pem: self.csr(),
            inventory: self.inventory.clone(),
        };
        AgentServiceClient::new(channel).enroll(request).await.map(tonic::Response::into_inner)
    }

    /// A connection that shows the certificate it was given.
    pub async fn dial(&self, url: &str, enrolled: &pb::EnrollResponse) -> AgentServiceClient<Channel> {
        let shown = (enrolled.certificate_pem.as_str(), self.key_pem());
        let channel = dial(url, &enrolled.ca_pem, Some((shown.0, &shown.1))).await;
        AgentServiceClient::new(channel.expect("the listener answers"))
    }
}
