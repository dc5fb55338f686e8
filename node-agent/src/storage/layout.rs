//! Paths below the base, and never outside it. Every step is relative to a descriptor and follows no link, so a student who
//! swaps a directory for a link between two steps gains nothing.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use carrel_common::id::{Generation, StudentId, WorkspaceUid};
use rustix::fs::{Gid, Mode, OFlags, RenameFlags, ResolveFlags, Uid};
use rustix::io::Errno;

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

fn refused(step: &'static str, path: &Path) -> impl FnOnce(Errno) -> LayoutError {
    let path = path.to_owned();
    move |errno| LayoutError::Refused { step, path, source: errno.into() }
}

fn open_base(base: &Path) -> Result<OwnedFd, LayoutError> {
    rustix::fs::open(base, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(refused("open", base))
}

/// Makes `name` below `parent`, readable by its owner alone, unless something is there.
fn make(parent: &OwnedFd, parent_path: &Path, name: &str) -> Result<(), LayoutError> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(refused("create", &parent_path.join(name))(errno)),
    }
}

/// Opens a directory below `parent` that is no link and no mount.
fn open_plain(parent: &OwnedFd, parent_path: &Path, name: &str) -> Result<OwnedFd, LayoutError> {
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

/// The student's directory: made when missing, owned by uid 1000 and closed to everybody else. Repairs one that a crash left
/// owned by root. `base` must have passed the check. Blocking.
///
/// # Errors
/// A link, a file or a mount at the student's name is refused and left as it is.
pub fn ensure_student_dir(base: &Path, student: &StudentId) -> Result<PathBuf, LayoutError> {
    let path = base.join(student.as_str());
    let base_fd = open_base(base)?;
    make(&base_fd, base, student.as_str())?;
    let dir = open_plain(&base_fd, base, student.as_str())?;
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

/// Carrel's own directory below a base that passed the check.
pub(super) fn ensure_own(base: &Path) -> Result<OwnedFd, LayoutError> {
    let base_fd = open_base(base)?;
    make(&base_fd, base, OWN)?;
    open_plain(&base_fd, base, OWN)
}

/// Moves the student's directory to the trash; it can be repeated. Blocking.
///
/// # Errors
/// When the move fails; the files are then where they were.
pub fn move_to_trash(
    base: &Path,
    student: &StudentId,
    workspace: WorkspaceUid,
    generation: Generation,
) -> Result<(), LayoutError> {
    let base_fd = open_base(base)?;
    let own = ensure_own(base)?;
    let own_path = base.join(OWN);
    make(&own, &own_path, TRASH)?;
    let trash = open_plain(&own, &own_path, TRASH)?;
    let name = format!("{student}.{workspace}.g{generation}");
    match rustix::fs::renameat_with(&base_fd, student.as_str(), &trash, name.as_str(), RenameFlags::NOREPLACE)
    {
        // Missing: moved by an earlier attempt, or there never were files.
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(refused("move to the trash", &base.join(student.as_str()))(errno)),
    }
}

#[cfg(test)]
mod tests;
