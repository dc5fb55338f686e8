//! An image registry of a test's own, Debian's, on loopback; behind a door that lets bytes through as fast as a test says.

use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::leftovers::{left_behind, note, owned_dir};
use crate::process::{Process, run};
use crate::{http, settings};

/// Of its directory below /tmp.
const PREFIX: &str = "carrel-registry-";

/// Docker takes a registry on loopback without TLS.
const LOOPBACK: &str = "127.0.0.1";

/// How fast bytes come through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// As fast as they can.
    Open,
    /// So many each second, on each connection.
    Narrow(u32),
    /// Not at all.
    Shut,
}

/// A registry. It ends, and the images that were pulled from it go, when it is dropped.
#[derive(Debug)]
pub struct Registry {
    dir: TempDir,
    docker_host: String,
    port: u16,
    door: watch::Sender<Door>,
    images: Mutex<Vec<String>>,
    _process: Process,
    _door_keeper: JoinSet<()>,
}

impl Registry {
    /// Starts it, for the Docker daemon at `docker_host`.
    pub async fn start(docker_host: &str) -> Self {
        for (dir, notes) in left_behind(PREFIX) {
            if let Some((host, images)) = notes.split_first() {
                remove_images(host, images);
            }
            let _ = std::fs::remove_dir_all(dir);
        }
        let dir = owned_dir(PREFIX);
        let inner = settings::free_port();
        let process = serve(dir.path(), inner).await;
        let listener = TcpListener::bind((LOOPBACK, 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (door, seen) = watch::channel(Door::Open);
        let mut keeper = JoinSet::new();
        keeper.spawn(keep_door(listener, inner, seen));
        let registry = Self {
            dir,
            docker_host: docker_host.to_owned(),
            port,
            door,
            images: Mutex::default(),
            _process: process,
            _door_keeper: keeper,
        };
        registry.note();
        registry
    }

    fn note(&self) {
        let images = self.images.lock().expect("no panic");
        let notes: Vec<_> =
            [&self.docker_host].into_iter().chain(images.iter()).map(String::as_str).collect();
        note(self.dir.path(), &notes);
    }

    /// How bytes come through from now on.
    pub fn set_door(&self, door: Door) {
        self.door.send_replace(door);
    }

    /// What an image of this tag is called; it need not exist.
    pub fn reference(&self, tag: &str) -> String {
        format!("{LOOPBACK}:{}/carrel/desk:{tag}", self.port)
    }

    /// The tiny image under a new tag, with so many layers more of so many MiB each; in the registry, and not on the host.
    pub async fn push(&self, tag: &str, layers: usize, mib: usize) -> String {
        let image = self.reference(tag);
        self.images.lock().expect("no panic").push(image.clone());
        self.note();
        let (host, file, name) = (self.docker_host.clone(), self.dir.path().join("layer"), image.clone());
        // On a thread that may wait: the door is kept on this one.
        let pushed = tokio::task::spawn_blocking(move || push(&host, &name, &file, layers, mib)).await;
        pushed.expect("pushed");
        image
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.set_door(Door::Open);
        remove_images(&self.docker_host, &self.images.lock().expect("no panic"));
    }
}

async fn serve(dir: &Path, port: u16) -> Process {
    let config = dir.join("config.yml");
    let text = format!(
        "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}/images}}}}\nhttp: {{addr: '{LOOPBACK}:{port}', relativeurls: true}}\n",
        dir.display()
    );
    std::fs::write(&config, text).expect("writable");
    let mut command = Command::new(settings::registry_binary());
    command.arg("serve").arg(&config);
    let mut process = Process::spawn("docker-registry", &mut command, &dir.join("log"));
    let start = Instant::now();
    while !http::is_ok(&format!("http://{LOOPBACK}:{port}/v2/")).await {
        assert!(process.ended().is_none(), "the registry ended:\n{}", process.log_tail(20));
        assert!(start.elapsed() < Duration::from_secs(20), "no answer:\n{}", process.log_tail(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    process
}

fn push(host: &str, image: &str, file: &Path, layers: usize, mib: usize) {
    let docker = |args: &[&str]| run("docker", &[&["--host", host], args].concat());
    let mut base = settings::tiny_image();
    for layer in 0..layers {
        // Noise, so that it weighs in the registry what it weighs here.
        let bytes: Vec<u8> = (0..mib << 20).map(|_| rand::random()).collect();
        std::fs::write(file, bytes).expect("writable");
        let container = docker(&["create", "--network", "none", &base]).trim().to_owned();
        docker(&["cp", &file.to_string_lossy(), &format!("{container}:/home/layer-{layer}")]);
        docker(&["commit", &container, image]);
        docker(&["rm", &container]);
        image.clone_into(&mut base);
    }
    if layers == 0 {
        docker(&["tag", &base, image]);
    }
    docker(&["push", "--quiet", image]);
    docker(&["rmi", image]);
}

fn remove_images(host: &str, images: &[String]) {
    for image in images {
        let _ = Command::new("docker").args(["--host", host, "rmi", "--force", image]).output();
    }
}

/// Carries connections to the registry, what comes back at the pace of the door.
async fn keep_door(listener: TcpListener, inner: u16, door: watch::Receiver<Door>) {
    let mut carried = JoinSet::new();
    while let Ok((outside, _)) = listener.accept().await {
        let door = door.clone();
        carried.spawn(async move {
            let Ok(inside) = TcpStream::connect((LOOPBACK, inner)).await else { return };
            let (mut from_docker, to_docker) = outside.into_split();
            let (from_registry, mut to_registry) = inside.into_split();
            let up = tokio::io::copy(&mut from_docker, &mut to_registry);
            // Either end closes both.
            tokio::select! {
                _ = up => {}
                () = pass(from_registry, to_docker, door) => {}
            }
        });
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut door: watch::Receiver<Door>,
) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        loop {
            let now = *door.borrow_and_update();
            match now {
                Door::Open => break,
                Door::Narrow(each_second) => {
                    let count = u32::try_from(count).unwrap_or(u32::MAX);
                    tokio::time::sleep(Duration::from_secs(1) * count / each_second.max(1)).await;
                    break;
                }
                Door::Shut => {
                    if door.changed().await.is_err() {
                        return;
                    }
                }
            }
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
