//! One Carrel of a test's own: control plane, agent, database, base path, ports.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use carrel_proto::v1::EventFilter;
use tempfile::TempDir;

use crate::client::Client;
use crate::database::Database;
use crate::docker::{Docker, Found};
use crate::gated_share::{self, GatedShare};
use crate::leftovers::{left_behind, note, owned_dir};
use crate::process::{Process, run};
use crate::{http, pki, settings};

mod options;

pub use options::Options;

/// Of a cluster's directory below /tmp.
const PREFIX: &str = "carrel-e2e-";

/// Another node of a cluster. It ends when this is dropped.
#[derive(Debug)]
pub struct Other {
    /// Its agent.
    pub agent: Process,
    /// The fence process beside it.
    pub fence: Process,
}

/// A running Carrel. Everything it made goes when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    options: Options,
    // Before the directory that it is mounted in.
    share: Option<GatedShare>,
    dir: TempDir,
    database: Database,
    docker: Docker,
    port: u16,
    agent_port: u16,
    metrics_port: u16,
    cluster_id: String,
    control_plane: Option<Process>,
    agent: Option<Process>,
    fence: Option<Process>,
}

impl Cluster {
    /// Starts all of it, and returns once the agent is connected.
    pub async fn start(options: Options) -> Self {
        let mut cluster = Self::start_without_agent(options).await;
        cluster.start_agent().await;
        cluster
    }

    /// Starts the control plane.
    pub async fn start_without_agent(options: Options) -> Self {
        clear_up().await;
        let dir = owned_dir(PREFIX);
        let share = options.gated_share.then(|| GatedShare::mount(dir.path()));
        let mut private = std::fs::DirBuilder::new();
        private.mode(0o700);
        if options.make_base {
            private.create(below(dir.path(), share.as_ref())).expect("the base");
        }
        private.create(dir.path().join("state")).expect("the agent's directory");
        let database = Database::create(&options.database_server).await;
        let mut cluster = Self {
            docker: Docker::at(&options.docker_host),
            share,
            dir,
            database,
            port: settings::free_port(),
            agent_port: settings::free_port(),
            metrics_port: settings::free_port(),
            cluster_id: String::new(),
            control_plane: None,
            agent: None,
            fence: None,
            options,
        };
        cluster.migrate();
        cluster.cluster_id = cluster.database.text("SELECT cluster_id::text FROM cluster").await;
        let [server, name] = cluster.database.parts();
        note(cluster.dir.path(), &[cluster.docker.host(), &cluster.cluster_id, server, name]);
        if cluster.options.make_base {
            cluster.mark_share();
        }
        if cluster.options.tls {
            pki::ca(&["init"], &cluster.ca_dir());
        }
        cluster.start_control_plane().await;
        if cluster.options.tls {
            cluster.give_join_token("").await;
        }
        cluster
    }

    /// Writes a join token into the file that the agent is started with; of the node of that name, or of a new one.
    pub async fn give_join_token(&self, node: &str) {
        let token = pki::join_token(&self.address(), node).await.expect("CreateJoinToken");
        std::fs::write(self.join_token_file(), token).expect("the token is written");
    }

    /// The file that the agent takes its join token from.
    pub fn join_token_file(&self) -> PathBuf {
        self.dir.path().join("join-token")
    }

    /// The directory of the authority.
    pub fn ca_dir(&self) -> PathBuf {
        self.dir.path().join("ca")
    }

