//! One look at the deadline, and what follows from it. The agent and the fence process both do this, over and over; neither needs the
//! other, Docker or the network.
//!
//! When the lease has run out, everything on the list is moved to what is over: first told to stop, then killed, again and again
//! until nothing is left. What is over stays so under a later lease: a start that a frozen Docker completes long after is ended when
//! it shows up.
//!
//! Whoever removes the files ends no lease with them: the deadline that was read last holds on, and what was on the lists ends with it,
//! from memory.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use carrel_common::clock::Clock;
use rustix::process::{Pid, Signal};

use super::files::FenceFiles;
use super::{Deadline, Due, cgroup};

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
    /// When, by the host's boot-time clock.
    pub at: Duration,
    /// What the deadline asked for then; nothing when nothing is leased in this boot.
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
    clock: Arc<dyn Clock>,
    /// The last deadline read: one that can be read no more, or is gone, holds on.
    known: Option<Deadline>,
    /// Why it cannot be read: told once.
    problem: Option<String>,
    /// What was on the lists at the last look, and when it ends.
    listed: BTreeMap<String, Deadline>,
    /// What ends although no list says so: the lists went away, or the disk would not note that it is over.
    unlisted: BTreeMap<String, Deadline>,
    /// What it asked for at the last look.
    was_due: Due,
    /// Told to stop already: many programs take a second time for an order to give up at once.
    told: HashSet<Pid>,
    /// Rounds of killing without an end.
    rounds: u32,
}

impl Enforcer {
    /// In the boot named `boot_id`.
    pub fn new(files: FenceFiles, boot_id: String, clock: Arc<dyn Clock>) -> Self {
        Self {
            files,
            boot_id,
            clock,
            known: None,
            problem: None,
            listed: BTreeMap::new(),
            unlisted: BTreeMap::new(),
            was_due: Due::Nothing,
            told: HashSet::new(),
            rounds: 0,
        }
    }

    /// The deadline that this process has set: it holds when there is none to be read.
    pub fn hold(&mut self, deadline: Deadline) {
        self.known = Some(deadline);
    }

    /// Looks once, and does what is due. Blocking.
    ///
    /// # Errors
    /// When the lists cannot be read or written; what could be read was acted upon.
    pub fn once(&mut self) -> io::Result<Look> {
        let gone = self.read();
        let at = self.clock.boot();
        let due = self.known.map_or(Due::Nothing, |deadline| deadline.due(at));
        let listed = self.files.containers();
        let condemned = if due == Due::Nothing { Ok(0) } else { self.files.condemn() };
        let noted = self.files.over();
        self.remember(at, gone, listed.iter().flatten(), noted.iter().flatten());
        if condemned.is_err() {
            self.unlisted.extend(self.listed.clone());
        }
        let mut over = self.over_unlisted(at, due);
        over.extend(noted.iter().flatten().cloned());
        let left = self.end(due, &over);
        self.tell(due, over.len(), left);
        listed.and(condemned).and(noted)?;
        let now = self.clock.boot();
        let next = self.known.and_then(|deadline| deadline.next(now));
        let again_in = next.unwrap_or(IDLE).min(self.patience(due, left));
        Ok(Look { at, due, over, left, again_in })
    }

    /// Reads the deadline; whether one that was known is gone.
    fn read(&mut self) -> bool {
        let read = self.files.deadline(&self.boot_id);
        let gone = matches!(read, Ok(None)) && self.known.is_some();
        let problem = match read {
            Ok(Some(deadline)) => {
                self.known = Some(deadline);
                None
            }
            Ok(None) => gone.then(|| "it is gone, and the lists with it".to_owned()),
            Err(error) => {
                // Whose lease it was cannot be said, so it is one that has run out.
                if self.known.is_none() && error.kind() == io::ErrorKind::InvalidData {
                    self.known = Some(Deadline::PASSED);
                }
                Some(error.to_string())
            }
        };
        if problem.is_some() && problem != self.problem {
            tracing::error!(
                problem = problem.as_deref(),
                holds = ?self.known,
                "the deadline of this host's lease cannot be read; told once"
            );
        }
        self.problem = problem;
        gone
    }

