//! What stands for the EFS: one file system that all hosts see at the same path. It is in memory, so that a file synced on
//! each line costs the disk of the machine nothing; or one that can be made to fail.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::gated_share::GatedShare;
use crate::process::run;
use crate::writes::{self, History};

/// A mount. Gone when dropped.
#[derive(Debug)]
pub struct Share {
    path: PathBuf,
    gate: Option<GatedShare>,
}

impl Share {
    /// Mounts one below this directory.
    pub(crate) fn mount(dir: &Path) -> Self {
        let path = dir.join("share");
        std::fs::create_dir(&path).expect("a directory");
        let target = path.to_str().expect("UTF-8");
        run("mount", &["-t", "tmpfs", "-o", "size=256m,mode=0700", "carrel-rig", target]);
        // So that mounts on it reach the hosts, and theirs stay with them.
        run("mount", &["--make-shared", target]);
        Self { path, gate: None }
    }

    /// Mounts one below this directory that can be made to fail.
    pub(crate) fn mount_gated(dir: &Path) -> Self {
        let gate = GatedShare::mount(dir);
        let path = gate.path().join("base");
        std::fs::DirBuilder::new().mode(0o700).create(&path).expect("the base");
        Self { path, gate: Some(gate) }
    }

    /// The base path of the workspaces, on every host.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What makes it fail.
    pub fn gate(&self) -> &GatedShare {
        self.gate.as_ref().expect("Shape::gated_share")
    }

    /// Whoever hangs on it goes on, so that it can be ended.
    pub(crate) fn let_go(&self) {
        if let Some(gate) = &self.gate {
            gate.let_go();
        }
    }

    /// A student's directory, as the file server sees it.
    pub fn student(&self, student: &str) -> PathBuf {
        let base = self.gate.as_ref().map_or_else(|| self.path.clone(), |gate| gate.behind().join("base"));
        base.join(student)
    }

    /// Who has written in a student's desk so far; panics when there were two at once.
    pub fn writes(&self, student: &str) -> History {
        let text = std::fs::read_to_string(self.student(student).join(writes::FILE)).unwrap_or_default();
        writes::check(&text).unwrap_or_else(|wrong| panic!("{student}: not one writer at a time: {wrong}"))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.gate.is_none() {
            clear_up(&self.path);
        }
    }
}

/// Lazily: a process of a killed test may still be there for a moment.
pub(crate) fn clear_up(path: &Path) {
    let mut command = Command::new("umount");
    let _ = command.arg("--lazy").arg(path).stderr(Stdio::null()).status();
}
