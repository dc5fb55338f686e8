//! Paths below the base, and never outside it. Every step is relative to a descriptor and follows no link, so a student who
//! swaps a directory for a link between two steps gains nothing.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use carrel_common::id::{ClusterId, Generation, StudentId, WorkspaceUid};
use rustix::fs::{Gid, Mode, OFlags, RenameFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use super::check::Marker;
use super::marker;

/// Owner of the students' files: the user that code-server runs as.
const OWNER: u32 = 1000;

/// Carrel's own directory below the base.
pub const OWN: &str = ".carrel";

/// Where the files of deleted workspaces go, below [`OWN`].
const TRASH: &str = "trash";

/// Why a directory could not be made or moved.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A link, a file or another file system stands where a directory should be.
    #[error("{} is not a plain directory; an operator has to look at it", .0.display())]
    NotPlain(PathBuf),
    /// The mark of this Carrel is not, or no longer, there.
    #[error("{} has no mark of this Carrel; is the share mounted?", .0.display())]
    NotOurs(PathBuf),
    /// A file of ours holds something else.
    #[error("{} cannot be understood ({problem}); an operator has to look at it", .path.display())]
    Garbled {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Another host says the opposite each time.
    #[error("another host writes {} at the same moment", .0.display())]
    Contended(PathBuf),
    /// The system refused.
    #[error("{step} {}: {source}", .path.display())]
    Refused {
        /// What was being done.
        step: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

pub(super) fn refused(step: &'static str, path: &Path) -> impl FnOnce(Errno) -> LayoutError {
    let path = path.to_owned();
    move |errno| LayoutError::Refused { step, path, source: errno.into() }
}

pub(super) fn open_base(base: &Path) -> Result<OwnedFd, LayoutError> {
    rustix::fs::open(base, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(refused("open", base))
}

/// Makes `name` below `parent`, readable by its owner alone, unless something is there.
pub(super) fn make(parent: &OwnedFd, parent_path: &Path, name: &str) -> Result<(), LayoutError> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(refused("create", &parent_path.join(name))(errno)),
    }
}

/// Opens a directory below `parent` that is no link and no mount.
pub(super) fn open_plain(parent: &OwnedFd, parent_path: &Path, name: &str) -> Result<OwnedFd, LayoutError> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_XDEV
        | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let path = parent_path.join(name);
    rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve).map_err(|errno| match errno {
        Errno::LOOP | Errno::NOTDIR | Errno::XDEV => LayoutError::NotPlain(path),
        errno => refused("open", &path)(errno),
    })
}

/// A base that is ours, opened. What is done through it is done on the share that bears the mark, whatever is mounted over the
/// path or taken away from it meanwhile: so nothing ever lands on the disk below.
#[derive(Debug)]
pub struct Base {
    path: PathBuf,
    fd: OwnedFd,
}

impl Base {
    /// Opens the base when it bears the mark of `cluster`. Blocking, as is all that follows.
    ///
    /// # Errors
    /// When it does not, or cannot be opened.
    pub fn open(path: &Path, cluster: ClusterId) -> Result<Self, LayoutError> {
        let fd = open_base(path)?;
        if marker::read(&fd) != Marker::Of(cluster) {
            return Err(LayoutError::NotOurs(path.to_owned()));
        }
        Ok(Self { path: path.to_owned(), fd })
    }

    /// The student's directory: made when missing, owned by uid 1000 and closed to everybody else. Repairs one that a crash
    /// left owned by root.
    ///
    /// # Errors
    /// A link, a file or a mount at the student's name is refused and left as it is.
    pub fn ensure_student_dir(&self, student: &StudentId) -> Result<PathBuf, LayoutError> {
        let path = self.path.join(student.as_str());
        make(&self.fd, &self.path, student.as_str())?;
        let dir = open_plain(&self.fd, &self.path, student.as_str())?;
        let stat = rustix::fs::fstat(&dir).map_err(refused("look at", &path))?;
        if (stat.st_uid, stat.st_gid) != (OWNER, OWNER) {
            rustix::fs::fchown(&dir, Some(Uid::from_raw(OWNER)), Some(Gid::from_raw(OWNER)))
                .map_err(refused("change the owner of", &path))?;
        }
        if stat.st_mode & 0o7777 != 0o700 {
            rustix::fs::fchmod(&dir, Mode::RWXU).map_err(refused("change the mode of", &path))?;
        }
        Ok(path)
    }

    /// Carrel's own directory; the mark is in it.
    pub(super) fn own(&self) -> Result<(OwnedFd, PathBuf), LayoutError> {
        Ok((open_plain(&self.fd, &self.path, OWN)?, self.path.join(OWN)))
    }

    /// Moves the student's directory to the trash; it can be repeated.
    ///
    /// # Errors
    /// When the move fails; the files are then where they were.
    pub fn move_to_trash(
        &self,
        student: &StudentId,
        workspace: WorkspaceUid,
        generation: Generation,
    ) -> Result<(), LayoutError> {
        let (own, own_path) = self.own()?;
        make(&own, &own_path, TRASH)?;
        let trash = open_plain(&own, &own_path, TRASH)?;
        let name = format!("{student}.{workspace}.g{generation}");
        let (from, to) = (student.as_str(), name.as_str());
        let moved = match rustix::fs::renameat_with(&self.fd, from, &trash, to, RenameFlags::NOREPLACE) {
            // NFS knows no flags; there a directory replaces none but an empty one.
            Err(Errno::INVAL) => rustix::fs::renameat(&self.fd, from, &trash, to),
            moved => moved,
        };
        match moved {
            // Missing: moved by an earlier attempt, or there never were files.
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(refused("move to the trash", &self.path.join(from))(errno)),
        }
    }
}

#[cfg(test)]
mod tests;
