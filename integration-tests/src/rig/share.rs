//! What stands for the EFS: one file system that all hosts see at the same path. It is in memory, so that a file synced on
//! each line costs the disk of the machine nothing.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::process::run;
use crate::writes::{self, History};

/// A mount. Gone when dropped.
#[derive(Debug)]
pub struct Share {
    path: PathBuf,
}

impl Share {
    pub(crate) fn mount(path: &Path) -> Self {
        std::fs::create_dir(path).expect("a directory");
        let target = path.to_str().expect("UTF-8");
        run("mount", &["-t", "tmpfs", "-o", "size=256m,mode=0700", "carrel-rig", target]);
        // So that mounts on it reach the hosts, and theirs stay with them.
        run("mount", &["--make-shared", target]);
        Self { path: path.to_owned() }
    }

    /// The base path of the workspaces, on every host.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A student's directory.
    pub fn student(&self, student: &str) -> PathBuf {
        self.path.join(student)
    }

    /// Who has written in a student's desk so far; panics when there were two at once.
    pub fn writes(&self, student: &str) -> History {
        let text = std::fs::read_to_string(self.student(student).join(writes::FILE)).unwrap_or_default();
        writes::check(&text).unwrap_or_else(|wrong| panic!("{student}: not one writer at a time: {wrong}"))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        clear_up(&self.path);
    }
}

/// Lazily: a process of a killed test may still be there for a moment.
pub(crate) fn clear_up(path: &Path) {
    let mut command = Command::new("umount");
    let _ = command.arg("--lazy").arg(path).stderr(Stdio::null()).status();
}
