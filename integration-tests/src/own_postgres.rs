//! A Postgres of a test's own, to be killed; durable as in production.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::leftovers::{left_behind, owned_dir};
use crate::own_clock::OwnClock;
use crate::process::{Process, Signal, busy, run};

/// Of its directory below /tmp.
const PREFIX: &str = "cp-";

/// As Postgres calls its socket.
pub(crate) const SOCKET: &str = ".s.PGSQL.5432";

/// A Postgres cluster on a unix socket.
#[derive(Debug)]
pub struct OwnPostgres {
    dir: TempDir,
    process: Option<Process>,
    clock: Option<OwnClock>,
}

impl OwnPostgres {
    /// Makes and starts it.
    pub async fn start() -> Self {
        Self::make(false).await
    }

    /// Makes and starts it, with a clock of its own.
    pub async fn with_own_clock() -> Self {
        Self::make(true).await
    }

    async fn make(own_clock: bool) -> Self {
        clear_up();
        let dir = owned_dir(PREFIX);
        let path = dir.path().to_string_lossy().into_owned();
        run("chown", &["postgres:postgres", &path]);
        let initdb = program("initdb");
        let data = dir.path().join("data");
        let as_postgres = ["-u", "postgres", "--"];
        let make = [initdb.to_str().expect("UTF-8"), "-D", data.to_str().expect("UTF-8"), "-U", "carrel"];
        let how = ["-E", "UTF8", "--locale=C.UTF-8", "--auth=trust"];
        run("runuser", &[&as_postgres[..], &make[..], &how[..]].concat());
        let clock = own_clock.then(|| OwnClock::new(dir.path(), "postgres"));
        let mut postgres = Self { dir, process: None, clock };
        postgres.start_again().await;
        postgres
    }

    /// Starts it again after `kill` or `stop`, and waits until it takes connections.
    pub async fn start_again(&mut self) {
        let start = Instant::now();
        loop {
            self.spawn();
            while self.process.as_mut().expect("just started").ended().is_none() {
                use sqlx::Connection as _;
                if sqlx::PgConnection::connect(&self.url()).await.is_ok() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            // The last backends of a killed server may still hold its shared memory for a moment.
            let process = self.process.as_ref().expect("just started");
            assert!(start.elapsed() < Duration::from_secs(30), "Postgres ended:\n{}", process.log_tail(20));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn spawn(&mut self) {
        let path = self.dir.path().to_string_lossy().into_owned();
        let mut command = Command::new("setpriv");
        command
            .args([
                "--reuid",
                "postgres",
                "--regid",
                "postgres",
                "--init-groups",
                "--pdeathsig",
                "KILL",
                "--",
            ])
            .arg("env")
            // Only of the server: what libfaketime shares between processes is its first one's.
            .args(
                self.clock
                    .iter()
                    .flat_map(OwnClock::environment)
                    .map(|(name, value)| format!("{name}={value}")),
            )
            .arg(program("postgres"))
            .arg("-D")
            .arg(self.dir.path().join("data"))
            .args(["-c", "listen_addresses=", "-c", &format!("unix_socket_directories={path}")])
            .args(["-c", "fsync=on", "-c", "synchronous_commit=on", "-c", "max_connections=200"])
            // In its own directory, where a kill leaves nothing behind for good.
            .args(["-c", "dynamic_shared_memory_type=mmap"]);
        self.process = Some(Process::spawn("postgres", &mut command, &self.dir.path().join("log")));
    }

    /// Kills the server without a last word.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Stops it as an operator would in a hurry: open sessions are ended.
    pub async fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::INT);
            process.wait(Duration::from_secs(30)).await;
        }
    }

    /// Stops every process of the server where it stands; its connections stay.
    pub fn freeze(&mut self) {
        self.signal_all(Signal::STOP);
    }

    /// Lets them go on.
    pub fn thaw(&mut self) {
        self.signal_all(Signal::CONT);
    }

    /// The server has a process for each connection.
    fn signal_all(&mut self, signal: Signal) {
        let process = self.process.as_mut().expect("Postgres was started");
        process.signal(signal);
        for child in process.children() {
            // One that has ended meanwhile needs none.
            let _ = rustix::process::kill_process(child, signal);
        }
    }

    /// Time on a processor so far, of all its processes that live.
    pub fn busy(&self) -> Duration {
        let process = self.process.as_ref().expect("Postgres was started");
        let children =
            process.children().into_iter().map(|child| busy(child.as_raw_nonzero().get().unsigned_abs()));
        process.busy() + children.sum::<Duration>()
    }

    /// Its clock, when it has its own.
    pub fn clock(&self) -> &OwnClock {
        self.clock.as_ref().expect("with_own_clock")
    }

    /// The socket it listens on.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join(SOCKET)
    }

    /// Where its programs are, such as `pg_dump`.
    pub fn programs(&self) -> PathBuf {
        program("pg_dump").parent().expect("a file is in a directory").into()
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("postgres://carrel@localhost/postgres?host={}", self.dir.path().display())
    }
}

impl Drop for OwnPostgres {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Removes the directories of servers whose tests were killed.
pub(crate) fn clear_up() {
    for (dir, _) in left_behind(PREFIX) {
        let _ = std::fs::remove_dir_all(dir);
    }
}

/// A program of the newest Postgres on this machine.
fn program(name: &str) -> PathBuf {
    let version = |path: &Path| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
    let installed =
        std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path());
    let newest =
        installed.filter(|path| path.join("bin").join(name).exists()).max_by_key(|path| version(path));
    newest.map_or_else(|| PathBuf::from(name), |path| path.join("bin").join(name))
}
