//! When the lease holds, and what becomes of what ran under it.

use std::sync::atomic::{AtomicBool, Ordering};

use carrel_common::clock::ManualClock;
use time::OffsetDateTime;
use tokio::task::JoinSet;

use super::*;

const BOOT: &str = "0f0e0d0c-0000-4000-8000-000000000001";
const TERMS: Terms = Terms { fence_after: Duration::from_secs(600), stop_budget: Duration::from_secs(30) };

struct Bench {
    dir: tempfile::TempDir,
    clock: Arc<ManualClock>,
    lease: Lease,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let clock = Arc::new(ManualClock::new(OffsetDateTime::UNIX_EPOCH));
        let lease = Lease::open(dir.path(), BOOT, clock.clone()).expect("opened");
        Self { dir, clock, lease }
    }

    fn pass(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    /// The next agent of this host.
    fn again(&self, boot: &str) -> Lease {
        Lease::open(self.dir.path(), boot, self.clock.clone()).expect("opened")
    }

    fn look(&self) {
        look(&self.lease);
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("fence")
    }
}

/// As the first look of an agent.
fn look(lease: &Lease) {
    let mut enforcer = Enforcer::new(lease.files.clone(), BOOT.into(), Arc::clone(&lease.clock));
    lease.look(&mut enforcer).expect("looked");
}

#[test]
fn nothing_is_started_before_the_first_ack() {
    let bench = Bench::new();
    assert_eq!(bench.lease.standing(), Standing::Unleased);
    assert!(matches!(bench.lease.before_start("a"), Err(LeaseError::NotHeld)));
    bench.lease.renew(bench.lease.now(), TERMS).expect("renewed");
    bench.lease.before_start("a").expect("leased");
}

#[test]
fn counts_from_the_sending_and_not_from_the_ack() {
    let bench = Bench::new();
    let sent_at = bench.lease.now();
    bench.pass(25);
    bench.lease.renew(sent_at, TERMS).expect("renewed");
    bench.pass(574);
    assert_eq!(
        (bench.lease.standing(), bench.lease.left()),
        (Standing::Leased, Some(Duration::from_secs(1)))
    );
    bench.pass(1);
    assert_eq!((bench.lease.standing(), bench.lease.left()), (Standing::Over, None));
}

#[test]
fn an_ack_that_comes_after_the_end_renews_nothing_until_all_has_ended() {
    let bench = Bench::new();
    bench.lease.renew(bench.lease.now(), TERMS).expect("renewed");
    bench.pass(590);
    let sent_at = bench.lease.now();
    bench.pass(20);
    assert!(matches!(bench.lease.renew(sent_at, TERMS), Err(LeaseError::NotHeld)));
    bench.look();
    assert_eq!(bench.lease.standing(), Standing::Unleased);
    bench.lease.renew(bench.lease.now(), TERMS).expect("renewed");
    assert_eq!(bench.lease.standing(), Standing::Leased);
}

#[test]
fn outlives_the_agent_and_not_the_boot() {
    let bench = Bench::new();
    bench.lease.renew(bench.lease.now(), TERMS).expect("renewed");
    bench.pass(599);
    assert_eq!(bench.again(BOOT).standing(), Standing::Leased);
    bench.pass(1);
    assert_eq!(
        bench.again(BOOT).standing(),
        Standing::Over,
        "an agent that comes back late ends everything first"
    );
    assert_eq!(bench.again("0f0e0d0c-0000-4000-8000-000000000002").standing(), Standing::Unleased);
}

#[test]
fn what_it_ran_out_over_is_told_to_the_driver_until_it_is_removed() {
    let bench = Bench::new();
    let ground = bench.lease.ground();
    bench.lease.renew(bench.lease.now(), TERMS).expect("renewed");
    bench.lease.before_start("a").expect("leased");
    bench.pass(600);
    bench.look();
    assert_eq!(*ground.borrow().over, BTreeSet::from(["a".to_owned()]));
    bench.lease.renew(bench.lease.now(), TERMS).expect("renewed");
    assert!(matches!(bench.lease.before_start("a"), Err(LeaseError::NotHeld)), "never again");
    bench.lease.after_removal("a");
    assert_eq!(*ground.borrow().over, BTreeSet::new());
}

#[test]
fn what_is_found_ends_with_the_lease_and_what_is_gone_is_forgotten() {
    let bench = Bench::new();
    let ids = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    bench.lease.found(&ids(&["a", "b"]), true).expect("noted");
    bench.lease.found(&ids(&["b", "c"]), false).expect("noted");
    assert_eq!(bench.lease.files.containers().expect("read"), ids(&["a", "b", "c"]));
    bench.lease.found(&ids(&["b"]), true).expect("noted");
    assert_eq!(bench.lease.files.containers().expect("read"), ids(&["b"]));
}

#[test]
fn files_that_are_removed_leave_no_lease_that_never_ends() {
    let bench = Bench::new();
    bench.lease.renew(bench.lease.now(), TERMS).expect("renewed");
    // Before anybody has looked.
    std::fs::remove_dir_all(bench.path()).expect("removed");
    bench.look();
    assert_eq!(bench.lease.standing(), Standing::Leased);
    bench.pass(600);
    assert_eq!(bench.lease.standing(), Standing::Over);
    bench.look();
    assert_eq!(bench.lease.standing(), Standing::Unleased);
    bench.lease.renew(bench.lease.now(), TERMS).expect("renewed");
    bench.lease.before_start("a").expect("leased");
}

#[test]
fn a_deadline_that_means_nothing_is_that_of_a_lease_that_has_run_out() {
    for text in ["", "0f0e0d0c-00", "\0\0\0\0"] {
        let bench = Bench::new();
        bench.lease.found(&BTreeSet::from(["a".to_owned()]), true).expect("noted");
        std::fs::write(bench.path().join("deadline"), text).expect("write");
        let lease = bench.again(BOOT);
        assert_eq!(lease.standing(), Standing::Over, "{text:?}");
        look(&lease);
        assert_eq!(lease.standing(), Standing::Unleased);
        assert_eq!(*lease.ground().borrow().over, BTreeSet::from(["a".to_owned()]));
        lease.renew(lease.now(), TERMS).expect("renewed");
        assert_eq!(bench.again(BOOT).standing(), Standing::Leased, "one that means something");
    }
}

/// A clock that breaks.
#[derive(Debug)]
struct Brittle {
    clock: ManualClock,
    broken: AtomicBool,
}

impl Clock for Brittle {
    fn now(&self) -> OffsetDateTime {
        self.clock.now()
    }
    fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }
    fn boot(&self) -> Duration {
        assert!(!self.broken.load(Ordering::Relaxed), "the clock is broken");
        self.clock.boot()
    }
}

#[tokio::test]
async fn a_look_that_panics_does_not_end_the_watch_in_silence() {
    let dir = tempfile::tempdir().expect("tempdir");
    let clock = ManualClock::new(OffsetDateTime::UNIX_EPOCH);
    let clock = Arc::new(Brittle { clock, broken: AtomicBool::new(false) });
    let lease = Arc::new(Lease::open(dir.path(), BOOT, clock.clone()).expect("opened"));
    clock.broken.store(true, Ordering::Relaxed);
    let mut watch = JoinSet::new();
    watch.spawn(lease.keep(Metrics::new(), CancellationToken::new()));
    let ended = watch.join_next().await.expect("it was begun");
    assert!(ended.is_err_and(|error| error.is_panic()));
}
