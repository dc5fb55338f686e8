//! What the database decides of an enrolment: a token is good once, for a while, for its own host.

use std::sync::Arc;
use std::time::Duration;

use carrel_common::certificate::{NodeCertificate, NodeUri, certificates_of_pem};
use carrel_common::clock::SystemClock;
use carrel_common::id::{ClusterId, Generation, NodeId, RequestId, WorkspaceUid};
use carrel_common::model::{Container, NodeFacts};
use control_plane::app::{AppError, Applicant, Call, Certified, Credentials, Greeting};
use control_plane::authority::{Authorities, Request, ShownCertificate, files};
use rcgen::{CertificateParams, KeyPair};
use time::OffsetDateTime;

use crate::rig::Rig;

const HOUR: Duration = Duration::from_secs(3600);

fn authorities(dir: &tempfile::TempDir) -> Authorities {
    let path = dir.path().join("ca");
    files::init(&path, OffsetDateTime::now_utc()).unwrap();
    Authorities::open(path, Arc::new(SystemClock::new())).unwrap().0
}

struct Enrolling {
    rig: Rig,
    _dir: tempfile::TempDir,
}

impl Enrolling {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::new().await;
        rig.app.authorities = Some(authorities(&dir));
        Self { rig, _dir: dir }
    }

    async fn token(&self, ttl: Duration, node: Option<NodeId>) -> String {
        self.rig.app.create_join_token(&call(None), ttl, node).await.unwrap().0.secret
    }

    async fn enroll(&self, host: &Applicant) -> Result<Certified, AppError> {
        self.rig.app.enroll_with_token(host).await
    }

    /// What a Hello does.
    async fn connect(&self, node: NodeId, facts: &NodeFacts) -> Result<(), AppError> {
        let credentials = Credentials { node, certificate: None, secret_hash: None };
        self.rig.app.accept_session(&credentials, &Greeting::of(facts.clone(), true)).await.map(|_| ())
    }

    async fn nodes(&self) -> String {
        self.rig.database.text("SELECT count(*)::text FROM nodes").await
    }

    /// Bans it, or takes it out.
    async fn end(&self, node: NodeId, how: &str) {
        let sql = format!(
            "UPDATE nodes SET {how} = now(), session_epoch = session_epoch + 1 WHERE id = '{node}' RETURNING id::text"
        );
        self.rig.database.text(&sql).await;
    }
}

fn call(request_id: Option<RequestId>) -> Call {
    Call { rpc: "CreateJoinToken", request_id, fingerprint: "x".into() }
}

fn host(name: &str, secret: &str) -> Applicant {
    let csr = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap();
    Applicant {
        facts: NodeFacts {
            hostname: name.into(),
            machine_id: format!("machine of {name}"),
            docker_id: format!("docker of {name}"),
            boot_id: "b".into(),
            docker_version: "20".into(),
            agent_version: "0".into(),
            cpu_millicores: 2000,
            memory_bytes: 1 << 30,
            max_workspaces: 250,
            advertise_address: "127.0.0.1".into(),
            zone: String::new(),
            labels: std::collections::BTreeMap::new(),
            hardware_id: String::new(),
        },
        secret: secret.into(),
        csr_pem: csr.pem().unwrap(),
        inventory: Vec::new(),
    }
}

