//! Postgres and Docker go away and come back: nobody's desk is stopped for it, callers are told, and all resumes.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use carrel_proto::v1::workspace::State;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use integration_tests::client::{name_of, reason};
use integration_tests::cluster::{Cluster, Options};
use integration_tests::http;
use integration_tests::own_docker::OwnDocker;
use integration_tests::own_postgres::OwnPostgres;
use integration_tests::process::{Process, Signal};
use integration_tests::settings;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

#[tokio::test]
async fn postgres_goes_and_comes_back() {
    let mut postgres = OwnPostgres::start().await;
    let cluster = Cluster::start(Options::new().postgres(&postgres.url())).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let before = cluster.containers().await;

    postgres.stop().await;
    let start = Instant::now();
    let status = client.try_start("bob").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.get_details_retry_info().is_some(), "it says when to try again: {status:?}");
    assert!(start.elapsed() < Duration::from_secs(10), "it answers in time: {:?}", start.elapsed());
    assert_eq!(client.try_heartbeat("ada").await.unwrap_err().code(), Code::Unavailable);
    let ready = format!("http://{}/readyz", cluster.address());
    while !matches!(http::get(&ready).await, Some((503, _))) {
        assert!(start.elapsed() < Duration::from_secs(10), "still ready");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(http::is_ok(&format!("http://{}/healthz", cluster.address())).await, "but alive");
    // Longer than a silent node is given.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(cluster.containers().await, before, "nothing was stopped");

    postgres.start_again().await;
    let back = Instant::now();
    while !http::is_ok(&ready).await {
        assert!(back.elapsed() < Duration::from_secs(15), "not ready again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(client.wait_for("ada", State::Running).await.generation, 1);
    client.try_heartbeat("ada").await.expect("recorded again");
    client.start_and_wait("bob").await;
    assert_eq!(cluster.containers_of("ada").await, before, "the same container");
}

#[tokio::test]
async fn a_replica_that_waits_for_its_database_refuses_connections() {
    let nowhere = tempfile::tempdir().unwrap();
    let url = format!("postgres://carrel@localhost/carrel?host={}", nowhere.path().display());
    let addresses = [settings::free_port(), settings::free_port()].map(|port| format!("127.0.0.1:{port}"));
    let mut command = Command::new(settings::binary("control-plane"));
    command
        .args(["serve", "--dev", "--database-url", &url])
        .args(["--listen", &addresses[0]])
        .args(["--agent-listen", &addresses[1]]);
    let mut replica = Process::spawn("control-plane", &mut command, &nowhere.path().join("log"));
    let start = Instant::now();
    while !replica.log_tail(20).contains("waiting for the database") {
        assert!(replica.ended().is_none(), "it ended:\n{}", replica.log_tail(20));
        assert!(start.elapsed() < Duration::from_secs(10), "it does not wait:\n{}", replica.log_tail(20));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for address in &addresses {
        let connected = TcpStream::connect(address).await.map(|_| ());
        assert_eq!(connected.map_err(|error| error.kind()), Err(ErrorKind::ConnectionRefused), "{address}");
    }
}

#[tokio::test]
async fn docker_goes_and_comes_back() {
    let mut docker = OwnDocker::start(true).await;
    docker.load(&settings::docker_host(), &settings::tiny_image());
    let cluster = Cluster::start(Options::new().docker(&docker.host())).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let before = cluster.containers().await;

    docker.kill();
    let start = Instant::now();
    let status = loop {
        // Until the agent has noticed, starts are accepted and wait on the node.
        match client.try_start("bob").await {
            Err(status) => break status,
            Ok(_) => client.try_stop("bob").await.map(|_| ()).unwrap(),
        }
        assert!(start.elapsed() < Duration::from_secs(10), "nobody notices");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unavailable, "DOCKER_UNREACHABLE"),
        "{status}"
    );
    assert!(status.get_details_retry_info().is_some(), "it says when to try again: {status:?}");
    let ada = client.get("ada").await;
    assert!(
        matches!(ada.state(), State::Running | State::Starting) && ada.generation == 1,
        "no decision: {ada:?}"
    );

    docker.start_again().await;
    let back = Instant::now();
    while client.try_start("bob").await.is_err() {
        assert!(back.elapsed() < Duration::from_secs(15), "nobody notices");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    client.wait_for("bob", State::Running).await;
    assert_eq!(client.wait_for("ada", State::Running).await.generation, 1);
    let after = cluster.containers_of("ada").await;
    assert_eq!(after[0].id, before[0].id, "the same container");
}

#[tokio::test]
async fn a_stop_without_docker_happens_when_it_is_back() {
    let mut docker = OwnDocker::start(true).await;
    docker.load(&settings::docker_host(), &settings::tiny_image());
    let cluster = Cluster::start(Options::new().docker(&docker.host())).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    docker.kill();
    assert!(client.try_stop("ada").await.unwrap().reconciling);
    // Longer than the longest stop: it is told as failed, and goes on being tried.
    client.wait_for("ada", State::Failed).await;
    docker.start_again().await;
    client.wait_for("ada", State::Stopped).await;
    assert_eq!(cluster.containers().await, []);
}

#[tokio::test]
async fn an_agent_that_starts_before_docker_waits_for_it() {
    let mut docker = OwnDocker::start(false).await;
    docker.load(&settings::docker_host(), &settings::tiny_image());
    let mut cluster = Cluster::start_without_agent(Options::new().docker(&docker.host())).await;
    docker.kill();
    cluster.spawn_agent();
    let client = cluster.client();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(client.try_start("ada").await.unwrap_err().code(), Code::Unavailable);
    assert!(cluster.agent().ended().is_none(), "{}", cluster.agent().log_tail(20));
    docker.start_again().await;
    let back = Instant::now();
    while client.try_start("ada").await.is_err() {
        assert!(back.elapsed() < Duration::from_secs(15), "nobody notices");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    client.wait_for("ada", State::Running).await;
}

#[tokio::test]
async fn the_control_plane_goes_and_comes_back() {
    let mut cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let before = cluster.containers().await;
    cluster.control_plane().kill();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(cluster.containers().await, before, "nothing was stopped");
    let connections = 1;
    cluster.start_control_plane().await;
    let start = Instant::now();
    while cluster.connections().await == connections {
        assert!(start.elapsed() < Duration::from_secs(10), "the agent has not come back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    client.start_and_wait("bob").await;
    assert_eq!(client.wait_for("ada", State::Running).await.generation, 1);
    assert_eq!(cluster.containers_of("ada").await, before);

    // An orderly end is quick although the agent's stream and a watch are open, and the answer to it is success.
    let watcher = cluster.client();
    let watch = tokio::spawn(async move { watcher.wait_for("ada", State::Failed).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let start = Instant::now();
    assert!(cluster.control_plane().terminate().await.success());
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    watch.abort();
}

#[tokio::test]
async fn a_control_plane_that_is_told_to_stop_says_so_of_every_service_before_it_refuses_anybody() {
    const SERVICES: [&str; 5] = [
        "",
        "carrel.v1.WorkspaceService",
        "carrel.v1.EventService",
        "carrel.v1.PolicyService",
        "carrel.v1.NodeService",
    ];
    let mut cluster = Cluster::start_without_agent(Options::new()).await;
    let endpoint = Endpoint::from_shared(format!("http://{}", cluster.address())).unwrap();
    let mut health = HealthClient::new(endpoint.connect().await.unwrap());
    let mut watches = Vec::new();
    for service in SERVICES {
        let request = HealthCheckRequest { service: service.into() };
        let mut watch = health.watch(request).await.unwrap().into_inner();
        let said = watch.message().await.unwrap().unwrap().status();
        assert_eq!(said, ServingStatus::Serving, "{service}");
        watches.push((service, watch));
    }
    let url = format!("http://{}/readyz", cluster.address());
    let ready = tokio::spawn(async move {
        loop {
            match http::get(&url).await.expect("it says so before it refuses") {
                (503, why) => return why,
                (status, text) => assert_eq!(status, 200, "{text}"),
            }
        }
    });
    cluster.control_plane().signal(Signal::TERM);
    for (service, mut watch) in watches {
        let said = tokio::time::timeout(Duration::from_secs(2), watch.message()).await;
        let said = said.expect("it is said").unwrap().expect("before the stream ends").status();
        assert_eq!(said, ServingStatus::NotServing, "{service}");
    }
    assert_eq!(ready.await.unwrap(), "this replica is shutting down\n");
    drop(health);
    assert!(cluster.control_plane().wait(Duration::from_secs(10)).await.success());
}

#[tokio::test]
async fn a_heartbeat_of_a_call_that_was_open_when_the_control_plane_was_told_to_stop_is_recorded() {
    let mut cluster = Cluster::start(Options::new()).await;
    cluster.client().start_and_wait("ada").await;
    let stream = TcpStream::connect(cluster.address()).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut connection, driver) = handshake.await.unwrap();
    tokio::spawn(driver);
    // The call is begun, and what it says comes later.
    let (say, said) = oneshot::channel::<Bytes>();
    let message = async move { Ok::<_, Infallible>(Frame::data(said.await.unwrap())) };
    let url = format!("http://{}/carrel.v1.WorkspaceService/RecordHeartbeat", cluster.address());
    let request = hyper::Request::post(url)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(StreamBody::new(Box::pin(futures_util::stream::once(message))))
        .unwrap();
    let call = tokio::spawn(connection.send_request(request));

    cluster.control_plane().signal(Signal::TERM);
    let start = Instant::now();
    while TcpStream::connect(cluster.address()).await.is_ok() {
        assert!(start.elapsed() < Duration::from_secs(3), "it takes connections");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Whatever ends at the same moment has ended by then.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let name = name_of("ada");
    let length = u8::try_from(name.len()).unwrap();
    // Not compressed, so many bytes: the first field, a text of that length.
    let message = [&[0, 0, 0, 0, length + 2, 0x0a, length][..], name.as_bytes()].concat();
    say.send(Bytes::from(message)).unwrap();
    let answer = call.await.unwrap().unwrap();
    let (head, body) = answer.into_parts();
    let rest = body.collect().await.unwrap();
    let status = rest.trailers().and_then(|trailers| trailers.get("grpc-status")?.to_str().ok());
    assert_eq!(status, Some("0"), "{:?}", head.headers);
    assert!(cluster.control_plane().wait(Duration::from_secs(10)).await.success());
}
