//! What is signed is checked here by rustls, as on the wire.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use carrel_common::certificate::{CONTROL_PLANE_NAME, NodeCertificate as Read, NodeUri, certificates_of_pem};
use carrel_common::clock::ManualClock;
use carrel_common::id::{ClusterId, NodeId};
use rcgen::{CertificateParams, KeyPair};
use time::OffsetDateTime;
use time::macros::datetime;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::ServerCertVerifier as _;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{Error, RootCertStore};

use super::*;

const NOW: OffsetDateTime = datetime!(2026-11-24 12:00:00 UTC);
const DAY: Duration = Duration::from_secs(86_400);

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        let dir = Self(tempfile::tempdir().expect("tempdir"));
        files::init(&dir.path(), NOW).expect("init");
        dir
    }
    fn path(&self) -> PathBuf {
        self.0.path().join("ca")
    }
    fn authority(&self) -> Authority {
        Authority::from_files(&files::read(&self.path()).expect("read")).expect("an authority")
    }
}

fn request() -> (KeyPair, Request) {
    let key = KeyPair::generate().expect("key");
    let csr = CertificateParams::default().serialize_request(&key).expect("csr").pem().expect("pem");
    let request = Request::from_pem(&csr).expect("a request");
    (key, request)
}

fn uri() -> NodeUri {
    NodeUri { cluster: ClusterId::new(), node: NodeId::new() }
}

fn issue(authority: &Authority, at: OffsetDateTime) -> Vec<CertificateDer<'static>> {
    let made = authority.issue_node(uri(), &request().1, at, DAY).expect("signed");
    certificates_of_pem(&made.pem).expect("pem")
}

fn roots(authority: &Authority) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    authority.trusted().iter().for_each(|der| roots.add(der.clone()).expect("an authority"));
    Arc::new(roots)
}

fn unix(at: OffsetDateTime) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(at.unix_timestamp()).expect("after 1970")))
}

/// Whether a listener that trusts as `authority` does lets a node in that shows `shown`.
fn lets_in(
    authority: &Authority,
    shown: &[CertificateDer<'static>],
    at: OffsetDateTime,
) -> Result<(), Error> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots(authority), Arc::new(ring::default_provider()))
            .build()
            .expect("roots");
    verifier.verify_client_cert(&shown[0], &shown[1..], unix(at)).map(|_| ())
}

/// Whether an agent that trusts as `authority` does takes who shows `shown` for the control plane.
fn believes(
    authority: &Authority,
    shown: &[CertificateDer<'static>],
    at: OffsetDateTime,
) -> Result<(), Error> {
    let provider = Arc::new(ring::default_provider());
    let verifier =
        WebPkiServerVerifier::builder_with_provider(roots(authority), provider).build().expect("roots");
    let name = ServerName::try_from(CONTROL_PLANE_NAME).expect("a name");
    verifier.verify_server_cert(&shown[0], &shown[1..], &name, &[], unix(at)).map(|_| ())
}

fn listener(authority: &Authority, at: OffsetDateTime) -> Vec<CertificateDer<'static>> {
    authority.listener_certificate(at).expect("signed").0
}

#[test]
fn a_nodes_certificate_names_it_lives_as_long_as_asked_and_is_let_in() {
    let (authority, uri) = (Dir::new().authority(), uri());
    let made = authority.issue_node(uri, &request().1, NOW, DAY).expect("signed");
    let read = Read::from_pem(&made.pem).expect("a node's certificate");
    assert_eq!((read.uri, read.validity.life(), read.validity.until), (uri, DAY, made.expires_at));
    let shown = certificates_of_pem(&made.pem).expect("pem");
    assert_eq!(lets_in(&authority, &shown, NOW), Ok(()));
    assert_eq!(
        lets_in(&authority, &shown, NOW - Duration::from_secs(3599)),
        Ok(()),
        "a clock an hour behind"
    );
    assert!(lets_in(&authority, &shown, NOW + DAY).is_err(), "it ends");
}

#[test]
fn a_node_is_not_the_control_plane_and_the_control_plane_no_node() {
    let authority = Dir::new().authority();
    assert_eq!(believes(&authority, &listener(&authority, NOW), NOW), Ok(()));
    assert!(believes(&authority, &issue(&authority, NOW), NOW).is_err());
    assert!(lets_in(&authority, &listener(&authority, NOW), NOW).is_err());
}

#[test]
fn another_authority_is_not_believed() {
    let (ours, other) = (Dir::new().authority(), Dir::new().authority());
    assert!(believes(&ours, &listener(&other, NOW), NOW).is_err());
    assert!(lets_in(&ours, &issue(&other, NOW), NOW).is_err());
}

