//! Whether the base can take workspaces. PURE: facts in, verdict out.

use std::path::{Path, PathBuf};

use carrel_common::id::ClusterId;
use serde::{Deserialize, Serialize};

/// What the base is meant to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Kind {
    /// Any directory.
    Directory,
    /// A directory on a mount other than the root's, such as EFS: an empty mount point is refused.
    Mount,
}

/// What the base has to be for an agent to use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// What it lies on.
    pub kind: Kind,
    /// Whose it is.
    pub cluster: ClusterId,
}

/// Whose the base is, by the file that an operator's command left on it once. A share that is not mounted has none: what is seen
/// then is a directory of the root disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Marker {
    /// Nobody's.
    Missing,
    /// This Carrel's.
    Of(ClusterId),
    /// It cannot be read or understood, for this reason.
    Unreadable(String),
}

/// What stands at the base's path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountFact {
    /// Where it is mounted.
    pub point: PathBuf,
    /// Its type, such as `nfs4`.
    pub kind: String,
    /// Whether it is mounted read-only.
    pub read_only: bool,
}

/// How writing below the base went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Its path.
    pub base: PathBuf,
    /// What stands there.
    pub entry: Entry,
    /// What it lies on; `None` when the table of mounts names nothing.
    pub mount: Option<MountFact>,
    /// Whose it is.
    pub marker: Marker,
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

    /// Nothing is known of the base, for this reason.
    pub fn unanswered(base: &Path, why: &str) -> Self {
        Self {
            reason: "STORAGE_TIMEOUT",
            message: format!("{}: {why}; check the file server and the mount", base.display()),
        }
    }
}

/// Others may neither list nor write the base, its group may not write it.
const EXPOSED: u32 = 0o026;

/// What keeps the base from taking workspaces; `None`: nothing.
pub fn check(expected: Expected, facts: &Facts) -> Option<Problem> {
    check_place(expected.kind, facts)
        .or_else(|| check_marker(expected, facts))
        .or_else(|| check_trial(&facts.base, &facts.trial))
}

/// What is wrong with the place, whoever it belongs to.
pub fn check_place(kind: Kind, facts: &Facts) -> Option<Problem> {
    let base = facts.base.display();
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
    if facts.mount.as_ref().is_some_and(|mount| mount.read_only) {
        return read_only(&facts.base);
    }
    if mode & EXPOSED != 0 {
        return problem(
            "STORAGE_EXPOSED",
            format!(
                "{base} can be listed or written by other users (mode {mode:04o}); run: chmod 0711 {base}"
            ),
        );
    }
    None
}

fn check_marker(expected: Expected, facts: &Facts) -> Option<Problem> {
    let base = facts.base.display();
    match &facts.marker {
        Marker::Of(cluster) if *cluster == expected.cluster => None,
        Marker::Of(other) => problem(
            "STORAGE_OF_ANOTHER_CLUSTER",
            format!(
                "{base} belongs to the Carrel {other}, not to {}; mount the right share",
                expected.cluster
            ),
        ),
        Marker::Missing => problem(
            "STORAGE_NOT_MARKED",
            format!(
                "{base} has no mark of this Carrel; mount the share there, or when it is new, run once: {}",
                mark_command(expected, &facts.base)
            ),
        ),
        Marker::Unreadable(why) => problem(
            "STORAGE_NOT_WRITABLE",
            format!(
                "the mark of {base}, .carrel/cluster-id, cannot be read ({why}); an operator has to look at it"
            ),
        ),
    }
}

/// As an operator would type it.
fn mark_command(expected: Expected, base: &Path) -> String {
    let storage = match expected.kind {
        Kind::Directory => "",
        Kind::Mount => " --storage mount",
    };
    format!(
        "node-agent mark-share --workspace-base-path {}{storage} --cluster-id {}",
        base.display(),
        expected.cluster
    )
}

fn check_trial(base: &Path, trial: &WriteTrial) -> Option<Problem> {
    match trial {
        WriteTrial::ReadOnly => read_only(base),
        WriteTrial::Failed(why) => problem(
            "STORAGE_NOT_WRITABLE",
            format!("{} cannot be written ({why}); let the agent's user write it", base.display()),
        ),
        WriteTrial::NotTried | WriteTrial::Worked => None,
    }
}

fn read_only(base: &Path) -> Option<Problem> {
    problem("STORAGE_READ_ONLY", format!("{} is mounted read-only; mount it read-write", base.display()))
}

fn problem(reason: &'static str, message: String) -> Option<Problem> {
    Some(Problem { reason, message })
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

    fn ours() -> ClusterId {
        "5f0c1f6e-7d57-4c51-9c3c-2f6d0a3f0a01".parse().expect("valid")
    }

    fn expected(kind: Kind) -> Expected {
        Expected { kind, cluster: ours() }
    }

    fn good() -> Facts {
        Facts {
            base: "/mnt/efs/workspace-data".into(),
            entry: Entry::Directory { mode: 0o711 },
            mount: mount_of(Path::new("/mnt/efs/workspace-data"), MOUNTINFO),
            marker: Marker::Of(ours()),
            trial: WriteTrial::Worked,
        }
    }

    fn reason(kind: Kind, facts: &Facts) -> Option<&'static str> {
        check(expected(kind), facts).map(|problem| problem.reason)
    }

    #[test]
    fn takes_a_private_directory_on_a_mount() {
        assert_eq!((reason(Kind::Mount, &good()), reason(Kind::Directory, &good())), (None, None));
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
        assert_eq!(with(&|f| f.marker = Marker::Missing), Some("STORAGE_NOT_MARKED"));
        assert_eq!(with(&|f| f.marker = Marker::Of(ClusterId::new())), Some("STORAGE_OF_ANOTHER_CLUSTER"));
        assert_eq!(with(&|f| f.marker = Marker::Unreadable("EIO".into())), Some("STORAGE_NOT_WRITABLE"));
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
        let problem = check(expected(Kind::Mount), &facts).expect("exposed");
        assert!(problem.message.ends_with("run: chmod 0711 /mnt/efs/workspace-data"), "{}", problem.message);
        let facts = Facts { marker: Marker::Missing, ..good() };
        let problem = check(expected(Kind::Mount), &facts).expect("not marked");
        let command = "run once: node-agent mark-share --workspace-base-path /mnt/efs/workspace-data --storage mount \
                       --cluster-id 5f0c1f6e-7d57-4c51-9c3c-2f6d0a3f0a01";
        assert!(problem.message.ends_with(command), "{}", problem.message);
    }

    #[test]
    fn an_empty_directory_in_place_of_the_share_is_told_as_such_whatever_it_lies_on() {
        let facts =
            Facts { mount: mount_of(Path::new("/srv"), MOUNTINFO), marker: Marker::Missing, ..good() };
        assert_eq!(
            (reason(Kind::Directory, &facts), reason(Kind::Mount, &facts)),
            (Some("STORAGE_NOT_MARKED"), Some("STORAGE_NOT_MOUNTED"))
        );
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
