//! What a node has shown when its connection began. A connection may stay open for as long as its peer likes, so it is looked at again.

use std::sync::Arc;

use carrel_common::certificate::{CertificateError, NodeCertificate};
use time::OffsetDateTime;
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::Authority;

/// A node's certificate, with what was shown beside it.
#[derive(Debug, Clone)]
pub struct ShownCertificate {
    own: NodeCertificate,
    all: Arc<Vec<CertificateDer<'static>>>,
    /// Who vouched for it when that was looked at last.
    by: Option<Arc<Authority>>,
}

impl ShownCertificate {
    /// What a connection has shown, the node's own certificate first.
    ///
    /// # Errors
    /// When that is none, or does not name exactly one node.
    pub fn new(all: Arc<Vec<CertificateDer<'static>>>) -> Result<Self, CertificateError> {
        let own = NodeCertificate::from_der(all.first().ok_or(CertificateError::Malformed)?)?;
        Ok(Self { own, all, by: None })
    }

    /// The node's own.
    pub fn certificate(&self) -> NodeCertificate {
        self.own
    }

    /// Whether this authority vouches for it; whether it has ended since it was shown is another matter. Of the one that did so last it is known.
    pub(super) fn is_vouched_for(&mut self, authority: &Arc<Authority>, now: OffsetDateTime) -> bool {
        let known = self.by.as_ref().is_some_and(|by| Arc::ptr_eq(by, authority));
        let vouched = known || authority.vouches_for(&self.all, now.min(self.own.validity.until));
        self.by = vouched.then(|| Arc::clone(authority));
        vouched
    }
}
