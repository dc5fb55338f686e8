//! The files of the state directory that make the node: each replaced as a whole, so a crash leaves the old or the new one.
//!
//! | file | what |
//! |---|---|
//! | `node.key` | the node's key, made here; never leaves the host |
//! | `node.pem` | its certificate; says which node of which Carrel it is |
//! | `ca.pem` | the authorities whose word counts |
//! | `identity.json` | in `--dev`: node, Carrel and secret |

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use carrel_common::id::{ClusterId, NodeId};
use rcgen::KeyPair;
use serde::{Deserialize, Serialize};

use super::{EnrollError, Identity, Proof, Secret};

const IDENTITY: &str = "identity.json";
const KEY: &str = "node.key";
const CERTIFICATE: &str = "node.pem";
const AUTHORITIES: &str = "ca.pem";

#[derive(Serialize, Deserialize)]
struct InDev {
    node: NodeId,
    cluster: ClusterId,
    secret: String,
}

fn failed(path: &Path) -> impl Fn(io::Error) -> EnrollError {
    let path = path.to_owned();
    move |source| EnrollError::File { path: path.clone(), source }
}

fn bad(problem: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem.to_string())
}

/// The text of a file; `None` when there is none.
fn text(path: &Path) -> Result<Option<String>, EnrollError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(other) => Err(failed(path)(other)),
    }
}

/// Replaces a file, readable by the owner alone. Blocking.
fn write(state_dir: &Path, name: &str, text: &str) -> Result<(), EnrollError> {
    let path = state_dir.join(name);
    let put = || {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(state_dir)?;
        let new: PathBuf = state_dir.join(format!("{name}.new"));
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        fs::File::open(state_dir)?.sync_all()
    };
    put().map_err(failed(&path))
}

/// The identity in `--dev` that is kept in `state_dir`, if the node has enrolled before. Blocking.
///
/// # Errors
/// When the file is there and cannot be read or understood.
pub(super) fn load(state_dir: &Path) -> Result<Option<Identity>, EnrollError> {
    let path = state_dir.join(IDENTITY);
    let Some(text) = text(&path)? else { return Ok(None) };
    let kept: InDev = serde_json::from_str(&text).map_err(|e| failed(&path)(e.into()))?;
    Ok(Some(Identity { node: kept.node, cluster: kept.cluster, proof: Proof::Secret(Secret(kept.secret)) }))
}

/// The certified identity that is kept in `state_dir`, if the node has enrolled before; it may have ended. Blocking.
///
/// # Errors
/// When a file is there and cannot be read or understood, or one that belongs to it is missing.
pub(super) fn load_certified(state_dir: &Path) -> Result<Option<Identity>, EnrollError> {
    let path = state_dir.join(CERTIFICATE);
    // Written last: without it the host has not enrolled, whatever else is there.
    let Some(certificate) = text(&path)? else { return Ok(None) };
    let needed = |name: &str| {
        let path = state_dir.join(name);
        text(&path)?.ok_or_else(|| failed(&path)(io::ErrorKind::NotFound.into()))
    };
    let (key, authorities) = (Secret(needed(KEY)?), needed(AUTHORITIES)?);
    Identity::certified(key, certificate, authorities).map(Some).map_err(|e| failed(&path)(bad(e)))
}

/// The node's key: as kept, or made now. It is kept before anybody hears of it, so a host that is cut short while it enrols
/// asks again with the same key and gets the same answer. Blocking.
pub(super) fn key(state_dir: &Path) -> Result<KeyPair, EnrollError> {
    let path = state_dir.join(KEY);
    if let Some(pem) = text(&path)? {
        return KeyPair::from_pem(&pem).map_err(|e| failed(&path)(bad(e)));
    }
    let key = KeyPair::generate()?;
    write(state_dir, KEY, &key.serialize_pem())?;
    Ok(key)
}

