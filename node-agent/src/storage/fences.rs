//! The fence files: `<base>/.carrel/fence/<student>`, one for each student. Every step is relative to a descriptor and follows no
//! link; a file is whole or not there. Nothing below this directory is ever mounted into a container, and nothing here removes a
//! fence file: a student's generation never begins again. Blocking.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use carrel_common::id::StudentId;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::fence_file::{Token, Verdict, verdict};
use super::layout::{Base, LayoutError, make, open_plain, refused};

/// Their directory below Carrel's own.
const FENCE: &str = "fence";

/// How a file that is being written begins; no student's id begins with a dot.
const NEW: &str = ".new.";

/// A token is some 100 bytes; what is longer is something else.
const LONGEST: u64 = 4096;

/// One look to see, one to read back; more when somebody writes at the same moment, who then sees ours at the next look.
const LOOKS: usize = 4;

/// What the share says to a container that is to start, or runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Claim {
    /// It is the last one started: the file names it.
    Held,
    /// Another one is: this.
    Fenced(Token),
}

/// What is asked for one container that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asking {
    /// Whose it is.
    pub student: StudentId,
    /// What names it.
    pub own: Token,
    /// Whether it says its own again over an earlier one, as it is the one that was ordered.
    pub may_write: bool,
}

/// The fence files of a share that is ours.
#[derive(Debug)]
pub struct Fences {
    dir: OwnedFd,
    path: PathBuf,
    writer: String,
}

impl Fences {
    /// The fence files below `base`; `writer` names this node, so that no two write to one file under the same name.
    ///
    /// # Errors
    /// When their directory cannot be made or opened.
    pub fn open(base: &Base, writer: &str) -> Result<Self, LayoutError> {
        let (own, own_path) = base.own()?;
        make(&own, &own_path, FENCE)?;
        let dir = open_plain(&own, &own_path, FENCE)?;
        Ok(Self { dir, path: own_path.join(FENCE), writer: writer.to_owned() })
    }

    /// Says that `own` is the student's container, unless the share knows a later one; held only when that was read back.
    ///
    /// # Errors
    /// When the file cannot be read, understood or written: then nothing is known, and nothing may be started.
    pub fn claim(&self, student: &StudentId, own: &Token) -> Result<Claim, LayoutError> {
        let name = student.key();
        for _ in 0..LOOKS {
            match verdict(own, self.read(&name)?.as_ref()) {
                Verdict::Ours => return Ok(Claim::Held),
                Verdict::Fenced(later) => return Ok(Claim::Fenced(later)),
                Verdict::Write => self.write(&name, own)?,
            }
        }
        Err(LayoutError::Contended(self.path.join(name)))
    }

    /// Claims for a container that runs; one that may not write is held as long as the share knows nothing later.
    ///
    /// # Errors
    /// When the file cannot be read, understood or written: then nothing is known, and nothing may be stopped.
    pub fn ask(&self, asking: &Asking) -> Result<Claim, LayoutError> {
        if asking.may_write {
            return self.claim(&asking.student, &asking.own);
        }
        Ok(match verdict(&asking.own, self.latest(&asking.student)?.as_ref()) {
            Verdict::Fenced(later) => Claim::Fenced(later),
            Verdict::Ours | Verdict::Write => Claim::Held,
        })
    }

    /// What the share knows of the student's containers; `None`: nothing.
    ///
    /// # Errors
    /// When the file cannot be read or understood.
    pub fn latest(&self, student: &StudentId) -> Result<Option<Token>, LayoutError> {
        self.read(&student.key())
    }

    fn read(&self, name: &str) -> Result<Option<Token>, LayoutError> {
        let path = || self.path.join(name);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_XDEV
            | ResolveFlags::NO_MAGICLINKS;
        let file = match rustix::fs::openat2(&self.dir, name, flags, Mode::empty(), resolve) {
            Ok(file) => std::fs::File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(refused("open", &path())(errno)),
        };
        let mut text = Vec::new();
        let read = file.take(LONGEST).read_to_end(&mut text);
        read.map_err(|source| LayoutError::Refused { step: "read", path: path(), source })?;
        // Not taken for nothing: it may be the word of a later version about a later container.
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| LayoutError::Garbled { path: path(), problem: error.to_string() })
    }

    /// Whole and on the disk under another name first, then renamed: a crash leaves the old file or the new one.
    fn write(&self, name: &str, own: &Token) -> Result<(), LayoutError> {
        static WRITTEN: AtomicU64 = AtomicU64::new(0);
        let count = WRITTEN.fetch_add(1, Ordering::Relaxed);
        let new = format!("{NEW}{}.{}.{count}", self.writer, std::process::id());
        let path = self.path.join(name);
        let refuse =
            |source: std::io::Error| LayoutError::Refused { step: "write", path: path.clone(), source };
        let write = || {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&self.dir, &new, flags, Mode::RUSR | Mode::WUSR)?;
            let mut file = std::fs::File::from(file);
            file.write_all(&serde_json::to_vec(own)?)?;
            file.sync_all()?;
            rustix::fs::renameat(&self.dir, &new, &self.dir, name)?;
            Ok(rustix::fs::fsync(&self.dir)?)
        };
        write().map_err(|error| {
            let _ = rustix::fs::unlinkat(&self.dir, &new, AtFlags::empty());
            refuse(error)
        })
    }

    /// Removes what writes that were cut off left behind, once it is `older` than that by the share's own clock; how many.
    ///
    /// # Errors
    /// When the directory cannot be listed or written.
    pub fn tidy(&self, older: Duration) -> Result<usize, LayoutError> {
        let now = self.now()?;
        let mut gone = 0;
        for entry in Dir::read_from(&self.dir).map_err(refused("list", &self.path))? {
            let entry = entry.map_err(refused("list", &self.path))?;
            if !entry.file_name().to_bytes().starts_with(NEW.as_bytes()) {
                continue;
            }
            let left = match rustix::fs::statat(&self.dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat.st_mtime,
                // Renamed or removed meanwhile.
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(refused("look at", &self.path)(errno)),
            };
            if left.saturating_add_unsigned(older.as_secs()) > now {
                continue;
            }
            match rustix::fs::unlinkat(&self.dir, entry.file_name(), AtFlags::empty()) {
                Ok(()) => gone += 1,
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(refused("remove", &self.path)(errno)),
            }
        }
        Ok(gone)
    }

    /// The share's clock, in seconds: this host's may be another.
    fn now(&self) -> Result<i64, LayoutError> {
        let name = format!("{NEW}{}.{}.clock", self.writer, std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let refuse = || refused("write", &self.path);
        let file = rustix::fs::openat(&self.dir, &name, flags, Mode::RUSR | Mode::WUSR).map_err(refuse())?;
        // A file that was there already keeps its time until it is written to.
        let stat = rustix::io::write(&file, b"\n").and_then(|_| rustix::fs::fstat(&file));
        rustix::fs::unlinkat(&self.dir, &name, AtFlags::empty()).map_err(refuse())?;
        Ok(stat.map_err(refuse())?.st_mtime)
    }
}

#[cfg(test)]
mod tests;
