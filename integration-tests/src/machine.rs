//! Whole machines, each with systemd as its first process, in containers of the machine's Docker: where Carrel is installed as an
//! operator does it, by `deploy/install` and its units. Each has a Docker of its own inside.
//!
//! They share this machine's kernel: clocks and boot id are its, and no process may be shielded from its lack of memory.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::leftovers::{left_behind, note, owned_dir};
use crate::process::run;
use crate::{printed, settings};

/// Of a network of machines, and of its directory below /tmp.
const PREFIX: &str = "cm-";
/// Made by `integration-tests/machine-image/build`.
const IMAGE: &str = "carrel/machine:dev";
/// Booting takes some five seconds on a quiet machine.
const BOOT: Duration = Duration::from_secs(90);
/// Where a machine has the repository; its binaries are those under test.
pub const CHECKOUT: &str = "/usr/src/carrel";
/// Where each machine sees the directory that all of them see.
pub const EXPORT: &str = "/srv/efs";

/// A network of machines, with a directory that stands for the file server. Gone when dropped, machines first.
#[derive(Debug)]
pub struct Machines {
    dir: TempDir,
    name: String,
}

impl Machines {
    /// An empty network.
    pub fn new() -> Self {
        clear_up();
        let dir = owned_dir(PREFIX);
        std::fs::create_dir(dir.path().join("efs")).expect("a directory");
        // 198.19.x: of the range for benchmarks (RFC 2544), of which the rig takes the other half.
        let made = (0..100).find_map(|_| {
            let subnet: u8 = rand::random();
            let name = format!("{PREFIX}{subnet}");
            docker(&["network", "create", "--subnet", &format!("198.19.{subnet}.0/24"), &name])
                .status
                .success()
                .then_some(name)
        });
        let name = made.expect("a network can be made");
        note(dir.path(), &[&name]);
        Self { dir, name }
    }

    /// The directory that all machines see at [`EXPORT`].
    pub fn export(&self) -> PathBuf {
        self.dir.path().join("efs")
    }

    /// Boots a machine with this host name, which the others find under these names, too.
    pub fn boot(&self, name: &str, names: &[&str]) -> Machine {
        let container = format!("{}-{name}", self.name);
        let checkout = printed::root();
        let bin = settings::binary("control-plane");
        let mounts = [
            format!("{}:{EXPORT}", self.export().display()),
            format!("{}:{CHECKOUT}/deploy:ro", checkout.join("deploy").display()),
            format!("{}:{CHECKOUT}/README.md:ro", checkout.join("README.md").display()),
            format!("{}:{CHECKOUT}/target/release:ro", bin.parent().expect("a directory").display()),
            // Docker's layers cannot lie on those of another Docker.
            "/var/lib/docker".to_owned(),
        ];
        let mut command = Command::new("docker");
        command.args(["run", "--detach", "--name", &container, "--hostname", name, "--network", &self.name]);
        names.iter().for_each(|name| _ = command.args(["--network-alias", name]));
        mounts.iter().for_each(|mount| _ = command.args(["--volume", mount]));
        // All that a machine of its own may do, but for what a container on this machine may not be given.
        command.args(["--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE", "--cgroupns", "private"]);
        command.args(["--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"]);
        // To systemd, an order to shut down.
        command.args(["--stop-signal", "SIGRTMIN+3"]);
        command.args(["--tmpfs", "/run:exec", "--tmpfs", "/tmp:exec", IMAGE]);
        let output = command.output().expect("the docker client");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}\n{IMAGE} is made by integration-tests/machine-image/build");
        let machine = Machine { container };
        machine.wait_for_boot();
        machine
    }
}

impl Default for Machines {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// One machine.
#[derive(Debug)]
pub struct Machine {
    container: String,
}

impl Machine {
    /// Runs a script as root to its end, in the checkout's directory; what it printed. Panics when it fails.
    pub fn sh(&self, script: &str) -> String {
        let output = self.try_sh(script);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {script}\n{said}\n{error}\n{}", self.container, self.journal());
        said.trim_end().to_owned()
    }

    /// The same, whatever becomes of it.
    pub fn try_sh(&self, script: &str) -> Output {
        docker(&["exec", "--workdir", CHECKOUT, &self.container, "bash", "-euo", "pipefail", "-c", script])
    }

