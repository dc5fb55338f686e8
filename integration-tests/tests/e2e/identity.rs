//! A node's identity: over TLS with both binaries, and what a host, or somebody who is none, is refused.

mod authority;

use std::process::Command;
use std::time::{Duration, Instant};

use carrel_common::certificate::NodeCertificate;
use carrel_common::join::JoinToken;
use carrel_proto::v1::session_request::Message as Up;
use carrel_proto::v1::session_response::Message as Down;
use carrel_proto::v1::{self as pb, workspace::State};
use integration_tests::client::reason;
use integration_tests::cluster::{Cluster, Options};
use integration_tests::process::Process;
use integration_tests::{pki, settings};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;

/// The certificate that the agent keeps.
fn kept(cluster: &Cluster) -> NodeCertificate {
    let pem = std::fs::read_to_string(cluster.state_dir().join("node.pem")).expect("the certificate");
    NodeCertificate::from_pem(&pem).expect("a node's certificate")
}

async fn eventually(what: &str, within: Duration, mut is_so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < within, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// An address of this machine that is not loopback: the one its routes would send from. No packet is sent.
fn own_address() -> Option<String> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback()).then(|| address.to_string())
}

#[tokio::test]
async fn a_host_enrols_over_tls_and_runs_desks_and_keeps_its_key_to_itself() {
    // On an address that others could reach, where the machine has one: loopback is the same code, but not the same check.
    let host = own_address().unwrap_or_else(|| "127.0.0.1".into());
    let cluster = Cluster::start(Options::new().tls().agents_host(&host)).await;
    cluster.client().start_and_wait("ada").await;
    let certificate = kept(&cluster);
    assert_eq!(certificate.uri.cluster.to_string(), cluster.id());
    assert_eq!(cluster.containers().await.len(), 1);
    let ends = cluster.database().text("SELECT certificate_expires_at::text FROM nodes").await;
    assert!(!ends.is_empty(), "the store knows when it ends");
    let told = cluster.agent_metrics().await;
    let expected = certificate.validity.until.unix_timestamp().to_string();
    assert!(
        told.lines().any(|line| line.starts_with("carrel_agent_certificate_expiry_timestamp_seconds")
            && line.ends_with(&expected)),
        "{told}"
    );
    let secret = cluster.database().text("SELECT coalesce(max(secret_hash), '-') FROM nodes").await;
    assert_eq!(secret, "-", "there is no secret over TLS");
}

#[tokio::test]
async fn a_certificate_is_renewed_while_the_session_stands() {
    let mut cluster = Cluster::start(Options::new().tls().flag("node-certificate-ttl", "10s")).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let (first, sessions) = (kept(&cluster), cluster.connections().await);
    // Beyond the life of the first one.
    eventually("renewed twice", Duration::from_secs(25), async || {
        kept(&cluster).validity.from > first.validity.until
    })
    .await;
    assert_eq!(cluster.connections().await, sessions, "the session is not disturbed");
    assert_eq!(kept(&cluster).uri, first.uri);
    // A new session uses the newest one: the first has ended.
    cluster.control_plane().terminate().await;
    cluster.start_control_plane().await;
    eventually("a new session", Duration::from_secs(20), async || cluster.connections().await > sessions)
        .await;
    client.start_and_wait("bob").await;
    assert_eq!(client.get("ada").await.state(), State::Running);
}

#[tokio::test]
async fn a_renewed_certificate_is_used_also_while_the_disk_refuses_it_and_kept_when_it_takes_it() {
    let mut cluster = Cluster::start(Options::new().tls().flag("node-certificate-ttl", "12s")).await;
    // The new file cannot be made, as on a disk that desks have filled.
    let in_the_way = cluster.state_dir().join("node.pem.new");
    std::fs::create_dir(&in_the_way).unwrap();
    let (first, sessions) = (kept(&cluster), cluster.connections().await);
    eventually("the kept one has ended", Duration::from_secs(20), async || {
        time::OffsetDateTime::now_utc() > first.validity.until + Duration::from_secs(1)
    })
    .await;
    assert_eq!(kept(&cluster), first);
    cluster.control_plane().terminate().await;
    cluster.start_control_plane().await;
    eventually("a new session", Duration::from_secs(20), async || cluster.connections().await > sessions)
        .await;
    std::fs::remove_dir(&in_the_way).unwrap();
    eventually("the newest is kept", Duration::from_secs(45), async || {
        kept(&cluster).validity.from > first.validity.from
    })
    .await;
}

