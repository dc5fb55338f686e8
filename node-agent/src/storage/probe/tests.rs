use std::os::unix::fs::PermissionsExt as _;

use carrel_common::clock::SystemClock;
use carrel_common::id::ClusterId;

use super::super::check::{Expected, Kind};
use super::super::marker;
use super::*;

#[tokio::test]
async fn a_verdict_follows_what_becomes_of_the_base() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (base, cluster) = (dir.path().join("base"), ClusterId::new());
    std::fs::create_dir(&base).expect("base");
    std::fs::set_permissions(&base, std::fs::Permissions::from_mode(0o711)).expect("mode");
    marker::mark(&base, cluster).expect("marked");
    let expected = Expected { kind: Kind::Directory, cluster };
    let place = Place { base: base.clone(), expected, writer: "test".into() };
    let storage =
        Arc::new(Storage::new(place, Prober::here(), Duration::from_secs(10), Arc::new(SystemClock::new())));
    let (stop, watched) = (CancellationToken::new(), Arc::clone(&storage));
    let mut tasks = tokio::task::JoinSet::new();
    let until = stop.clone();
    tasks.spawn(async move { watched.watch(until).await });
    assert_eq!(storage.health().latency, None, "nothing was measured yet");
    assert_eq!(storage.verdict_for_start().await, Ok(()));
    assert!(
        storage
            .health()
            .latency
            .is_some_and(|took| took.p50 <= took.p99 && took.p99 < Duration::from_secs(10))
    );
    std::fs::remove_dir_all(&base).expect("unmounted");
    assert_eq!(storage.look().await.map(|problem| problem.reason), Some("STORAGE_BASE_MISSING"));
    assert!(storage.verdict_for_start().await.is_err());
    assert!(storage.health().problem.is_some());
    stop.cancel();
    tasks.join_all().await;
}
