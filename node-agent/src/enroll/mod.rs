//! The node's identity: asked for once, kept in files that the agent alone can read, renewed before it ends.
//!
//! Over TLS a host enrols with a join token, which says whom to trust; the key is made here and never leaves the host, the
//! control plane signs a certificate for it. In `--dev`, in plaintext on loopback, the control plane gives a secret instead.
//!
//! `obtain` says who the node is, `files` keeps it, `request` asks for it, `renew` keeps it fresh, `renewal` (pure) says when.

mod files;
mod obtain;
mod renew;
mod renewal;
mod request;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use carrel_common::certificate::{
    CONTROL_PLANE_NAME, CertificateError, NodeCertificate, Validity, certificates_of_pem,
    is_of_unknown_authority,
};
use carrel_common::id::{ClusterId, NodeId};
use carrel_common::wire::WireError;
use time::OffsetDateTime;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use crate::runtime::Scope;

pub use obtain::{Entry, Obtain};
pub use renew::Renewing;
use request::{enroll, enroll_with_token, reach};

/// The handshake is part of the time a replica gets to answer.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Who the node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The node.
    pub node: NodeId,
    /// The Carrel it belongs to.
    pub cluster: ClusterId,
    /// How it shows that.
    pub proof: Proof,
}

/// How a node shows who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// In `--dev`, in plaintext on loopback.
    Secret(Secret),
    /// Over TLS.
    Certificate(Box<Credentials>),
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What TLS needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The node's key, PEM.
    pub key_pem: Secret,
    /// Its certificate, with what has to be shown beside it, PEM.
    pub certificate_pem: String,
    /// The authorities whose word counts, PEM.
    pub ca_pem: String,
    /// When the certificate counts.
    pub validity: Validity,
}

impl Identity {
    /// With a certificate, which says whose it is.
    fn certified(key_pem: Secret, certificate_pem: String, ca_pem: String) -> Result<Self, CertificateError> {
        let NodeCertificate { uri, validity } = NodeCertificate::from_pem(&certificate_pem)?;
        let credentials = Credentials { key_pem, certificate_pem, ca_pem, validity };
        Ok(Self { node: uri.node, cluster: uri.cluster, proof: Proof::Certificate(Box::new(credentials)) })
    }

    /// Whose containers the node's are.
    pub fn scope(&self) -> Scope {
        Scope { cluster: self.cluster, node: self.node }
    }

    /// When its certificate counts; `None` when it needs none.
    pub fn validity(&self) -> Option<Validity> {
        match &self.proof {
            Proof::Secret(_) => None,
            Proof::Certificate(credentials) => Some(credentials.validity),
        }
    }

    /// Whether its certificate has ended, by this host's clock.
    pub fn has_ended(&self, now: OffsetDateTime) -> bool {
        self.validity().is_some_and(|validity| now > validity.until)
    }

    /// Whether it trusts one of these authorities (DER).
    fn trusts_one_of(&self, authorities: &[Vec<u8>]) -> bool {
        let Proof::Certificate(own) = &self.proof else { return false };
        let trusted = certificates_of_pem(&own.ca_pem).unwrap_or_default();
        trusted.iter().any(|der| authorities.iter().any(|other| other[..] == der[..]))
    }

    /// The address, ready to be dialled by this node.
    ///
    /// # Errors
    /// When the certificate or the key cannot be used.
    pub fn endpoint(&self, endpoint: &Endpoint) -> Result<Endpoint, tonic::transport::Error> {
        match &self.proof {
            Proof::Secret(_) => Ok(endpoint.clone()),
            Proof::Certificate(own) => {
                let pair = tonic::transport::Identity::from_pem(&own.certificate_pem, &own.key_pem.0);
                endpoint.clone().tls_config(trusting(&own.ca_pem).identity(pair))
            }
        }
    }
}

/// Who this host is, by what it keeps in `state_dir`; `None`: it has not enrolled. Blocking.
///
/// # Errors
/// When a file is there and cannot be read or understood.
pub fn kept(state_dir: &Path) -> Result<Option<Identity>, EnrollError> {
    match files::load_certified(state_dir)? {
        Some(identity) => Ok(Some(identity)),
        None => files::load(state_dir),
    }
}

/// Trusts these authorities and nobody else, and them only for the control plane's one name.
fn trusting(ca_pem: &str) -> ClientTlsConfig {
    ClientTlsConfig::new()
        .domain_name(CONTROL_PLANE_NAME)
        .ca_certificate(Certificate::from_pem(ca_pem))
        .timeout(HANDSHAKE)
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// There is neither an identity nor a token.
    #[error(
        "this host has not enrolled yet: ask an operator for a join token (CreateJoinToken) and start the agent with --join-token-file"
    )]
    NotEnrolled,
    /// The token is for another Carrel.
    #[error(
        "this host is node {node} of Carrel {ours}, and the join token is for Carrel {theirs}: leave the token out, or remove the host's containers (label carrel.cluster={ours}) and then empty the state directory"
    )]
    OtherCarrel {
        /// The node.
        node: NodeId,
        /// Its Carrel.
        ours: ClusterId,
        /// The token's.
        theirs: ClusterId,
    },
    /// The file cannot be read, written or understood.
    #[error("the identity in {} cannot be used: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The key cannot be made or used.
    #[error("the node's key: {0}")]
    Key(#[from] rcgen::Error),
    /// The control plane cannot be reached, or is not the one that the token or the authority vouches for.
    #[error("the control plane cannot be reached: {}", causes(.0))]
    Unreachable(tonic::transport::Error),
    /// The control plane refused.
    #[error("the control plane refused: {}", .0.message())]
    Refused(Box<tonic::Status>),
    /// Its answer means nothing.
    #[error("the control plane's answer cannot be understood: {0}")]
    Answer(#[from] WireError),
}

/// An error of the transport with all that caused it: its own words alone are "transport error".
pub fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let all = std::iter::successors(Some(error), |error| error.source());
    let mut told: Vec<String> = all.map(ToString::to_string).collect();
    told.dedup();
    told.join(": ")
}

impl EnrollError {
    /// Whether another attempt may go better.
    pub fn passes(&self) -> bool {
        use tonic::Code;
        match self {
            Self::Unreachable(_) => true,
            Self::Refused(status) => matches!(
                status.code(),
                Code::Unavailable
                    | Code::DeadlineExceeded
                    | Code::Unknown
                    | Code::Internal
                    | Code::Aborted
                    | Code::Cancelled
            ),
            Self::NotEnrolled
            | Self::OtherCarrel { .. }
            | Self::File { .. }
            | Self::Key(_)
            | Self::Answer(_) => false,
        }
    }

    /// Whether who answers is of an authority that is not trusted: another control plane, or an authority that was replaced.
    pub fn is_of_unknown_authority(&self) -> bool {
        matches!(self, Self::Unreachable(error) if is_of_unknown_authority(error))
    }

    /// With the stable reason [`HOST_HAS_CONTAINERS`]: which node's containers may stay; `Some(None)`: none of them.
    pub fn foreign_containers(&self) -> Option<Option<NodeId>> {
        use tonic_types::StatusExt as _;
        let Self::Refused(status) = self else { return None };
        let info = status.get_details_error_info().filter(|info| info.reason == HOST_HAS_CONTAINERS)?;
        Some(info.metadata.get("node_id").and_then(|id| id.parse().ok()))
    }
}

/// The host runs containers of another node.
const HOST_HAS_CONTAINERS: &str = "HOST_HAS_CONTAINERS_OF_ANOTHER_NODE";
