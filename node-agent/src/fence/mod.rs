//! The end of the lease, enforced: when this host may run workspaces no more, and how it is seen to that none runs then.
//!
//! The control plane moves a silent node's workspaces to other hosts after a time. So that two containers never write one
//! student's files, this host ends its own before: a lease that was renewed by a heartbeat *sent* at `t` runs out at `t + F`,
//! whatever became of the control plane, the network, Docker or the agent meanwhile. Times are the host's boot-time clock, which
//! counts on while the host sleeps and is one for all of its processes.
//!
//! Two look after it, with the same code ([`enforce`]) and over the same files ([`files`]): the agent, which also renews the lease
//! ([`lease`]), and a process of its own ([`process`], `node-agent fence`), which needs neither the agent nor Docker: it ends
//! processes by their cgroups ([`cgroup`]). The rule itself is here, and pure.

pub mod cgroup;
pub mod enforce;
pub mod files;
pub mod lease;
pub mod process;

use std::time::Duration;

/// How long a lease lasts, as the control plane said in its Welcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// F: from the sending of the last acked heartbeat to the end of the lease.
    pub fence_after: Duration,
    /// S: within this time after the end nothing runs any more.
    pub stop_budget: Duration,
}

/// When a lease runs out, by the host's boot-time clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline {
    /// From here on nothing is started, and what runs is told to stop (SIGTERM).
    pub stop_at: Duration,
    /// From here on what still runs is killed.
    pub kill_at: Duration,
}

/// What a deadline asks for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing yet.
    Nothing,
    /// Tell what runs to stop.
    Stop,
    /// Kill what runs.
    Kill,
}

impl Terms {
    /// The deadline of a lease that was renewed by a heartbeat sent at `sent_at`. Half of the stop budget is for programs that end by
    /// themselves when told to, half for killing the others on a host that is busy.
    pub fn deadline(self, sent_at: Duration) -> Deadline {
        let stop_at = sent_at.saturating_add(self.fence_after);
        Deadline { stop_at, kill_at: stop_at.saturating_add(self.stop_budget / 2) }
    }
}

impl Deadline {
    /// Of a lease of which nothing is known but that there was one: it has run out.
    pub const PASSED: Self = Self { stop_at: Duration::ZERO, kill_at: Duration::ZERO };

    /// What it asks for at `now`.
    pub fn due(self, now: Duration) -> Due {
        if now < self.stop_at {
            Due::Nothing
        } else if now < self.kill_at {
            Due::Stop
        } else {
            Due::Kill
        }
    }

    /// How long until it asks for something else; `None`: it never will.
    pub fn next(self, now: Duration) -> Option<Duration> {
        [self.stop_at, self.kill_at]
            .into_iter()
            .find_map(|at| at.checked_sub(now).filter(|left| !left.is_zero()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn asks_to_stop_at_f_and_kills_within_the_budget() {
        let terms = Terms { fence_after: seconds(600), stop_budget: seconds(30) };
        let deadline = terms.deadline(seconds(100));
        let due = [0, 699, 700, 714, 715, 9999].map(|at| deadline.due(seconds(at)));
        assert_eq!(due, [Due::Nothing, Due::Nothing, Due::Stop, Due::Stop, Due::Kill, Due::Kill]);
        let next = [600, 700, 715].map(|at| deadline.next(seconds(at)));
        assert_eq!(next, [Some(seconds(100)), Some(seconds(15)), None]);
    }

    fn terms() -> impl Strategy<Value = Terms> {
        (1..10_000_000_u64, 1..100_000_u64).prop_map(|(fence_after, stop_budget)| Terms {
            fence_after: Duration::from_millis(fence_after),
            stop_budget: Duration::from_millis(stop_budget),
        })
    }

    proptest! {
        /// However late an ack arrives, the lease runs out F after the sending; and what ignores SIGTERM is killed with half of the
        /// budget left.
        #[test]
        fn never_later_than_f_after_the_sending(terms in terms(), sent in 0..u64::MAX / 4, ack_takes in 0..1_000_000_u64) {
            let sent = Duration::from_millis(sent);
            let _acked = sent + Duration::from_millis(ack_takes);
            let deadline = terms.deadline(sent);
            prop_assert_eq!(deadline.stop_at, sent + terms.fence_after);
            prop_assert!(deadline.kill_at + terms.stop_budget / 2 <= sent + terms.fence_after + terms.stop_budget);
            prop_assert_eq!(deadline.due(deadline.stop_at), Due::Stop);
        }

        /// A process that sleeps exactly as long as it is told to wakes with something to do, and never after it is due.
        #[test]
        fn the_next_look_is_when_something_is_due(terms in terms(), sent in 0..1_000_000_u64, now in 0..20_000_000_u64) {
            let (deadline, now) = (terms.deadline(Duration::from_millis(sent)), Duration::from_millis(now));
            match deadline.next(now) {
                None => prop_assert_eq!(deadline.due(now), Due::Kill),
                Some(left) => {
                    prop_assert_ne!(deadline.due(now + left), deadline.due(now));
                    prop_assert_eq!(deadline.due(now + left - Duration::from_nanos(1)), deadline.due(now));
                }
            }
        }
    }
}
