//! A Docker daemon of a test's own, to be killed. It shares nothing with the machine's: no directory, no socket, no
//! bridge, no addresses; and it leaves the packet filter alone, so published ports are carried by its own proxies.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::dockerd::{Dockerd, kill_shims, unmount_below};
use crate::leftovers::{left_behind, note, owned_dir};
use crate::process::{Signal, run};

/// Of its directory below /tmp.
const PREFIX: &str = "cd-";

/// A `dockerd` in this machine's network. Its containers, processes and files go when it is dropped.
#[derive(Debug)]
pub struct OwnDocker {
    daemon: Dockerd,
    dir: TempDir,
    live_restore: bool,
    /// Its networks are 10.<this>.x.0/24.
    pool: u8,
}

impl OwnDocker {
    /// Starts it. With `live_restore`, containers outlive the daemon.
    pub async fn start(live_restore: bool) -> Self {
        clear_up();
        let dir = owned_dir(PREFIX);
        let daemon = Dockerd::in_dir(dir.path());
        let mut docker = Self { daemon, dir, live_restore, pool: rand::random_range(64..250) };
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
        let bridge = self.bridge();
        let mut flags = vec!["--bridge", &bridge, "--iptables=false", "--ip6tables=false"];
        flags.extend(["--ip-forward=false", "--ip-masq=false"]);
        flags.extend(self.live_restore.then_some("--live-restore"));
        flags.extend(more);
        self.daemon.launch(Command::new("dockerd"), &flags).await;
    }

    /// Kills the daemon; its containerd dies with it, containers go on without.
    pub fn kill(&mut self) {
        self.daemon.kill();
    }

    /// Sends the daemon a signal.
    pub fn signal(&mut self, signal: Signal) {
        self.daemon.process().signal(signal);
    }

    fn bridge(&self) -> String {
        format!("cd-{}", self.pool)
    }

    /// Where it listens.
    pub fn host(&self) -> String {
        self.daemon.host()
    }

    /// Copies an image from another daemon.
    pub fn load(&self, from: &str, image: &str) {
        self.daemon.load(from, &[image]);
    }
}

impl Drop for OwnDocker {
    fn drop(&mut self) {
        self.daemon.terminate();
        remove(self.dir.path(), Some(self.pool));
    }
}

/// Removes what daemons of killed tests left.
pub(crate) fn clear_up() {
    for (dir, notes) in left_behind(PREFIX) {
        remove(&dir, notes.first().and_then(|pool| pool.parse().ok()));
        let _ = std::fs::remove_dir_all(dir);
    }
}

/// Removes what a daemon that has ended left: containers' processes, mounts, bridges.
fn remove(dir: &Path, pool: Option<u8>) {
    kill_shims(dir);
    unmount_below(dir);
    // Twice: a daemon that ends may have been amid making one.
    for pause in [0, 200] {
        std::thread::sleep(Duration::from_millis(pause));
        for bridge in pool.map(bridges_in).unwrap_or_default() {
            let _ = Command::new("ip").args(["link", "del", &bridge]).status();
        }
    }
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