#[test]
fn what_a_request_asks_for_besides_its_key_is_not_given() {
    let key = KeyPair::generate().expect("key");
    let mut greedy = CertificateParams::new(vec![CONTROL_PLANE_NAME.to_owned()]).expect("name");
    greedy.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let csr = greedy.serialize_request(&key).expect("csr").pem().expect("pem");
    let authority = Dir::new().authority();
    let request = Request::from_pem(&csr).expect("a request");
    let made = authority.issue_node(uri(), &request, NOW, DAY).expect("signed");
    let shown = certificates_of_pem(&made.pem).expect("pem");
    assert_eq!(lets_in(&authority, &shown, NOW), Ok(()));
    assert!(believes(&authority, &shown, NOW).is_err());
}

#[test]
fn a_request_that_is_not_signed_by_its_own_key_is_none() {
    let (ours, theirs) = (KeyPair::generate().expect("key"), KeyPair::generate().expect("key"));
    let der = CertificateParams::default().serialize_request(&ours).expect("csr").der().to_vec();
    // The same request with another's public key in it: what somebody could make who does not hold that key.
    let (from, to) = (ours.public_key_raw(), theirs.public_key_raw());
    let at = der.windows(from.len()).position(|part| part == from).expect("the key is in it");
    let forged = [&der[..at], to, &der[at + from.len()..]].concat();
    for bad in [String::new(), "nonsense".to_owned(), pem("CERTIFICATE REQUEST", &forged)] {
        assert!(matches!(Request::from_pem(&bad), Err(AuthorityError::Request)), "{bad}");
    }
    assert!(Request::from_pem(&pem("CERTIFICATE REQUEST", &der)).is_ok());
}

fn pem(label: &str, der: &[u8]) -> String {
    pem_of_certificates([der]).replace("CERTIFICATE", label)
}

#[test]
fn a_rotation_cuts_nobody_off() {
    let dir = Dir::new();
    let before = dir.authority();
    let node_before = issue(&before, NOW);
    for round in 1..=2 {
        files::rotate(&dir.path(), NOW).expect("rotate");
        let after = dir.authority();
        assert_eq!(after.trusted().len(), 1 + round);
        // Agents that have not heard of it, replicas that have not read it, and the other way round.
        assert_eq!(believes(&before, &listener(&after, NOW), NOW), Ok(()), "round {round}");
        assert_eq!(believes(&after, &listener(&before, NOW), NOW), Ok(()), "round {round}");
        assert_eq!(lets_in(&before, &issue(&after, NOW), NOW), Ok(()), "round {round}");
        assert_eq!(lets_in(&after, &node_before, NOW), Ok(()), "round {round}");
    }
}

#[test]
fn a_pruned_authority_counts_no_more_and_not_before_its_nodes_have_renewed() {
    let dir = Dir::new();
    let node_before = issue(&dir.authority(), NOW);
    files::rotate(&dir.path(), NOW).expect("rotate");
    let early = files::prune(&dir.path(), NOW + DAY / 2, Some(DAY));
    assert!(matches!(early, Err(AuthorityError::TooEarly { .. })), "{early:?}");
    assert_eq!(lets_in(&dir.authority(), &node_before, NOW), Ok(()));
    assert_eq!(files::prune(&dir.path(), NOW + DAY, Some(DAY)).expect("prune"), 1);
    let after = dir.authority();
    assert!(lets_in(&after, &node_before, NOW).is_err());
    assert_eq!(lets_in(&after, &issue(&after, NOW), NOW), Ok(()));
    assert_eq!(files::prune(&dir.path(), NOW, Some(DAY)).expect("nothing to do"), 0);
    files::rotate(&dir.path(), NOW).expect("rotate");
    assert_eq!(files::prune(&dir.path(), NOW, None).expect("forced"), 1);
}

#[test]
fn what_a_connection_began_with_counts_until_its_authority_is_pruned_also_after_its_own_end() {
    let dir = Dir::new();
    let clock = Arc::new(ManualClock::new(NOW));
    let (authorities, renewal) = Authorities::open(dir.path(), clock.clone()).expect("open");
    let mut shown = ShownCertificate::new(Arc::new(issue(&dir.authority(), NOW))).expect("a node's");
    assert!(authorities.vouch_for(&mut shown));
    files::rotate(&dir.path(), NOW).expect("rotate");
    clock.advance(DAY * 2);
    assert!(renewal.once().expect("taken up").is_some());
    assert!(authorities.vouch_for(&mut shown), "the one before is trusted still");
    files::prune(&dir.path(), NOW + DAY * 2, Some(DAY)).expect("prune");
    assert!(renewal.once().expect("taken up").is_some());
    assert!(!authorities.vouch_for(&mut shown));
    assert!(!authorities.vouch_for(&mut shown), "nor when it is asked once more");
}

