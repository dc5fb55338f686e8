//! Which activity has been told in a session: all that was seen since the last heartbeat that was acked, so that a heartbeat that
//! is lost loses none; in the first of a session, all there is.

use std::collections::VecDeque;
use std::time::Duration;

use carrel_common::model::{ActivityReport, Signal};

use crate::activity::{Desks, Seen};

/// What has been told in this session. Changes are named by their numbers.
#[derive(Debug, Default)]
pub(super) struct ToldActivity {
    acked: u64,
    sent: VecDeque<(i64, u64)>,
}

impl ToldActivity {
    /// What the heartbeat of this sequence has to tell.
    pub(super) fn tell(&mut self, desks: &Desks, sequence: i64, now: Duration) -> Vec<ActivityReport> {
        let (seen, change) = desks.since(self.acked);
        self.sent.push_back((sequence, change));
        let report = |seen: Seen| ActivityReport {
            workspace: seen.workspace,
            generation: seen.generation,
            signal: Signal::EditorInput,
            age: now.saturating_sub(seen.at),
        };
        seen.into_iter().map(report).collect()
    }

    /// Everything up to the heartbeat of this sequence is committed: every change up to the number that is returned.
    pub(super) fn acked(&mut self, sequence: i64) -> u64 {
        while let Some((sent, change)) = self.sent.front()
            && *sent <= sequence
        {
            self.acked = *change;
            self.sent.pop_front();
        }
        self.acked
    }

    /// What no heartbeat has told yet.
    pub(super) fn untold(&self, desks: &Desks) -> Vec<Seen> {
        desks.since(self.sent.back().map_or(self.acked, |(_, change)| *change)).0
    }
}

#[cfg(test)]
mod tests {
    use carrel_common::id::{Generation, WorkspaceUid};

    use super::*;

    #[test]
    fn what_was_seen_is_told_until_it_is_acked() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (desks, seconds) = (Desks::open(dir.path().to_owned(), Duration::ZERO), Duration::from_secs);
        let [ada, bob] = [WorkspaceUid::new(), WorkspaceUid::new()];
        let touch = |workspace: WorkspaceUid, now| {
            let path = desks.ensure(workspace, Generation(1)).expect("made").join("activity/input");
            let file = std::fs::File::options().write(true).open(path).expect("open");
            file.set_modified(std::time::SystemTime::UNIX_EPOCH + now).expect("touched");
            desks.look(now);
        };
        let mut told = ToldActivity::default();
        let tell = |told: &mut ToldActivity, sequence, now| {
            let reports = told.tell(&desks, sequence, now);
            let mut ages: Vec<_> = reports.iter().map(|r| (r.workspace == bob, r.age.as_secs())).collect();
            ages.sort_unstable();
            ages
        };
        touch(ada, seconds(10));
        assert_eq!(told.untold(&desks).len(), 1);
        assert_eq!(tell(&mut told, 1, seconds(14)), [(false, 4)]);
        assert_eq!(told.untold(&desks), []);
        touch(bob, seconds(15));
        assert_eq!(tell(&mut told, 2, seconds(20)), [(false, 10), (true, 5)], "the first is not acked");
        told.acked(1);
        assert_eq!(tell(&mut told, 3, seconds(21)), [(true, 6)]);
        told.acked(3);
        assert_eq!(tell(&mut told, 4, seconds(22)), []);
        let mut next_session = ToldActivity::default();
        assert_eq!(tell(&mut next_session, 1, seconds(30)), [(false, 20), (true, 15)], "all there is");
    }
}
