//! What the authority signs: nodes' certificates, and authorities themselves.

use std::time::Duration;

use carrel_common::certificate::{
    CertificateError, NodeUri, Validity, pem_of_certificates, public_key_of, validity_of,
};
use carrel_common::id::hex;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use time::OffsetDateTime;

use super::{Authority, AuthorityError};

/// An authority lives long, since it is replaced by `ca rotate` and not by its end.
const AUTHORITY_LIFE: time::Duration = time::Duration::days(3650);
/// It counts from a day before it was made: the clock of a host that enrols at once may be behind.
const AUTHORITY_BACKDATED: time::Duration = time::Duration::days(1);

/// A certificate counts from before it was made, by this part of its life: the clock of the host that checks it may be
/// behind. Of the usual 24 h that is one hour, the largest step of a clock that changes nothing else in Carrel either.
const BACKDATED: u32 = 24;

/// A certificate made for a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// The certificate, then what those need who know only an older authority; PEM.
    pub pem: String,
    /// When it ends.
    pub expires_at: OffsetDateTime,
}

/// The public key a request asks a certificate for; the request is signed by it, so who sends it holds the key.
#[derive(Debug)]
pub struct Request(CertificateSigningRequestParams);

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    /// [`AuthorityError::Request`].
    pub fn from_pem(pem: &str) -> Result<Self, AuthorityError> {
        CertificateSigningRequestParams::from_pem(pem).map(Self).map_err(|_| AuthorityError::Request)
    }

    /// Names the key: two requests with one name are of one key.
    pub fn key_name(&self) -> String {
        key_name(&self.0.public_key)
    }
}

pub(super) fn crypto(operation: &'static str) -> impl Fn(rcgen::Error) -> AuthorityError {
    move |e| AuthorityError::Crypto { operation, problem: e.to_string() }
}

fn key_name(key: &impl PublicKeyData) -> String {
    use sha2::{Digest as _, Sha256};
    hex(&Sha256::digest(key.subject_public_key_info()))
}

/// Whether a certificate is of this key.
pub(super) fn is_of(certificate: &[u8], key: &KeyPair) -> bool {
    public_key_of(certificate).is_ok_and(|of| of == key.subject_public_key_info())
}

/// When an authority was made, by its certificate.
pub(super) fn made_at(certificate: &[u8]) -> Result<OffsetDateTime, CertificateError> {
    Ok(validity_of(certificate)?.from + AUTHORITY_BACKDATED)
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// X.509 counts in whole seconds: never shorter than asked for at its end.
fn validity(now: OffsetDateTime, ttl: Duration) -> Validity {
    let second = |at: OffsetDateTime| at.replace_nanosecond(0).unwrap_or(at);
    let from = second(now - ttl / BACKDATED);
    Validity { from, until: second(from + ttl + Duration::from_millis(999)) }
}

pub(super) fn leaf(
    common_name: &str,
    names: Vec<SanType>,
    usage: ExtendedKeyUsagePurpose,
    valid: Validity,
) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(common_name);
    params.subject_alt_names = names;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // One use only: a node's certificate must not pass for the control plane's.
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    params.not_before = valid.from;
    params.not_after = valid.until;
    params
}

/// How an authority's certificate is filled in, whoever signs it.
pub(super) fn authority_params(key: &KeyPair, now: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    // Each has a name of its own, so that nobody tries the wrong one first.
    params.distinguished_name = named(&format!("Carrel authority {}", &key_name(key)[..8]));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now.replace_nanosecond(0).unwrap_or(now) - AUTHORITY_BACKDATED;
    params.not_after = params.not_before + AUTHORITY_LIFE;
    params
}

impl Authority {
    /// A certificate for a node with the key of `request`. What else the request asks for is not looked at.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn issue_node(
        &self,
        uri: NodeUri,
        request: &Request,
        now: OffsetDateTime,
        ttl: Duration,
    ) -> Result<Issued, AuthorityError> {
        let failed = crypto("sign a node's certificate");
        let name = SanType::URI(uri.to_string().try_into().map_err(&failed)?);
        let valid = validity(now, ttl);
        let params =
            leaf(&format!("node {}", uri.node), vec![name], ExtendedKeyUsagePurpose::ClientAuth, valid);
        let signed = params.signed_by(&request.0.public_key, &self.issuer).map_err(failed)?;
        Ok(Issued { pem: self.with_chain(&signed), expires_at: valid.until })
    }

    fn with_chain(&self, signed: &Certificate) -> String {
        let all = std::iter::once(signed.der()).chain(&self.chain);
        pem_of_certificates(all.map(AsRef::as_ref))
    }
}