fn container(node: NodeId) -> Container {
    Container {
        container_id: "c".into(),
        workspace: WorkspaceUid::new(),
        student: "ada".parse().unwrap(),
        generation: Generation(1),
        incarnation: 1,
        node,
        running: true,
        placement: None,
        spec: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_hosts_that_race_with_one_token_one_becomes_a_node() {
    let it = Enrolling::new().await;
    let secret = it.token(HOUR, None).await;
    let hosts: Vec<_> = (0..8).map(|n| host(&format!("h{n}"), &secret)).collect();
    let answers = futures_util::future::join_all(hosts.iter().map(|host| it.enroll(host))).await;
    let won = answers.iter().filter(|answer| answer.is_ok()).count();
    assert_eq!((won, it.nodes().await.as_str()), (1, "1"), "{answers:?}");
    assert!(
        answers.iter().all(|answer| matches!(answer, Ok(_) | Err(AppError::JoinTokenInvalid))),
        "{answers:?}"
    );
    it.rig.end().await;
}

#[tokio::test]
async fn a_host_that_did_not_get_the_answer_gets_it_again_until_it_has_connected() {
    let it = Enrolling::new().await;
    let host = host("h", &it.token(HOUR, None).await);
    let first = it.enroll(&host).await.unwrap();
    let again = it.enroll(&host).await.unwrap();
    assert_eq!((again.node, it.nodes().await.as_str()), (first.node, "1"));
    it.connect(again.node, &host.facts).await.unwrap();
    let late = it.enroll(&host).await;
    assert!(matches!(late, Err(AppError::JoinTokenInvalid)), "{late:?}");
    it.rig.end().await;
}

#[tokio::test]
async fn a_token_that_has_ended_or_was_never_made_is_refused() {
    let it = Enrolling::new().await;
    let short = it.token(Duration::from_millis(1), None).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    for secret in [short.as_str(), "never made"] {
        let refused = it.enroll(&host("h", secret)).await;
        assert!(matches!(refused, Err(AppError::JoinTokenInvalid)), "{refused:?}");
    }
    assert!(matches!(it.enroll(&host("h", "")).await, Err(AppError::JoinTokenNeeded)));
    assert_eq!(it.nodes().await, "0");
    let kept = it.rig.database.text("SELECT string_agg(secret_hash, ' ') FROM join_tokens").await;
    assert!(!kept.contains(&short), "only the hash is kept");
    it.rig.end().await;
}

#[tokio::test]
async fn a_node_comes_back_on_its_own_host_only() {
    let it = Enrolling::new().await;
    let mut first = host("h", &it.token(HOUR, None).await);
    let node = it.enroll(&first).await.unwrap().node;
    it.connect(node, &first.facts).await.unwrap();

    let secret = it.token(HOUR, Some(node)).await;
    let elsewhere = it.enroll(&host("other", &secret)).await;
    assert!(matches!(elsewhere, Err(AppError::NodeIdentityChanged { .. })), "{elsewhere:?}");
    let mut wiped = host("h", &secret);
    wiped.facts.docker_id = "another daemon".into();
    let wiped = it.enroll(&wiped).await;
    assert!(matches!(wiped, Err(AppError::NodeIdentityChanged { .. })), "{wiped:?}");

    // With another key, since the state directory may be lost; its own containers may be there.
    let back = Applicant { inventory: vec![container(node)], ..host("h", &secret) };
    assert_eq!(it.enroll(&back).await.unwrap().node, node);
    first.secret = secret;
    let again = it.enroll(&first).await;
    assert!(matches!(again, Err(AppError::JoinTokenInvalid)), "{again:?}");
    it.rig.end().await;
}

#[tokio::test]
async fn a_host_brings_no_containers_of_another_node_along_and_its_token_stays_good() {
    let it = Enrolling::new().await;
    let other = NodeId::new();
    let mut host = host("h", &it.token(HOUR, None).await);
    host.inventory = vec![container(other)];
    let refused = it.enroll(&host).await;
    assert!(matches!(refused, Err(AppError::HostHasContainers { others: 1, node: None })), "{refused:?}");
    host.inventory.clear();
    it.enroll(&host).await.unwrap();
    it.rig.end().await;
}

#[tokio::test]
async fn a_node_that_was_banned_or_removed_gets_nothing_any_more() {
    let it = Enrolling::new().await;
    for how in ["banned_at", "removed_at"] {
        let applicant = host(how, &it.token(HOUR, None).await);
        let node = it.enroll(&applicant).await.unwrap().node;
        let back = host(how, &it.token(HOUR, Some(node)).await);
        it.end(node, how).await;
        let banned = |answer: Result<Certified, AppError>| {
            assert!(matches!(answer, Err(AppError::NodeBanned(id)) if id == node), "{answer:?}");
        };
        banned(it.enroll(&applicant).await);
        banned(it.enroll(&back).await);
        let credentials = Credentials { node, certificate: None, secret_hash: None };
        banned(it.rig.app.renew_certificate(&credentials, &applicant.csr_pem).await);
        let session = it.connect(node, &applicant.facts).await;
        assert!(matches!(session, Err(AppError::NodeBanned(_))), "{session:?}");
        let token = it.rig.app.create_join_token(&call(None), HOUR, Some(node)).await;
        assert!(matches!(token, Err(AppError::NodeRemoved(_))), "{token:?}");
        // The host may come as a new node, once nothing runs there that it was given as the old one.
        let mut anew = host(how, &it.token(HOUR, None).await);
        anew.inventory = vec![container(node)];
        let refused = it.enroll(&anew).await;
        assert!(matches!(refused, Err(AppError::HostHasContainers { others: 1, .. })), "{refused:?}");
        anew.inventory.clear();
        assert_ne!(it.enroll(&anew).await.unwrap().node, node);
    }
    it.rig.end().await;
}

#[tokio::test]
async fn a_certificate_counts_for_its_own_carrel_and_its_own_time() {
    let it = Enrolling::new().await;
    let made = it.enroll(&host("h", &it.token(HOUR, None).await)).await.unwrap();
    let shows = |pem: &str| {
        let all = Arc::new(certificates_of_pem(pem).unwrap());
        it.rig.app.authenticate_certificate(ShownCertificate::new(all).unwrap())
    };
    assert_eq!(shows(&made.certificate_pem).unwrap().node, made.node);
    let uri = NodeCertificate::from_pem(&made.certificate_pem).unwrap().uri;
    let request = Request::from_pem(&host("h", "").csr_pem).unwrap();
    let ours = it.rig.app.authorities.clone().unwrap().now();
    let now = OffsetDateTime::now_utc();
    let ended = ours.issue_node(uri, &request, now - 48 * HOUR, 24 * HOUR).unwrap();
    // Signed by nobody who is trusted here: what is shown on a connection whose authority was pruned meanwhile.
    let elsewhere = authorities(&tempfile::tempdir().unwrap()).now();
    let pruned = elsewhere.issue_node(uri, &request, now, 24 * HOUR).unwrap();
    for issued in [ended, pruned] {
        let refused = shows(&issued.pem);
        assert!(matches!(refused, Err(AppError::CertificateRefused { .. })), "{refused:?}");
    }
    // One of another Carrel says only that this one's database may be lost: it opens nothing.
    let other = NodeUri { cluster: ClusterId::new(), ..uri };
    let stranger = shows(&ours.issue_node(other, &request, now, 24 * HOUR).unwrap().pem).unwrap();
    let facts = host("h", "").facts;
    let refused = it.rig.app.accept_session(&stranger, &Greeting::of(facts, true)).await;
    assert!(matches!(refused, Err(AppError::CertificateRefused { .. })), "{refused:?}");
    let csr = host("h", "").csr_pem;
    let refused = it.rig.app.renew_certificate(&stranger, &csr).await;
    assert!(matches!(refused, Err(AppError::CertificateRefused { .. })), "{refused:?}");
    it.rig.end().await;
}

#[tokio::test]
async fn a_token_is_shown_once() {
    let it = Enrolling::new().await;
    let once = call(Some(RequestId::new()));
    it.rig.app.create_join_token(&once, HOUR, None).await.unwrap();
    let again = it.rig.app.create_join_token(&once, HOUR, None).await;
    assert!(matches!(again, Err(AppError::JoinTokenShown)), "{again:?}");
    let other = Call { fingerprint: "y".into(), ..once };
    let other = it.rig.app.create_join_token(&other, HOUR, None).await;
    assert!(matches!(other, Err(AppError::RequestIdReused)), "{other:?}");
    let unknown = it.rig.app.create_join_token(&call(None), HOUR, Some(NodeId::new())).await;
    assert!(matches!(unknown, Err(AppError::NodeNotFound(_))), "{unknown:?}");
    let tokens = it.rig.database.text("SELECT count(*)::text FROM join_tokens").await;
    assert_eq!(tokens, "1");
    it.rig.end().await;
}

#[tokio::test]
async fn without_an_authority_there_are_no_tokens() {
    let rig = Rig::new().await;
    let refused = rig.app.create_join_token(&call(None), HOUR, None).await;
    assert!(matches!(refused, Err(AppError::NoAuthority)), "{refused:?}");
    rig.end().await;
}