    /// Keeps what is on the lists, as they may be gone at the next look.
    fn remember<'a>(
        &mut self,
        at: Duration,
        gone: bool,
        containers: impl Iterator<Item = &'a String>,
        over: impl Iterator<Item = &'a String>,
    ) {
        let Some(known) = self.known else { return };
        let before = std::mem::take(&mut self.listed);
        self.listed.extend(containers.map(|id| (id.clone(), known)));
        self.listed.extend(over.map(|id| (id.clone(), Deadline::PASSED)));
        if gone {
            self.unlisted.extend(before);
        } else {
            // What is on the list again ends with the lease that holds now.
            let listed = &self.listed;
            self.unlisted.retain(|id, end| end.due(at) != Due::Nothing || !listed.contains_key(id));
        }
    }

    /// What has to end now although no list says so. With everything else it is told to stop first; beside a lease that holds it had
    /// the time for that, and is killed.
    fn over_unlisted(&self, at: Duration, due: Due) -> BTreeSet<String> {
        let ends = |end: &Deadline| match due {
            Due::Nothing => end.due(at) == Due::Kill,
            Due::Stop | Due::Kill => end.due(at) != Due::Nothing,
        };
        self.unlisted.iter().filter(|(_, end)| ends(end)).map(|(id, _)| id.clone()).collect()
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
    use carrel_common::clock::ManualClock;
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
    fn files_that_are_removed_take_no_lease_with_them() {
        let mut bench = Bench::new();
        bench.files.record("a").expect("recorded");
        bench.renew(BOOT);
        bench.after(1);
        std::fs::remove_dir_all(bench.files.root()).expect("removed");
        assert_eq!(bench.after(598), (Due::Nothing, vec![]));
        assert_eq!(bench.after(1), (Due::Stop, vec!["a".into()]));
        assert_eq!(bench.after(15), (Due::Kill, vec!["a".into()]));
    }

    #[test]
    fn what_was_over_when_the_files_were_removed_stays_so() {
        let mut bench = Bench::new();
        bench.files.record("a").expect("recorded");
        bench.renew(BOOT);
        bench.after(600);
        bench.renew(BOOT);
        bench.after(1);
        std::fs::remove_dir_all(bench.files.root()).expect("removed");
        assert_eq!(bench.after(1), (Due::Nothing, vec!["a".into()]));
    }

    #[test]
    fn beside_a_new_lease_what_was_removed_with_the_files_ends_with_its_own_unless_it_is_listed_again() {
        let mut bench = Bench::new();
        bench.files.record("a").expect("recorded");
        bench.files.record("b").expect("recorded");
        bench.renew(BOOT);
        bench.after(1);
        std::fs::remove_dir_all(bench.files.root()).expect("removed");
        bench.after(1);
        bench.files.record("b").expect("recorded");
        bench.renew(BOOT);
        assert_eq!(bench.after(300), (Due::Nothing, vec![]));
        bench.renew(BOOT);
        assert_eq!(bench.after(312), (Due::Nothing, vec![]));
        assert_eq!(bench.after(1), (Due::Nothing, vec!["a".into()]));
        assert_eq!(bench.after(286), (Due::Nothing, vec!["a".into()]));
        assert_eq!(bench.after(1), (Due::Stop, vec!["a".into(), "b".into()]));
    }

    #[test]
    fn a_deadline_that_means_nothing_has_passed_until_one_is_set() {
        let mut bench = Bench::new();
        bench.files.record("a").expect("recorded");
        std::fs::write(bench.files.root().join("deadline"), "").expect("write");
        assert_eq!(bench.after(0), (Due::Kill, vec!["a".into()]));
        assert!(bench.enforcer.problem.is_some());
        bench.renew(BOOT);
        bench.files.record("b").expect("recorded");
        assert_eq!(bench.after(1), (Due::Nothing, vec!["a".into()]));
        assert_eq!(bench.enforcer.problem, None);
    }

    #[test]
    fn what_the_disk_would_not_note_ends_all_the_same() {
        let mut bench = Bench::new();
        bench.files.record("a").expect("recorded");
        bench.renew(BOOT);
        bench.after(1);
        let over = bench.files.root().join("over");
        std::fs::remove_dir(&over).expect("empty");
        std::fs::write(&over, "").expect("no directory");
        bench.clock.advance(Duration::from_secs(599));
        assert!(bench.enforcer.once().is_err());
        assert_eq!(bench.enforcer.over_unlisted(bench.clock.boot(), Due::Stop), ["a".to_owned()].into());
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
