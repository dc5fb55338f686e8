//! A `dockerd` over a directory of its own, wherever it runs: launched, killed, started again, and cleared up after.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::docker::Docker;
use crate::process::Process;

/// A Docker daemon. Killed when dropped; [`clear_up`] removes what it leaves.
#[derive(Debug)]
pub(crate) struct Dockerd {
    dir: PathBuf,
    process: Option<Process>,
}

impl Dockerd {
    /// One that will keep everything in `dir`. Short: a shim's socket lies below, and the kernel allows 107 bytes.
    pub(crate) fn in_dir(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), process: None }
    }

    /// Starts it, and waits until it answers. `command` is `dockerd`, or what ends in it; `more` are its flags beside
    /// those that say where everything is.
    pub(crate) async fn launch(&mut self, mut command: Command, more: &[&str]) {
        let path = |name: &str| self.dir.join(name);
        // Left behind by a killed daemon; a process that has the number by now would keep this one from starting.
        for stale in ["pid", "exec/containerd/containerd.pid"] {
            let _ = std::fs::remove_file(path(stale));
        }
        command
            .arg("--data-root")
            .arg(path("data"))
            .arg("--exec-root")
            .arg(path("exec"))
            .arg("--pidfile")
            .arg(path("pid"))
            .args(["--host", &self.host()])
            .args(more);
        // Where the daemon itself is in a container, its directory may lie on an overlay, which takes no other.
        if !overlay_works(&self.dir) {
            command.args(["--storage-driver", "vfs"]);
        }
        self.process = Some(Process::spawn("dockerd", &mut command, &path("log")));
        self.wait_for_answer().await;
    }

    /// Waits until it answers.
    pub(crate) async fn wait_for_answer(&mut self) {
        let start = Instant::now();
        loop {
            if let Some(docker) = Docker::try_at(&self.host())
                && docker.answers().await
            {
                return;
            }
            let process = self.process();
            assert!(process.ended().is_none(), "dockerd ended:\n{}", process.log_tail(20));
            assert!(start.elapsed() < Duration::from_secs(60), "no answer:\n{}", process.log_tail(20));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Its process.
    pub(crate) fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("dockerd was started")
    }

    /// Kills the daemon; its containerd dies with it, containers go on without.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Ends it as systemd would: containers end with it, but for live-restore.
    pub(crate) fn terminate(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::CONT);
            process.signal(Signal::TERM);
            let start = Instant::now();
            while process.ended().is_none() && start.elapsed() < Duration::from_secs(20) {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// Where it listens.
    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.dir.join("docker.sock").display())
    }

    /// Copies images from another daemon.
    pub(crate) fn load(&self, from: &str, images: &[&str]) {
        let mut save = Command::new("docker")
            .args(["--host", from, "save"])
            .args(images)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the docker client");
        let files = save.stdout.take().expect("a pipe");
        let loaded = Command::new("docker")
            .args(["--host", &self.host(), "load", "--quiet"])
            .stdin(files)
            .stdout(Stdio::null())
            .status()
            .expect("the docker client");
        assert!(save.wait().expect("a child").success() && loaded.success(), "{images:?} were not copied");
    }
}

/// Kills the processes that keep containers of the daemon in `dir`.
pub(crate) fn kill_shims(dir: &Path) {
    for shim in shims_of(dir) {
        let _ = kill_process(shim, Signal::KILL);
    }
}

/// Its directory is in their command line.
fn shims_of(dir: &Path) -> Vec<Pid> {
    let address = dir.join("exec/containerd/containerd.sock");
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ours = processes.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let is_ours = line.split(|byte| *byte == 0).any(|arg| arg == address.as_os_str().as_encoded_bytes());
        is_ours.then(|| Pid::from_raw(pid)).flatten()
    });
    ours.collect()
}

/// Unmounts what this process sees mounted below `dir`.
pub(crate) fn unmount_below(dir: &Path) {
    for mount in mounts_below(dir) {
        let _ = Command::new("umount").arg("--lazy").arg(mount).status();
    }
}

/// Deepest first.
fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounts = table.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    let mut below: Vec<_> = mounts.filter(|mount| mount.starts_with(dir)).collect();
    below.reverse();
    below
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
