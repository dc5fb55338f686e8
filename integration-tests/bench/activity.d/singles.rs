//! Single heartbeats from 64 callers, beside a bare gRPC server that answers health checks.

use std::future::Future;
use std::process::Command;
use std::time::{Duration, Instant};

use carrel_proto::v1 as pb;
use carrel_proto::v1::workspace_service_client::WorkspaceServiceClient;
use integration_tests::own_postgres::OwnPostgres;
use integration_tests::process::{Process, busy};
use integration_tests::settings;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::desks::{Desks, any_of};
use crate::figures::{compare, median, round, rounds};

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

/// Calls a second that 64 callers get answered, and what each part spent on one.
async fn rate<C, F>(
    clients: Vec<C>,
    call: impl Fn(C) -> F + Clone + Send + 'static,
    parts: impl Fn() -> Parts,
) -> (f64, Parts)
where
    C: Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let (begun, before) = (Instant::now(), parts());
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
    let spent = parts().into_iter().zip(before).map(|(after, before)| (after - before) / all.max(1));
    (f64::from(all) / begun.elapsed().as_secs_f64(), spent.collect())
}

/// Time on a processor of the callers, of the server, and of what is behind it.
type Parts = Vec<Duration>;

/// Prints what each part spends on a call, in the middle round.
fn tell_parts(name: &str, rounds: &[Parts]) {
    let part =
        |at: usize| median(&rounds.iter().map(|parts| parts[at].as_secs_f64() * 1e6).collect::<Vec<_>>());
    let [callers, server, postgres] = [0, 1, 2].map(part);
    let all = callers + server + postgres;
    println!("| {name} | {callers:.1} | {server:.1} | {postgres:.1} | {all:.1} |");
}

pub(crate) async fn measure(desks: &Desks, postgres: &OwnPostgres) -> bool {
    let address = format!("127.0.0.1:{}", settings::free_port());
    let dir = tempfile::tempdir().expect("a directory");
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["bare-server", &address]);
    let server = Process::spawn("bare-server", &mut command, &dir.path().join("log"));
    let health: Vec<HealthClient<Channel>> = (0..CONNECTIONS)
        .map(|_| {
            let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
            HealthClient::new(endpoint.tcp_nodelay(true).connect_lazy())
        })
        .collect();
    let carrel: Vec<_> = (0..CONNECTIONS).map(|_| desks.workspaces()).collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let running = desks.running;

    let own = std::process::id();
    let (mut below, mut ours) = (Vec::new(), Vec::new());
    for turn in 0..=rounds() {
        let check = |mut client: HealthClient<Channel>| async move {
            client.check(HealthCheckRequest::default()).await.expect("SERVING");
        };
        let checked = rate(health.clone(), check, || vec![busy(own), server.busy(), Duration::ZERO]);
        let checked = checked.await;
        let beat = move |mut client: WorkspaceServiceClient<Channel>| async move {
            let request = pb::RecordHeartbeatRequest { name: any_of(running), ..Default::default() };
            client.record_heartbeat(request).await.expect("recorded");
        };
        let beaten = rate(carrel.clone(), beat, || vec![busy(own), desks.busy(), postgres.busy()]);
        let beaten = beaten.await;
        // The first of both warms caches up.
        if turn > 0 {
            below.push(checked);
            ours.push(beaten);
        }
    }
    println!("\n| µs of processor time a call | callers | server | Postgres | all |\n|---|---|---|---|---|");
    let rates = [("a bare health server", below), ("Carrel", ours)].map(|(name, rounds)| {
        let (rates, parts): (Vec<f64>, Vec<Parts>) = rounds.into_iter().unzip();
        tell_parts(name, &parts);
        (name, rates)
    });
    let what = format!("RecordHeartbeat, acked after the commit, {CALLERS} callers");
    compare(&what, "calls a second", rates.each_ref().map(|(name, rates)| (*name, rates.as_slice())), 0.5)
}