#[tokio::test]
async fn a_node_whose_certificate_ended_comes_back_with_a_token_as_the_same_node_and_adopts() {
    let options = Options::new().tls().flag("node-certificate-ttl", "5s");
    let mut cluster = Cluster::start(options).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let before = (kept(&cluster), cluster.containers().await.remove(0));
    cluster.agent().kill();
    eventually("the certificate ends", Duration::from_secs(10), async || {
        time::OffsetDateTime::now_utc() > before.0.validity.until + Duration::from_secs(1)
    })
    .await;

    // Its token is used up: it says what to do, goes on trying, and stops nothing.
    cluster.spawn_agent();
    eventually("told", Duration::from_secs(20), async || {
        let told = cluster.agent().log_tail(50);
        told.contains("certificate has ended") && told.contains(&format!("nodes/{}", before.0.uri.node))
    })
    .await;
    assert!(cluster.agent().ended().is_none(), "it goes on trying");
    assert_eq!(cluster.containers().await.remove(0).id, before.1.id);
    cluster.agent().terminate().await;

    cluster.give_join_token(&format!("nodes/{}", before.0.uri.node)).await;
    cluster.start_agent().await;
    client.wait_for("ada", State::Running).await;
    assert_eq!(kept(&cluster).uri, before.0.uri, "the same node");
    let after = cluster.containers().await;
    assert_eq!((after.len(), &after[0].id), (1, &before.1.id), "adopted");
}

#[tokio::test]
async fn an_agent_does_not_believe_a_control_plane_of_another_authority() {
    let ours = Cluster::start_without_agent(Options::new().tls()).await;
    let other = Cluster::start_without_agent(Options::new().tls()).await;
    // A token of the one, and the address of the other.
    let token = pki::join_token(&ours.address(), "").await.unwrap();
    let mut agent = agent(&other, "stranger", &["--join-token", &token]);
    eventually("told", Duration::from_secs(10), async || agent.log_tail(20).contains("UnknownIssuer")).await;
    assert!(!other.dir().join("stranger/node.pem").exists());
    agent.terminate().await;
    let nodes = other.database().text("SELECT count(*)::text FROM nodes").await;
    assert_eq!(nodes, "0");
}

/// An agent with a state directory of its own.
fn agent(cluster: &Cluster, name: &str, more: &[&str]) -> Process {
    let state = cluster.dir().join(name);
    let mut command = Command::new(settings::binary("node-agent"));
    command
        .args(["run", "--control-plane", &cluster.agents_url()])
        .args(["--docker-host", cluster.docker().host()])
        .args(["--metrics-listen", &format!("127.0.0.1:{}", settings::free_port())])
        .args(["--storage", "directory"])
        .arg("--workspace-base-path")
        .arg(cluster.base())
        .arg("--state-dir")
        .arg(state)
        .args(more);
    Process::spawn(name, &mut command, &cluster.dir().join(format!("{name}.log")))
}

#[tokio::test]
async fn an_agent_without_identity_and_token_says_what_it_needs() {
    let cluster = Cluster::start_without_agent(Options::new().tls()).await;
    let mut agent = agent(&cluster, "stranger", &[]);
    assert!(!agent.wait(Duration::from_secs(10)).await.success());
    assert!(agent.log_tail(5).contains("CreateJoinToken"), "{}", agent.log_tail(5));
}

