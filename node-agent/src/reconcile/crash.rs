//! How often a program may end by itself before it is given up. PURE.

use std::collections::BTreeMap;
use std::time::Duration;

use carrel_common::id::{Pair, WorkspaceUid};

/// So many restarts within so long a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Restarts.
    pub restarts: usize,
    /// Within this time.
    pub window: Duration,
}

/// What to do about a program that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Start it again.
    Restart,
    /// It ended too often.
    GiveUp,
}

/// The exits of every workspace that count.
#[derive(Debug, Clone, Default)]
pub struct Exits {
    seen: BTreeMap<WorkspaceUid, (Pair, Vec<Exit>)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Exit {
    /// Names the exit: the same one, seen twice, counts once.
    name: String,
    at: Duration,
}

impl Exits {
    /// Takes note of an exit at `now` and says what to do about it. `name` names the exit, such as the time Docker gives it.
    pub fn decide(
        &mut self,
        budget: Budget,
        workspace: WorkspaceUid,
        pair: Pair,
        name: &str,
        now: Duration,
    ) -> Verdict {
        let (of, exits) = self.seen.entry(workspace).or_insert((pair, Vec::new()));
        if *of != pair {
            *of = pair;
            exits.clear();
        }
        exits.retain(|exit| now.saturating_sub(exit.at) < budget.window);
        if !exits.iter().any(|exit| exit.name == name) {
            exits.push(Exit { name: name.to_owned(), at: now });
        }
        if exits.len() > budget.restarts { Verdict::GiveUp } else { Verdict::Restart }
    }

    /// Forgets the exits since `since`: a daemon that goes down takes the programs with it.
    pub fn forgive_since(&mut self, since: Duration) {
        for (_, exits) in self.seen.values_mut() {
            exits.retain(|exit| exit.at < since);
        }
        self.seen.retain(|_, (_, exits)| !exits.is_empty());
    }

    /// Forgets a workspace.
    pub fn forget(&mut self, workspace: WorkspaceUid) {
        self.seen.remove(&workspace);
    }
}

#[cfg(test)]
mod tests {
    use carrel_common::id::Generation;

    use super::*;

    const BUDGET: Budget = Budget { restarts: 3, window: Duration::from_secs(600) };

    fn pair(generation: i64) -> Pair {
        Pair { incarnation: 1, generation: Generation(generation) }
    }

    fn decide(exits: &mut Exits, workspace: WorkspaceUid, at: u64) -> Verdict {
        exits.decide(BUDGET, workspace, pair(1), &at.to_string(), Duration::from_secs(at))
    }

    #[test]
    fn gives_up_at_the_fourth_exit_within_the_window() {
        let (mut exits, workspace) = (Exits::default(), WorkspaceUid::new());
        let verdicts = [1, 2, 3, 4].map(|at| decide(&mut exits, workspace, at));
        assert_eq!(verdicts, [Verdict::Restart, Verdict::Restart, Verdict::Restart, Verdict::GiveUp]);
    }

    #[test]
    fn forgets_exits_older_than_the_window() {
        let (mut exits, workspace) = (Exits::default(), WorkspaceUid::new());
        let verdicts = [1, 2, 3, 602].map(|at| decide(&mut exits, workspace, at));
        assert_eq!(verdicts[3], Verdict::Restart);
    }

    #[test]
    fn counts_an_exit_seen_twice_once() {
        let (mut exits, workspace) = (Exits::default(), WorkspaceUid::new());
        for _ in 0..9 {
            assert_eq!(decide(&mut exits, workspace, 1), Verdict::Restart);
        }
    }

    #[test]
    fn a_new_generation_begins_with_a_full_budget() {
        let (mut exits, workspace) = (Exits::default(), WorkspaceUid::new());
        for at in 1..=4 {
            decide(&mut exits, workspace, at);
        }
        let next = exits.decide(BUDGET, workspace, pair(2), "5", Duration::from_secs(5));
        assert_eq!(next, Verdict::Restart);
    }

    #[test]
    fn forgives_what_ended_as_the_daemon_went_down() {
        let (mut exits, workspace) = (Exits::default(), WorkspaceUid::new());
        for at in [1, 2, 3] {
            decide(&mut exits, workspace, at);
        }
        exits.forgive_since(Duration::from_secs(2));
        assert_eq!(decide(&mut exits, workspace, 9), Verdict::Restart);
    }
}
