use std::os::unix::fs::PermissionsExt as _;

use carrel_common::id::ClusterId;

use super::super::layout::OWN;
use super::*;

fn base(mode: u32) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("tempdir");
    let base = dir.path().join("base");
    fs::create_dir(&base).expect("base");
    marker::mark(&base, ours()).expect("marked");
    fs::set_permissions(&base, fs::Permissions::from_mode(mode)).expect("mode");
    (dir, base)
}

fn ours() -> ClusterId {
    "5f0c1f6e-7d57-4c51-9c3c-2f6d0a3f0a01".parse().expect("valid")
}

fn expected() -> Expected {
    Expected { kind: Kind::Directory, cluster: ours() }
}

fn reason(base: &Path) -> Option<&'static str> {
    reason_for(base, expected())
}

fn reason_for(base: &Path, expected: Expected) -> Option<&'static str> {
    let place = Place { base: base.to_owned(), expected, writer: "test".into() };
    let Told::Facts(facts) = run(&place, Errand::Look) else { panic!("facts were asked for") };
    check(expected, &facts).map(|problem| problem.reason)
}

fn names_in(dir: &Path) -> Vec<std::ffi::OsString> {
    fs::read_dir(dir).expect("list").flatten().map(|entry| entry.file_name()).collect()
}

#[test]
fn a_good_base_is_written_and_left_as_it_was() {
    let (_dir, base) = base(0o711);
    assert_eq!(reason(&base), None);
    assert_eq!((names_in(&base), names_in(&base.join(OWN))), (vec![OWN.into()], vec!["cluster-id".into()]));
}

#[test]
fn nothing_is_made_below_a_base_without_our_mark() {
    let (_dir, base) = base(0o711);
    let other = Expected { cluster: ClusterId::new(), ..expected() };
    assert_eq!(reason_for(&base, other), Some("STORAGE_OF_ANOTHER_CLUSTER"));
    fs::remove_dir_all(base.join(OWN)).expect("unmounted");
    assert_eq!(reason(&base), Some("STORAGE_NOT_MARKED"));
    assert_eq!(names_in(&base).len(), 0);
}

#[test]
fn a_place_is_looked_at_without_its_mark_before_it_gets_one() {
    let (_dir, base) = base(0o711);
    fs::remove_dir_all(base.join(OWN)).expect("new");
    let reason = |base: &Path, kind| look_at_place(base, kind).map(|problem| problem.reason);
    assert_eq!(reason(&base, Kind::Directory), None);
    assert_eq!(reason(&base.join("missing"), Kind::Directory), Some("STORAGE_BASE_MISSING"));
    assert_eq!(names_in(&base).len(), 0);
}

#[test]
fn a_missing_base_is_not_made() {
    let (_dir, base) = base(0o711);
    let missing = base.join("missing");
    assert_eq!(reason(&missing), Some("STORAGE_BASE_MISSING"));
    assert!(!missing.exists());
}

#[test]
fn a_file_is_no_base() {
    let (_dir, base) = base(0o711);
    fs::write(base.join("file"), "").expect("write");
    assert_eq!(reason(&base.join("file")), Some("STORAGE_NOT_A_DIRECTORY"));
}

#[test]
fn nothing_is_made_below_a_base_that_does_not_pass() {
    let (_dir, base) = base(0o777);
    assert_eq!(reason(&base), Some("STORAGE_EXPOSED"));
    assert_eq!(names_in(&base.join(OWN)), ["cluster-id"]);
}

#[test]
fn a_purge_by_the_word_of_an_earlier_container_moves_nothing() {
    let (_dir, base) = base(0o711);
    let place = Place { base: base.clone(), expected: expected(), writer: "test".into() };
    let ada: StudentId = "ada".parse().expect("valid");
    let pair = |generation| Pair { incarnation: 1, generation: carrel_common::id::Generation(generation) };
    let own = Token { pair: pair(3), placement: None };
    assert_eq!(run(&place, Errand::Claim(ada.clone(), own)), Told::Claim(Claim::Held));
    assert_eq!(run(&place, Errand::StudentDir(ada.clone())), Told::Dir(base.join("ada")));
    let trash = |generation| {
        let workspace = WorkspaceUid::new();
        run(&place, Errand::Trash { student: ada.clone(), workspace, pair: pair(generation) })
    };
    assert!(matches!(trash(2), Told::Refused(_)));
    assert!(base.join("ada").exists());
    assert_eq!((trash(3), base.join("ada").exists()), (Told::Done, false));
}

#[test]
fn the_directory_is_told_without_links() {
    let (dir, base) = base(0o711);
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&base, &link).expect("link");
    let place = Place { base: link, expected: expected(), writer: "test".into() };
    let told = run(&place, Errand::StudentDir("ada".parse().expect("valid")));
    assert_eq!(told, Told::Dir(fs::canonicalize(&base).expect("there").join("ada")));
}
