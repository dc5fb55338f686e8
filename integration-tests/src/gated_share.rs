//! A share that can be made to fail: the program `gated-share` over a directory, told what to do by a socket.

use std::fs::Permissions;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::process::Process;
use crate::settings;

/// What an operation on a stale NFS handle gives.
pub const ESTALE: i32 = 116;

/// A mounted share. Unmounted when dropped, whatever hangs on it.
#[derive(Debug)]
pub struct GatedShare {
    process: Process,
    mount_point: PathBuf,
    behind: PathBuf,
    gate: UnixStream,
    /// Number of its device, by which the kernel lists its connection.
    minor: u64,
}

impl GatedShare {
    /// Mounts a share below `dir`, at `share`, over the directory `behind`.
    pub fn mount(dir: &Path) -> Self {
        let (behind, mount_point, socket) = (dir.join("behind"), dir.join("share"), dir.join("gate"));
        // What an unmount uncovers: a directory that looks like an empty share.
        let uncovered = mount_point.join("base");
        for made in [&behind, &mount_point, &uncovered] {
            std::fs::create_dir(made).expect("a directory");
        }
        std::fs::set_permissions(&uncovered, Permissions::from_mode(0o711)).expect("its owner's");
        let mut command = Command::new(settings::binary("gated-share"));
        command.arg(&behind).arg(&mount_point).arg(&socket);
        let mut process = Process::spawn("gated-share", &mut command, &dir.join("gated-share.log"));
        let below = std::fs::metadata(dir).expect("a directory").dev();
        let start = Instant::now();
        let device = loop {
            let device = std::fs::metadata(&mount_point).expect("a directory").dev();
            if device != below {
                break device;
            }
            assert!(process.ended().is_none(), "gated-share ended:\n{}", process.log_tail(10));
            assert!(start.elapsed() < Duration::from_secs(10), "not mounted:\n{}", process.log_tail(10));
            std::thread::sleep(Duration::from_millis(5));
        };
        let gate = UnixStream::connect(&socket).expect("the gate listens");
        let minor = u64::from(rustix::fs::minor(device));
        Self { process, mount_point, behind, gate, minor }
    }

    /// Where it is mounted. Whoever touches this while the share hangs, hangs.
    pub fn path(&self) -> &Path {
        &self.mount_point
    }

    /// The same files as the server sees them, whatever the gate does.
    pub fn behind(&self) -> &Path {
        &self.behind
    }

    fn tell(&self, line: &str) -> String {
        writeln!(&self.gate, "{line}").expect("the gate listens");
        let mut answer = String::new();
        BufReader::new(&self.gate).read_line(&mut answer).expect("the gate answers");
        answer.trim_end().to_owned()
    }

    fn set(&self, line: &str) {
        assert_eq!(self.tell(line), "ok", "{line}");
    }

    /// Everything works, if there still is a server; for whoever clears up.
    pub(crate) fn let_go(&self) {
        let _ = writeln!(&self.gate, "pass");
    }

    /// Everything works; what hung goes on.
    pub fn pass(&self) {
        self.set("pass");
    }

    /// Whoever touches it from now on sleeps and cannot be killed.
    pub fn hang(&self) {
        self.set("hang");
    }

    /// Each operation takes so long.
    pub fn slow(&self, by: Duration) {
        self.set(&format!("slow {}", by.as_millis()));
    }

    /// Each operation fails with this errno, what hung too.
    pub fn fail(&self, errno: i32) {
        self.set(&format!("error {errno}"));
    }

    /// How many operations hang.
    pub fn waiting(&self) -> usize {
        self.tell("waiting").parse().expect("a number")
    }

    /// Unmounts it as an operator would who thinks nobody is on it: the path is an empty directory then, and what holds it
    /// open goes on.
    pub fn unmount(&self) {
        unmount(&self.mount_point);
    }

    /// The kernel gives up on the server: everything fails from now on, what hung too.
    pub fn abort(&self) {
        let connections = Path::new("/sys/fs/fuse/connections");
        let connection = connections.join(self.minor.to_string());
        if !connection.exists() {
            let mount = ["-t", "fusectl", "fusectl"];
            let _ = Command::new("mount").args(mount).arg(connections).stderr(Stdio::null()).status();
        }
        std::fs::write(connection.join("abort"), "1").expect("the kernel knows it");
    }
}

impl Drop for GatedShare {
    fn drop(&mut self) {
        // With the server's end whoever hangs is answered with an error.
        self.process.kill();
        unmount(&self.mount_point);
    }
}

/// Lazily: whoever is on it keeps it until they leave.
fn unmount(path: &Path) {
    let _ = Command::new("umount").arg("--lazy").arg(path).stderr(Stdio::null()).status();
}

/// Unmounts what a killed test left mounted below `dir`.
pub(crate) fn clear_up(dir: &Path) {
    unmount(&dir.join("share"));
}
