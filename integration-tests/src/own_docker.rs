//! A Docker daemon of a test's own, to be killed. It shares nothing with the machine's: no directory, no socket, no
//! bridge, no addresses; and it leaves the packet filter alone, so published ports are carried by its own proxies.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::docker::Docker;
use crate::leftovers::{left_behind, note, owned_dir};
use crate::process::{Process, run};

/// Of its directory below /tmp. Short: a shim's socket lies below, and the kernel allows 107 bytes.
const PREFIX: &str = "cd-";

/// A `dockerd`. Its containers, processes and files go when it is dropped.
#[derive(Debug)]
pub struct OwnDocker {
    dir: TempDir,
    process: Option<Process>,
    live_restore: bool,
    /// Its networks are 10.<this>.x.0/24.
    pool: u8,
}

impl OwnDocker {
    /// Starts it. With `live_restore`, containers outlive the daemon.
    pub async fn start(live_restore: bool) -> Self {
        for (dir, notes) in left_behind(PREFIX) {
            clear_up(&dir, notes.first().and_then(|pool| pool.parse().ok()));
            let _ = std::fs::remove_dir_all(dir);
        }
        let dir = owned_dir(PREFIX);
        let mut docker = Self { dir, process: None, live_restore, pool: rand::random_range(64..250) };
        note(docker.dir.path(), &[&docker.pool.to_string()]);
        // Without a bridge of its own, even with `--bridge none`, it would take the machine's docker0 away.
        let bridge = docker.bridge();
        run("ip", &["link", "add", "name", &bridge, "type", "bridge"]);
        run("ip", &["addr", "add", &format!("10.{}.0.1/24", docker.pool), "dev", &bridge]);
        run("ip", &["link", "set", &bridge, "up"]);
        // Only the first time: a daemon that comes back with pools of its own, and without live-restore, takes the
        // machine's docker0 away. What has addresses keeps them.
        let pool = format!("base=10.{}.0.0/16,size=24", docker.pool);
        docker.launch(&["--default-address-pool", &pool]).await;
        docker
    }

    /// Starts it again after `kill`, and waits until it answers.
    pub async fn start_again(&mut self) {
        self.launch(&[]).await;
    }

    async fn launch(&mut self, more: &[&str]) {
        let path = |name: &str| self.dir.path().join(name);
        // Left behind by a killed daemon; a process that has the number by now would keep this one from starting.
        for stale in ["pid", "exec/containerd/containerd.pid"] {
            let _ = std::fs::remove_file(path(stale));
        }
        let mut command = Command::new("dockerd");
        command
            .arg("--data-root")
            .arg(path("data"))
            .arg("--exec-root")
            .arg(path("exec"))
            .arg("--pidfile")
            .arg(path("pid"))
            .args(["--host", &self.host()])
            .args(["--bridge", &self.bridge(), "--iptables=false", "--ip6tables=false"])
            .args(["--ip-forward=false", "--ip-masq=false"])
            .args(more);
        // Where the daemon itself is in a container, its directory may lie on an overlay, which takes no other.
        if !overlay_works(self.dir.path()) {
            command.args(["--storage-driver", "vfs"]);
        }
        if self.live_restore {
            command.arg("--live-restore");
        }
        self.process = Some(Process::spawn("dockerd", &mut command, &path("log")));
        let start = Instant::now();
        loop {
            if let Some(docker) = Docker::try_at(&self.host())
                && docker.answers().await
            {
                return;
            }
            let process = self.process.as_mut().expect("just started");
            assert!(process.ended().is_none(), "dockerd ended:\n{}", process.log_tail(20));
            assert!(start.elapsed() < Duration::from_secs(60), "no answer:\n{}", process.log_tail(20));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Kills the daemon; its containerd dies with it, containers go on without.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    fn bridge(&self) -> String {
        format!("cd-{}", self.pool)
    }

    /// Where it listens.
    pub fn host(&self) -> String {
        format!("unix://{}", self.dir.path().join("docker.sock").display())
    }

    /// Copies an image from another daemon.
    pub fn load(&self, from: &str, image: &str) {
        let mut save = Command::new("docker")
            .args(["--host", from, "save", image])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the docker client");
        let image_file = save.stdout.take().expect("a pipe");
        let loaded = Command::new("docker")
            .args(["--host", &self.host(), "load", "--quiet"])
            .stdin(image_file)
            .stdout(Stdio::null())
            .status()
            .expect("the docker client");
        assert!(save.wait().expect("a child").success() && loaded.success(), "{image} was not copied");
    }
}

impl Drop for OwnDocker {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal(crate::process::Signal::TERM);
            let start = Instant::now();
            while process.ended().is_none() && start.elapsed() < Duration::from_secs(20) {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        clear_up(self.dir.path(), Some(self.pool));
    }
}

/// Removes what a daemon that has ended left: containers' processes, mounts, bridges.
fn clear_up(dir: &Path, pool: Option<u8>) {
    for shim in shims_of(dir) {
        let _ = rustix::process::kill_process(shim, rustix::process::Signal::KILL);
    }
    for mount in mounts_below(dir) {
        let _ = Command::new("umount").arg("--lazy").arg(mount).status();
    }
    // Twice: a daemon that ends may have been amid making one.
    for pause in [0, 200] {
        std::thread::sleep(Duration::from_millis(pause));
        for bridge in pool.map(bridges_in).unwrap_or_default() {
            let _ = Command::new("ip").args(["link", "del", &bridge]).status();
        }
    }
}

/// Whether overlay file systems can lie on the one that holds `dir`.
fn overlay_works(dir: &Path) -> bool {
    let test = dir.join("overlay-test");
    let parts = ["lower", "upper", "work", "merged"].map(|name| test.join(name));
    if parts.iter().any(|part| std::fs::create_dir_all(part).is_err()) {
        return false;
    }
    let [lower, upper, work, merged] = &parts;
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let mounted = Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &options])
        .arg(merged)
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if mounted {
        let _ = Command::new("umount").arg(merged).status();
    }
    let _ = std::fs::remove_dir_all(test);
    mounted
}

/// The processes that keep containers of the daemon in `dir`: its directory is in their command line.
fn shims_of(dir: &Path) -> Vec<rustix::process::Pid> {
    let address = dir.join("exec/containerd/containerd.sock");
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ours = processes.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let is_ours = line.split(|byte| *byte == 0).any(|arg| arg == address.as_os_str().as_encoded_bytes());
        is_ours.then(|| rustix::process::Pid::from_raw(pid)).flatten()
    });
    ours.collect()
}

/// The bridges with an address in 10.<pool>.0.0/16.
fn bridges_in(pool: u8) -> Vec<String> {
    let listed = Command::new("ip").args(["-brief", "-4", "addr"]).output().map(|output| output.stdout);
    let listed = listed.unwrap_or_default();
    let lines = String::from_utf8_lossy(&listed);
    let ours = format!(" 10.{pool}.");
    lines
        .lines()
        .filter(|line| line.contains(&ours))
        .filter_map(|line| Some(line.split(' ').next()?.to_owned()))
        .collect()
}

/// Deepest first.
fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounts = table.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    let mut below: Vec<_> = mounts.filter(|mount| mount.starts_with(dir)).collect();
    below.reverse();
    below
}