    /// The agent's directory.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn migrate(&self) {
        let output = Command::new(settings::binary("control-plane"))
            .args(["migrate", "--database-url", &self.database.url()])
            .output()
            .expect("control-plane starts");
        assert!(output.status.success(), "migrate: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Marks the base as this Carrel's, as an operator does once.
    pub fn mark_share(&self) {
        mark_share(&self.base(), &self.cluster_id);
    }

    /// Starts the control plane without waiting for it.
    pub fn spawn_control_plane(&mut self) {
        let mut command = Command::new(settings::binary("control-plane"));
        command
            .args(["serve", "--dev", "--database-url", &self.database.url()])
            .args(["--listen", &self.address()])
            .args(["--agent-listen", &self.agents_address()]);
        if self.options.tls {
            command.arg("--ca-dir").arg(self.ca_dir());
        }
        for (name, value) in &self.options.control_plane {
            command.arg(format!("--{name}={value}"));
        }
        command.envs(self.options.environment.clone());
        self.control_plane = Some(Process::spawn("control-plane", &mut command, &self.log("control-plane")));
    }

    /// Starts the control plane and waits until it is ready.
    pub async fn start_control_plane(&mut self) {
        self.spawn_control_plane();
        let ready = format!("http://{}/readyz", self.address());
        let start = Instant::now();
        while !http::is_ok(&ready).await {
            let process = self.control_plane();
            assert!(process.ended().is_none(), "the control plane ended:\n{}", process.log_tail(30));
            assert!(start.elapsed() < Duration::from_secs(20), "not ready:\n{}", process.log_tail(30));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Starts the agent without waiting for it, and the first time the fence process beside it, which goes on through everything that
    /// becomes of the agent.
    pub fn spawn_agent(&mut self) {
        if self.fence.is_none() {
            self.fence = Some(fence(&self.state_dir(), &self.log("node-fence")));
        }
        let mut command = self.agent_command(&self.options.docker_host, self.metrics_port);
        command.arg("--state-dir").arg(self.state_dir());
        self.agent = Some(Process::spawn("node-agent", &mut command, &self.log("node-agent")));
    }

    fn agent_command(&self, docker_host: &str, metrics_port: u16) -> Command {
        let mut command = Command::new(settings::binary("node-agent"));
        command.arg("run").args(["--control-plane", &self.agents_url()]);
        if self.options.tls {
            command.arg("--join-token-file").arg(self.join_token_file());
        } else {
            command.arg("--dev");
        }
        command
            .args(["--docker-host", docker_host])
            .args(["--metrics-listen", &format!("127.0.0.1:{metrics_port}")])
            .arg("--workspace-base-path")
            .arg(self.base());
        for (name, value) in &self.options.agent {
            command.arg(format!("--{name}={value}"));
        }
        command.envs(self.options.environment.clone());
        command
    }

    /// Starts the agent and waits until the control plane has heard how it is.
    pub async fn start_agent(&mut self) {
        let before = (self.connections().await, self.heartbeats().await);
        self.spawn_agent();
        let start = Instant::now();
        while self.connections().await == before.0 || self.heartbeats().await == before.1 {
            let process = self.agent();
            assert!(process.ended().is_none(), "the agent ended:\n{}", process.log_tail(30));
            assert!(start.elapsed() < Duration::from_secs(20), "not connected:\n{}", process.log_tail(30));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Starts another agent on another Docker daemon and waits until it is in service. What it makes goes with that
    /// daemon.
    pub async fn start_other_agent(&self, docker_host: &str, more: &[&str]) -> Other {
        let healthy = "SELECT count(*)::text FROM nodes WHERE state = 'READY'";
        let before = self.database.text(healthy).await;
        if self.options.tls {
            self.give_join_token("").await;
        }
        let name = format!("node-agent-{}", settings::free_port());
        let mut command = self.agent_command(docker_host, settings::free_port());
        let state_dir = self.dir.path().join(&name);
        command.arg("--state-dir").arg(&state_dir).args(more);
        let agent = Process::spawn("node-agent", &mut command, &self.log(&name));
        let fence = fence(&state_dir, &self.log(&name.replace("agent", "fence")));
        let start = Instant::now();
        while self.database.text(healthy).await == before {
            assert!(start.elapsed() < Duration::from_secs(20), "not connected:\n{}", agent.log_tail(30));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Other { agent, fence }
    }

    /// Heartbeats of the agent so far.
    async fn heartbeats(&self) -> i64 {
        let count = self.database.text("SELECT coalesce(max(renewals), 0)::text FROM nodes").await;
        count.parse().expect("a number")
    }

    /// How often an agent has connected so far.
    pub async fn connections(&self) -> usize {
        let filter = EventFilter { types: vec!["node.connected".into()], ..Default::default() };
        self.client().list_events(filter).await.len()
    }

    /// The control plane's process.
    pub fn control_plane(&mut self) -> &mut Process {
        self.control_plane.as_mut().expect("the control plane was started")
    }

    /// The agent's process.
    pub fn agent(&mut self) -> &mut Process {
        self.agent.as_mut().expect("the agent was started")
    }

    /// The fence process beside the agent.
    pub fn fence(&mut self) -> &mut Process {
        self.fence.as_mut().expect("the agent was started")
    }

    /// Where the control plane listens.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where agents dial.
    pub fn agents_address(&self) -> String {
        format!("{}:{}", self.options.agents_host, self.agent_port)
    }

    /// The same as a URL.
    pub fn agents_url(&self) -> String {
        let scheme = if self.options.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.agents_address())
    }

    /// The control plane's metrics, as text.
    pub async fn control_plane_metrics(&self) -> String {
        let answer = http::get(&format!("http://{}/metrics", self.address())).await;
        answer.expect("the control plane answers").1
    }

    /// The agent's metrics, as text.
    pub async fn agent_metrics(&self) -> String {
        let answer = http::get(&format!("http://127.0.0.1:{}/metrics", self.metrics_port)).await;
        answer.expect("the agent answers").1
    }

    /// A client of the control plane.
    pub fn client(&self) -> Client {
        Client::of(&self.address())
    }

    /// The Docker daemon it runs workspaces on.
    pub fn docker(&self) -> &Docker {
        &self.docker
    }

    /// Its database.
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Its id, as in the labels.
    pub fn id(&self) -> &str {
        &self.cluster_id
    }

    /// The base path.
    pub fn base(&self) -> PathBuf {
        below(self.dir.path(), self.share.as_ref())
    }

    /// The share that can be made to fail.
    pub fn share(&self) -> &GatedShare {
        self.share.as_ref().expect("Options::gated_share")
    }

    /// The directory of a student.
    pub fn student_dir(&self, student: &str) -> PathBuf {
        self.base().join(student)
    }

    /// A directory of the test's own.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its containers, running or not.
    pub async fn containers(&self) -> Vec<Found> {
        self.docker.of_cluster(&self.cluster_id).await
    }

    /// Its containers on another Docker daemon, running or not.
    pub async fn containers_on(&self, docker_host: &str) -> Vec<Found> {
        Docker::at(docker_host).of_cluster(&self.cluster_id).await
    }

    /// The containers of one student, running or not.
    pub async fn containers_of(&self, student: &str) -> Vec<Found> {
        self.containers().await.into_iter().filter(|found| found.student == student).collect()
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A container on a share that hangs cannot be removed.
        if let Some(share) = &self.share {
            share.let_go();
        }
        // The agent first: what nobody looks after can be removed.
        self.agent = None;
        self.fence = None;
        self.control_plane = None;
        let (docker, database, id) =
            (self.docker.host().to_owned(), self.database.clone(), self.cluster_id.clone());
        // A thread of its own, because a runtime cannot be waited for from within another.
        let cleaned = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(remove(&docker, &id, &database));
        });
        if cleaned.join().is_err() {
            eprintln!("something of the cluster {} stays behind", self.cluster_id);
        }
    }
}

/// Watches the lease of the agent in `state_dir`.
fn fence(state_dir: &Path, log: &Path) -> Process {
    let mut command = Command::new(settings::binary("node-agent"));
    command.arg("fence").arg("--state-dir").arg(state_dir);
    Process::spawn("node-fence", &mut command, log)
}

/// Marks a base as a Carrel's, as an operator does once.
pub(crate) fn mark_share(base: &Path, cluster_id: &str) {
    let base = base.to_str().expect("a path of ours");
    let args = ["mark-share", "--workspace-base-path", base, "--cluster-id", cluster_id];
    run(settings::binary("node-agent"), &args);
}

/// Where the base is.
fn below(dir: &Path, share: Option<&GatedShare>) -> PathBuf {
    share.map_or(dir, GatedShare::path).join("base")
}

/// Removes what a cluster made outside its directory.
async fn remove(docker: &str, cluster_id: &str, database: &Database) {
    database.drop_now().await;
    if let Some(docker) = Docker::try_at(docker) {
        docker.remove_cluster(cluster_id).await;
    }
}

/// Removes what clusters of killed tests left. Their processes ended with them.
pub(crate) async fn clear_up() {
    for (dir, notes) in left_behind(PREFIX) {
        if let [docker, cluster_id, server, name] = &notes[..] {
            remove(docker, cluster_id, &Database::of(server, name)).await;
        }
        gated_share::clear_up(&dir);
        let _ = std::fs::remove_dir_all(dir);
    }
}
