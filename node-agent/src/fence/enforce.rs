//! One look at the deadline, and what follows from it. The agent and the fence process both do this, over and over; neither needs the
//! other, Docker or the network.
//!
//! When the lease has run out, everything on the list is moved to what is over: first told to stop, then killed, again and again
//! until nothing is left. What is over stays so under a later lease: a start that a frozen Docker completes long after is ended when
//! it shows up.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use super::files::FenceFiles;
use super::{Deadline, Due, cgroup};
use crate::driver::host::ShareClock;

/// Between two looks when nothing is due: a deadline may be there for the first time, or a start may complete late.
const IDLE: Duration = Duration::from_secs(1);

/// Between two looks while something that was told to stop still runs.
const STOPPING: Duration = Duration::from_millis(100);

/// Between two rounds of killing, doubled each time up to the second: what sleeps without interruption on a share that hangs cannot be
/// killed any faster.
const KILLING: (Duration, Duration) = (Duration::from_millis(20), IDLE);

/// What a look found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// The deadline; `None`: nothing is leased in this boot.
    pub deadline: Option<Deadline>,
    /// What it asks for.
    pub due: Due,
    /// Containers that a lease has run out over.
    pub over: BTreeSet<String>,
    /// Processes of them that had not ended.
    pub left: usize,
    /// When to look again.
    pub again_in: Duration,
}

/// Looks, and remembers what it has done.
#[derive(Debug)]
pub struct Enforcer {
    files: FenceFiles,
    boot_id: String,
    clock: Arc<dyn ShareClock>,
    /// The last deadline read: one that can be read no more holds on.
    known: Option<Deadline>,
    /// What it asked for at the last look.
    was_due: Due,
    /// Told to stop already: many programs take a second time for an order to give up at once.
    told: HashSet<Pid>,
    /// Rounds of killing without an end.
    rounds: u32,
}

impl Enforcer {
    /// In the boot named `boot_id`.
    pub fn new(files: FenceFiles, boot_id: String, clock: Arc<dyn ShareClock>) -> Self {
        Self { files, boot_id, clock, known: None, was_due: Due::Nothing, told: HashSet::new(), rounds: 0 }
    }

    /// Looks once, and does what is due. Blocking.
    ///
    /// # Errors
    /// When the lists cannot be read or written; what could be read was acted upon.
    pub fn once(&mut self) -> io::Result<Look> {
        match self.files.deadline(&self.boot_id) {
            Ok(deadline) => self.known = deadline,
            Err(error) => tracing::error!(%error, "the deadline cannot be read; the last one holds"),
        }
        let deadline = self.known;
        let due = deadline.map_or(Due::Nothing, |deadline| deadline.due(self.clock.boot()));
        let condemned = if due == Due::Nothing { Ok(0) } else { self.files.condemn() };
        let over = self.files.over()?;
        let left = self.end(due, &over);
        self.tell(due, over.len(), left);
        condemned?;
        let now = self.clock.boot();
        let again_in =
            deadline.and_then(|deadline| deadline.next(now)).unwrap_or(IDLE).min(self.patience(due, left));
        Ok(Look { deadline, due, over, left, again_in })
    }

    /// How many processes were found.
    fn end(&mut self, due: Due, over: &BTreeSet<String>) -> usize {
        let members = cgroup::members(over);
        if due == Due::Stop {
            for member in &members {
                if self.told.insert(member.pid()) {
                    member.signal(Signal::TERM);
                }
            }
        } else if !members.is_empty() {
            cgroup::kill(&members, over);
        }
        members.len()
    }

    fn patience(&self, due: Due, left: usize) -> Duration {
        match due {
            _ if left == 0 => IDLE,
            Due::Stop => STOPPING,
            Due::Nothing | Due::Kill => KILLING.0.saturating_mul(1 << self.rounds.min(10)).min(KILLING.1),
        }
    }

