//! The control plane that is measured.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use carrel_proto::v1::workspace_service_client::WorkspaceServiceClient;
use integration_tests::database::Database;
use integration_tests::own_postgres::OwnPostgres;
use integration_tests::process::Process;
use integration_tests::{http, settings};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

pub(crate) struct Replica {
    database: Database,
    process: Process,
    address: String,
    agents: String,
    dir: TempDir,
}

impl Replica {
    pub(crate) async fn start(postgres: &OwnPostgres) -> Self {
        let database = Database::create(&postgres.url()).await;
        let program = settings::binary("control-plane");
        let migrated = Command::new(&program)
            .args(["migrate", "--database-url", &database.url()])
            .status()
            .expect("migrate");
        assert!(migrated.success(), "migrate");
        let dir = tempfile::tempdir().expect("a directory");
        let [address, agents] =
            [settings::free_port(), settings::free_port()].map(|port| format!("127.0.0.1:{port}"));
        let process = spawn(&program, &database, &address, &agents, &dir);
        let replica = Self { database, process, address, agents, dir };
        let from = Instant::now();
        while !http::is_ok(&format!("http://{}/readyz", replica.address)).await {
            assert!(from.elapsed() < Duration::from_secs(30), "not ready:\n{}", replica.log_tail());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        replica
    }

    pub(crate) fn kill_and_start(&mut self) {
        self.process.kill();
        let program = settings::binary("control-plane");
        self.process = spawn(&program, &self.database, &self.address, &self.agents, &self.dir);
    }

    pub(crate) fn database(&self) -> &Database {
        &self.database
    }

    /// Where agents dial.
    pub(crate) fn agents(&self) -> Endpoint {
        Endpoint::from_shared(format!("http://{}", self.agents)).expect("an address").tcp_nodelay(true)
    }

    pub(crate) fn workspaces(&self) -> WorkspaceServiceClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).expect("an address");
        WorkspaceServiceClient::new(endpoint.connect_lazy())
    }

    pub(crate) fn log_tail(&self) -> String {
        self.process.log_tail(40)
    }

    /// Time on a processor so far, user and system, in ticks of 10 ms.
    pub(crate) fn busy(&self) -> Duration {
        let stat = self.proc("stat");
        let fields: Vec<&str> = stat.rsplit_once(") ").expect("a stat").1.split(' ').collect();
        let ticks: u64 = [11, 12].map(|at: usize| fields[at].parse::<u64>().expect("ticks")).iter().sum();
        Duration::from_millis(ticks * 10)
    }

    /// Memory that it has now, MiB.
    pub(crate) fn memory(&self) -> f64 {
        self.status("VmRSS:")
    }

    /// The most it had, MiB.
    pub(crate) fn peak_memory(&self) -> f64 {
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

fn spawn(
    program: &std::path::Path,
    database: &Database,
    address: &str,
    agents: &str,
    dir: &TempDir,
) -> Process {
    let mut command = Command::new(program);
    command
        .args(["serve", "--dev", "--log=warn", "--database-url", &database.url(), "--listen", address])
        .args(["--agent-listen", agents]);
    Process::spawn("control-plane", &mut command, &dir.path().join("log"))
}
