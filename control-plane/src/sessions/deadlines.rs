//! What one session has told of deadlines, and which warnings it still waits to have acked.

use std::collections::{HashMap, VecDeque};

use carrel_common::id::WorkspaceUid;
use carrel_common::model::WorkspaceIdle;
use carrel_proto::v1 as pb;
use time::OffsetDateTime;

use crate::app::Deadline;

/// A warning: whose, and when it was given.
type Given = (WorkspaceUid, OffsetDateTime);

/// The deadlines of one session.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    sequence: i64,
    told: HashMap<WorkspaceUid, Deadline>,
    unacked: VecDeque<(i64, Vec<Given>)>,
}

impl Deadlines {
    /// What is to be told of all that run now: those whose deadline is not as it was told; `None` when there is none.
    pub(super) fn news(&mut self, running: Vec<Deadline>, now: OffsetDateTime) -> Option<pb::IdleState> {
        let changed: Vec<Deadline> =
            running.iter().filter(|d| self.told.get(&d.workspace) != Some(d)).copied().collect();
        self.told = running.into_iter().map(|deadline| (deadline.workspace, deadline)).collect();
        if changed.is_empty() {
            return None;
        }
        self.sequence += 1;
        let given: Vec<Given> =
            changed.iter().filter_map(|d| d.warned_at.map(|at| (d.workspace, at))).collect();
        if !given.is_empty() {
            self.unacked.push_back((self.sequence, given));
        }
        let message = |deadline: Deadline| {
            WorkspaceIdle {
                workspace: deadline.workspace,
                generation: deadline.generation,
                remaining: deadline
                    .at
                    .map(|(at, reason)| ((at - now).try_into().unwrap_or_default(), reason)),
                deadline_version: deadline.version,
                warned: deadline.warned_at.is_some(),
            }
            .into()
        };
        Some(pb::IdleState {
            sequence: self.sequence,
            workspaces: changed.into_iter().map(message).collect(),
        })
    }

    /// The warnings that have arrived with everything up to `sequence`.
    pub(super) fn acked(&mut self, sequence: i64) -> Vec<Given> {
        let mut arrived = Vec::new();
        while self.unacked.front().is_some_and(|(sent, _)| *sent <= sequence) {
            arrived.extend(self.unacked.pop_front().into_iter().flat_map(|(_, given)| given));
        }
        arrived
    }
}

#[cfg(test)]
mod tests {
    use carrel_common::id::Generation;
    use carrel_common::model::StopReason;
    use time::macros::datetime;

    use super::*;

    const T0: OffsetDateTime = datetime!(2026-03-02 10:00:00 UTC);

    fn at(seconds: i64) -> OffsetDateTime {
        T0 + time::Duration::seconds(seconds)
    }

    fn desk(n: u128, stop: i64, warned: Option<i64>) -> Deadline {
        Deadline {
            workspace: WorkspaceUid(uuid::Uuid::from_u128(n)),
            generation: Generation(1),
            at: Some((at(stop), StopReason::Idle)),
            version: 0,
            warned_at: warned.map(at),
        }
    }

    fn who(state: Option<pb::IdleState>) -> Option<(i64, Vec<u128>)> {
        let state = state?;
        let uid = |w: &pb::WorkspaceIdle| w.workspace_uid.parse::<uuid::Uuid>().expect("a uuid").as_u128();
        Some((state.sequence, state.workspaces.iter().map(uid).collect()))
    }

    #[test]
    fn all_are_told_first_then_those_that_changed() {
        let mut deadlines = Deadlines::default();
        assert_eq!(who(deadlines.news(vec![], T0)), None);
        assert_eq!(
            who(deadlines.news(vec![desk(1, 900, None), desk(2, 900, None)], T0)),
            Some((1, vec![1, 2]))
        );
        assert_eq!(who(deadlines.news(vec![desk(1, 900, None), desk(2, 900, None)], at(1))), None);
        assert_eq!(
            who(deadlines.news(vec![desk(1, 950, None), desk(2, 900, None)], at(2))),
            Some((2, vec![1]))
        );
        // One that stopped and came back is told again.
        assert_eq!(who(deadlines.news(vec![desk(2, 900, None)], at(3))), None);
        assert_eq!(
            who(deadlines.news(vec![desk(1, 950, None), desk(2, 900, None)], at(4))),
            Some((3, vec![1]))
        );
    }

    #[test]
    fn a_warning_is_acked_with_the_message_that_told_it_or_a_later_one() {
        let mut deadlines = Deadlines::default();
        deadlines.news(vec![desk(1, 900, None)], T0);
        deadlines.news(vec![desk(1, 900, Some(780))], at(780));
        deadlines.news(vec![desk(1, 900, Some(780)), desk(2, 960, Some(840))], at(840));
        assert_eq!(deadlines.acked(1), []);
        let uid = |n| desk(n, 0, None).workspace;
        assert_eq!(deadlines.acked(3), [(uid(1), at(780)), (uid(2), at(840))]);
        assert_eq!(deadlines.acked(3), [], "once");
    }
}
