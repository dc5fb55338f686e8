//! The small directory of each workspace on this host, mounted into its container at `/run/carrel`.
//!
//! ```text
//! <state-dir>/desks/<workspace uid>/    root's: nobody in the container can add, move or remove anything
//!     activity/input                    the student's: whoever sets its times says that there was input
//!     seen-g<generation>                its times are those of `input` that were last told
//! ```
//!
//! What a student can write is never opened: it is looked at by a descriptor that can read nothing, and no link is followed.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use carrel_common::id::{Generation, WorkspaceUid};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid};

/// The user that code-server runs as.
const OWNER: u32 = 1000;

/// Below a workspace's directory.
const INPUT: &str = "activity/input";

/// Before the generation.
const SEEN: &str = "seen-g";

/// When a file was last changed, by whatever clock whoever changed it had: good only to tell one change from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mtime(i64, i64);

fn directory(path: &Path, mode: Mode) -> io::Result<()> {
    match rustix::fs::mkdir(path, mode) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    // Whatever the umask.
    Ok(rustix::fs::chmod(path, mode)?)
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// The workspace's directory: made when missing.
pub(super) fn ensure(root: &Path, workspace: WorkspaceUid) -> io::Result<PathBuf> {
    let desk = root.join(workspace.to_string());
    fs::create_dir_all(root)?;
    let open_to_read = Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
    directory(&desk, open_to_read)?;
    directory(&desk.join("activity"), open_to_read)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(open_directory(&desk)?, INPUT, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => {
            let done = rustix::fs::fchown(&file, Some(Uid::from_raw(OWNER)), Some(Gid::from_raw(OWNER)));
            if let Err(errno) = done {
                // Half made, it would never be the student's.
                let _ = fs::remove_file(desk.join(INPUT));
                return Err(errno.into());
            }
        }
        Err(rustix::io::Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    Ok(desk)
}

/// When input was last said; `None`: that cannot be seen.
pub(super) fn look(root: &Path, workspace: WorkspaceUid) -> Option<Mtime> {
    let desk = open_directory(&root.join(workspace.to_string())).ok()?;
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let input = rustix::fs::openat2(desk, INPUT, flags, Mode::empty(), resolve).ok()?;
    let stat = rustix::fs::fstat(input).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    Some(Mtime(stat.st_mtime, i64::try_from(stat.st_mtime_nsec).ok()?))
}

fn marker(generation: Generation) -> String {
    format!("{SEEN}{generation}")
}

/// The time that was last told of this generation; `None`: it has just begun.
pub(super) fn remembered(root: &Path, workspace: WorkspaceUid, generation: Generation) -> Option<Mtime> {
    let desk = open_directory(&root.join(workspace.to_string())).ok()?;
    let stat = rustix::fs::statat(desk, marker(generation), AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Some(Mtime(stat.st_mtime, i64::try_from(stat.st_mtime_nsec).ok()?))
}

/// Keeps what was told over the agent's own end; what is kept of other generations is dropped.
pub(super) fn remember(
    root: &Path,
    workspace: WorkspaceUid,
    generation: Generation,
    seen: Mtime,
) -> io::Result<()> {
    let path = root.join(workspace.to_string());
    let desk = open_directory(&path)?;
    let name = marker(generation);
    if remembered(root, workspace, generation).is_none() {
        for other in markers(&path) {
            let _ = fs::remove_file(path.join(marker(other)));
        }
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&desk, name.as_str(), flags, Mode::RUSR | Mode::WUSR)?;
    }
    let time = Timespec { tv_sec: seen.0, tv_nsec: seen.1 };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(desk, name.as_str(), &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn markers(desk: &Path) -> Vec<Generation> {
    let names = fs::read_dir(desk).into_iter().flatten().flatten();
    let generation = |name: &str| name.strip_prefix(SEEN)?.parse().ok().map(Generation);
    names.filter_map(|entry| generation(entry.file_name().to_str()?)).collect()
}

/// The workspaces that have a directory, each with the newest generation that was seen.
pub(super) fn found(root: &Path) -> Vec<(WorkspaceUid, Option<Generation>)> {
    let names = fs::read_dir(root).into_iter().flatten().flatten();
    let workspaces = names.filter_map(|entry| entry.file_name().to_str()?.parse::<WorkspaceUid>().ok());
    workspaces.map(|uid| (uid, markers(&root.join(uid.to_string())).into_iter().max())).collect()
}

/// Removes a workspace's directory.
pub(super) fn remove(root: &Path, workspace: WorkspaceUid) -> io::Result<()> {
    match fs::remove_dir_all(root.join(workspace.to_string())) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
