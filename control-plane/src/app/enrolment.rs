//! How a host becomes a node and stays one: join tokens, enrolment, certificates.

use std::time::Duration;

use carrel_common::certificate::NodeUri;
use carrel_common::id::{ClusterId, NodeId, new_secret, secret_hash};
use carrel_common::join::JoinToken;
use carrel_common::model::{Container, NodeFacts};
use subtle::ConstantTimeEq as _;
use time::OffsetDateTime;

use super::node_admin::about;
use super::settle::settle;
use super::workspaces::{keep_answer, replay, rfc3339};
use super::{App, AppError, Call, Result};
use crate::authority::{Authorities, AuthorityError, Request, ShownCertificate};
use crate::domain::event::{Actor, Entry, Subject};
use crate::domain::join::{Admission, Use, admit, of_other_nodes};
use crate::domain::node::Node;
use crate::store::Work;

/// A host that wants to enrol with a join token.
#[derive(Debug, Clone)]
pub struct Applicant {
    /// What it says of itself.
    pub facts: NodeFacts,
    /// The secret of its join token.
    pub secret: String,
    /// Its request for a certificate, PEM.
    pub csr_pem: String,
    /// All containers with this Carrel's label on it.
    pub inventory: Vec<Container>,
}

/// What makes a host a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certified {
    /// The node.
    pub node: NodeId,
    /// Its certificate, PEM.
    pub certificate_pem: String,
    /// The authorities whose word counts, PEM.
    pub ca_pem: String,
}

/// How a caller has shown which node it is.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The node.
    pub node: NodeId,
    /// What it has shown over TLS, which an authority of ours has signed; `None` in `--dev`.
    pub certificate: Option<ShownCertificate>,
    /// Hash of its secret, in `--dev`; a node that the store has forgotten is known by it from then on.
    pub secret_hash: Option<String>,
}

impl Credentials {
    /// The Carrel of its certificate.
    pub(super) fn cluster(&self) -> Option<ClusterId> {
        self.certificate.as_ref().map(|shown| shown.certificate().uri.cluster)
    }
}

/// A certificate is asked for by a request that its sender wrote.
fn request(csr_pem: &str) -> Result<Request> {
    Request::from_pem(csr_pem).map_err(|_| AppError::RequestForCertificate)
}

impl App {
    fn authorities(&self) -> Result<&Authorities> {
        self.authorities.as_ref().ok_or(AppError::NoAuthority)
    }

    /// A token with which one host can enrol within `ttl`: a new one, or the host of `node` once more.
    ///
    /// # Errors
    /// [`AppError::NoAuthority`]; the node is unknown, banned or removed; the call was answered before; the database.
    pub async fn create_join_token(
        &self,
        call: &Call,
        ttl: Duration,
        node: Option<NodeId>,
    ) -> Result<(JoinToken, OffsetDateTime)> {
        settle!(self.create_join_token_once(call, ttl, node))
    }

    async fn create_join_token_once(
        &self,
        call: &Call,
        ttl: Duration,
        node: Option<NodeId>,
    ) -> Result<(JoinToken, OffsetDateTime)> {
        let authorities = self.authorities()?;
        let authorities = authorities.now().trusted().iter().map(|der| der.to_vec()).collect();
        let token = JoinToken { cluster: self.state.cluster(), secret: new_secret(), authorities };
        let mut work = self.store.begin().await?;
        // That it was answered is kept, the answer is not: nobody is shown a secret twice.
        if replay::<()>(&mut work, call).await?.is_some() {
            return Err(AppError::JoinTokenShown);
        }
        if let Some(id) = node {
            let known = work.lock_node(id).await?.ok_or(AppError::NodeNotFound(id))?;
            if known.banned_since().is_some() {
                return Err(AppError::NodeRemoved(id));
            }
        }
        let expires_at = work.insert_join_token(&secret_hash(&token.secret), node, ttl).await?;
        keep_answer(&mut work, call, &()).await?;
        let entry =
            Entry::new("node.join_token_created", Actor::Operator).with("expire_time", rfc3339(expires_at));
        work.append(Subject { workspace: None, node }, entry).await?;
        self.nudge.ring(&work.commit().await?);
        Ok((token, expires_at))
    }

