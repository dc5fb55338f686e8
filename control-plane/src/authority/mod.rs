//! The authority: whose word makes a node a node. It signs the nodes' certificates and that of our own listener.
//!
//! ```text
//!   files ──read──► Authority ──issue_node──► a node's certificate, for Enroll and RenewCertificate
//!                       └────────listener───► the TLS configuration of the agents' listener
//! ```
//!
//! `files` keeps it on disk (`control-plane ca …` writes there, `serve` only reads), `Authorities` holds the newest one in a
//! running replica. Who may have a certificate is not decided here but in `app`. Its key is the one secret that must not be
//! lost or seen: see `docs/operating.md`.

pub mod files;
mod in_force;
mod issue;
mod listener;
mod shown;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use carrel_common::certificate::{CertificateError, pem_of_certificates};
use rcgen::{Issuer, KeyPair};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;

pub use in_force::{Authorities, Renewal};
pub use issue::{Issued, Request};
pub use shown::ShownCertificate;

/// Why the authority cannot be used, or did not sign.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AuthorityError {
    /// A file cannot be read or written.
    #[error("{path} cannot be {verb}: {problem}")]
    File {
        /// Where.
        path: String,
        /// Read or written.
        verb: &'static str,
        /// The operating system's words.
        problem: String,
    },
    /// A file belongs to somebody else than the directory, and cannot be read.
    #[error(
        "{path} cannot be read, as it belongs to user {owner}, and {dir} to user {wanted}: chown -R {wanted} {dir}"
    )]
    Owner {
        /// Which file.
        path: String,
        /// Whose it is, by number.
        owner: u32,
        /// The directory.
        dir: String,
        /// Whose that is.
        wanted: u32,
    },
    /// Others than the owner could read the key.
    #[error("{path} is open to others (mode {mode:o}); close it: chmod {wanted:o} {path}")]
    Open {
        /// Where.
        path: String,
        /// As it is.
        mode: u32,
        /// As it must be.
        wanted: u32,
    },
    /// There is an authority already.
    #[error(
        "{0} holds an authority already; `control-plane ca rotate` replaces it without cutting anybody off"
    )]
    Exists(String),
    /// The key is of none of the certificates.
    #[error("ca.key is the key of no certificate in ca.pem; restore both from one backup")]
    KeyOfNone,
    /// A certificate in the directory is none.
    #[error("{file}: {problem}")]
    Certificate {
        /// Which file.
        file: &'static str,
        /// Why.
        problem: CertificateError,
    },
    /// A key or a certificate cannot be used or made.
    #[error("{operation}: {problem}")]
    Crypto {
        /// What was tried.
        operation: &'static str,
        /// The library's words.
        problem: String,
    },
    /// The request for a certificate is none, or is not signed by the key it holds.
    #[error("it is not a certificate signing request (PKCS #10, PEM) signed by its own key")]
    Request,
    /// Nodes may still hold certificates that only the old authority vouches for.
    #[error(
        "the new authority is {age} old, and a node may hold a certificate of the old one for {ttl}: wait until every node has renewed, or say --force"
    )]
    TooEarly {
        /// How long the new authority has signed.
        age: String,
        /// The life of nodes' certificates.
        ttl: String,
    },
}

/// An authority in memory: the one key that signs, and all certificates that are trusted.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Certificates whose word counts; the signing one among them.
    trusted: Vec<CertificateDer<'static>>,
    /// Shown after what is signed: how those who know only an older authority come to trust this one.
    chain: Vec<CertificateDer<'static>>,
    /// Says whether one that is trusted vouches for a node: when a connection begins, and while it is open.
    clients: Arc<dyn ClientCertVerifier>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("trusted", &self.trusted.len()).finish_non_exhaustive()
    }
}

impl Authority {
    /// From what the files hold.
    ///
    /// # Errors
    /// When they do not belong together.
    pub fn from_files(found: &files::Found) -> Result<Self, AuthorityError> {
        let key = KeyPair::from_pem(&found.key_pem).map_err(issue::crypto("read ca.key"))?;
        let trusted = files::certificates("ca.pem", &found.trusted_pem)?;
        let signing = trusted.iter().find(|der| issue::is_of(der, &key)).ok_or(AuthorityError::KeyOfNone)?;
        // Of a rotation that was cut short, or is under way, the chain may be there before the key.
        let chain = files::certificates("chain.pem", &found.chain_pem)?;
        let chain = if chain.first().is_some_and(|der| issue::is_of(der, &key)) { chain } else { Vec::new() };
        let issuer = Issuer::from_ca_cert_der(signing, key).map_err(issue::crypto("read ca.pem"))?;
        let clients = listener::who_is_let_in(&trusted)?;
        Ok(Self { issuer, trusted, chain, clients })
    }

    /// The certificates whose word counts, DER.
    pub fn trusted(&self) -> &[CertificateDer<'static>] {
        &self.trusted
    }

    /// The certificates whose word counts, PEM.
    pub fn trusted_pem(&self) -> String {
        pem_of_certificates(self.trusted.iter().map(AsRef::as_ref))
    }
}
