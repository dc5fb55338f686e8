//! Asks the control plane for an identity, and for a newer certificate.

use std::path::Path;
use std::time::Duration;

use carrel_common::certificate::NodeUri;
use carrel_common::join::JoinToken;
use carrel_common::model::{Container, NodeFacts};
use carrel_common::wire::WireError;
use carrel_proto::v1 as pb;
use carrel_proto::v1::agent_service_client::AgentServiceClient;
use rcgen::{CertificateParams, KeyPair};
use tonic::transport::{Channel, Endpoint};

use super::{Credentials, EnrollError, Identity, Proof, Secret, files, trusting};

/// A control plane that does not answer within this is not there.
const DEADLINE: Duration = Duration::from_secs(10);

async fn dial(endpoint: Endpoint) -> Result<AgentServiceClient<Channel>, EnrollError> {
    let channel = endpoint.timeout(DEADLINE).connect().await.map_err(EnrollError::Unreachable)?;
    Ok(AgentServiceClient::new(channel))
}

fn refused(status: tonic::Status) -> EnrollError {
    EnrollError::Refused(Box::new(status))
}

fn answer(field: &'static str) -> impl Fn(carrel_common::id::InvalidId) -> WireError {
    move |e| WireError::new(field, e.0)
}

/// Only the key counts in it; what the certificate says is the control plane's to decide.
fn csr(key: &KeyPair) -> Result<String, EnrollError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    Ok(params.serialize_request(key)?.pem()?)
}

/// Asks for an identity in `--dev`, in plaintext on loopback, and keeps it.
///
/// # Errors
/// See [`EnrollError`]; [`EnrollError::passes`] says whether to try again.
pub(super) async fn enroll(
    endpoint: &Endpoint,
    facts: NodeFacts,
    state_dir: &Path,
) -> Result<Identity, EnrollError> {
    let request = pb::EnrollRequest { facts: Some(facts.into()), ..Default::default() };
    let said = dial(endpoint.clone()).await?.enroll(request).await.map_err(refused)?.into_inner();
    let identity = Identity {
        node: said.node_id.parse().map_err(answer("node_id"))?,
        cluster: said.cluster_id.parse().map_err(answer("cluster_id"))?,
        proof: Proof::Secret(Secret(said.secret)),
    };
    keep(identity, state_dir).await
}

/// Asks for an identity with a join token, and keeps it. The same host may ask with the same token again when it did not get
/// the answer.
///
/// # Errors
/// See [`EnrollError`]; [`EnrollError::passes`] says whether to try again.
pub(super) async fn enroll_with_token(
    endpoint: &Endpoint,
    token: &JoinToken,
    facts: NodeFacts,
    inventory: Vec<Container>,
    state_dir: &Path,
) -> Result<Identity, EnrollError> {
    let dir = state_dir.to_owned();
    let key = blocking(move || files::key(&dir)).await?;
    let request = pb::EnrollRequest {
        facts: Some(facts.into()),
        join_token: token.secret.clone(),
        csr_pem: csr(&key)?,
        inventory: inventory.into_iter().map(Into::into).collect(),
    };
    let endpoint =
        endpoint.clone().tls_config(trusting(&token.ca_pem())).map_err(EnrollError::Unreachable)?;
    let said = dial(endpoint).await?.enroll(request).await.map_err(refused)?.into_inner();
    let uri = NodeUri {
        node: said.node_id.parse().map_err(answer("node_id"))?,
        cluster: said.cluster_id.parse().map_err(answer("cluster_id"))?,
    };
    if uri.cluster != token.cluster {
        return Err(WireError::new("cluster_id", "is not the one that the join token is for").into());
    }
    let identity = certified(uri, Secret(key.serialize_pem()), said.certificate_pem, said.ca_pem)?;
    keep(identity, state_dir).await
}

/// Whether a replica is there that the authorities of this identity vouch for.
pub(super) async fn reach(endpoint: &Endpoint, identity: &Identity) -> Result<(), EnrollError> {
    let endpoint = identity.endpoint(endpoint).map_err(EnrollError::Unreachable)?;
    dial(endpoint).await.map(drop)
}

/// Asks for a newer certificate for the same key.
pub(super) async fn renew(
    endpoint: &Endpoint,
    identity: &Identity,
    own: &Credentials,
) -> Result<Identity, EnrollError> {
    let key = KeyPair::from_pem(&own.key_pem.0)?;
    let request = pb::RenewCertificateRequest { csr_pem: csr(&key)? };
    let endpoint = identity.endpoint(endpoint).map_err(EnrollError::Unreachable)?;
    let said = dial(endpoint).await?.renew_certificate(request).await.map_err(refused)?.into_inner();
    let uri = NodeUri { cluster: identity.cluster, node: identity.node };
    Ok(certified(uri, own.key_pem.clone(), said.certificate_pem, said.ca_pem)?)
}

/// An identity from what the control plane sent, if it is the one expected.
fn certified(uri: NodeUri, key: Secret, pem: String, ca_pem: String) -> Result<Identity, WireError> {
    let identity = Identity::certified(key, pem, ca_pem)
        .map_err(|problem| WireError::new("certificate_pem", problem.to_string()))?;
    if (identity.cluster, identity.node) != (uri.cluster, uri.node) {
        return Err(WireError::new("certificate_pem", "names another node"));
    }
    // What cannot be used must not replace what can.
    let usable = Endpoint::from_static("https://127.0.0.1");
    identity
        .endpoint(&usable)
        .map_err(|problem| WireError::new("certificate_pem", super::causes(&problem)))?;
    Ok(identity)
}

async fn keep(identity: Identity, state_dir: &Path) -> Result<Identity, EnrollError> {
    let dir = state_dir.to_owned();
    blocking(move || files::save(&dir, &identity).map(|()| identity)).await
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EnrollError> + Send + 'static,
) -> Result<T, EnrollError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| EnrollError::File { path: "state directory".into(), source: std::io::Error::other(e) })?
}