    /// Makes a host a node, or the node it was once more.
    ///
    /// # Errors
    /// The token is not good; the host is another than the node's, or runs containers of another node; the node was
    /// banned or removed; the request for a certificate is none; the database.
    pub async fn enroll_with_token(&self, host: &Applicant) -> Result<Certified> {
        let authorities = self.authorities()?;
        if host.secret.is_empty() {
            return Err(AppError::JoinTokenNeeded);
        }
        let request = request(&host.csr_pem)?;
        let (key, hash) = (request.key_name(), secret_hash(&host.secret));
        let mut work = self.store.begin().await?;
        let token = work.lock_join_token(&hash).await?;
        let now = work.now().await?;
        let admission = admit(token.as_ref(), &key, now).ok_or(AppError::JoinTokenInvalid)?;
        let (id, session_epoch) = match admission {
            Admission::New => (NodeId::new(), 0),
            Admission::As(id) | Admission::Again(id, _) => {
                let node = work.lock_node(id).await?.ok_or(AppError::JoinTokenInvalid)?;
                not_banned(&node)?;
                if matches!(admission, Admission::Again(_, epoch) if epoch != node.session_epoch) {
                    return Err(AppError::JoinTokenInvalid);
                }
                same_host(&node, &host.facts)?;
                (id, node.session_epoch)
            }
        };
        let known = (admission != Admission::New).then_some(id);
        let others = of_other_nodes(&host.inventory, known);
        if others > 0 {
            return Err(AppError::HostHasContainers { others, node: known });
        }
        if known.is_none() {
            work.insert_node(id, None, &host.facts).await?;
        }
        let certified = self.certify(&mut work, authorities, id, &request).await?;
        work.spend_join_token(&hash, &Use { node: id, key, session_epoch }).await?;
        let entry = Entry::new("node.enrolled", Actor::Agent)
            .with("hostname", host.facts.hostname.as_str())
            .with("came_back", known.is_some());
        work.append(about(id), entry).await?;
        self.nudge.ring(&work.commit().await?);
        tracing::info!(node.id = %id, hostname = host.facts.hostname, came_back = known.is_some(), "node enrolled");
        Ok(certified)
    }

    /// A new certificate for a node.
    ///
    /// # Errors
    /// The node is unknown, was banned or removed, or is of another Carrel; the request for a certificate is none; the database.
    pub async fn renew_certificate(&self, credentials: &Credentials, csr_pem: &str) -> Result<Certified> {
        let id = credentials.node;
        let (authorities, request) = (self.authorities()?, request(csr_pem)?);
        of_this_carrel(credentials, self.state.cluster())?;
        let mut work = self.store.begin().await?;
        let node = work.lock_node(id).await?.ok_or(AppError::NodeUnknown(id))?;
        not_banned(&node)?;
        let certified = self.certify(&mut work, authorities, id, &request).await?;
        self.nudge.ring(&work.commit().await?);
        tracing::info!(node.id = %id, hostname = node.facts.hostname, "certificate renewed");
        Ok(certified)
    }

    async fn certify(
        &self,
        work: &mut Work,
        authorities: &Authorities,
        node: NodeId,
        request: &Request,
    ) -> Result<Certified> {
        let uri = NodeUri { cluster: self.state.cluster(), node };
        let issued = authorities.issue_node(uri, request, self.settings.node_certificate_ttl)?;
        work.note_certificate(node, issued.expires_at).await?;
        Ok(Certified { node, certificate_pem: issued.pem, ca_pem: authorities.now().trusted_pem() })
    }

