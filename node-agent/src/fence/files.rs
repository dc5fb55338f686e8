//! What is kept in `<state-dir>/fence`. The files are how the agent and the fence process know the same; nothing in them outlives
//! the host's boot, so nothing is synced to the disk but a new deadline file: after a power cut the name may be there without the
//! contents, and that says nothing, not even of which boot it is.
//!
//! ```text
//! deadline           boot id, end of the lease, begin of the killing; the times in nanoseconds of boot time
//! containers/<id>    this container may run under the lease: there before its start
//! over/<id>          a lease ran out over this container: it never runs again
//! lock               held by the fence process
//! ```

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::Deadline;

const DEADLINE: &str = "deadline";
const NEW: &str = "deadline.new";
const CONTAINERS: &str = "containers";
const OVER: &str = "over";
const LOCK: &str = "lock";

/// No deadline file is longer: a boot id of 36 characters and two numbers.
const LONGEST: u64 = 256;

/// The files of one node.
#[derive(Debug, Clone)]
pub struct FenceFiles {
    root: PathBuf,
}

/// Whether a container may be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// It is on the list.
    Listed,
    /// A lease has run out over it.
    Over,
}

impl FenceFiles {
    /// Those below `state_dir`, made when they are not there; readable by the owner alone. Blocking, as everything here.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let files = Self { root: state_dir.join("fence") };
        files.make()?;
        Ok(files)
    }

    fn make(&self) -> io::Result<()> {
        for dir in [&self.root, &self.root.join(CONTAINERS), &self.root.join(OVER)] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        Ok(())
    }

    /// A file to write to, made when it is not there. So are the directories: somebody may have removed them under the agent, whose lease
    /// goes on.
    fn writable(&self, path: &Path) -> io::Result<File> {
        let open = || OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        match open() {
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => {
                self.make()?;
                open()
            }
            other => other,
        }
    }

    /// Where they are.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The deadline, unless there is none of this boot: what another boot leased ended with it.
    ///
    /// # Errors
    /// When it is there and cannot be read; `InvalidData` when it means nothing.
    pub fn deadline(&self, boot_id: &str) -> io::Result<Option<Deadline>> {
        // Twice the same: the file that was opened may be the one that is written next.
        let mut text = self.read()?;
        loop {
            let again = self.read()?;
            if text == again {
                break;
            }
            text = again;
        }
        let Some(text) = text else { return Ok(None) };
        let bad =
            || io::Error::new(io::ErrorKind::InvalidData, format!("the deadline {text:?} means nothing"));
        let mut words = text.split_ascii_whitespace();
        let (Some(boot), Some(stop_at), Some(kill_at)) = (words.next(), words.next(), words.next()) else {
            return Err(bad());
        };
        let nanos = |word: &str| word.parse().map(Duration::from_nanos).map_err(|_| bad());
        let deadline = Deadline { stop_at: nanos(stop_at)?, kill_at: nanos(kill_at)? };
        Ok((boot == boot_id).then_some(deadline))
    }

    fn read(&self) -> io::Result<Option<String>> {
        match File::open(self.root.join(DEADLINE)) {
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(other) => Err(other),
            Ok(file) => {
                let mut text = String::new();
                file.take(LONGEST).read_to_string(&mut text)?;
                Ok(Some(text))
            }
        }
    }

    /// Sets the deadline. A reader sees the old one or the new one. Needs no space once both files are there: a disk that students
    /// have filled must not end their lease.
    ///
    /// # Errors
    /// When the disk refuses; the old one holds then.
    pub fn set_deadline(&self, boot_id: &str, deadline: Deadline) -> io::Result<()> {
        let (path, new) = (self.root.join(DEADLINE), self.root.join(NEW));
        // Always as long, so that it replaces what was in the file without making it shorter first.
        let text = format!("{boot_id:36} {:020} {:020}\n", nanos(deadline.stop_at), nanos(deadline.kill_at));
        let mut file = self.writable(&new)?;
        let made = file.metadata()?.len() < text.len() as u64;
        file.write_all(text.as_bytes())?;
        if made {
            // Before it has its name. Twice in a host's life: from then on the two take turns, over blocks that are there.
            file.sync_all()?;
            File::open(&self.root)?.sync_all()?;
        }
        match renameat_with(CWD, &new, CWD, &path, RenameFlags::EXCHANGE) {
            Ok(()) => Ok(()),
            // The first one; or a file system that cannot exchange.
            Err(Errno::NOENT | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => fs::rename(&new, &path),
            Err(other) => Err(other.into()),
        }
    }

    /// Puts a container on the list of those that may run.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn record(&self, id: &str) -> io::Result<Recorded> {
        if self.root.join(OVER).join(id).try_exists()? {
            return Ok(Recorded::Over);
        }
        self.writable(&self.root.join(CONTAINERS).join(id))?;
        Ok(Recorded::Listed)
    }

    /// A container is gone.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn forget(&self, id: &str) -> io::Result<()> {
        // In the order in which it may be moved meanwhile.
        for list in [CONTAINERS, OVER] {
            match fs::remove_file(self.root.join(list).join(id)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// The lease has run out over everything that is on the list; how many containers that were.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn condemn(&self) -> io::Result<usize> {
        let mut moved = 0;
        for id in self.containers()? {
            match fs::rename(self.root.join(CONTAINERS).join(&id), self.root.join(OVER).join(&id)) {
                Ok(()) => moved += 1,
                // The other one that looks after the lease was faster.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(moved)
    }

    /// Containers that may run.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn containers(&self) -> io::Result<BTreeSet<String>> {
        names(&self.root.join(CONTAINERS))
    }

    /// Containers that a lease has run out over.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn over(&self) -> io::Result<BTreeSet<String>> {
        names(&self.root.join(OVER))
    }

    /// The lock of the fence process, held as long as the file is open; `None`: somebody has it.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn lock(&self) -> io::Result<Option<File>> {
        let path = self.root.join(LOCK);
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

fn nanos(at: Duration) -> u64 {
    u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)
}

