//! One of the control plane's replicas.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use tonic::transport::Endpoint;

use crate::client::Client;
use crate::database::Database;
use crate::own_clock::OwnClock;
use crate::process::Process;
use crate::relay::Relay;
use crate::{http, settings};

/// A replica, which a test may kill, freeze and start again. Killed when dropped.
#[derive(Debug)]
pub struct Replica {
    name: String,
    port: u16,
    agents: SocketAddr,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    process: Option<Process>,
    clock: Option<OwnClock>,
    /// Its way to Postgres.
    database: Relay,
}

impl Replica {
    pub(crate) fn new(
        index: usize,
        arguments: Vec<String>,
        environment: Vec<(String, String)>,
        database: Relay,
        hub: Ipv4Addr,
        dir: &std::path::Path,
        clock: Option<OwnClock>,
    ) -> Self {
        Self {
            database,
            name: format!("replica {index}"),
            port: settings::free_port(),
            agents: SocketAddr::from((hub, settings::free_port())),
            arguments,
            environment,
            log: dir.join(format!("replica-{index}.log")),
            process: None,
            clock,
        }
    }

    /// From its next start on it stands over this database of the same Postgres.
    pub(crate) fn use_database(&mut self, database: &Database) {
        let flag = "--database-url=";
        let url = self.arguments.iter().find_map(|argument| argument.strip_prefix(flag)).expect("it has one");
        let url = database.url_in(url);
        self.arguments.retain(|argument| !argument.starts_with(flag));
        self.arguments.push(format!("{flag}{url}"));
    }

    /// Where callers reach it.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where agents reach it, over TLS.
    pub fn agents_url(&self) -> String {
        format!("https://{}", self.agents)
    }

    /// A client of this replica alone.
    pub fn client(&self) -> Client {
        Client::of(&self.address())
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the replica was started")
    }

    /// Its clock, when it has its own.
    pub fn clock(&self) -> &OwnClock {
        self.clock.as_ref().expect("Shape::own_clocks")
    }

    /// Whether it was started and not killed.
    pub fn is_up(&self) -> bool {
        self.process.is_some()
    }

    /// Starts it without waiting for it.
    pub fn spawn(&mut self) {
        let mut command = Command::new(settings::binary("control-plane"));
        command
            .args(["serve", "--dev", "--listen", &self.address()])
            .args(["--agent-listen", &self.agents.to_string()])
            .args(&self.arguments)
            .envs(self.environment.clone())
            .envs(self.clock.iter().flat_map(OwnClock::environment));
        self.process = Some(Process::spawn(&self.name, &mut command, &self.log));
    }

    /// Starts it and waits until it is ready.
    pub async fn start(&mut self) {
        self.spawn();
        let start = Instant::now();
        while !self.is_ready().await {
            let process = self.process();
            assert!(process.ended().is_none(), "{} ended:\n{}", process.name(), process.log_tail(30));
            assert!(start.elapsed() < Duration::from_secs(20), "not ready:\n{}", process.log_tail(30));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Whether it says that it can serve.
    pub async fn is_ready(&self) -> bool {
        http::is_ok(&format!("http://{}/readyz", self.address())).await
    }

    /// What it says by gRPC's health: whether it serves; `None` when it does not answer.
    pub async fn health(&self) -> Option<bool> {
        use tonic_health::pb::health_check_response::ServingStatus;
        use tonic_health::pb::health_client::HealthClient;
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address())).expect("an address");
        let mut client = HealthClient::new(endpoint.connect().await.ok()?);
        let answer = client.check(tonic_health::pb::HealthCheckRequest::default()).await.ok()?;
        Some(answer.into_inner().status() == ServingStatus::Serving)
    }

    /// Cuts this replica off from Postgres: its connections end, new ones are refused.
    pub fn cut_database(&self) {
        self.database.refuse();
    }

    /// Cuts this replica off from Postgres in the way that is harder to notice: its connections stay, nothing moves.
    pub fn swallow_database(&self) {
        self.database.swallow();
    }

    /// Cuts this replica off from Postgres as when the host of that is gone without a word: what is said is lost, and connections on
    /// which something was lost stay silent when others work again.
    pub fn lose_database(&self) {
        self.database.lose();
    }

    /// Lets it reach Postgres again.
    pub fn mend_database(&self) {
        self.database.mend();
    }

    /// Kills it.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Ends it in order, and waits until it has ended.
    pub async fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            assert!(process.terminate().await.success(), "{} failed:\n{}", self.name, process.log_tail(20));
        }
    }
}