    /// The node that shows this certificate. TLS has found it to be signed by an authority of ours when the connection began, which may have
    /// been long ago: since then it may have ended, and so may the trust in that authority. It may be of another Carrel: of the one
    /// whose database was lost.
    ///
    /// # Errors
    /// [`AppError::CertificateRefused`].
    pub fn authenticate_certificate(&self, mut shown: ShownCertificate) -> Result<Credentials> {
        let authorities = self.authorities()?;
        let own = shown.certificate();
        if authorities.is_over(own.validity.until) {
            return Err(AppError::CertificateRefused { why: "it has ended" });
        }
        if !authorities.vouch_for(&mut shown) {
            return Err(AppError::CertificateRefused {
                why: "the authority that signed it is trusted no more",
            });
        }
        Ok(Credentials { node: own.uri.node, certificate: Some(shown), secret_hash: None })
    }

    /// Whether a session may go on by what it began with: until the authority that vouched for it is trusted no more. That its certificate has
    /// ended does not matter, as its node renews it for the session after.
    pub fn is_vouched_for(&self, credentials: &mut Credentials) -> bool {
        match (&self.authorities, &mut credentials.certificate) {
            (Some(authorities), Some(shown)) => authorities.vouch_for(shown),
            (_, _) => true,
        }
    }

    /// Gives a new node its identity and its secret, in `--dev` on plaintext loopback.
    ///
    /// # Errors
    /// [`AppError::EnrollNeedsDev`]; the database.
    pub async fn enroll(&self, facts: &NodeFacts) -> Result<(NodeId, String)> {
        if !self.settings.dev {
            return Err(AppError::EnrollNeedsDev);
        }
        let (id, secret) = (NodeId::new(), new_secret());
        let mut work = self.store.begin().await?;
        work.insert_node(id, Some(&secret_hash(&secret)), facts).await?;
        let entry = Entry::new("node.enrolled", Actor::Agent).with("hostname", facts.hostname.as_str());
        work.append(about(id), entry).await?;
        self.nudge.ring(&work.commit().await?);
        tracing::info!(node.id = %id, hostname = facts.hostname, "node enrolled");
        Ok((id, secret))
    }

    /// Whether a node is who it says, in `--dev` on plaintext loopback. One that the store does not know may be one that it has
    /// forgotten: what becomes of it is decided by its Hello.
    ///
    /// # Errors
    /// [`AppError::NodeUnknown`]; the database.
    pub async fn authenticate(&self, id: NodeId, secret: &str) -> Result<Credentials> {
        let shown = secret_hash(secret);
        let known = self.store.node_secret_hash(id).await?;
        let same: bool = known.is_none_or(|known| known.as_bytes().ct_eq(shown.as_bytes()).into());
        if !same {
            return Err(AppError::NodeUnknown(id));
        }
        Ok(Credentials { node: id, certificate: None, secret_hash: Some(shown) })
    }
}

/// A certificate of another Carrel is good for nothing but to show that a database was lost.
pub(super) fn of_this_carrel(credentials: &Credentials, ours: ClusterId) -> Result<()> {
    match credentials.cluster() {
        Some(theirs) if theirs != ours => {
            Err(AppError::CertificateRefused { why: "it is of another Carrel" })
        }
        Some(_) | None => Ok(()),
    }
}

/// A node that was banned, or taken out, does nothing any more.
pub(super) fn not_banned(node: &Node) -> Result<()> {
    match node.banned_since() {
        Some(_) => Err(AppError::NodeBanned(node.id)),
        None => Ok(()),
    }
}

/// An identity stays on the host and the Docker daemon that it was given to.
pub(super) fn same_host(node: &Node, facts: &NodeFacts) -> Result<()> {
    let changed = |what| Err(AppError::NodeIdentityChanged { node: node.id, what });
    if node.facts.machine_id != facts.machine_id {
        return changed("machine id");
    }
    let (known, told) = (&node.facts.docker_id, &facts.docker_id);
    if !known.is_empty() && !told.is_empty() && known != told {
        return changed("Docker daemon id");
    }
    Ok(())
}

impl From<AuthorityError> for AppError {
    fn from(error: AuthorityError) -> Self {
        Self::Authority(error)
    }
}
