use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::time::SystemTime;

use super::*;

/// A host, and one desk on it.
struct Host {
    dir: tempfile::TempDir,
    ada: WorkspaceUid,
}

const fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const FIRST: Generation = Generation(1);

impl Host {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("tempdir"), ada: WorkspaceUid::new() }
    }
    fn desks(&self) -> Desks {
        Desks::open(self.dir.path().join("desks"), at(0))
    }
    fn input(&self) -> PathBuf {
        self.dir.path().join("desks").join(self.ada.to_string()).join("activity/input")
    }
    /// As somebody in the container does, with whatever time.
    fn touch(&self, time: SystemTime) {
        let file = fs::File::options().write(true).open(self.input()).expect("open");
        file.set_modified(time).expect("touched");
    }
    fn seen(&self, generation: Generation, at: Duration) -> Seen {
        Seen { workspace: self.ada, generation, at }
    }
}

/// Far in the past, and far in the future.
fn odd_times() -> [SystemTime; 3] {
    let year = Duration::from_secs(365 * 24 * 3600);
    let base = SystemTime::UNIX_EPOCH + year * 50;
    [base - year * 40, base + year * 40, base]
}

#[test]
fn a_changed_time_is_activity_now_whatever_it_says() {
    let host = Host::new();
    let desks = host.desks();
    desks.ensure(host.ada, FIRST).expect("made");
    desks.look(at(0));
    assert_eq!(desks.since(0), (vec![], 0), "a desk that begins has seen nothing");
    for (number, time) in (1..).zip(odd_times()) {
        host.touch(time);
        let now = at(60 * number);
        desks.look(now);
        desks.look(now + at(1));
        assert_eq!(desks.since(0), (vec![host.seen(FIRST, now)], number), "once, and when it was found");
        assert_eq!(desks.since(number), (vec![], number));
        assert_eq!(desks.look_at(host.ada, FIRST, now + at(2)), Some(now));
    }
}

#[test]
fn nobody_in_the_container_can_put_anything_else_there() {
    let host = Host::new();
    let path = host.desks().ensure(host.ada, FIRST).expect("made");
    let mode = |path: &Path| {
        let metadata = fs::symlink_metadata(path).expect("there");
        (metadata.uid(), metadata.permissions().mode() & 0o7777)
    };
    assert_eq!(mode(&path), (0, 0o755));
    assert_eq!(mode(&path.join("activity")), (0, 0o755));
    assert_eq!(mode(&path.join("activity/input")), (1000, 0o600));
    assert_eq!(mode(&path.join("seen-g1")), (0, 0o600));
}

#[test]
fn no_link_is_followed_and_what_cannot_be_seen_is_not_activity() {
    let host = Host::new();
    let desks = host.desks();
    desks.ensure(host.ada, FIRST).expect("made");
    let nothing = |why: &str| {
        desks.look(at(1));
        assert_eq!(desks.since(0), (vec![], 0), "{why}");
    };
    fs::remove_file(host.input()).expect("removed");
    nothing("the file is gone");
    let elsewhere = host.dir.path().join("input");
    fs::write(&elsewhere, "").expect("write");
    symlink(&elsewhere, host.input()).expect("link");
    nothing("it is a link");
    let activity = host.input().parent().expect("a directory").to_owned();
    fs::remove_dir_all(&activity).expect("removed");
    symlink(host.dir.path(), &activity).expect("link");
    nothing("its directory is a link");
}

#[test]
fn what_no_agent_saw_or_could_tell_is_seen_by_the_next_one() {
    let host = Host::new();
    host.desks().ensure(host.ada, FIRST).expect("made");
    host.touch(odd_times()[0]);
    let desks = host.desks();
    assert_eq!(desks.since(0), (vec![host.seen(FIRST, at(0))], 1));
    desks.ensure(host.ada, FIRST).expect("adopted or restarted");
    assert_eq!(desks.since(0).1, 1);
    let next = host.desks();
    assert_eq!(next.since(0).1, 1, "the one before was killed before it could tell");
    next.told(1);
    next.look(at(1));
    assert_eq!(host.desks().since(0), (vec![], 0), "told, it is seen no more");
}

#[test]
fn a_new_generation_does_not_inherit_what_the_one_before_has_seen() {
    let host = Host::new();
    let desks = host.desks();
    desks.ensure(host.ada, FIRST).expect("made");
    host.touch(odd_times()[0]);
    desks.look(at(1));
    host.touch(odd_times()[1]);
    let second = FIRST.next();
    desks.ensure(host.ada, second).expect("made");
    desks.look(at(2));
    assert_eq!(desks.since(0).0, []);
    assert_eq!([FIRST, second].map(|generation| desks.look_at(host.ada, generation, at(2))), [None, None]);
    host.touch(odd_times()[2]);
    desks.look(at(3));
    assert_eq!(desks.since(0).0, [host.seen(second, at(3))]);
}

#[test]
fn of_a_workspace_that_is_no_more_nothing_stays() {
    let host = Host::new();
    let desks = host.desks();
    desks.ensure(host.ada, FIRST).expect("made");
    let bob = WorkspaceUid::new();
    let bobs = desks.ensure(bob, FIRST).expect("made");
    desks.remove(host.ada);
    desks.remove(host.ada);
    assert!(!host.input().exists() && bobs.exists());
    let root = host.dir.path().join("desks");
    fs::create_dir(root.join("of somebody else")).expect("made");
    let (eve, next_agent) = (WorkspaceUid::new(), host.desks());
    let eves = next_agent.ensure(eve, FIRST).expect("made");
    next_agent.only([bob].into());
    next_agent.clear_up();
    assert!(bobs.exists(), "it is here");
    next_agent.only(BTreeSet::new());
    next_agent.clear_up();
    assert!(!bobs.exists() && root.join("of somebody else").exists());
    assert!(eves.exists(), "it has just been made, for an order that came meanwhile");
}

#[test]
fn a_directory_that_is_being_made_is_not_cleared_up() {
    let host = tempfile::tempdir().expect("tempdir");
    let desks = Desks::open(host.path().join("desks"), at(0));
    let made = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !made.load(std::sync::atomic::Ordering::Relaxed) {
                desks.only(BTreeSet::new());
                desks.clear_up();
            }
        });
        let paths: Vec<_> = (0..300).map(|_| desks.ensure(WorkspaceUid::new(), Generation(1))).collect();
        made.store(true, std::sync::atomic::Ordering::Relaxed);
        for path in paths {
            assert!(path.expect("made").join("activity/input").exists());
        }
    });
}
