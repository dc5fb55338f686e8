use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Barrier;

use carrel_common::id::{ClusterId, Generation, Pair, PlacementId, WorkspaceUid};

use super::*;
use crate::storage::marker;

struct Share {
    dir: tempfile::TempDir,
    cluster: ClusterId,
}

impl Share {
    fn new() -> Self {
        let (dir, cluster) = (tempfile::tempdir().expect("tempdir"), ClusterId::new());
        marker::mark(dir.path(), cluster).expect("marked");
        Self { dir, cluster }
    }

    fn base(&self) -> Base {
        Base::open(self.dir.path(), self.cluster).expect("ours")
    }

    /// As one host sees it.
    fn seen_by(&self, writer: &str) -> Fences {
        Fences::open(&self.base(), writer).expect("opened")
    }

    fn files(&self) -> PathBuf {
        self.dir.path().join(".carrel/fence")
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.files()).expect("list");
        entries.map(|entry| entry.expect("entry").file_name().into_string().expect("text")).collect()
    }
}

fn ada() -> StudentId {
    "Ada".parse().expect("valid")
}

fn token(generation: i64) -> Token {
    let pair = Pair { incarnation: 1, generation: Generation(generation) };
    Token { pair, placement: Some(PlacementId::new()) }
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).expect("there").permissions().mode() & 0o7777
}

#[test]
fn a_claim_is_written_once_for_all_spellings_of_a_student_and_closed_to_all_but_root() {
    let share = Share::new();
    let own = token(3);
    let fences = share.seen_by("a");
    assert_eq!(fences.claim(&ada(), &own).expect("claimed"), Claim::Held);
    assert_eq!(fences.claim(&ada(), &own).expect("repeated"), Claim::Held);
    let lower: StudentId = "ada".parse().expect("valid");
    assert_eq!(fences.latest(&lower).expect("read"), Some(own));
    assert_eq!(share.names(), ["ada"]);
    assert_eq!((mode(&share.files()), mode(&share.files().join("ada"))), (0o700, 0o600));
}

#[test]
fn a_later_container_takes_over_and_an_earlier_one_or_a_twin_is_told_of_it() {
    let share = Share::new();
    let (first, second, twin) = (token(3), token(4), token(4));
    let (a, b) = (share.seen_by("a"), share.seen_by("b"));
    assert_eq!(a.claim(&ada(), &first).expect("claimed"), Claim::Held);
    assert_eq!(b.claim(&ada(), &second).expect("claimed"), Claim::Held);
    assert_eq!(a.claim(&ada(), &first).expect("told"), Claim::Fenced(second));
    assert_eq!(a.claim(&ada(), &twin).expect("told"), Claim::Fenced(second));
    assert_eq!(b.claim(&ada(), &second).expect("claimed"), Claim::Held);
}

#[test]
fn the_word_of_an_earlier_container_that_arrives_late_is_taken_back() {
    let share = Share::new();
    let (early, late) = (token(3), token(4));
    let (a, b) = (share.seen_by("a"), share.seen_by("b"));
    assert_eq!(b.claim(&ada(), &late).expect("claimed"), Claim::Held);
    a.write("ada", &early).expect("as a write that had hung");
    assert_eq!(b.claim(&ada(), &late).expect("claimed"), Claim::Held);
    assert_eq!(a.claim(&ada(), &early).expect("told"), Claim::Fenced(late));
}

#[test]
fn what_cannot_be_understood_is_left_alone_and_nothing_is_claimed() {
    let share = Share::new();
    let fences = share.seen_by("a");
    for text in ["", "{", "{\"incarnation\":1}"] {
        std::fs::write(share.files().join("ada"), text).expect("write");
        assert!(matches!(fences.claim(&ada(), &token(9)), Err(LayoutError::Garbled { .. })), "{text:?}");
        assert_eq!(std::fs::read_to_string(share.files().join("ada")).expect("there"), text);
    }
    std::fs::remove_file(share.files().join("ada")).expect("removed");
    std::os::unix::fs::symlink("/etc/hostname", share.files().join("ada")).expect("link");
    assert!(fences.claim(&ada(), &token(9)).is_err(), "no link is followed");
    assert!(share.files().join("ada").is_symlink());
}