/// The states a crash in the middle of a rotation leaves.
#[test]
fn a_rotation_cut_short_leaves_the_old_authority_at_work() {
    let dir = Dir::new();
    let before = files::read(&dir.path()).expect("read");
    let node_before = issue(&dir.authority(), NOW);
    files::rotate(&dir.path(), NOW).expect("rotate");
    let after = files::read(&dir.path()).expect("read");
    for (trusted, chain) in [(&after.trusted_pem, &before.chain_pem), (&after.trusted_pem, &after.chain_pem)]
    {
        let between = files::Found {
            key_pem: before.key_pem.clone(),
            trusted_pem: trusted.clone(),
            chain_pem: chain.clone(),
        };
        let authority = Authority::from_files(&between).expect("it works");
        assert_eq!(lets_in(&authority, &node_before, NOW), Ok(()));
        assert_eq!(
            lets_in(&Authority::from_files(&before).expect("old"), &issue(&authority, NOW), NOW),
            Ok(())
        );
    }
    let torn = files::Found { trusted_pem: before.trusted_pem, ..after };
    assert!(matches!(Authority::from_files(&torn), Err(AuthorityError::KeyOfNone)));
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("there").permissions().mode() & 0o777
}

#[test]
fn the_key_is_for_its_owner_alone() {
    let dir = Dir::new();
    let key = dir.path().join("ca.key");
    assert_eq!((mode(&dir.path()), mode(&key)), (0o700, 0o600));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).expect("chmod");
    assert!(matches!(files::read(&dir.path()), Err(AuthorityError::Open { wanted: 0o600, .. })));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    assert!(matches!(files::read(&dir.path()), Err(AuthorityError::Open { wanted: 0o700, .. })));
}

#[test]
fn what_is_missing_above_the_directory_is_made_as_any_other() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (above, other) = (dir.path().join("above"), dir.path().join("other"));
    std::fs::create_dir(&other).expect("made");
    files::init(&above.join("ca"), NOW).expect("init");
    assert_eq!((mode(&above), mode(&above.join("ca"))), (mode(&other), 0o700));
}

#[test]
fn what_root_rotates_stays_the_services() {
    let dir = Dir::new();
    let owner = |path: &Path| std::fs::metadata(path).expect("there").uid();
    // Only root can give files away: whoever else runs this sees that nothing is refused.
    let service = match owner(&dir.path()) {
        0 => 4711,
        own => own,
    };
    chown(dir.path(), Some(service), None).expect("chown");
    files::rotate(&dir.path(), NOW).expect("rotated");
    let owners = ["ca.key", "ca.pem", "chain.pem"].map(|name| owner(&dir.path().join(name)));
    assert_eq!(owners, [service; 3]);
}

#[test]
fn a_file_that_was_copied_as_root_is_told_with_what_to_do() {
    let dir = Dir::new();
    files::rotate(&dir.path(), NOW).expect("rotate");
    let (chain, path) = (dir.path().join("chain.pem"), dir.path().display().to_string());
    let told = || {
        files::unreadable(&dir.path(), "chain.pem", std::io::ErrorKind::PermissionDenied.into()).to_string()
    };
    // Its owner is right: something else hinders it.
    assert_eq!(told(), format!("{} cannot be read: permission denied", chain.display()));
    // Only root can give files away, so that whoever else runs this has seen all that it can.
    if std::fs::metadata(&chain).expect("there").uid() == 0 {
        chown(dir.path(), Some(4711), None).expect("chown");
        assert!(told().ends_with(&format!("chown -R 4711 {path}")), "{}", told());
    }
}

#[test]
fn an_authority_is_never_overwritten() {
    let dir = Dir::new();
    assert!(matches!(files::init(&dir.path(), NOW), Err(AuthorityError::Exists(_))));
}

#[test]
fn a_running_replica_takes_up_a_rotation_and_keeps_what_it_has_when_the_files_are_bad() {
    let dir = Dir::new();
    let clock = Arc::new(ManualClock::new(NOW));
    let (authorities, renewal) = Authorities::open(dir.path(), clock.clone()).expect("open");
    assert_eq!(renewal.once().expect("nothing to do"), None);
    files::rotate(&dir.path(), NOW).expect("rotate");
    assert!(renewal.once().expect("taken up").is_some());
    assert_eq!(authorities.now().trusted().len(), 2);
    std::fs::write(dir.path().join("ca.pem"), "nonsense").expect("write");
    assert!(renewal.once().is_err());
    assert_eq!(authorities.now().trusted().len(), 2);
}

#[test]
fn the_listener_gets_a_new_certificate_each_day() {
    let dir = Dir::new();
    let clock = Arc::new(ManualClock::new(NOW));
    let (authorities, renewal) = Authorities::open(dir.path(), clock.clone()).expect("open");
    let mut listener = authorities.listener();
    clock.advance(DAY - Duration::from_secs(1));
    assert_eq!(renewal.once().expect("not yet"), None);
    clock.advance(Duration::from_secs(1));
    assert!(renewal.once().expect("anew").is_some());
    assert!(listener.has_changed().expect("alive"));
    listener.mark_unchanged();
}
