//! The mark on a share: one file, `.carrel/cluster-id`, that says whose it is. An operator's command writes it once; an agent only
//! reads it. The mount's id and device can be the same after a remount, so this is what a share is known by.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use carrel_common::id::ClusterId;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::check::Marker;
use super::layout::{LayoutError, OWN, make, open_base, open_plain, refused};

/// Its name below Carrel's own directory.
const FILE: &str = "cluster-id";

/// A UUID and a newline are 37 bytes; what is longer is something else.
const LONGEST: u64 = 64;

/// What became of marking a share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Marked {
    /// It is this Carrel's from now on.
    Now,
    /// It was already.
    Before,
    /// It is another's, and stays so.
    Of(ClusterId),
    /// What stands there cannot be understood, for this reason, and stays so.
    Unreadable(String),
}

/// Whose the base that is opened here is. Blocking.
pub(super) fn read(base: &OwnedFd) -> Marker {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_XDEV
        | ResolveFlags::NO_MAGICLINKS;
    let path = format!("{OWN}/{FILE}");
    let file = match rustix::fs::openat2(base, path, flags, Mode::empty(), resolve) {
        Ok(file) => std::fs::File::from(file),
        Err(Errno::NOENT) => return Marker::Missing,
        Err(errno) => return Marker::Unreadable(errno.to_string()),
    };
    let mut text = String::new();
    match file.take(LONGEST).read_to_string(&mut text) {
        Err(error) => Marker::Unreadable(error.to_string()),
        Ok(_) => text.trim_end().parse().map_or_else(
            |_| Marker::Unreadable(format!("it holds {:?}, which is no cluster's id", text.trim_end())),
            Marker::Of,
        ),
    }
}

/// Marks a base that is otherwise as it should be; of two who try at once, one succeeds. Never changes a mark. Blocking.
///
/// # Errors
/// When the base cannot be written.
pub fn mark(base: &Path, cluster: ClusterId) -> Result<Marked, LayoutError> {
    let base_fd = open_base(base)?;
    make(&base_fd, base, OWN)?;
    let (own, own_path) = (open_plain(&base_fd, base, OWN)?, base.join(OWN));
    let found = |base: &OwnedFd| match read(base) {
        Marker::Missing => None,
        Marker::Of(found) if found == cluster => Some(Marked::Before),
        Marker::Of(other) => Some(Marked::Of(other)),
        Marker::Unreadable(why) => Some(Marked::Unreadable(why)),
    };
    if let Some(marked) = found(&base_fd) {
        return Ok(marked);
    }
    // Whole, or not there: it is written under another name, and linked to its own, which fails when somebody was first.
    let (name, path) = (format!("{FILE}.{cluster}.{}", std::process::id()), own_path.join(FILE));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let new = rustix::fs::openat(&own, &name, flags, Mode::RUSR | Mode::WUSR);
    let mut new = std::fs::File::from(new.map_err(refused("write", &path))?);
    let linked = writeln!(new, "{cluster}")
        .and_then(|()| new.sync_all())
        .and_then(|()| Ok(rustix::fs::linkat(&own, &name, &own, FILE, AtFlags::empty())?));
    rustix::fs::unlinkat(&own, &name, AtFlags::empty()).map_err(refused("tidy", &path))?;
    match linked {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Ok(found(&base_fd).unwrap_or(Marked::Before));
        }
        Err(source) => return Err(LayoutError::Refused { step: "write", path, source }),
    }
    rustix::fs::fsync(&own).map_err(refused("sync", &own_path))?;
    Ok(Marked::Now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> tempfile::TempDir {
        tempfile::tempdir().expect("tempdir")
    }

    fn marker(base: &Path) -> Marker {
        read(&open_base(base).expect("base"))
    }

    #[test]
    fn a_share_is_marked_once_and_says_so_again() {
        let (base, ours) = (base(), ClusterId::new());
        assert_eq!(marker(base.path()), Marker::Missing);
        assert_eq!(mark(base.path(), ours).expect("marked"), Marked::Now);
        assert_eq!(mark(base.path(), ours).expect("marked"), Marked::Before);
        assert_eq!(marker(base.path()), Marker::Of(ours));
        let names = std::fs::read_dir(base.path().join(OWN)).expect("list").count();
        assert_eq!(names, 1, "nothing else is left");
    }

    #[test]
    fn another_carrels_share_stays_its_own() {
        let (base, theirs) = (base(), ClusterId::new());
        mark(base.path(), theirs).expect("marked");
        assert_eq!(mark(base.path(), ClusterId::new()).expect("told"), Marked::Of(theirs));
        assert_eq!(marker(base.path()), Marker::Of(theirs));
    }

    #[test]
    fn what_is_no_mark_is_left_as_it_is() {
        let base = base();
        mark(base.path(), ClusterId::new()).expect("marked");
        let path = base.path().join(OWN).join(FILE);
        for text in ["", "x", &"a".repeat(100)] {
            std::fs::write(&path, text).expect("write");
            assert!(matches!(marker(base.path()), Marker::Unreadable(_)), "{text:?}");
            assert!(matches!(mark(base.path(), ClusterId::new()), Ok(Marked::Unreadable(_))), "{text:?}");
            assert_eq!(std::fs::read_to_string(&path).expect("there"), text);
        }
    }

    #[test]
    fn a_link_is_no_mark() {
        let (base, other) = (base(), base());
        mark(other.path(), ClusterId::new()).expect("marked");
        std::os::unix::fs::symlink(other.path().join(OWN), base.path().join(OWN)).expect("link");
        assert!(matches!(marker(base.path()), Marker::Unreadable(_)));
        assert!(mark(base.path(), ClusterId::new()).is_err());
    }

    #[test]
    fn of_many_who_mark_at_once_one_does_it() {
        let base = base();
        let marked: Vec<_> = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..8).map(|_| scope.spawn(|| mark(base.path(), ClusterId::new()))).collect();
            tries.into_iter().map(|one| one.join().expect("no panic").expect("told")).collect()
        });
        assert_eq!(marked.iter().filter(|marked| **marked == Marked::Now).count(), 1, "{marked:?}");
        let Marker::Of(winner) = marker(base.path()) else { panic!("marked") };
        let told = |marked: &&Marked| **marked == Marked::Of(winner);
        assert_eq!(marked.iter().filter(told).count(), 7, "{marked:?}");
    }
}