    fn tell(&mut self, due: Due, containers: usize, left: usize) {
        let before = std::mem::replace(&mut self.was_due, due);
        match (before, due) {
            (Due::Nothing, Due::Stop | Due::Kill) => {
                tracing::error!(
                    containers,
                    processes = left,
                    "the lease has run out: every workspace of this host ends now"
                );
            }
            (Due::Stop | Due::Kill, Due::Nothing) => {
                self.told.clear();
                tracing::info!(containers, "a new lease holds");
            }
            _ => {}
        }
        if due == Due::Stop {
            return;
        }
        if left == 0 {
            if self.rounds > 0 {
                tracing::warn!(containers, "all of it has ended");
            }
            self.rounds = 0;
            return;
        }
        self.rounds = self.rounds.saturating_add(1);
        // About each half minute: a round takes a second by then.
        if self.rounds.is_multiple_of(32) {
            tracing::error!(
                processes = left,
                "killed, and not ended yet: they wait without interruption, as on a share that hangs"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use carrel_common::clock::{Clock as _, ManualClock};
    use time::OffsetDateTime;

    use super::*;
    use crate::fence::Terms;

    const BOOT: &str = "0f0e0d0c-0000-4000-8000-000000000001";
    const TERMS: Terms =
        Terms { fence_after: Duration::from_secs(600), stop_budget: Duration::from_secs(30) };

    struct Bench {
        _dir: tempfile::TempDir,
        files: FenceFiles,
        clock: Arc<ManualClock>,
        enforcer: Enforcer,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("tempdir");
            let files = FenceFiles::open(dir.path()).expect("made");
            let clock = Arc::new(ManualClock::new(OffsetDateTime::UNIX_EPOCH));
            let enforcer = Enforcer::new(files.clone(), BOOT.into(), clock.clone());
            Self { _dir: dir, files, clock, enforcer }
        }

        fn renew(&self, boot: &str) {
            self.files.set_deadline(boot, TERMS.deadline(self.clock.boot())).expect("set");
        }

        fn after(&mut self, seconds: u64) -> (Due, Vec<String>) {
            self.clock.advance(Duration::from_secs(seconds));
            let look = self.enforcer.once().expect("looked");
            (look.due, look.over.into_iter().collect())
        }
    }

    #[test]
    fn what_was_never_leased_is_left_alone() {
        let mut bench = Bench::new();
        bench.files.record("a").expect("recorded");
        assert_eq!(bench.after(100_000), (Due::Nothing, vec![]));
        bench.renew("0f0e0d0c-0000-4000-8000-000000000002");
        assert_eq!(bench.after(100_000), (Due::Nothing, vec![]), "leased in another boot");
    }

    #[test]
    fn a_lease_that_is_renewed_ends_nothing_and_one_that_is_not_ends_all_of_it() {
        let mut bench = Bench::new();
        bench.files.record("a").expect("recorded");
        for _ in 0..5 {
            bench.renew(BOOT);
            assert_eq!(bench.after(599), (Due::Nothing, vec![]));
        }
        assert_eq!(bench.after(1), (Due::Stop, vec!["a".into()]));
        assert_eq!(bench.after(15), (Due::Kill, vec!["a".into()]));
    }

    #[test]
    fn what_a_lease_ran_out_over_stays_over_under_the_next() {
        let mut bench = Bench::new();
        bench.files.record("a").expect("recorded");
        bench.renew(BOOT);
        bench.after(600);
        bench.renew(BOOT);
        bench.files.record("b").expect("recorded");
        assert_eq!(bench.after(1), (Due::Nothing, vec!["a".into()]));
        assert_eq!(bench.after(599), (Due::Stop, vec!["a".into(), "b".into()]));
    }

    #[test]
    fn a_deadline_that_can_be_read_no_more_holds_on() {
        let mut bench = Bench::new();
        bench.files.record("a").expect("recorded");
        bench.renew(BOOT);
        bench.after(1);
        std::fs::write(bench.files.root().join("deadline"), "?").expect("write");
        assert_eq!(bench.after(599), (Due::Stop, vec!["a".into()]));
    }

    #[test]
    fn looks_again_at_the_moment_something_is_due() {
        let mut bench = Bench::new();
        bench.renew(BOOT);
        bench.clock.advance(Duration::from_millis(599_990));
        assert_eq!(bench.enforcer.once().expect("looked").again_in, Duration::from_millis(10));
        bench.clock.advance(Duration::from_millis(10));
        assert_eq!(bench.enforcer.once().expect("looked").again_in, IDLE);
    }
}
