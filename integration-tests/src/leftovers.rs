//! What tests that were killed left behind: each harness directory names its owner, and the next test clears up after
//! owners that are gone.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Where a directory says whose it is.
const OWNER: &str = "owner";

/// A directory below /tmp that says which process owns it, and `notes` for whoever has to clear up after it.
pub(crate) fn owned_dir(prefix: &str) -> TempDir {
    let dir = tempfile::Builder::new().prefix(prefix).tempdir_in("/tmp").expect("a directory");
    note(dir.path(), &[]);
    dir
}

/// Writes the notes anew.
pub(crate) fn note(dir: &Path, notes: &[&str]) {
    let own = std::process::id();
    let owner = format!("{own} {}", start_of(own).expect("it runs"));
    std::fs::write(dir.join(OWNER), [&[owner.as_str()], notes].concat().join("\n")).expect("writable");
}

/// Directories of this prefix whose owner is gone, each with its notes; each is given to one caller
/// only, who removes it at last.
pub(crate) fn left_behind(prefix: &str) -> Vec<(PathBuf, Vec<String>)> {
    let entries = std::fs::read_dir("/tmp").into_iter().flatten().flatten().map(|entry| entry.path());
    let ours = entries
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)));
    ours.filter_map(|path| take(path, prefix)).collect()
}

fn take(path: PathBuf, prefix: &str) -> Option<(PathBuf, Vec<String>)> {
    let text = std::fs::read_to_string(path.join(OWNER)).ok()?;
    let mut lines = text.lines().map(str::to_owned);
    let (pid, start) =
        lines.next()?.split_once(' ').map(|(pid, start)| (pid.to_owned(), start.to_owned()))?;
    if start_of(pid.parse().ok()?) == Some(start) {
        return None;
    }
    // Who can take the owner's name away may clear up.
    std::fs::remove_file(path.join(OWNER)).ok()?;
    eprintln!("clearing up {}, left by process {pid} ({prefix}…)", path.display());
    Some((path, lines.collect()))
}

/// When a process started, in the kernel's ticks: a number is given out again, number and start together never are.
fn start_of(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name may hold blanks and brackets; after it come the state and, as the 20th, the start.
    let fields = stat.rsplit_once(") ")?.1;
    if fields.starts_with('Z') { None } else { fields.split(' ').nth(19).map(str::to_owned) }
}