    /// Waits until a script succeeds.
    pub fn wait_for(&self, what: &str, within: Duration, script: &str) {
        self.wait_until(what, within, || self.try_sh(script).status.success());
    }

    /// Waits until something is so.
    pub fn wait_until(&self, what: &str, within: Duration, is_so: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_so() {
            let late = start.elapsed() > within;
            assert!(!late, "{}: not within {within:?}: {what}\n{}", self.container, self.journal());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// What Carrel's services said last.
    pub fn journal(&self) -> String {
        let output = self.try_sh("journalctl --no-pager -n 80 -u 'carrel-*' 2>&1 | cut -c1-400");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a command of this machine's shell in the machine's network, where the API is on loopback; what it printed.
    pub fn from_outside(&self, command: &str) -> String {
        let output = self.try_from_outside(command);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {command}\n{error}\n{}", self.container, self.journal());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn try_from_outside(&self, command: &str) -> Output {
        let pid = self.inspect("{{.State.Pid}}");
        let enter = ["--target", &pid, "--net", "bash", "-ec"];
        Command::new("nsenter").args(enter).arg(command).output().expect("nsenter")
    }

    /// A call of the API that listens on the machine.
    pub fn call(&self, method: &str, request: &str) -> Value {
        let answer = self.from_outside(&grpcurl(method, request));
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{method}: {error}: {answer}"))
    }

    /// The same; `None` when it is refused.
    pub fn try_call(&self, method: &str, request: &str) -> Option<Value> {
        serde_json::from_slice(&self.try_from_outside(&grpcurl(method, request)).stdout).ok()
    }

    /// Gives its Docker an image of the machine's.
    pub fn load(&self, image: &str) {
        let mut save =
            Command::new("docker").args(["save", image]).stdout(Stdio::piped()).spawn().expect("docker");
        let files = save.stdout.take().expect("a pipe");
        let loaded = Command::new("docker")
            .args(["exec", "-i", &self.container, "docker", "load", "--quiet"])
            .stdin(files)
            .stdout(Stdio::null())
            .status()
            .expect("docker");
        assert!(save.wait().expect("a child").success() && loaded.success(), "{image} was not copied");
    }

    /// Shuts it down in order, and boots it.
    pub fn reboot(&self) {
        run("docker", &["restart", "--time", "60", &self.container]);
        self.wait_for_boot();
    }

    /// Cuts its power.
    pub fn switch_off(&self) {
        run("docker", &["kill", &self.container]);
    }

    /// Boots it, and returns when a shell answers.
    pub fn switch_on(&self) {
        run("docker", &["start", &self.container]);
        self.wait_until("a shell answers", BOOT, || self.try_sh("true").status.success());
    }

    /// Waits until everything that is to be started at the boot has been, and nothing of it failed.
    pub fn wait_for_boot(&self) {
        self.wait_until("it has booted", BOOT, || {
            let state = self.try_sh("systemctl is-system-running || true");
            let state = String::from_utf8_lossy(&state.stdout).trim().to_owned();
            assert_ne!(state, "degraded", "{}", self.sh("systemctl --failed --no-pager"));
            state == "running"
        });
    }

    fn inspect(&self, format: &str) -> String {
        run("docker", &["inspect", "--format", format, &self.container]).trim().to_owned()
    }
}

fn grpcurl(method: &str, request: &str) -> String {
    format!("grpcurl -plaintext -d '{request}' 127.0.0.1:7300 carrel.v1.{method}")
}

fn docker(arguments: &[&str]) -> Output {
    Command::new("docker").args(arguments).output().expect("the docker client")
}

/// Removes a network and its machines.
fn remove(network: &str) {
    let listed = docker(&["ps", "--all", "--quiet", "--filter", &format!("network={network}")]).stdout;
    for container in String::from_utf8_lossy(&listed).lines() {
        docker(&["rm", "--force", "--volumes", container]);
    }
    docker(&["network", "rm", network]);
}

/// Removes what tests that were killed left behind.
pub(crate) fn clear_up() {
    for (dir, notes) in left_behind(PREFIX) {
        notes.iter().for_each(|network| remove(network));
        let _ = std::fs::remove_dir_all::<&Path>(&dir);
    }
}
