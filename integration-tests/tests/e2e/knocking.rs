//! Whoever reaches the port that agents dial, and is none: a student's program, too.

use std::time::Duration;

use carrel_common::join::JoinToken;
use carrel_proto::v1 as pb;
use carrel_proto::v1::agent_service_client::AgentServiceClient;
use integration_tests::cluster::{Cluster, Options};
use integration_tests::pki;

#[tokio::test]
async fn made_up_tokens_take_the_connections_to_the_database_from_nobody() {
    let cluster = Cluster::start_without_agent(Options::new().tls()).await;
    let token = pki::join_token(&cluster.address(), "").await.unwrap();
    let ca_pem = token.parse::<JoinToken>().unwrap().ca_pem();
    let channel = pki::dial(&cluster.agents_url(), &ca_pem, None).await.unwrap();
    let host = pki::Host::new("made-up");
    let request = pb::EnrollRequest {
        facts: Some(host.facts.clone()),
        join_token: "made up".into(),
        csr_pem: host.csr(),
        inventory: vec![],
    };
    // Each look for a token takes its time.
    let slow = cluster.database().hold("LOCK TABLE join_tokens").await;
    let mut knocking = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let (mut client, request) = (AgentServiceClient::new(channel.clone()), request.clone());
        knocking.spawn(async move { client.enroll(request).await });
    }
    cluster.database().until_waiting(2).await;
    for _ in 0..10 {
        cluster.connections().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    drop(slow);
    while let Some(answer) = knocking.join_next().await {
        answer.unwrap().expect_err("nobody made such a token");
    }
}