#[tokio::test]
async fn a_host_with_containers_of_another_node_stops_them_first_or_does_not_enrol() {
    let mut cluster = Cluster::start(Options::new().tls()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let first = kept(&cluster).uri.node;
    cluster.agent().kill();
    // The host lost its identity, and enrols anew.
    let token = pki::join_token(&cluster.address(), "").await.unwrap();
    let mut refused = agent(&cluster, "anew", &["--join-token", &token]);
    assert!(!refused.wait(Duration::from_secs(20)).await.success());
    assert!(refused.log_tail(5).contains("--stop-existing"), "{}", refused.log_tail(5));
    assert!(cluster.containers().await[0].running, "nothing was stopped");
    // The token is as good as before.
    let mut anew = agent(&cluster, "anew", &["--join-token", &token, "--stop-existing"]);
    let file = cluster.dir().join("anew/node.pem");
    eventually("enrolled", Duration::from_secs(30), async || file.exists()).await;
    assert_eq!(cluster.containers().await.len(), 0);
    let pem = std::fs::read_to_string(&file).unwrap();
    assert_ne!(NodeCertificate::from_pem(&pem).unwrap().uri.node, first);
    anew.terminate().await;
}

#[tokio::test]
async fn what_shows_no_certificate_of_a_node_is_refused() {
    let cluster = Cluster::start_without_agent(Options::new().tls()).await;
    let url = cluster.agents_url();
    let host = pki::Host::new("one");
    let token = pki::join_token(&cluster.address(), "").await.unwrap();
    let parsed: JoinToken = token.parse().unwrap();

    // Plaintext.
    let mut plain = TcpStream::connect(cluster.agents_address()).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ =
        tokio::time::timeout(Duration::from_secs(5), plain.read_to_end(&mut answer)).await.expect("closed");
    // At most TLS's own word that this was none.
    assert!(answer.len() <= 7, "{answer:?}");

    // No token, a wrong one, no certificate.
    let channel = pki::dial(&url, &parsed.ca_pem(), None).await.unwrap();
    let mut agents = pb::agent_service_client::AgentServiceClient::new(channel);
    let request =
        pb::EnrollRequest { facts: Some(host.facts.clone()), csr_pem: host.csr(), ..Default::default() };
    let status = agents.enroll(request.clone()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "JOIN_TOKEN_NEEDED"));
    let wrong = pb::EnrollRequest { join_token: "x".repeat(64), ..request.clone() };
    let status = agents.enroll(wrong).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unauthenticated, "JOIN_TOKEN_INVALID"));
    let bad = pb::EnrollRequest { join_token: parsed.secret.clone(), csr_pem: "nonsense".into(), ..request };
    let status = agents.enroll(bad).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let renewal = pb::RenewCertificateRequest { csr_pem: host.csr() };
    let status = agents.renew_certificate(renewal).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unauthenticated, "CERTIFICATE_MISSING"));
    let status = agents.session(tokio_stream::empty()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unauthenticated, "CERTIFICATE_MISSING"));

    // A certificate of another authority.
    let other = Cluster::start_without_agent(Options::new().tls()).await;
    let foreign_token = pki::join_token(&other.address(), "").await.unwrap();
    let foreign = host.enroll(&other.agents_url(), &foreign_token).await.unwrap();
    let (certificate, key) = (foreign.certificate_pem, host.key_pem());
    let refused = async {
        let channel = pki::dial(&url, &parsed.ca_pem(), Some((&certificate, &key))).await.ok()?;
        let mut agents = pb::agent_service_client::AgentServiceClient::new(channel);
        agents.renew_certificate(pb::RenewCertificateRequest { csr_pem: host.csr() }).await.ok()
    };
    assert!(refused.await.is_none());

    // And the token is good for one host.
    host.enroll(&url, &token).await.unwrap();
    let status = pki::Host::new("two").enroll(&url, &token).await.unwrap_err();
    assert_eq!(reason(&status), "JOIN_TOKEN_INVALID");
}

