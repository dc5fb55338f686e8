//! What is done on the share, one errand at a time. Blocking, and any step can hang for as long as the share does, so this runs in
//! a process of its own: see `prober`.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use carrel_common::id::{Pair, StudentId, WorkspaceUid};
use rustix::fs::{AtFlags, Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::check::{Entry, Expected, Facts, Kind, Marker, Problem, WriteTrial, check, check_place, mount_of};
use super::fence_file::Token;
use super::fences::{Asking, Claim, Fences};
use super::layout::{self, Base, LayoutError, refused};
use super::marker;

/// A write takes milliseconds; what was left by one that began so long ago was cut off.
const CUT_OFF: Duration = Duration::from_secs(600);

/// Where an errand leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The base, absolute.
    pub base: PathBuf,
    /// What it has to be.
    pub expected: Expected,
    /// Names this node in files that are being written, so that two agents on one share do not meet.
    pub writer: String,
}

/// One touch of the share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Errand {
    /// Gather what the verdict on the base needs.
    Look,
    /// Make, or repair, the directory of a student.
    StudentDir(StudentId),
    /// Say on the share that a container is the student's.
    Claim(StudentId, Token),
    /// The same for all that run.
    ClaimAll(Vec<Asking>),
    /// Move a student's directory to the trash, unless the share knows of a container later than this.
    Trash {
        /// Whose.
        student: StudentId,
        /// Of which desk.
        workspace: WorkspaceUid,
        /// By whose order.
        pair: Pair,
    },
    /// Remove what cut-off writes left behind.
    Tidy,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// What is known of the base.
    Facts(Facts),
    /// The student's directory, without links and dots: Docker takes no other as a mount's source.
    Dir(PathBuf),
    /// Whether the container may run.
    Claim(Claim),
    /// The same for each, or why it is not known.
    Claims(Vec<Result<Claim, String>>),
    /// It is done.
    Done,
    /// It could not be done, for this reason.
    Refused(String),
}

/// Does it.
pub fn run(place: &Place, errand: Errand) -> Told {
    let refused = |error: LayoutError| Told::Refused(error.to_string());
    let done = match errand {
        Errand::Look => return Told::Facts(look(place)),
        Errand::StudentDir(student) => student_dir(place, &student).map(Told::Dir),
        Errand::Claim(student, own) => {
            fences(place).and_then(|fences| fences.claim(&student, &own)).map(Told::Claim)
        }
        Errand::ClaimAll(all) => fences(place).map(|fences| {
            Told::Claims(all.iter().map(|one| fences.ask(one).map_err(|error| error.to_string())).collect())
        }),
        Errand::Trash { student, workspace, pair } => return trash(place, &student, workspace, pair),
        Errand::Tidy => fences(place).and_then(|fences| fences.tidy(CUT_OFF)).map(|_| Told::Done),
    };
    done.unwrap_or_else(refused)
}

fn open(place: &Place) -> Result<Base, LayoutError> {
    Base::open(&place.base, place.expected.cluster)
}

fn fences(place: &Place) -> Result<Fences, LayoutError> {
    Fences::open(&open(place)?, &place.writer)
}

fn student_dir(place: &Place, student: &StudentId) -> Result<PathBuf, LayoutError> {
    let path = open(place)?.ensure_student_dir(student)?;
    let real = fs::canonicalize(&place.base);
    Ok(real.map_or(path, |base| base.join(student.as_str())))
}

/// Files that a later container may be using are left where they are: only a store that went back in time orders that.
fn trash(place: &Place, student: &StudentId, workspace: WorkspaceUid, pair: Pair) -> Told {
    let moved = || {
        let latest = fences(place)?.latest(student)?;
        if let Some(later) = latest.filter(|latest| latest.pair > pair) {
            return Ok(Told::Refused(format!(
                "the share knows of a later container of {student}, of generation {}; nothing is moved",
                later.pair.generation
            )));
        }
        open(place)?.move_to_trash(student, workspace, pair.generation)?;
        Ok(Told::Done)
    };
    moved().unwrap_or_else(|error: LayoutError| Told::Refused(error.to_string()))
}

/// Writes only below a base that is otherwise as it should be.
fn look(place: &Place) -> Facts {
    let mut facts = gather(&place.base);
    if check(place.expected, &facts).is_none() {
        facts.trial = try_to_write(place);
    }
    facts
}

/// What is wrong with a place itself, whoever it belongs to: before a share is marked. Writes nothing.
pub fn look_at_place(base: &Path, kind: Kind) -> Option<Problem> {
    check_place(kind, &gather(base))
}

fn gather(base: &Path) -> Facts {
    let entry = match fs::metadata(base) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Entry::Missing,
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => Entry::Missing,
        Err(error) => Entry::Unreadable(error.to_string()),
        Ok(metadata) if !metadata.is_dir() => Entry::NotADirectory,
        Ok(metadata) => Entry::Directory { mode: metadata.permissions().mode() & 0o7777 },
    };
    let real = fs::canonicalize(base).unwrap_or_else(|_| base.to_owned());
    let mount = fs::read_to_string("/proc/self/mountinfo").ok().and_then(|text| mount_of(&real, &text));
    let marker = match layout::open_base(base) {
        Ok(opened) => marker::read(&opened),
        Err(error) => Marker::Unreadable(error.to_string()),
    };
    Facts { base: base.to_owned(), entry, mount, marker, trial: WriteTrial::NotTried }
}

fn try_to_write(place: &Place) -> WriteTrial {
    let name = format!("trial.{}", place.writer);
    let write = || {
        let (own, own_path) = open(place)?.own()?;
        let path = own_path.join(&name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&own, &name, flags, Mode::RUSR | Mode::WUSR);
        let mut file = fs::File::from(file.map_err(refused("write", &path))?);
        let written = file.write_all(b"carrel\n").and_then(|()| file.sync_all());
        written.map_err(|source| LayoutError::Refused { step: "write", path: path.clone(), source })?;
        rustix::fs::unlinkat(&own, &name, AtFlags::empty()).map_err(refused("remove", &path))
    };
    match write() {
        Ok(()) => WriteTrial::Worked,
        Err(LayoutError::Refused { source, .. })
            if source.kind() == std::io::ErrorKind::ReadOnlyFilesystem =>
        {
            WriteTrial::ReadOnly
        }
        Err(error) => WriteTrial::Failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
