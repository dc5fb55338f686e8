//! The TLS of the agents' listener: a certificate of our own making, and whose clients' certificates count.

use std::sync::Arc;

use carrel_common::certificate::{CONTROL_PLANE_NAME, Validity};
use rcgen::{ExtendedKeyUsagePurpose, KeyPair, SanType};
use time::OffsetDateTime;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::issue::{crypto, leaf};
use super::{Authority, AuthorityError};

/// Life of the listener's certificate: it is made anew each day, and the week is for a replica whose clock stands wrong.
const LISTENER_LIFE: time::Duration = time::Duration::days(7);
/// It counts from a day before: an agent's clock may be behind ours.
const LISTENER_BACKDATED: time::Duration = time::Duration::days(1);

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

    fn accepting(
        &self,
        shown: Vec<CertificateDer<'static>>,
        key: &KeyPair,
    ) -> Result<ServerConfig, AuthorityError> {
        let failed =
            |problem: String| AuthorityError::Crypto { operation: "set up the listener's TLS", problem };
        let mut roots = RootCertStore::empty();
        for trusted in &self.trusted {
            roots.add(trusted.clone()).map_err(|e| failed(e.to_string()))?;
        }
        let provider = Arc::new(ring::default_provider());
        // Optional here, since a host that enrols has none yet; Session and RenewCertificate ask for it.
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|e| failed(e.to_string()))?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| failed(e.to_string()))?
            .with_client_cert_verifier(clients)
            .with_single_cert(shown, key)
            .map_err(|e| failed(e.to_string()))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed connection would not show its certificate again, which may have ended since.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}
