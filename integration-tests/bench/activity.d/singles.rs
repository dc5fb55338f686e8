//! Single heartbeats from 64 callers, beside a bare gRPC server that answers health checks.

use std::future::Future;
use std::process::Command;
use std::time::{Duration, Instant};

use carrel_proto::v1 as pb;
use integration_tests::process::Process;
use integration_tests::settings;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::desks::Desks;
use crate::figures::{compare, round, rounds};

/// Callers at once, and the connections they share, as LMS backends do.
const CALLERS: usize = 64;
const CONNECTIONS: usize = 4;

/// Serves health checks and nothing else, until it is killed.
pub(crate) fn bare_server(address: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let (_reporter, health) = tonic_health::server::health_reporter();
        let server = tonic::transport::Server::builder().tcp_nodelay(true).add_service(health);
        server.serve(address.parse().expect("an address")).await.expect("served");
    });
}

/// Calls a second that 64 callers get answered.
async fn rate<C, F>(clients: Vec<C>, call: impl Fn(C) -> F + Clone + Send + 'static) -> f64
where
    C: Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let begun = Instant::now();
    let until = begun + round();
    let callers = (0..CALLERS).map(|caller| {
        let (client, call) = (clients[caller % clients.len()].clone(), call.clone());
        tokio::spawn(async move {
            let mut answered = 0_u32;
            while Instant::now() < until {
                call(client.clone()).await;
                answered += 1;
            }
            answered
        })
    });
    let mut all = 0;
    for caller in callers.collect::<Vec<_>>() {
        all += caller.await.expect("no error");
    }
    f64::from(all) / begun.elapsed().as_secs_f64()
}

pub(crate) async fn measure(desks: &Desks) -> bool {
    let address = format!("127.0.0.1:{}", settings::free_port());
    let dir = tempfile::tempdir().expect("a directory");
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["bare-server", &address]);
    let _server = Process::spawn("bare-server", &mut command, &dir.path().join("log"));
    let health: Vec<HealthClient<Channel>> = (0..CONNECTIONS)
        .map(|_| {
            let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
            HealthClient::new(endpoint.tcp_nodelay(true).connect_lazy())
        })
        .collect();
    let carrel: Vec<_> = (0..CONNECTIONS).map(|_| desks.workspaces()).collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let names: std::sync::Arc<Vec<String>> = std::sync::Arc::new((0..4096).map(|_| desks.any()).collect());

    let (mut below, mut ours) = (Vec::new(), Vec::new());
    for turn in 0..=rounds() {
        let checked = rate(health.clone(), |mut client| async move {
            client.check(HealthCheckRequest::default()).await.expect("SERVING");
        });
        let checked = checked.await;
        let names = names.clone();
        let beaten = rate(carrel.clone(), move |mut client| {
            let name = names[rand::random_range(0..names.len())].clone();
            async move {
                let request = pb::RecordHeartbeatRequest { name, ..Default::default() };
                client.record_heartbeat(request).await.expect("recorded");
            }
        });
        let beaten = beaten.await;
        // The first of both warms caches up.
        if turn > 0 {
            below.push(checked);
            ours.push(beaten);
        }
    }
    let what = format!("RecordHeartbeat, acked after the commit, {CALLERS} callers");
    compare(&what, "calls a second", [("a bare health server", &below), ("Carrel", &ours)], 0.5)
}