/// Keeps an identity. Blocking.
///
/// # Errors
/// When the disk refuses.
pub(super) fn save(state_dir: &Path, identity: &Identity) -> Result<(), EnrollError> {
    match &identity.proof {
        Proof::Secret(secret) => {
            let kept = InDev { node: identity.node, cluster: identity.cluster, secret: secret.0.clone() };
            let path = state_dir.join(IDENTITY);
            let text = serde_json::to_string_pretty(&kept).map_err(|e| failed(&path)(e.into()))?;
            write(state_dir, IDENTITY, &text)
        }
        Proof::Certificate(own) => {
            // The authorities first: a certificate must never be there without those that it is used with.
            write(state_dir, AUTHORITIES, &own.ca_pem)?;
            write(state_dir, CERTIFICATE, &own.certificate_pem)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use carrel_common::certificate::NodeUri;
    use rcgen::{CertificateParams, SanType};

    use super::*;

    fn in_dev() -> Identity {
        let proof = Proof::Secret(Secret("s3cret".into()));
        Identity { node: NodeId::new(), cluster: ClusterId::new(), proof }
    }

    fn certified(key: &KeyPair) -> Identity {
        let uri = NodeUri { cluster: ClusterId::new(), node: NodeId::new() };
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.to_string().try_into().expect("ASCII"))];
        let certificate = params.self_signed(key).expect("signed").pem();
        Identity::certified(Secret(key.serialize_pem()), certificate.clone(), certificate).expect("a node's")
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("there").permissions().mode() & 0o777
    }

    #[test]
    fn a_dev_identity_comes_back_as_it_was_kept_and_only_the_owner_can_read_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (state, identity) = (dir.path().join("state"), in_dev());
        assert_eq!(load(&state).expect("nothing there"), None);
        save(&state, &identity).expect("save");
        assert_eq!(load(&state).expect("load"), Some(identity));
        assert_eq!((mode(&state), mode(&state.join(IDENTITY))), (0o700, 0o600));
    }

    #[test]
    fn a_certified_identity_comes_back_as_it_was_kept_and_only_the_owner_can_read_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        let state = dir.path().join("state");
        let made = key(&state).expect("made");
        assert_eq!(load_certified(&state).expect("a key alone is no identity"), None);
        let identity = certified(&made);
        save(&state, &identity).expect("save");
        assert_eq!(load_certified(&state).expect("load"), Some(identity));
        assert_eq!(key(&state).expect("kept").serialize_pem(), made.serialize_pem());
        let files = [KEY, CERTIFICATE, AUTHORITIES].map(|name| mode(&state.join(name)));
        assert_eq!(files, [0o600; 3]);
    }

    #[test]
    fn a_broken_file_is_an_error_and_no_reason_to_enrol_anew() {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::write(dir.path().join(IDENTITY), "{").expect("write");
        assert!(load(dir.path()).is_err());
        fs::write(dir.path().join(CERTIFICATE), "nonsense").expect("write");
        assert!(load_certified(dir.path()).is_err(), "the key is missing");
        key(dir.path()).expect("made");
        fs::write(dir.path().join(AUTHORITIES), "").expect("write");
        assert!(load_certified(dir.path()).is_err(), "the certificate is none");
        fs::write(dir.path().join(KEY), "nonsense").expect("write");
        assert!(key(dir.path()).is_err());
    }

    #[test]
    fn a_crash_while_an_identity_is_kept_leaves_the_one_before() {
        let dir = tempfile::tempdir().expect("tempdir");
        let identity = certified(&key(dir.path()).expect("made"));
        save(dir.path(), &identity).expect("save");
        for name in [KEY, CERTIFICATE, AUTHORITIES] {
            fs::write(dir.path().join(format!("{name}.new")), "half of i").expect("write");
        }
        assert_eq!(load_certified(dir.path()).expect("load"), Some(identity));
    }

    #[test]
    fn secrets_are_not_shown() {
        let key = KeyPair::generate().expect("key");
        assert!(!format!("{:?}", in_dev()).contains("s3cret"));
        let body = key.serialize_pem();
        let body = body.lines().nth(1).expect("a body");
        assert!(!format!("{:?}", certified(&key)).contains(body));
    }
}
