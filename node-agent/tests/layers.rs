//! The layer rule of `lib.rs`, kept by looking for names in the sources.

use std::path::{Path, PathBuf};

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

/// Sources outside `allowed` whose code names one of `names`.
fn trespassers(names: &[&str], allowed: &[&str]) -> Vec<String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let relative = |path: &Path| path.strip_prefix(&src).expect("below src").display().to_string();
    let names_one = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).expect("readable");
        let code = |line: &&str| !line.trim_start().starts_with("//");
        text.lines().filter(code).any(|line| names.iter().any(|name| line.contains(name)))
    };
    let found = sources(&src).into_iter().filter(names_one).map(|path| relative(&path));
    found.filter(|path| !allowed.iter().any(|allowed| path.starts_with(allowed))).collect()
}

const NOBODY: [String; 0] = [];

#[test]
fn docker_is_spoken_to_in_one_folder() {
    assert_eq!(trespassers(&["bollard"], &["runtime/docker/"]), NOBODY);
}

#[test]
fn messages_and_statuses_stay_at_the_edge() {
    assert_eq!(
        trespassers(&["carrel_proto", "tonic::Status", "tonic::Code"], &["session/", "enroll/"]),
        NOBODY
    );
}

#[test]
fn the_pure_parts_are_pure() {
    let impure = ["async ", ".await", "tokio::", "std::fs", "std::net", "SystemTime", "Instant::"];
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let pure = sources(&src.join("reconcile")).into_iter().chain([
        src.join("fence/mod.rs"),
        src.join("storage/check.rs"),
        src.join("storage/fence_file.rs"),
        src.join("session/accept.rs"),
        src.join("session/backoff.rs"),
        src.join("runtime/docker/body.rs"),
        src.join("runtime/docker/reply.rs"),
        src.join("driver/failure.rs"),
    ]);
    for path in pure {
        let text = std::fs::read_to_string(&path).expect("readable");
        let found: Vec<_> = impure.iter().filter(|name| text.contains(**name)).collect();
        assert!(found.is_empty(), "{} names {found:?}", path.display());
    }
}
