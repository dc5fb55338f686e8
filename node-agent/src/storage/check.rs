//! Whether the base can take workspaces. PURE: facts in, verdict out.

use std::path::{Path, PathBuf};

/// What the base is meant to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Any directory.
    Directory,
    /// A directory on a mount other than the root's, such as EFS: an empty mount point is refused.
    Mount,
}

/// What stands at the base's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// Nothing.
    Missing,
    /// Something that is no directory.
    NotADirectory,
    /// A directory with these permission bits.
    Directory {
        /// The lowest 12 bits of its mode.
        mode: u32,
    },
    /// It cannot be looked at, for this reason.
    Unreadable(String),
}

/// The mount that the base lies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountFact {
    /// Where it is mounted.
    pub point: PathBuf,
    /// Its type, such as `nfs4`.
    pub kind: String,
    /// Whether it is mounted read-only.
    pub read_only: bool,
}

/// How writing below the base went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteTrial {
    /// Not tried yet.
    NotTried,
    /// A file was written, synced and removed.
    Worked,
    /// The file system is read-only.
    ReadOnly,
    /// It failed, for this reason.
    Failed(String),
}

/// What is known of the base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its path.
    pub base: PathBuf,
    /// What stands there.
    pub entry: Entry,
    /// What it lies on; `None` when the table of mounts names nothing.
    pub mount: Option<MountFact>,
    /// How writing went.
    pub trial: WriteTrial,
}

/// Why the base takes no workspaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Stable, for programs.
    pub reason: &'static str,
    /// One sentence with the next step, for operators.
    pub message: String,
}

impl Problem {
    /// The probe did not come back.
    pub fn timeout(base: &Path, after: std::time::Duration) -> Self {
        let after = humantime::format_duration(after);
        Self {
            reason: "STORAGE_TIMEOUT",
            message: format!(
                "{} did not answer within {after}; check the file server and the mount",
                base.display()
            ),
        }
    }
}

/// Others may neither list nor write the base, its group may not write it.
const EXPOSED: u32 = 0o026;

/// What is wrong with the base; `None`: nothing.
pub fn check(kind: Kind, facts: &Facts) -> Option<Problem> {
    let base = facts.base.display();
    let problem = |reason, message| Some(Problem { reason, message });
    let mode = match &facts.entry {
        Entry::Missing => {
            return problem("STORAGE_BASE_MISSING", format!("{base} does not exist; create or mount it"));
        }
        Entry::NotADirectory => {
            return problem(
                "STORAGE_NOT_A_DIRECTORY",
                format!("{base} is not a directory; point WORKSPACE_BASE_PATH at one"),
            );
        }
        Entry::Unreadable(why) => {
            return problem(
                "STORAGE_NOT_WRITABLE",
                format!("{base} cannot be looked at ({why}); let the agent's user read it"),
            );
        }
        Entry::Directory { mode } => *mode,
    };
    let on_root = facts.mount.as_ref().is_none_or(|mount| mount.point == Path::new("/"));
    if kind == Kind::Mount && on_root {
        return problem(
            "STORAGE_NOT_MOUNTED",
            format!("{base} lies on the root disk; mount the share there, or run with --storage=directory"),
        );
    }
    if facts.mount.as_ref().is_some_and(|mount| mount.read_only) || facts.trial == WriteTrial::ReadOnly {
        return problem("STORAGE_READ_ONLY", format!("{base} is mounted read-only; mount it read-write"));
    }
    if mode & EXPOSED != 0 {
        return problem(
            "STORAGE_EXPOSED",
            format!(
                "{base} can be listed or written by other users (mode {mode:04o}); run: chmod 0711 {base}"
            ),
        );
    }
    match &facts.trial {
        WriteTrial::Failed(why) => problem(
            "STORAGE_NOT_WRITABLE",
            format!("{base} cannot be written ({why}); let the agent's user write it"),
        ),
        WriteTrial::NotTried | WriteTrial::Worked | WriteTrial::ReadOnly => None,
    }
}

/// The mount that `path` (absolute, without links) lies on, from the text of `/proc/self/mountinfo`.
pub fn mount_of(path: &Path, mountinfo: &str) -> Option<MountFact> {
    // Later lines cover earlier ones of the same point.
    mountinfo.lines().filter_map(parse_mount).filter(|mount| path.starts_with(&mount.point)).fold(
        None,
        |best: Option<MountFact>, mount| match best {
            Some(best) if best.point.components().count() > mount.point.components().count() => Some(best),
            _ => Some(mount),
        },
    )
}

