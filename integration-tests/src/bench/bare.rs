//! Starts by the bare Docker API.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bollard::models::{ContainerCreateBody, HostConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;

use crate::docker::Docker;

const PORT: &str = "8080/tcp";

/// Makes containers like one that Carrel made.
#[derive(Debug)]
pub struct Bare {
    docker_host: String,
    /// What an agent lets go on at once.
    starts: Semaphore,
    image: String,
    env: Vec<String>,
    host_config: HostConfig,
    files: PathBuf,
    made: AtomicUsize,
    running: Mutex<Vec<String>>,
}

impl Bare {
    /// Takes over everything that bears on the time from an example on this Docker: user, environment, HostConfig. Students' directories
    /// are made in `files`; so many creations and starts go on at once.
    pub async fn like(example: &str, docker: &Docker, files: PathBuf, at_once: usize) -> Self {
        let inspected = docker.inspect(example).await;
        let config = inspected.config.expect("a configuration");
        std::fs::create_dir(&files).expect("a directory");
        Self {
            docker_host: docker.host().to_owned(),
            starts: Semaphore::new(at_once),
            image: config.image.expect("an image"),
            env: config
                .env
                .unwrap_or_default()
                .into_iter()
                .filter(|line| line.starts_with("CARREL_"))
                .collect(),
            host_config: inspected.host_config.expect("a host configuration"),
            files,
            made: AtomicUsize::new(0),
            running: Mutex::default(),
        }
    }

    /// The time until so many containers, made at once, all answer.
    pub async fn start_many(&self, count: usize) -> Duration {
        let docker = self.docker().await;
        let begun = Instant::now();
        futures_util::future::join_all((0..count).map(|_| self.start(&docker))).await;
        begun.elapsed()
    }

    /// A client that has a connection: its connections end with the runtime that made them, so none is kept.
    async fn docker(&self) -> Docker {
        let docker = Docker::at(&self.docker_host);
        assert!(docker.answers().await, "no Docker at {}", self.docker_host);
        docker
    }

    async fn start(&self, docker: &Docker) {
        let permit = self.starts.acquire().await.expect("never closed");
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        // A student's first start makes the directory, here as there.
        let dir = self.files.join(number.to_string());
        std::fs::DirBuilder::new().mode(0o700).create(&dir).expect("a directory");
        std::os::unix::fs::chown(&dir, Some(1000), Some(1000)).expect("given to the student");
        let mut host_config = self.host_config.clone();
        // As many mounts as Carrel makes; all of one directory, as only their number bears on the time.
        for mount in host_config.mounts.iter_mut().flatten() {
            mount.source = Some(dir.to_string_lossy().into_owned());
        }
        let body = ContainerCreateBody {
            image: Some(self.image.clone()),
            user: Some("1000:1000".into()),
            env: Some(self.env.clone()),
            exposed_ports: Some(vec![PORT.into()]),
            host_config: Some(host_config),
            ..Default::default()
        };
        let id = docker.run(&format!("carrel-bench-{}-{number}", std::process::id()), body).await;
        self.running.lock().expect("no panic").push(id.clone());
        let ports = docker.inspect(&id).await.network_settings.and_then(|network| network.ports);
        let binding =
            ports.and_then(|mut ports| ports.remove(PORT).flatten()).and_then(|all| all.into_iter().next());
        let port = binding.and_then(|binding| binding.host_port).expect("a published port");
        drop(permit);
        let mut pause = Duration::from_millis(20);
        while !answers(&format!("127.0.0.1:{port}")).await {
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(Duration::from_millis(250));
        }
    }

    /// Removes what was made.
    pub async fn stop_all(&self) {
        let docker = self.docker().await;
        let running = std::mem::take(&mut *self.running.lock().expect("no panic"));
        futures_util::future::join_all(running.iter().map(|id| docker.remove(id))).await;
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        for id in self.running.lock().map(|ids| ids.clone()).unwrap_or_default() {
            let _ = std::process::Command::new("docker")
                .args(["--host", &self.docker_host, "rm", "--force", &id])
                .output();
        }
    }
}

/// One try of the agent's probe: a new connection, `GET /healthz`, the first bytes of a 200.
pub async fn answers(address: &str) -> bool {
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
        let request =
            format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nAccept: */*\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut head = [0; 13];
        stream.read_exact(&mut head).await.ok()?;
        head[8..].starts_with(b" 200").then_some(())
    };
    matches!(tokio::time::timeout(Duration::from_secs(2), ask).await, Ok(Some(())))
}
