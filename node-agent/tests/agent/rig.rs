//! An agent, its directories and its control plane; what it made is removed when the rig is dropped.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use carrel_common::id::{Generation, PlacementId, WorkspaceUid};
use carrel_common::model::{DesiredItem, Observation, Observed, Resources, Run, StopReason, WorkspaceSpec};
use carrel_common::telemetry::LogFormat;
use node_agent::config::Config;
use node_agent::storage::check::Kind;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::control_plane::{ControlPlane, PATIENCE};

pub(crate) struct Rig {
    pub(crate) control_plane: ControlPlane,
    pub(crate) dir: tempfile::TempDir,
    agent: Option<Agent>,
    change: fn(&mut Config),
}

#[expect(clippy::disallowed_methods, reason = "where a test runs is said by its environment")]
fn surroundings(key: &str, default: &str) -> String {
    std::env::var(key).unwrap_or_else(|_| default.to_owned())
}

/// In a runtime of its own, so that it can be killed with all that it spawned, as a process is.
struct Agent {
    runtime: Runtime,
    ended: oneshot::Receiver<anyhow::Result<()>>,
    stop: CancellationToken,
}

impl Agent {
    fn start(config: Config) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let (tell, ended) = oneshot::channel();
        let stop = CancellationToken::new();
        let until = stop.clone();
        drop(runtime.spawn(async move {
            let _ = tell.send(node_agent::run::run(config, until).await);
        }));
        Self { runtime, ended, stop }
    }

    /// Nothing of it runs when this returns. On a thread of its own: a runtime must not be shut down within another.
    fn kill(self) {
        std::thread::spawn(move || self.runtime.shutdown_timeout(PATIENCE)).join().expect("shut down");
    }
}

/// `carrel/tiny:<mode>`
pub(crate) fn image(mode: &str) -> String {
    let image = surroundings("CARREL_TINY_IMAGE", "carrel/tiny:test");
    let name = image.rsplit_once(':').map_or(image.as_str(), |(name, _)| name);
    format!("{name}:{mode}")
}

