//! The authority on disk, in a directory that its owner alone may enter:
//!
//! | file | what |
//! |---|---|
//! | `ca.key` (0600) | the key that signs |
//! | `ca.pem` | the certificates whose word counts: the signing one, and those before it until `ca prune` |
//! | `chain.pem` | after `ca rotate`: the signing one, signed by the one before it |
//!
//! Each file is replaced as a whole, in an order in which every state between is whole too: a replica that reads in the
//! middle of a rotation, and one that crashed there, has an authority that works.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::Path;
use std::time::Duration;

use carrel_common::certificate::{certificates_of_pem, pem_of_certificates};
use rcgen::KeyPair;
use time::OffsetDateTime;
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::issue::{authority_params, crypto, is_of, made_at};
use super::{Authority, AuthorityError};

const KEY: &str = "ca.key";
const TRUSTED: &str = "ca.pem";
const CHAIN: &str = "chain.pem";

/// What the directory holds, as text.
#[derive(Clone, PartialEq, Eq)]
pub struct Found {
    pub(super) key_pem: String,
    pub(super) trusted_pem: String,
    pub(super) chain_pem: String,
}

impl std::fmt::Debug for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Found(***)")
    }
}

fn failed(path: &Path, verb: &'static str) -> impl Fn(io::Error) -> AuthorityError {
    let path = path.display().to_string();
    move |e| AuthorityError::File { path: path.clone(), verb, problem: e.to_string() }
}

pub(super) fn certificates(
    file: &'static str,
    pem: &str,
) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    certificates_of_pem(pem).map_err(|problem| AuthorityError::Certificate { file, problem })
}

/// Others must not be able to read the key.
fn check_closed(path: &Path, wanted: u32) -> Result<(), AuthorityError> {
    let mode = fs::metadata(path).map_err(failed(path, "read"))?.mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(AuthorityError::Open { path: path.display().to_string(), mode, wanted })
}

/// Why a file of the directory cannot be read. Whoever copies the directory as root leaves files there that its owner cannot read.
pub(super) fn unreadable(dir: &Path, name: &str, error: io::Error) -> AuthorityError {
    let path = dir.join(name);
    let owner = |path: &Path| fs::metadata(path).map(|it| it.uid());
    match (error.kind(), owner(&path), owner(dir)) {
        (io::ErrorKind::PermissionDenied, Ok(owner), Ok(wanted)) if owner != wanted => {
            AuthorityError::Owner {
                path: path.display().to_string(),
                owner,
                dir: dir.display().to_string(),
                wanted,
            }
        }
        (_, _, _) => failed(&path, "read")(error),
    }
}

/// Reads the directory. Blocking.
///
/// # Errors
/// When a file is missing, or open to others.
pub fn read(dir: &Path) -> Result<Found, AuthorityError> {
    check_closed(dir, 0o700)?;
    check_closed(&dir.join(KEY), 0o600)?;
    let text = |name: &str| fs::read_to_string(dir.join(name)).map_err(|error| unreadable(dir, name, error));
    // The key first: a rotation writes it last, so the certificates read after it know it.
    let key_pem = text(KEY)?;
    let trusted_pem = text(TRUSTED)?;
    let chain_pem = if dir.join(CHAIN).exists() { text(CHAIN)? } else { String::new() };
    Ok(Found { key_pem, trusted_pem, chain_pem })
}

/// Replaces a file as a whole, readable by the owner alone: the directory's, whoever writes it. An operator rotates as root what a
/// service reads as its own user.
fn write(dir: &Path, name: &str, text: &str) -> Result<(), AuthorityError> {
    let path = dir.join(name);
    let put = || {
        let new = dir.join(format!("{name}.new"));
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        let owner = fs::metadata(dir)?;
        if file.metadata()?.uid() != owner.uid() {
            fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        fs::File::open(dir)?.sync_all()
    };
    put().map_err(failed(&path, "written"))
}

/// Makes an authority in a directory that has none, and the directory when it is missing. What is missing above it is made as any other
/// directory, since the service's user has to come through there. Blocking.
///
/// # Errors
/// When there is one already, or the disk refuses.
pub fn init(dir: &Path, now: OffsetDateTime) -> Result<(), AuthorityError> {
    if let Some(above) = dir.parent() {
        fs::create_dir_all(above).map_err(failed(above, "made"))?;
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed(dir, "made"))?;
    check_closed(dir, 0o700)?;
    if dir.join(KEY).exists() {
        return Err(AuthorityError::Exists(dir.display().to_string()));
    }
    let failed = crypto("make an authority");
    let key = KeyPair::generate().map_err(&failed)?;
    let certificate = authority_params(&key, now).self_signed(&key).map_err(failed)?;
    write(dir, TRUSTED, &certificate.pem())?;
    write(dir, KEY, &key.serialize_pem())
}

/// Makes a new authority beside the one that is there: the new one signs from now on, both are trusted. Blocking.
///
/// # Errors
/// When the directory holds no authority, or the disk refuses.
pub fn rotate(dir: &Path, now: OffsetDateTime) -> Result<(), AuthorityError> {
    let found = read(dir)?;
    let before = Authority::from_files(&found)?;
    let failed = crypto("make an authority");
    let key = KeyPair::generate().map_err(&failed)?;
    let params = authority_params(&key, now);
    let own = params.self_signed(&key).map_err(&failed)?;
    // The one before vouches for the new one, so nobody is cut off who has not heard of it yet.
    let vouched = params.signed_by(&key, &before.issuer).map_err(failed)?;
    let trusted = std::iter::once(own.der()).chain(&before.trusted);
    let chain = std::iter::once(vouched.der()).chain(&before.chain);
    write(dir, TRUSTED, &pem_of_certificates(trusted.map(AsRef::as_ref)))?;
    write(dir, CHAIN, &pem_of_certificates(chain.map(AsRef::as_ref)))?;
    write(dir, KEY, &key.serialize_pem())
}

/// Trusts no authority any more but the one that signs; how many that ended. Nodes whose certificates are of another one have to enrol again,
/// so it is refused while the signing one is younger than `after`, the life of such a certificate; without it, it is done at once. Blocking.
///
/// # Errors
/// [`AuthorityError::TooEarly`]; when the directory holds no authority, or the disk refuses.
pub fn prune(dir: &Path, now: OffsetDateTime, after: Option<Duration>) -> Result<usize, AuthorityError> {
    let found = read(dir)?;
    let authority = Authority::from_files(&found)?;
    let key = authority.issuer.key();
    let (kept, dropped): (Vec<_>, Vec<_>) = authority.trusted.iter().partition(|der| is_of(der, key));
    let made = kept.iter().map(|der| made_at(der)).collect::<Result<Vec<_>, _>>();
    let made = made.map_err(|problem| AuthorityError::Certificate { file: TRUSTED, problem })?;
    let age =
        made.into_iter().max().map_or(Duration::ZERO, |made| (now - made).try_into().unwrap_or_default());
    if let Some(ttl) = after.filter(|ttl| age < *ttl && !dropped.is_empty()) {
        let whole =
            |span: Duration| humantime::format_duration(Duration::from_secs(span.as_secs())).to_string();
        return Err(AuthorityError::TooEarly { age: whole(age), ttl: whole(ttl) });
    }
    write(dir, TRUSTED, &pem_of_certificates(kept.into_iter().map(AsRef::as_ref)))?;
    write(dir, CHAIN, "")?;
    Ok(dropped.len())
}
