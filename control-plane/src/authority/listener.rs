//! The TLS of the agents' listener: a certificate of our own making, and whose clients' certificates count.

use std::sync::Arc;
use std::time::Duration;

use carrel_common::certificate::{CONTROL_PLANE_NAME, Validity};
use rcgen::{ExtendedKeyUsagePurpose, KeyPair, SanType};
use time::OffsetDateTime;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::issue::{crypto, leaf};
use super::{Authority, AuthorityError};

/// Life of the listener's certificate: it is made anew each day, and the week is for a replica whose clock stands wrong.
const LISTENER_LIFE: time::Duration = time::Duration::days(7);
/// It counts from a day before: an agent's clock may be behind ours.
const LISTENER_BACKDATED: time::Duration = time::Duration::days(1);

/// Whose certificates count, when these authorities are trusted.
pub(super) fn who_is_let_in(
    trusted: &[CertificateDer<'static>],
) -> Result<Arc<dyn ClientCertVerifier>, AuthorityError> {
    let failed = |problem: String| AuthorityError::Crypto { operation: "trust what is in ca.pem", problem };
    let mut roots = RootCertStore::empty();
    for der in trusted {
        roots.add(der.clone()).map_err(|e| failed(e.to_string()))?;
    }
    // Optional here, since a host that enrols has none yet; Session and RenewCertificate ask for it.
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(ring::default_provider()))
        .allow_unauthenticated()
        .build()
        .map_err(|e| failed(e.to_string()))
}

impl Authority {
    /// What the agents' listener accepts connections with.
    ///
    /// # Errors
    /// When no certificate can be made.
    pub fn listener(&self, now: OffsetDateTime) -> Result<ServerConfig, AuthorityError> {
        let (shown, key) = self.listener_certificate(now)?;
        self.accepting(shown, &key)
    }

    /// The listener's certificate with what follows it, and its key, which is made here and never leaves the process.
    pub(super) fn listener_certificate(
        &self,
        now: OffsetDateTime,
    ) -> Result<(Vec<CertificateDer<'static>>, KeyPair), AuthorityError> {
        let failed = crypto("make the listener's certificate");
        let key = KeyPair::generate().map_err(&failed)?;
        let name = SanType::DnsName(CONTROL_PLANE_NAME.try_into().map_err(&failed)?);
        let valid = Validity { from: now - LISTENER_BACKDATED, until: now + LISTENER_LIFE };
        let params = leaf("Carrel control plane", vec![name], ExtendedKeyUsagePurpose::ServerAuth, valid);
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        let shown = std::iter::once(certificate.der()).chain(&self.chain).cloned().collect();
        Ok((shown, key))
    }

    /// Whether one that is trusted vouches for the node that shows this, its own certificate first, by what TLS asks when a connection begins.
    pub(super) fn vouches_for(&self, shown: &[CertificateDer<'_>], at: OffsetDateTime) -> bool {
        let Some((own, others)) = shown.split_first() else { return false };
        let since_1970 = Duration::try_from(at - OffsetDateTime::UNIX_EPOCH).unwrap_or_default();
        self.clients.verify_client_cert(own, others, UnixTime::since_unix_epoch(since_1970)).is_ok()
    }

    fn accepting(
        &self,
        shown: Vec<CertificateDer<'static>>,
        key: &KeyPair,
    ) -> Result<ServerConfig, AuthorityError> {
        let failed =
            |problem: String| AuthorityError::Crypto { operation: "set up the listener's TLS", problem };
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| failed(e.to_string()))?
            .with_client_cert_verifier(Arc::clone(&self.clients))
            .with_single_cert(shown, key)
            .map_err(|e| failed(e.to_string()))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed connection would not show its certificate again, which may have ended since.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}
