//! A control plane that is measured: one replica, over a fresh database of a Postgres.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use crate::database::Database;
use crate::own_postgres::OwnPostgres;
use crate::process::Process;
use crate::{http, settings};

/// The replica. Killed when dropped.
#[derive(Debug)]
pub struct Replica {
    database: Database,
    process: Process,
    address: String,
    agents: String,
    flags: Vec<String>,
    dir: TempDir,
}

impl Replica {
    /// Starts it with these flags of `serve` besides, and waits until it is ready.
    pub async fn start(postgres: &OwnPostgres, flags: &[&str]) -> Self {
        let database = Database::create(&postgres.url()).await;
        let migrated = Command::new(settings::binary("control-plane"))
            .args(["migrate", "--database-url", &database.url()])
            .status()
            .expect("migrate");
        assert!(migrated.success(), "migrate");
        let dir = tempfile::tempdir().expect("a directory");
        let [address, agents] =
            [settings::free_port(), settings::free_port()].map(|port| format!("127.0.0.1:{port}"));
        let flags: Vec<_> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let process = spawn(&database, &address, &agents, &flags, &dir);
        let replica = Self { database, process, address, agents, flags, dir };
        let from = Instant::now();
        while !http::is_ok(&format!("http://{}/readyz", replica.address)).await {
            assert!(from.elapsed() < Duration::from_secs(30), "not ready:\n{}", replica.log_tail());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        replica
    }

    /// Kills it and starts it again, without waiting for it.
    pub fn kill_and_start(&mut self) {
        self.process.kill();
        self.process = spawn(&self.database, &self.address, &self.agents, &self.flags, &self.dir);
    }

    /// Its database.
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Where agents dial.
    pub fn agents(&self) -> Endpoint {
        Endpoint::from_shared(format!("http://{}", self.agents)).expect("an address").tcp_nodelay(true)
    }

    /// A new connection of a caller.
    pub fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).expect("an address");
        endpoint.tcp_nodelay(true).connect_lazy()
    }

    fn log_tail(&self) -> String {
        self.process.log_tail(40)
    }

    /// Time on a processor so far.
    pub fn busy(&self) -> Duration {
        self.process.busy()
    }

    /// Memory that it has now, MiB.
    pub fn memory(&self) -> f64 {
        self.status("VmRSS:")
    }

    /// The most it had, MiB.
    pub fn peak_memory(&self) -> f64 {
        self.status("VmHWM:")
    }

    fn status(&self, name: &str) -> f64 {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line of status");
        line.trim().trim_end_matches(" kB").parse::<f64>().expect("KiB") / 1024.0
    }

    fn proc(&self, file: &str) -> String {
        let path = PathBuf::from("/proc").join(self.process.id().to_string()).join(file);
        std::fs::read_to_string(path).unwrap_or_else(|_| panic!("the replica ended:\n{}", self.log_tail()))
    }
}

fn spawn(database: &Database, address: &str, agents: &str, flags: &[String], dir: &TempDir) -> Process {
    let mut command = Command::new(settings::binary("control-plane"));
    command
        .args(["serve", "--dev", "--log=warn", "--database-url", &database.url(), "--listen", address])
        .args(["--agent-listen", agents])
        .args(flags);
    Process::spawn("control-plane", &mut command, &dir.path().join("log"))
}
