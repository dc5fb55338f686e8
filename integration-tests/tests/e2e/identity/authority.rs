//! What becomes of nodes when the authority's key was stolen or lost.

use tokio_stream::wrappers::ReceiverStream;

use super::*;

/// Waits until the replica has taken up what is in the authority's directory, for the `times`th time.
async fn in_force(cluster: &mut Cluster, times: usize) {
    eventually("another authority is in force", Duration::from_secs(15), async || {
        let told = cluster.control_plane().log_tail(1000);
        told.matches("another authority is in force").count() >= times
    })
    .await;
}

/// How often the agent has told that it trusts nobody who answers, and what to do.
fn told(cluster: &mut Cluster, name: &str) -> usize {
    let log = cluster.agent().log_tail(100_000);
    let lines = log.lines().filter(|line| line.contains("no authority that this node trusts"));
    lines.filter(|line| line.contains("CreateJoinToken") && line.contains(name)).count()
}

#[tokio::test]
async fn a_key_that_was_lost_or_stolen_costs_a_token_for_each_node_and_no_desk() {
    let mut cluster = Cluster::start(Options::new().tls()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let (node, desk) = (kept(&cluster).uri, cluster.containers().await.remove(0).id);
    let name = format!("nodes/{}", node.node);
    for how in ["lost", "stolen"] {
        let before = told(&mut cluster, &name);
        if how == "lost" {
            cluster.control_plane().terminate().await;
            std::fs::remove_dir_all(cluster.ca_dir()).unwrap();
            pki::ca(&["init"], &cluster.ca_dir());
            cluster.start_control_plane().await;
        } else {
            pki::ca(&["rotate"], &cluster.ca_dir());
            pki::ca(&["prune", "--force"], &cluster.ca_dir());
        }
        eventually("the agent is told", Duration::from_secs(30), async || told(&mut cluster, &name) > before)
            .await;
        // The token that it came with does not help, and does no harm: it is who it is.
        cluster.agent().terminate().await;
        let before = told(&mut cluster, &name);
        cluster.spawn_agent();
        eventually("told again", Duration::from_secs(30), async || told(&mut cluster, &name) > before).await;
        cluster.agent().terminate().await;
        cluster.give_join_token(&name).await;
        cluster.start_agent().await;
        client.wait_for("ada", State::Running).await;
        assert_eq!(kept(&cluster).uri, node, "the same node");
        let after = cluster.containers().await;
        assert_eq!((after.len(), &after[0].id), (1, &desk), "adopted");
    }
}

/// Waits until a certificate has ended.
async fn ended(certificate: &NodeCertificate) {
    eventually("the certificate ends", Duration::from_secs(10), async || {
        time::OffsetDateTime::now_utc() > certificate.validity.until + Duration::from_secs(1)
    })
    .await;
}

#[tokio::test]
async fn a_host_that_slept_through_a_rotation_says_what_to_do_whatever_token_lies_about() {
    let mut cluster = Cluster::start(Options::new().tls().flag("node-certificate-ttl", "5s")).await;
    let before = kept(&cluster);
    cluster.agent().kill();
    pki::ca(&["rotate"], &cluster.ca_dir());
    pki::ca(&["prune", "--force"], &cluster.ca_dir());
    in_force(&mut cluster, 1).await;
    ended(&before).await;

    // The token that it has is used up, and of the authority before.
    cluster.spawn_agent();
    let name = format!("nodes/{}", before.uri.node);
    eventually("told", Duration::from_secs(20), async || {
        let told = cluster.agent().log_tail(50);
        told.contains("certificate has ended") && told.contains(&name)
    })
    .await;
    assert!(cluster.agent().ended().is_none(), "it goes on trying");
    cluster.agent().terminate().await;

    cluster.give_join_token(&name).await;
    cluster.start_agent().await;
    assert_eq!(kept(&cluster).uri, before.uri, "the same node");
}

#[tokio::test]
async fn a_connection_that_stays_open_is_worth_nothing_once_its_authority_is_pruned() {
    // So far apart that no session ends for want of heartbeats here.
    let options = Options::new().tls().flag("heartbeat-interval", "20s").flag("unreachable-after", "60s");
    let mut cluster = Cluster::start_without_agent(options).await;
    let url = cluster.agents_url();
    let token = pki::join_token(&cluster.address(), "").await.unwrap();
    let host = pki::Host::new("one");
    let enrolled = host.enroll(&url, &token).await.unwrap();
    // Everything is said on this one connection.
    let mut agents = host.dial(&url, &enrolled).await;
    let (up, from_up) = tokio::sync::mpsc::channel(1);
    let hello = pb::Hello { facts: Some(host.facts.clone()), process_id: "one".into(), ..Default::default() };
    up.send(pb::SessionRequest { message: Some(Up::Hello(hello)) }).await.unwrap();
    let mut down = agents.session(ReceiverStream::new(from_up)).await.unwrap().into_inner();
    let renewal = pb::RenewCertificateRequest { csr_pem: host.csr() };

    pki::ca(&["rotate"], &cluster.ca_dir());
    in_force(&mut cluster, 1).await;
    agents.renew_certificate(renewal.clone()).await.expect("the one before is trusted still");
    pki::ca(&["prune", "--force"], &cluster.ca_dir());
    let leaving = async {
        loop {
            if let Some(Down::GoAway(leaving)) = down.message().await.unwrap().expect("a word").message {
                break leaving.reason;
            }
        }
    };
    let reason_given =
        tokio::time::timeout(Duration::from_secs(20), leaving).await.expect("the session ends");
    assert!(reason_given.contains("trusted no more"), "{reason_given}");

    let status = agents.renew_certificate(renewal).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unauthenticated, "CERTIFICATE_REFUSED"));
    let status = agents.session(tokio_stream::empty()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unauthenticated, "CERTIFICATE_REFUSED"));
}