fn names(dir: &Path) -> io::Result<BTreeSet<String>> {
    let entries = match fs::read_dir(dir) {
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        other => other?,
    };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const BOOT: &str = "0f0e0d0c-0000-4000-8000-000000000001";

    fn files() -> (tempfile::TempDir, FenceFiles) {
        let dir = tempfile::tempdir().expect("tempdir");
        let files = FenceFiles::open(&dir.path().join("state")).expect("made");
        (dir, files)
    }

    fn deadline(stop_at: u64) -> Deadline {
        let at = Duration::from_secs;
        Deadline { stop_at: at(stop_at), kill_at: at(stop_at + 15) }
    }

    #[test]
    fn comes_back_as_it_was_set_and_only_in_the_same_boot() {
        let (_dir, files) = files();
        assert_eq!(files.deadline(BOOT).expect("nothing there"), None);
        for at in [700, 710, 90] {
            files.set_deadline(BOOT, deadline(at)).expect("set");
            assert_eq!(files.deadline(BOOT).expect("there"), Some(deadline(at)));
        }
        assert_eq!(files.deadline("0f0e0d0c-0000-4000-8000-000000000002").expect("there"), None);
    }

    #[test]
    fn only_the_owner_can_read_them() {
        let (_dir, files) = files();
        files.set_deadline(BOOT, deadline(1)).expect("set");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(files.root()), mode(&files.root().join(DEADLINE))), (0o700, 0o600));
    }

    #[test]
    fn a_deadline_that_means_nothing_is_an_error() {
        let (_dir, files) = files();
        for text in ["", "x", "x 1", "x 1 y", "x -1 2"] {
            fs::write(files.root().join(DEADLINE), text).expect("write");
            assert!(files.deadline("x").is_err(), "{text:?}");
        }
    }

    #[test]
    fn directories_that_were_removed_are_made_again_by_what_is_written() {
        let (_dir, files) = files();
        files.set_deadline(BOOT, deadline(1)).expect("set");
        for _ in 0..2 {
            fs::remove_dir_all(files.root()).expect("removed");
            assert_eq!(files.record("a").expect("recorded"), Recorded::Listed);
            assert_eq!(files.deadline(BOOT).expect("nothing there"), None);
            fs::remove_dir_all(files.root()).expect("removed");
            files.set_deadline(BOOT, deadline(2)).expect("set");
            assert_eq!(files.deadline(BOOT).expect("there"), Some(deadline(2)));
        }
    }

    #[test]
    fn a_container_that_a_lease_ran_out_over_is_never_listed_again() {
        let (_dir, files) = files();
        assert_eq!(files.record("a").expect("recorded"), Recorded::Listed);
        assert_eq!(files.record("b").expect("recorded"), Recorded::Listed);
        files.forget("b").expect("forgotten");
        assert_eq!(files.condemn().expect("condemned"), 1);
        assert_eq!(files.record("a").expect("looked"), Recorded::Over);
        assert_eq!(
            (files.containers().expect("read"), files.over().expect("read")),
            ([].into(), ["a".into()].into())
        );
        files.forget("a").expect("forgotten");
        assert_eq!(files.over().expect("read"), [].into());
    }

    #[test]
    fn one_process_at_a_time_holds_the_lock() {
        let (_dir, files) = files();
        let held = files.lock().expect("locked").expect("free");
        assert!(files.lock().expect("looked").is_none());
        drop(held);
        assert!(files.lock().expect("looked").is_some());
    }
}