#[tokio::test]
async fn a_node_reports_on_its_own_desks_only_and_a_banned_one_on_none() {
    let mut cluster = Cluster::start(Options::new().tls()).await;
    let client = cluster.client();
    let ada = client.start_and_wait("ada").await;
    let url = cluster.agents_url();
    let token = pki::join_token(&cluster.address(), "").await.unwrap();
    let host = pki::Host::new("two");
    let enrolled = host.enroll(&url, &token).await.unwrap();
    let mut agents = host.dial(&url, &enrolled).await;

    let (up, from_up) = tokio::sync::mpsc::channel(8);
    let say = async |message| up.send(pb::SessionRequest { message: Some(message) }).await.unwrap();
    say(Up::Hello(pb::Hello { facts: Some(host.facts.clone()), process_start: true, ..Default::default() }))
        .await;
    let stream = tokio_stream::wrappers::ReceiverStream::new(from_up);
    let mut down = agents.session(stream).await.unwrap().into_inner();
    let mut gone = pb::Observation {
        workspace_uid: ada.uid.clone(),
        generation: ada.generation,
        sequence: 1,
        ..Default::default()
    };
    gone.set_state(pb::observation::State::Gone);
    say(Up::Observations(pb::Observations { observations: vec![gone] })).await;
    // Acked, so that it is not told for ever, and without an effect.
    loop {
        if let Some(Down::ObservationAck(_)) = down.message().await.unwrap().unwrap().message {
            break;
        }
    }
    let now = client.get("ada").await;
    assert_eq!((now.state(), now.version, now.node), (State::Running, ada.version, ada.node.clone()));

    // Taken out for good: its session ends, and it gets no other.
    let name = format!("nodes/{}", enrolled.node_id);
    let remove = pb::RemoveNodeRequest { name, reason: "stolen".into(), ..Default::default() };
    client.nodes.clone().remove_node(remove).await.unwrap();
    let ended = loop {
        match down.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended without a word"),
            Err(status) => break status,
        }
    };
    assert_eq!((ended.code(), reason(&ended).as_str()), (Code::PermissionDenied, "NODE_BANNED"));
    let renewal = pb::RenewCertificateRequest { csr_pem: host.csr() };
    let status = agents.renew_certificate(renewal).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::PermissionDenied, "NODE_BANNED"));

    // A host that is heard and holds a desk is not removed, but it can be banned: what would become of it, then that.
    let mut remove =
        pb::RemoveNodeRequest { name: ada.node.clone(), reason: "stolen".into(), ..Default::default() };
    let full = client.nodes.clone().remove_node(remove.clone()).await.unwrap_err();
    assert_eq!(reason(&full), "NODE_NOT_EMPTY");
    remove.force = true;
    for only in [true, false] {
        remove.validate_only = only;
        let node = client.nodes.clone().remove_node(remove.clone()).await.unwrap().into_inner().node.unwrap();
        assert_eq!((node.state(), node.running_count), (pb::node::State::Unreachable, 1));
        assert!(node.ban_time.is_some() && !node.schedulable, "{node:?}");
    }
    let unreachable = client.wait_until("ada", "unreachable", |ada| ada.state() == State::Unreachable).await;
    assert_eq!((unreachable.generation, unreachable.node), (ada.generation, ada.node));
    eventually("its agent is told", Duration::from_secs(20), async || {
        cluster.agent().log_tail(50).contains("was removed or banned")
    })
    .await;
}

#[tokio::test]
async fn a_hello_whose_agent_has_gone_becomes_no_session_and_ends_none() {
    let cluster = Cluster::start_without_agent(Options::new().tls()).await;
    let url = cluster.agents_url();
    let token = pki::join_token(&cluster.address(), "").await.unwrap();
    let host = pki::Host::new("one");
    let enrolled = host.enroll(&url, &token).await.unwrap();
    // An agent that has waited for its Welcome for long enough drops both ends, and dials again.
    let hello = async || {
        let (up, from_up) = tokio::sync::mpsc::channel(1);
        let hello =
            pb::Hello { facts: Some(host.facts.clone()), process_id: "one".into(), ..Default::default() };
        up.send(pb::SessionRequest { message: Some(Up::Hello(hello)) }).await.unwrap();
        let said = tokio_stream::wrappers::ReceiverStream::new(from_up);
        let down = host.dial(&url, &enrolled).await.session(said).await.unwrap().into_inner();
        (up, down)
    };
    let held = cluster.database().hold("SELECT FROM nodes FOR UPDATE").await;
    let overtaken = hello().await;
    cluster.database().until_waiting(1).await;
    drop(overtaken);
    let (_up, mut stands) = hello().await;
    cluster.database().until_waiting(2).await;
    drop(held);
    let Some(Down::Welcome(welcome)) = stands.message().await.unwrap().unwrap().message else {
        panic!("no Welcome")
    };
    assert_eq!(welcome.session_epoch, 1, "the first was none");
}

#[tokio::test]
async fn an_authority_is_replaced_without_cutting_a_node_off() {
    let mut cluster = Cluster::start(Options::new().tls().flag("node-certificate-ttl", "10s")).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let first = std::fs::read_to_string(cluster.state_dir().join("ca.pem")).unwrap();
    pki::ca(&["rotate"], &cluster.ca_dir());
    // The node hears of it with its next certificate; the replica takes it up while it runs.
    let trusted = cluster.state_dir().join("ca.pem");
    eventually("the new one is trusted", Duration::from_secs(25), async || {
        std::fs::read_to_string(&trusted).is_ok_and(|text| text != first && text.contains(&first))
    })
    .await;
    pki::ca(&["prune", "--force"], &cluster.ca_dir());
    eventually("the old one is forgotten", Duration::from_secs(25), async || {
        std::fs::read_to_string(&trusted).is_ok_and(|text| !text.contains(&first))
    })
    .await;
    let sessions = cluster.connections().await;
    cluster.control_plane().terminate().await;
    cluster.start_control_plane().await;
    eventually("a new session", Duration::from_secs(20), async || cluster.connections().await > sessions)
        .await;
    assert_eq!(client.get("ada").await.state(), State::Running);
}
