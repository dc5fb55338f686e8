use std::os::unix::fs::PermissionsExt as _;

use carrel_common::clock::SystemClock;

use super::*;

fn base(mode: u32) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("tempdir");
    let base = dir.path().join("base");
    fs::create_dir(&base).expect("base");
    fs::set_permissions(&base, fs::Permissions::from_mode(mode)).expect("mode");
    (dir, base)
}

fn reason(base: &Path, kind: Kind) -> Option<&'static str> {
    gather_and_check(base, kind, "test").map(|problem| problem.reason)
}

#[test]
fn a_good_base_is_written_and_left_as_it_was_but_for_carrels_own_directory() {
    let (_dir, base) = base(0o711);
    assert_eq!(reason(&base, Kind::Directory), None);
    let names: Vec<_> = fs::read_dir(&base).expect("list").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names, [OWN]);
    assert_eq!(fs::read_dir(base.join(OWN)).expect("list").count(), 0);
}

#[test]
fn a_missing_base_is_not_made() {
    let (_dir, base) = base(0o711);
    let missing = base.join("missing");
    assert_eq!(reason(&missing, Kind::Directory), Some("STORAGE_BASE_MISSING"));
    assert!(!missing.exists());
}

#[test]
fn a_file_is_no_base() {
    let (_dir, base) = base(0o711);
    fs::write(base.join("file"), "").expect("write");
    assert_eq!(reason(&base.join("file"), Kind::Directory), Some("STORAGE_NOT_A_DIRECTORY"));
}

#[test]
fn nothing_is_made_below_a_base_that_does_not_pass() {
    let (_dir, base) = base(0o777);
    assert_eq!(reason(&base, Kind::Directory), Some("STORAGE_EXPOSED"));
    assert_eq!(fs::read_dir(&base).expect("list").count(), 0);
}

#[tokio::test]
async fn a_verdict_follows_what_becomes_of_the_base() {
    let (_dir, base) = base(0o711);
    let clock = Arc::new(SystemClock::new());
    let storage = Arc::new(Storage::new(base.clone(), Kind::Directory, "test".into(), clock));
    let (stop, watched) = (CancellationToken::new(), Arc::clone(&storage));
    let mut tasks = tokio::task::JoinSet::new();
    let until = stop.clone();
    tasks.spawn(async move { watched.watch(until).await });
    assert_eq!(storage.verdict_for_start().await, Ok(()));
    fs::remove_dir_all(&base).expect("unmounted");
    assert_eq!(storage.look().await.map(|problem| problem.reason), Some("STORAGE_BASE_MISSING"));
    assert!(storage.verdict_for_start().await.is_err());
    assert!(storage.health().problem.is_some());
    stop.cancel();
    tasks.join_all().await;
}
