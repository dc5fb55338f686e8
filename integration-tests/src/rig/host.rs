//! A Docker host of the rig: its own namespaces, dockerd, agent and fence, each of which a test may kill, freeze and start
//! again.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use super::cgroups;
use super::namespace::Namespace;
use super::network::Network;
use crate::docker::Docker;
use crate::dockerd::{Dockerd, kill_shims};
use crate::own_clock::OwnClock;
use crate::process::{Process, run};
use crate::settings;

/// What is lost between a host and everything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// What the host is sent. It goes on sending.
    Incoming,
    /// What the host sends. It goes on hearing.
    Outgoing,
}

impl Loss {
    /// Before and after all that Docker does in these tables, and without an answer: the sender learns nothing.
    fn rule(self, verb: &str) -> [&str; 9] {
        match self {
            Self::Incoming => ["--wait", "-t", "raw", verb, "PREROUTING", "-i", "eth0", "-j", "DROP"],
            Self::Outgoing => ["--wait", "-t", "mangle", verb, "POSTROUTING", "-o", "eth0", "-j", "DROP"],
        }
    }
}

/// A host. Its containers, processes and files go when it is dropped.
#[derive(Debug)]
pub struct Host {
    index: u8,
    name: String,
    dir: PathBuf,
    network: Arc<Network>,
    live_restore: bool,
    agent_arguments: Vec<String>,
    agent: Option<Process>,
    fence: Option<Process>,
    clock: Option<OwnClock>,
    dockerd: Dockerd,
    namespace: Namespace,
}

/// What a host is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) index: u8,
    pub(crate) dir: PathBuf,
    pub(crate) network: Arc<Network>,
    pub(crate) live_restore: bool,
    /// Flags of `node-agent run`, but for those that say where the host keeps what is its own.
    pub(crate) agent_arguments: Vec<String>,
    /// Whether its agent has a clock of its own.
    pub(crate) own_clock: bool,
}

impl Host {
    /// Boots it, with its Docker, which gets these images of the machine's.
    pub(crate) async fn boot(parts: Parts, images: &[&str]) -> Self {
        let Parts { index, dir, network, live_restore, agent_arguments, own_clock } = parts;
        std::fs::create_dir_all(&dir).expect("a directory");
        let name = format!("{}-h{index}", network.bridge());
        let namespace = Namespace::boot(&name, &dir).await;
        network.plug(index, namespace.pid());
        let dockerd = Dockerd::in_dir(&dir);
        let (agent, fence) = (None, None);
        let clock = own_clock.then(|| OwnClock::new(&dir, "agent"));
        let mut host = Self {
            index,
            name,
            dir,
            network,
            live_restore,
            agent_arguments,
            agent,
            fence,
            clock,
            dockerd,
            namespace,
        };
        host.start_docker().await;
        host.dockerd.load(&settings::docker_host(), images);
        host
    }

    /// Its host name; its containers' control groups are below one of this name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// From its next start on its agent knows this control plane only.
    pub(crate) fn dial(&mut self, control_plane: &str) {
        let flag = "--control-plane=";
        self.agent_arguments.retain(|argument| !argument.starts_with(flag));
        self.agent_arguments.push(format!("{flag}{control_plane}"));
    }

    /// Gets a copy of what the agent of another host keeps, as from a cloned disk; of its machine id, too, when the clone was not told
    /// apart. Its Docker stays empty.
    pub fn copy_disk_of(&self, other: &Self, machine_id_too: bool) {
        let _ = std::fs::remove_dir_all(self.state_dir());
        let [from, to] = [other, self].map(|host| host.state_dir().to_string_lossy().into_owned());
        run("cp", &["--archive", &from, &to]);
        // All hosts of the rig have one kernel: by the other boot id, the copy would end what it names, on the host that was copied.
        let _ = std::fs::remove_dir_all(self.state_dir().join("fence"));
        if machine_id_too {
            std::fs::copy(other.dir.join("machine-id"), self.dir.join("machine-id")).expect("a file");
        }
    }

    /// Its address on the rig's network.
    pub fn address(&self) -> Ipv4Addr {
        self.network.address_of(self.index)
    }