#[test]
fn a_write_that_was_cut_off_does_no_harm_and_is_tidied_up() {
    let share = Share::new();
    let fences = share.seen_by("a");
    let own = token(3);
    fences.claim(&ada(), &own).expect("claimed");
    let (old, young) = (share.files().join(".new.b.7.0"), share.files().join(".new.c.7.0"));
    for left in [&old, &young] {
        std::fs::write(left, "{\"incar").expect("left");
    }
    let hour_ago = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    std::fs::File::open(&old).expect("there").set_modified(hour_ago).expect("aged");
    assert_eq!(fences.claim(&ada(), &own).expect("claimed"), Claim::Held);
    assert_eq!(fences.tidy(Duration::from_secs(600)).expect("tidied"), 1);
    let mut names = share.names();
    names.sort();
    assert_eq!(names, [".new.c.7.0", "ada"]);
}

#[test]
fn a_purge_leaves_the_fence_file() {
    let share = Share::new();
    let own = token(3);
    share.seen_by("a").claim(&ada(), &own).expect("claimed");
    let base = share.base();
    base.ensure_student_dir(&ada()).expect("made");
    base.move_to_trash(&ada(), WorkspaceUid::new(), Generation(3)).expect("moved");
    assert_eq!(share.seen_by("a").latest(&ada()).expect("read"), Some(own));
}

#[test]
fn no_student_can_be_named_as_something_of_ours() {
    for name in [".carrel", ".new.a.1.0", "."] {
        assert!(name.parse::<StudentId>().is_err(), "{name}");
    }
}

/// Two hosts that race on one real file, many times: after a few more looks by both, one container is left at most, and of two
/// different generations the later one.
#[test]
fn of_two_that_race_on_a_real_file_one_is_left() {
    let share = Share::new();
    let hosts = [share.seen_by("a"), share.seen_by("b")];
    for round in 0..300_i64 {
        // In turn: the earlier against the later, and two of one pair.
        let own = [token(2 * round), token(2 * round + round % 2)];
        let barrier = Barrier::new(2);
        let look = |i: usize| hosts[i].claim(&ada(), &own[i]);
        let mut running: Vec<bool> = std::thread::scope(|scope| {
            let starts = [0, 1].map(|i| {
                let (barrier, look) = (&barrier, &look);
                scope.spawn(move || {
                    barrier.wait();
                    matches!(look(i), Ok(Claim::Held))
                })
            });
            starts.into_iter().map(|start| start.join().expect("no panic")).collect()
        });
        for _ in 0..3 {
            for i in [0, 1] {
                running[i] &= !matches!(look(i), Ok(Claim::Fenced(_)));
            }
        }
        let expected = if round % 2 == 1 { vec![false, true] } else { running.clone() };
        assert_eq!(running, expected, "round {round}: the later one is left");
        assert_ne!(running, [true, true], "round {round}");
    }
    assert_eq!(share.names(), ["ada"], "nothing else is left");
}

#[test]
fn one_that_may_not_write_reads_only() {
    let share = Share::new();
    let (ordered, nobodys) = (token(1), token(9));
    let fences = share.seen_by("a");
    fences.claim(&ada(), &ordered).expect("claimed");
    let reader = Asking { student: ada(), own: nobodys, may_write: false };
    assert_eq!(fences.ask(&reader).expect("read"), Claim::Held, "nothing later is known");
    assert_eq!(fences.latest(&ada()).expect("read"), Some(ordered), "the one that was ordered stands");
    let later = token(10);
    fences.claim(&ada(), &later).expect("claimed");
    assert_eq!(fences.ask(&reader).expect("read"), Claim::Fenced(later));
}
