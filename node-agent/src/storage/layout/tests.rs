use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

struct Dir {
    dir: tempfile::TempDir,
}

impl Dir {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("tempdir") }
    }
    fn path(&self) -> PathBuf {
        self.dir.path().join("base")
    }
    fn made() -> Self {
        let base = Self::new();
        std::fs::create_dir(base.path()).expect("base");
        marker::mark(&base.path(), ours()).expect("marked");
        base
    }
    fn open(&self) -> Base {
        Base::open(&self.path(), ours()).expect("ours")
    }
}

fn ours() -> ClusterId {
    "5f0c1f6e-7d57-4c51-9c3c-2f6d0a3f0a01".parse().expect("valid")
}

fn ada() -> StudentId {
    "ada".parse().expect("valid")
}

fn owner_and_mode(path: &Path) -> (u32, u32, u32) {
    let metadata = std::fs::symlink_metadata(path).expect("there");
    (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
}

#[test]
fn makes_a_directory_that_only_the_student_can_enter() {
    let base = Dir::made();
    let path = base.open().ensure_student_dir(&ada()).expect("made");
    assert_eq!((path.clone(), owner_and_mode(&path)), (base.path().join("ada"), (1000, 1000, 0o700)));
    base.open().ensure_student_dir(&ada()).expect("can be repeated");
}

#[test]
fn repairs_a_directory_that_a_crash_left_to_root() {
    let base = Dir::made();
    std::fs::create_dir(base.path().join("ada")).expect("mkdir");
    std::fs::set_permissions(base.path().join("ada"), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    let path = base.open().ensure_student_dir(&ada()).expect("repaired");
    assert_eq!(owner_and_mode(&path), (1000, 1000, 0o700));
}

#[test]
fn a_missing_base_is_not_made() {
    let base = Dir::new();
    assert!(Base::open(&base.path(), ours()).is_err());
    assert!(!base.path().exists());
}

#[test]
fn nothing_is_made_below_a_base_without_our_mark() {
    let base = Dir::made();
    let other = Base::open(&base.path(), ClusterId::new()).expect_err("another's");
    assert!(matches!(other, LayoutError::NotOurs(_)), "{other}");
    std::fs::remove_dir_all(base.path().join(OWN)).expect("unmounted");
    assert!(Base::open(&base.path(), ours()).is_err());
    assert_eq!(std::fs::read_dir(base.path()).expect("list").count(), 0);
}

#[test]
fn what_is_mounted_away_after_the_look_gets_nothing_of_it() {
    let base = Dir::made();
    let open = base.open();
    // What an unmount leaves at the path: another, empty directory.
    let share = base.dir.path().join("share");
    std::fs::rename(base.path(), &share).expect("away");
    std::fs::create_dir(base.path()).expect("the mount point");
    open.ensure_student_dir(&ada()).expect("made");
    assert_eq!(std::fs::read_dir(base.path()).expect("list").count(), 0);
    assert!(share.join("ada").is_dir());
}

#[test]
fn a_link_or_a_file_at_the_students_name_is_refused_and_left_alone() {
    let base = Dir::made();
    let outside = base.dir.path().join("outside");
    std::fs::create_dir(&outside).expect("outside");
    let before = owner_and_mode(&outside);
    symlink(&outside, base.path().join("ada")).expect("link");
    let error = base.open().ensure_student_dir(&ada()).expect_err("a link");
    assert!(matches!(error, LayoutError::NotPlain(_)), "{error}");
    assert_eq!(owner_and_mode(&outside), before);
    std::fs::remove_file(base.path().join("ada")).expect("unlink");
    std::fs::write(base.path().join("ada"), "").expect("a file");
    assert!(base.open().ensure_student_dir(&ada()).is_err());
}

#[test]
fn a_link_swapped_in_at_any_moment_never_changes_what_it_points_to() {
    let base = Dir::made();
    let outside = base.dir.path().join("outside");
    std::fs::create_dir(&outside).expect("outside");
    std::fs::set_permissions(&outside, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    let before = owner_and_mode(&outside);
    let (name, other) = (base.path().join("ada"), base.path().join("swap"));
    symlink(&outside, &other).expect("link");
    std::fs::create_dir(&name).expect("dir");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let dir = rustix::fs::CWD;
                rustix::fs::renameat_with(dir, &name, dir, &other, RenameFlags::EXCHANGE).expect("swap");
            }
        });
        for _ in 0..20_000 {
            let _ = base.open().ensure_student_dir(&ada());
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(owner_and_mode(&outside), before);
}

#[test]
fn a_purge_moves_the_files_and_can_be_repeated() {
    let base = Dir::made();
    let path = base.open().ensure_student_dir(&ada()).expect("made");
    std::fs::write(path.join("file"), "work").expect("write");
    let workspace = WorkspaceUid::new();
    for _ in 0..2 {
        base.open().move_to_trash(&ada(), workspace, Generation(3)).expect("moved");
    }
    let kept = base.path().join(format!(".carrel/trash/ada.{workspace}.g3/file"));
    assert_eq!(std::fs::read_to_string(kept).expect("kept"), "work");
    assert!(!path.exists());
    assert_eq!(owner_and_mode(&base.path().join(".carrel")).2, 0o700);
}

#[test]
fn a_purge_does_not_overwrite_what_is_in_the_trash() {
    let base = Dir::made();
    let workspace = WorkspaceUid::new();
    for _ in 0..2 {
        base.open().ensure_student_dir(&ada()).expect("made");
        let moved = base.open().move_to_trash(&ada(), workspace, Generation(3));
        assert_eq!(moved.is_ok(), !base.path().join("ada").exists());
    }
    assert!(base.path().join("ada").exists(), "the second stayed where it was");
}