    /// What it keeps: `state` is the agent's directory, `data` Docker's.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A command that is run on this host.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.namespace.command(program)
    }

    /// Runs a command on this host to its end; panics when it fails.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let pid = self.namespace.pid().to_string();
        let enter = ["--target", &pid, "--net", "--uts", "--mount", "--", program];
        run("nsenter", &[&enter[..], arguments].concat())
    }

    /// Gets a URL on this host, where workspaces publish their ports on loopback; `None` when nobody answers within 5 s.
    pub async fn get(&self, url: &str) -> Option<(u16, String)> {
        self.namespace.get(url).await
    }

    /// Whether a TCP connection from this host comes about in this time.
    pub async fn reaches(&self, address: SocketAddr, within: Duration) -> bool {
        self.namespace.reaches(address, within).await
    }

    /// Runs something on a thread in this host's network, with a runtime of its own.
    pub async fn within<T, F>(&self, make: impl FnOnce() -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        self.namespace.within(make).await
    }

    // The network.

    /// Pulls its plug: nothing goes in or out.
    pub fn cut(&self) {
        self.network.set_link(self.index, false);
    }

    /// Puts the plug back.
    pub fn mend(&self) {
        self.network.set_link(self.index, true);
    }

    /// Loses one direction; both, one after the other, are a black hole.
    pub fn lose(&self, what: Loss) {
        self.run("iptables", &what.rule("-A"));
    }

    /// Loses it no longer.
    pub fn regain(&self, what: Loss) {
        self.run("iptables", &what.rule("-D"));
    }

    // Docker.

    /// Where its Docker listens; the socket can be used from everywhere on the machine.
    pub fn docker_host(&self) -> String {
        self.dockerd.host()
    }

    /// Its Docker.
    pub fn docker(&self) -> Docker {
        Docker::at(&self.docker_host())
    }

    /// Its daemon's process.
    pub fn dockerd(&mut self) -> &mut Process {
        self.dockerd.process()
    }

    /// Kills its daemon. Containers go on without.
    pub fn kill_docker(&mut self) {
        self.dockerd.kill();
    }

    /// Ends its daemon in order: containers end with it, but for live-restore.
    pub fn stop_docker(&mut self) {
        self.dockerd.terminate();
    }

    /// Starts its daemon, and waits until it answers.
    pub async fn start_docker(&mut self) {
        let range = self.network.range();
        let mut flags = vec![
            "--log-level=warn",
            "--exec-opt",
            "native.cgroupdriver=cgroupfs",
            "--cgroup-parent",
            &self.name,
        ];
        // A registry of a test's listens on the rig's network, in plain HTTP.
        flags.extend(["--insecure-registry", &range]);
        flags.extend(self.live_restore.then_some("--live-restore"));
        self.dockerd.launch(self.namespace.command("dockerd"), &flags).await;
    }

    /// How often processes of one of its containers could begin no other, as there were too many.
    pub fn refused_forks(&self, container: &str) -> u64 {
        cgroups::refused_forks(container)
    }

    // The agent.

    /// Its agent's process.
    pub fn agent(&mut self) -> &mut Process {
        self.agent.as_mut().expect("the agent was started")
    }

    /// Starts its agent, without waiting for it.
    pub fn spawn_agent(&mut self) {
        let mut command = self.namespace.command(settings::binary("node-agent"));
        command.args(["run", "--docker-host", &self.docker_host()]);
        command.arg("--join-token-file").arg(self.join_token_file());
        command.arg("--state-dir").arg(self.state_dir()).args(&self.agent_arguments);
        command.envs(self.clock.iter().flat_map(OwnClock::environment));
        self.agent = Some(self.spawn("agent", &mut command));
    }

    fn spawn(&self, what: &str, command: &mut Command) -> Process {
        Process::spawn(&format!("{what} of {}", self.name), command, &self.dir.join(format!("{what}.log")))
    }

    /// The agent's directory, which is the fence's, too.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// What its agent enrols with.
    pub fn join_token_file(&self) -> PathBuf {
        self.dir.join("join-token")
    }

    /// Its agent's clock, when it has its own.
    pub fn clock(&self) -> &OwnClock {
        self.clock.as_ref().expect("Shape::own_clocks")
    }

    /// Kills its agent.
    pub fn kill_agent(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill();
        }
    }

    /// Ends its agent in order.
    pub async fn stop_agent(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            assert!(agent.terminate().await.success(), "the agent failed:\n{}", agent.log_tail(20));
        }
    }

    // The fence.

    /// Its fence's process.
    pub fn fence(&mut self) -> &mut Process {
        self.fence.as_mut().expect("the fence was started")
    }

    /// Starts its fence.
    pub fn spawn_fence(&mut self) {
        let mut command = self.namespace.command(settings::binary("node-agent"));
        command.arg("fence").arg("--state-dir").arg(self.state_dir());
        self.fence = Some(self.spawn("fence", &mut command));
    }

    /// Kills its fence.
    pub fn kill_fence(&mut self) {
        if let Some(mut fence) = self.fence.take() {
            fence.kill();
        }
    }

    // The host itself.

    /// Cuts its power: everything on it is gone at once, its disk stays.
    pub fn switch_off(&mut self) {
        self.kill_agent();
        self.kill_fence();
        self.dockerd.kill();
        kill_shims(&self.dir);
        cgroups::clear_up(|name| name == self.name);
    }

    /// Boots it again, with its Docker, without agent and fence: another boot id, everything of the kernel's anew.
    pub async fn switch_on(&mut self) {
        self.namespace = Namespace::boot(&self.name, &self.dir).await;
        self.network.plug(self.index, self.namespace.pid());
        // It is below /run on a real host.
        let _ = std::fs::remove_dir_all(self.dir.join("exec"));
        self.start_docker().await;
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.switch_off();
    }
}

/// Removes what hosts of a rig that is gone left running.
pub(crate) fn clear_up(dirs: impl Iterator<Item = PathBuf>, bridge: &str) {
    dirs.for_each(|dir| kill_shims(&dir));
    let prefix = format!("{bridge}-h");
    cgroups::clear_up(|name| name.starts_with(&prefix));
}