/// `36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse_mount(line: &str) -> Option<MountFact> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(4);
    let (point, options) = (left.next()?, left.next()?);
    let mut right = right.split(' ');
    let (kind, super_options) = (right.next()?, right.nth(1).unwrap_or_default());
    let read_only = options.split(',').chain(super_options.split(',')).any(|option| option == "ro");
    Some(MountFact { point: PathBuf::from(unescape(point)), kind: kind.to_owned(), read_only })
}

/// The kernel writes space, tab, newline and backslash as `\040` and the like.
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (code, char)| text.replace(code, char))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /mnt/efs rw,relatime shared:9 - nfs4 127.0.0.1:/ rw,vers=4.1
31 22 0:41 / /mnt/ro\\040share ro,relatime - ext4 /dev/loop0 rw
";

    fn good() -> Facts {
        Facts {
            base: "/mnt/efs/workspace-data".into(),
            entry: Entry::Directory { mode: 0o711 },
            mount: mount_of(Path::new("/mnt/efs/workspace-data"), MOUNTINFO),
            trial: WriteTrial::Worked,
        }
    }

    fn reason(kind: Kind, facts: &Facts) -> Option<&'static str> {
        check(kind, facts).map(|problem| problem.reason)
    }

    #[test]
    fn takes_a_private_directory_on_a_mount() {
        assert_eq!((check(Kind::Mount, &good()), check(Kind::Directory, &good())), (None, None));
    }

    #[test]
    fn every_defect_has_its_reason() {
        let with = |change: &dyn Fn(&mut Facts)| {
            let mut facts = good();
            change(&mut facts);
            reason(Kind::Mount, &facts)
        };
        assert_eq!(with(&|f| f.entry = Entry::Missing), Some("STORAGE_BASE_MISSING"));
        assert_eq!(with(&|f| f.entry = Entry::NotADirectory), Some("STORAGE_NOT_A_DIRECTORY"));
        assert_eq!(with(&|f| f.mount = mount_of(Path::new("/srv"), MOUNTINFO)), Some("STORAGE_NOT_MOUNTED"));
        assert_eq!(
            with(&|f| f.mount = mount_of(Path::new("/mnt/ro share/x"), MOUNTINFO)),
            Some("STORAGE_READ_ONLY")
        );
        assert_eq!(with(&|f| f.trial = WriteTrial::ReadOnly), Some("STORAGE_READ_ONLY"));
        assert_eq!(with(&|f| f.trial = WriteTrial::Failed("EACCES".into())), Some("STORAGE_NOT_WRITABLE"));
        assert_eq!(with(&|f| f.entry = Entry::Unreadable("EACCES".into())), Some("STORAGE_NOT_WRITABLE"));
    }

    #[test]
    fn a_base_that_others_can_list_or_write_is_exposed() {
        for (mode, exposed) in
            [(0o700, false), (0o711, false), (0o750, false), (0o755, true), (0o777, true), (0o770, true)]
        {
            let facts = Facts { entry: Entry::Directory { mode }, ..good() };
            assert_eq!(reason(Kind::Mount, &facts) == Some("STORAGE_EXPOSED"), exposed, "{mode:o}");
        }
    }

    #[test]
    fn the_message_says_what_to_run() {
        let facts = Facts { entry: Entry::Directory { mode: 0o755 }, ..good() };
        let problem = check(Kind::Mount, &facts).expect("exposed");
        assert!(problem.message.ends_with("run: chmod 0711 /mnt/efs/workspace-data"), "{}", problem.message);
    }

    #[test]
    fn the_root_disk_will_do_as_a_directory_but_not_as_a_mount() {
        let facts = Facts { mount: mount_of(Path::new("/srv"), MOUNTINFO), ..good() };
        assert_eq!(
            (reason(Kind::Directory, &facts), reason(Kind::Mount, &facts)),
            (None, Some("STORAGE_NOT_MOUNTED"))
        );
    }

    #[test]
    fn a_mount_point_that_only_begins_the_same_is_another() {
        let mount = mount_of(Path::new("/mnt/efs2/x"), MOUNTINFO).expect("root");
        assert_eq!(mount.point, Path::new("/"));
    }

    #[test]
    fn the_later_of_two_mounts_on_one_point_counts() {
        let text = format!("{MOUNTINFO}40 30 0:50 / /mnt/efs ro - ext4 /dev/loop1 ro\n");
        let mount = mount_of(Path::new("/mnt/efs/x"), &text).expect("mounted");
        assert_eq!((mount.kind.as_str(), mount.read_only), ("ext4", true));
    }
}