pub(crate) fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output().expect("docker runs");
    assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// With a configuration of its own.
    pub(crate) async fn with(change: fn(&mut Config)) -> Self {
        let mut rig = Self::stopped(change).await;
        rig.start_agent().await;
        rig
    }

    /// Without an agent yet.
    pub(crate) async fn stopped(change: fn(&mut Config)) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let base = dir.path().join("base");
        std::fs::create_dir(&base).expect("base");
        std::fs::set_permissions(&base, std::fs::Permissions::from_mode(0o711)).expect("mode");
        let control_plane = ControlPlane::start().await;
        let rig = Self { control_plane, dir, agent: None, change };
        rig.mark_share();
        rig
    }

    /// As an operator does it once.
    pub(crate) fn mark_share(&self) {
        let marked = Command::new(env!("CARGO_BIN_EXE_node-agent"))
            .args(["mark-share", "--cluster-id", &self.control_plane.cluster().to_string()])
            .arg("--workspace-base-path")
            .arg(self.base())
            .output()
            .expect("node-agent runs");
        assert!(marked.status.success(), "{}", String::from_utf8_lossy(&marked.stderr));
    }

    pub(crate) fn base(&self) -> PathBuf {
        self.dir.path().join("base")
    }

    fn config(&self) -> Config {
        let mut config = Config {
            control_plane: vec![self.control_plane.url.clone()],
            workspace_base_path: self.base(),
            storage: Kind::Directory,
            storage_timeout: Duration::from_secs(10),
            state_dir: self.dir.path().join("state"),
            docker_host: surroundings("DOCKER_HOST", "unix:///var/run/docker.sock"),
            docker_timeout: Duration::from_secs(30),
            metrics_listen: "127.0.0.1:0".into(),
            join_token: None,
            join_token_file: None,
            stop_existing: false,
            dev: true,
            zone: String::new(),
            labels: Vec::new(),
            advertise_address: IpAddr::from([127, 0, 0, 1]),
            max_workspaces: 250,
            start_concurrency: 6,
            reconcile_interval: Duration::from_secs(2),
            fence_file_interval: Duration::from_secs(1),
            crash_budget: 3,
            crash_window: Duration::from_secs(600),
            log_format: LogFormat::Text,
            log_filter: "info".into(),
            otlp_endpoint: None,
            prober: Some(env!("CARGO_BIN_EXE_node-agent").into()),
        };
        (self.change)(&mut config);
        config
    }

    pub(crate) async fn start_agent(&mut self) {
        let before = self.control_plane.heard(|heard| heard.hellos.len());
        self.agent = Some(Agent::start(self.config()));
        self.control_plane.hear("a hello", |heard| (heard.hellos.len() > before).then_some(())).await;
    }

    /// How an agent ends that nobody stops.
    pub(crate) async fn end_of_an_agent(&self) -> anyhow::Result<()> {
        let mut agent = Agent::start(self.config());
        let ended = tokio::time::timeout(PATIENCE, &mut agent.ended).await;
        agent.kill();
        ended.expect("it ends by itself").expect("no panic")
    }

    /// As SIGTERM does.
    pub(crate) async fn stop_agent(&mut self) {
        let mut agent = self.agent.take().expect("it runs");
        agent.stop.cancel();
        let ended = tokio::time::timeout(PATIENCE, &mut agent.ended).await.expect("ends in time");
        ended.expect("no panic").expect("ends well");
        agent.kill();
    }

    /// As SIGKILL does: nothing of it runs on.
    pub(crate) fn kill_agent(&mut self) {
        self.agent.take().expect("it runs").kill();
    }

    pub(crate) async fn running(&self, item: &DesiredItem) -> (Observation, String) {
        let key = (item.workspace, item.generation.0);
        let seen = self
            .control_plane
            .observe("RUNNING", key, |o| matches!(o.state, Observed::Running { .. } | Observed::Failed(_)))
            .await;
        let Observed::Running { endpoint } = &seen.state else { panic!("failed: {seen:?}") };
        let endpoint = endpoint.clone();
        (seen, endpoint)
    }

    pub(crate) async fn gone(&self, item: &DesiredItem) -> Observation {
        let key = (item.workspace, item.generation.0);
        self.control_plane.observe("GONE", key, |o| matches!(o.state, Observed::Gone { .. })).await
    }

    pub(crate) async fn fenced(&self, item: &DesiredItem) -> Observation {
        let key = (item.workspace, item.generation.0);
        self.control_plane.observe("FENCED", key, |o| o.state == Observed::Fenced).await
    }

    pub(crate) async fn failed(&self, item: &DesiredItem) -> Observation {
        let key = (item.workspace, item.generation.0);
        self.control_plane.observe("FAILED", key, |o| matches!(o.state, Observed::Failed(_))).await
    }

    /// Name of this cluster's network.
    pub(crate) fn network(&self) -> String {
        format!("carrel-{}", &self.control_plane.cluster().0.simple().to_string()[..8])
    }

    /// Ids of this cluster's containers, running or not.
    pub(crate) fn containers(&self) -> Vec<String> {
        let filter = format!("label=carrel.cluster={}", self.control_plane.cluster());
        let ids = docker(&["ps", "-aq", "--no-trunc", "--filter", &filter]);
        ids.lines().map(str::to_owned).collect()
    }

    /// A container as the agent makes them, of another hand. Running.
    pub(crate) fn plant(&self, item: &DesiredItem) -> String {
        let label = |key: &str, value: &dyn std::fmt::Display| format!("carrel.{key}={value}");
        let labels = [
            label("cluster", &self.control_plane.cluster()),
            label("incarnation", &1),
            label("node", &self.control_plane.node()),
            label("workspace", &item.workspace),
            label("student", &item.student),
            label("generation", &item.generation),
            label("placement", &item.placement),
            label("spec", &item.spec.digest()),
        ];
        let name = format!("carrel-{}-g{}", item.workspace, item.generation);
        let network = self.network();
        if docker(&["network", "ls", "-q", "--filter", &format!("name={network}")]).is_empty() {
            docker(&["network", "create", &network]);
        }
        let mut args = vec!["run", "-d", "--name", &name, "--network", &network, "-p", "127.0.0.1::8080"];
        args.extend(labels.iter().flat_map(|label| ["--label", label]));
        args.push(&item.spec.image);
        docker(&args)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.kill();
        }
        for id in self.containers() {
            let _ = Command::new("docker").args(["rm", "-f", &id]).output();
        }
        let network = self.network();
        let _ = Command::new("docker").args(["network", "rm", &network]).output();
    }
}

pub(crate) fn spec(mode: &str) -> WorkspaceSpec {
    WorkspaceSpec {
        image: image(mode),
        resources: Resources { cpu_millicores: 1000, memory_bytes: 1 << 30, pids: 512 },
        probe_port: 8080,
        probe_path: "/healthz".into(),
    }
}

/// A workspace of `student` that is to run.
pub(crate) fn desk(student: &str, mode: &str) -> DesiredItem {
    DesiredItem {
        workspace: WorkspaceUid::new(),
        student: student.parse().expect("valid"),
        generation: Generation(1),
        incarnation: 1,
        placement: PlacementId::new(),
        spec: spec(mode),
        run: Run::Running { start_timeout: Duration::from_secs(30) },
        traceparent: String::new(),
        idle_basis_age: None,
    }
}

/// The same workspace, to be stopped.
pub(crate) fn stopped(item: &DesiredItem) -> DesiredItem {
    let run = Run::Stopped { reason: StopReason::User, grace: Duration::from_secs(1), purge_files: false };
    DesiredItem { run, ..item.clone() }
}

/// The same workspace, `by` generations on.
pub(crate) fn later(item: &DesiredItem, by: i64) -> DesiredItem {
    DesiredItem {
        generation: Generation(item.generation.0 + by),
        placement: PlacementId::new(),
        ..item.clone()
    }
}
