//! What both sides know of a node's certificate: how it names the node, how long it lives, and the one name of the
//! control plane's.
//!
//! Certificates are checked by rustls and made by the control plane's authority; here they are only read.

use std::error::Error;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use time::OffsetDateTime;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::id::{ClusterId, NodeId};

/// The name in the certificate of every replica's listener for agents. Agents verify this name whatever address they
/// dial: who may call itself so is decided by the authority alone, so addresses can change without new certificates.
pub const CONTROL_PLANE_NAME: &str = "control-plane.carrel.internal";

/// Why a certificate cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// It is no certificate.
    #[error("it is not an X.509 certificate in PEM")]
    Malformed,
    /// Its subject alternative names do not hold exactly one node.
    #[error("it does not name a node of Carrel")]
    NamesNoNode,
}

/// How a certificate names a node: `carrel://<cluster>/nodes/<node>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeUri {
    /// The Carrel it belongs to.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
}

impl fmt::Display for NodeUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "carrel://{}/nodes/{}", self.cluster, self.node)
    }
}

impl FromStr for NodeUri {
    type Err = CertificateError;
    fn from_str(text: &str) -> Result<Self, CertificateError> {
        let (cluster, node) = text
            .strip_prefix("carrel://")
            .and_then(|rest| rest.split_once("/nodes/"))
            .ok_or(CertificateError::NamesNoNode)?;
        let uri = Self {
            cluster: cluster.parse().map_err(|_| CertificateError::NamesNoNode)?,
            node: node.parse().map_err(|_| CertificateError::NamesNoNode)?,
        };
        // One spelling only: what is compared as text elsewhere is the same there.
        if uri.to_string() == text { Ok(uri) } else { Err(CertificateError::NamesNoNode) }
    }
}

/// From when until when a certificate counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Not before.
    pub from: OffsetDateTime,
    /// Not after.
    pub until: OffsetDateTime,
}

impl Validity {
    /// The whole of it.
    pub fn life(&self) -> Duration {
        (self.until - self.from).try_into().unwrap_or(Duration::ZERO)
    }
}

/// A node's certificate, as far as Carrel reads it. Nothing here checks who signed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeCertificate {
    /// Whom it names.
    pub uri: NodeUri,
    /// When it counts.
    pub validity: Validity,
}

impl NodeCertificate {
    /// Reads a certificate.
    ///
    /// # Errors
    /// When it is none, or does not name exactly one node.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        let certificate = parse(der)?;
        let names = certificate.subject_alternative_name().map_err(|_| CertificateError::Malformed)?;
        let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
        let [GeneralName::URI(uri)] = names else { return Err(CertificateError::NamesNoNode) };
        Ok(Self { uri: uri.parse()?, validity: validity(&certificate) })
    }

    /// Reads the first certificate of a PEM text.
    ///
    /// # Errors
    /// As [`NodeCertificate::from_der`].
    pub fn from_pem(pem: &str) -> Result<Self, CertificateError> {
        let first = certificates_of_pem(pem)?.into_iter().next().ok_or(CertificateError::Malformed)?;
        Self::from_der(&first)
    }
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    X509Certificate::from_der(der)
        .map(|(_, certificate)| certificate)
        .map_err(|_| CertificateError::Malformed)
}

fn validity(certificate: &X509Certificate<'_>) -> Validity {
    let validity = certificate.validity();
    Validity { from: validity.not_before.to_datetime(), until: validity.not_after.to_datetime() }
}

/// When a certificate counts.
///
/// # Errors
/// When it is none.
pub fn validity_of(der: &[u8]) -> Result<Validity, CertificateError> {
    parse(der).map(|certificate| validity(&certificate))
}

/// The public key of a certificate, as a SubjectPublicKeyInfo in DER.
///
/// # Errors
/// When it is none.
pub fn public_key_of(der: &[u8]) -> Result<Vec<u8>, CertificateError> {
    parse(der).map(|certificate| certificate.public_key().raw.to_vec())
}

/// The certificates of a PEM text, in their order; other sections are passed over.
///
/// # Errors
/// When the text is no PEM.
pub fn certificates_of_pem(pem: &str) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| CertificateError::Malformed)
}

/// Certificates as PEM text.
pub fn pem_of_certificates<'a>(certificates: impl IntoIterator<Item = &'a [u8]>) -> String {
    use base64::Engine as _;
    let mut pem = String::new();
    for der in certificates {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        // 64 characters a line is what PEM asks for.
        for line in text.as_bytes().chunks(64) {
            pem.push_str(&String::from_utf8_lossy(line));
            pem.push('\n');
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    pem
}

/// Whether a connection failed since nobody whom we trust vouches for who answered there.
pub fn is_of_unknown_authority(error: &(dyn Error + 'static)) -> bool {
    let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
    std::iter::successors(Some(error), |error: &&(dyn Error + 'static)| (*error).source())
        // What an I/O error was made from is not its source.
        .filter_map(|error| error.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref::<rustls::Error>())
        .any(|error| *error == unknown)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_name_that_differs_in_anything_names_no_node() {
        let uri = NodeUri { cluster: ClusterId::new(), node: NodeId::new() };
        let good = uri.to_string();
        assert_eq!(good.parse(), Ok(uri));
        for bad in [
            good.replace("carrel://", "spiffe://"),
            good.replace("/nodes/", "/node/"),
            good.to_uppercase(),
            format!("{good}/"),
            format!("{good}?x"),
            good.replace('-', ""),
            String::new(),
        ] {
            assert_eq!(bad.parse::<NodeUri>(), Err(CertificateError::NamesNoNode), "{bad}");
        }
    }

    #[test]
    fn what_is_no_certificate_is_an_error() {
        for text in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert_eq!(NodeCertificate::from_pem(text), Err(CertificateError::Malformed), "{text}");
        }
    }

    #[test]
    fn who_is_of_an_unknown_authority_is_told_from_who_cannot_be_reached() {
        #[derive(Debug, thiserror::Error)]
        #[error("transport error")]
        struct Transport(#[source] io::Error);

        let failed = |why| {
            let error = io::Error::new(io::ErrorKind::InvalidData, rustls::Error::InvalidCertificate(why));
            is_of_unknown_authority(&Transport(error))
        };
        assert!(failed(rustls::CertificateError::UnknownIssuer));
        assert!(!failed(rustls::CertificateError::Expired));
        assert!(!is_of_unknown_authority(&Transport(io::ErrorKind::ConnectionRefused.into())));
    }

    proptest! {
        #[test]
        fn pem_comes_back_as_it_was_written(ders in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..4)) {
            let pem = pem_of_certificates(ders.iter().map(Vec::as_slice));
            let back: Vec<Vec<u8>> =
                certificates_of_pem(&pem).expect("PEM").iter().map(|der| der.to_vec()).collect();
            prop_assert_eq!(back, ders);
        }

        #[test]
        fn a_nodes_name_comes_back_as_it_was_written(cluster: u128, node: u128) {
            let uri = NodeUri { cluster: ClusterId(Uuid::from_u128(cluster)), node: NodeId(Uuid::from_u128(node)) };
            prop_assert_eq!(uri.to_string().parse::<NodeUri>(), Ok(uri));
        }
    }
}
