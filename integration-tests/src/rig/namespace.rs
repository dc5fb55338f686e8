//! What makes a process believe it is on a host of its own: network, mounts, host name, machine id, boot id.
//!
//! A holder process keeps the namespaces; others enter them by its id. Nothing is named in the file system, so all of it
//! is gone with its last process. Processes are not in a namespace of their own: tests signal them by their ids.

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::http;
use crate::process::Process;

/// Run by the holder, in the directory with what a host has of its own. `/etc/docker` is empty: no configuration of the
/// machine's daemon, and a daemon id of the host's own.
const SET_UP: &str = "hostname \"$1\"
mount --bind machine-id /etc/machine-id
mount --bind boot-id /proc/sys/kernel/random/boot_id
if [ -d /etc/docker ]; then mount --bind etc-docker /etc/docker; fi
ip link set lo up
touch up
exec sleep infinity";

/// The namespaces of one boot of a host.
#[derive(Debug)]
pub(crate) struct Namespace {
    holder: Process,
}

impl Namespace {
    /// Boots a host with this name, which keeps what is its own in `dir`. The machine id stays from boot to boot.
    pub(crate) async fn boot(name: &str, dir: &Path) -> Self {
        std::fs::create_dir_all(dir.join("etc-docker")).expect("a directory");
        let machine_id = dir.join("machine-id");
        if !machine_id.exists() {
            std::fs::write(machine_id, format!("{}\n", uuid::Uuid::new_v4().simple())).expect("writable");
        }
        std::fs::write(dir.join("boot-id"), format!("{}\n", uuid::Uuid::new_v4())).expect("writable");
        let up = dir.join("up");
        let _ = std::fs::remove_file(&up);
        let mut command = Command::new("unshare");
        // Slaves: what the machine mounts later appears here, what is mounted here stays here.
        command.args(["--net", "--uts", "--mount", "--propagation", "slave", "--"]);
        command.args(["sh", "-ec", SET_UP, "sh", name]).current_dir(dir);
        let mut holder =
            Process::spawn(&format!("namespaces of {name}"), &mut command, &dir.join("boot.log"));
        let start = Instant::now();
        while !up.exists() {
            assert!(holder.ended().is_none(), "{name} has no namespaces:\n{}", holder.log_tail(10));
            assert!(start.elapsed() < Duration::from_secs(20), "{name} does not boot");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Self { holder }
    }

    /// A process in it, by which it can be entered.
    pub(crate) fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// A command that is run in it. It becomes the program: a signal to the process is one to the program.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid().to_string(), "--net", "--uts", "--mount", "--"]).arg(program);
        command
    }

    /// Gets a URL from within; `None` when nobody answers within 5 s.
    pub(crate) async fn get(&self, url: &str) -> Option<(u16, String)> {
        let url = url.to_owned();
        self.within(move || async move { http::get(&url).await }).await
    }

    /// Whether a TCP connection from within comes about in this time.
    pub(crate) async fn reaches(&self, address: SocketAddr, within: Duration) -> bool {
        self.within(move || async move {
            let connected = tokio::time::timeout(within, tokio::net::TcpStream::connect(address)).await;
            matches!(connected, Ok(Ok(_)))
        })
        .await
    }

    /// Runs something in its network, on a thread of its own, since a thread is in one network at a time.
    pub(crate) async fn within<T, F>(&self, make: impl FnOnce() -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        let network = File::open(format!("/proc/{}/ns/net", self.pid())).expect("the holder lives");
        let (done, result) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root may enter");
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let _ = done.send(runtime.block_on(make()));
        });
        result.await.expect("the thread ends with a result")
    }
}
