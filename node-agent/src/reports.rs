//! What is to be told to the control plane about workspaces: the newest observation of each incarnation, kept until its commit is
//! acked, and told again in full on each new session. Either alone would lose reports.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use carrel_common::id::{Generation, Pair, WorkspaceUid};
use carrel_common::model::{Observation, Observed};
use tokio::sync::Notify;

use crate::storage::fence_file::Token;

/// An observation before it has its place in the sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What the workspace does.
    pub state: Observed,
    /// Last exit code of its program.
    pub exit_code: Option<i32>,
    /// The kernel ended it for want of memory.
    pub oom_killed: bool,
    /// One sentence.
    pub message: String,
    /// Image id as resolved here.
    pub image_digest: String,
    /// W3C trace context.
    pub traceparent: String,
    /// Share of the image that is here, 0 to 100; with PULLING.
    pub pull_percent: u8,
    /// With `StorageFenced`: what the share says is the latest.
    pub share: Option<Token>,
}

impl Report {
    /// A report of `state` with nothing else to say.
    pub fn of(state: Observed) -> Self {
        Self {
            state,
            exit_code: None,
            oom_killed: false,
            message: String::new(),
            image_digest: String::new(),
            traceparent: String::new(),
            pull_percent: 0,
            share: None,
        }
    }
}

/// The newest observations; none at first.
#[derive(Debug, Default)]
pub struct Reports {
    inner: Mutex<Inner>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    /// The highest sequence that was given. It names reports to their acks, and nothing beyond this process.
    last: i64,
    latest: BTreeMap<(WorkspaceUid, Pair), Entry>,
}

#[derive(Debug)]
struct Entry {
    observation: Observation,
    /// With a refused stop: when there was activity, by the monotonic clock.
    seen_at: Option<Duration>,
    sent: bool,
    acked: bool,
}

impl Reports {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the place of what was reported before of this container.
    pub fn report(&self, workspace: WorkspaceUid, pair: Pair, report: Report) {
        let mut inner = self.lock();
        inner.last += 1;
        let sequence = inner.last;
        let Report { state, exit_code, oom_killed, message, image_digest, traceparent, pull_percent, share } =
            report;
        let observation = Observation {
            workspace,
            generation: pair.generation,
            incarnation: pair.incarnation,
            sequence,
            state,
            exit_code,
            oom_killed,
            message,
            image_digest,
            traceparent,
            pull_percent,
            share_pair: share.map(|later| later.pair),
            share_placement: share.and_then(|later| later.placement),
        };
        let entry = Entry { observation, seen_at: None, sent: false, acked: false };
        inner.latest.insert((workspace, pair), entry);
        drop(inner);
        self.news.notify_one();
    }

    /// Whether anything was reported of this container by this process.
    pub fn knows(&self, workspace: WorkspaceUid, pair: Pair) -> bool {
        self.lock().latest.contains_key(&(workspace, pair))
    }

    /// Reports that a workspace that answers was not stopped, as there was activity at `seen_at`, by the monotonic clock. False:
    /// it is not known to answer.
    pub fn refuse_stop(&self, workspace: WorkspaceUid, pair: Pair, seen_at: Duration) -> bool {
        let mut inner = self.lock();
        let Inner { last, latest } = &mut *inner;
        let Some(entry) = latest.get_mut(&(workspace, pair)) else { return false };
        let (Observed::Running { endpoint } | Observed::RefusedStop { endpoint, .. }) =
            &entry.observation.state
        else {
            return false;
        };
        let state = Observed::RefusedStop { endpoint: endpoint.clone(), seen_ago: Duration::ZERO };
        *last += 1;
        let observation = Observation { state, sequence: *last, ..entry.observation.clone() };
        *entry = Entry { observation, seen_at: Some(seen_at), sent: false, acked: false };
        drop(inner);
        self.news.notify_one();
        true
    }

    /// Completes when there is something to send; a single waiter. Cancel-safe.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// What has not been sent in this session, in the order it was reported. `now`: by the monotonic clock.
    pub fn take_unsent(&self, now: Duration) -> Vec<Observation> {
        let mut inner = self.lock();
        let mut unsent: Vec<_> = inner
            .latest
            .values_mut()
            .filter(|entry| !entry.sent)
            .map(|entry| {
                entry.sent = true;
                let mut observation = entry.observation.clone();
                if let (Observed::RefusedStop { seen_ago, .. }, Some(seen_at)) =
                    (&mut observation.state, entry.seen_at)
                {
                    *seen_ago = now.saturating_sub(seen_at);
                }
                observation
            })
            .collect();
        unsent.sort_by_key(|observation| observation.sequence);
        unsent
    }

    /// Everything is to be told again: a new session stands.
    pub fn renew(&self) {
        self.renew_where(|_, _| true);
    }

    /// What `which` names and was acked is to be told again.
    pub fn renew_acked(&self, which: impl Fn(WorkspaceUid, Pair) -> bool) {
        self.renew_where(|key, entry| entry.acked && which(key.0, key.1));
    }

    fn renew_where(&self, which: impl Fn(&(WorkspaceUid, Pair), &Entry) -> bool) {
        let mut inner = self.lock();
        let Inner { last, latest } = &mut *inner;
        let mut order: Vec<_> = latest.iter_mut().filter(|(key, entry)| which(key, entry)).collect();
        order.sort_by_key(|(_, entry)| entry.observation.sequence);
        for (_, entry) in order {
            // A new sequence: an ack that is under way, of what was told before, is none of this.
            *last += 1;
            entry.observation.sequence = *last;
            (entry.sent, entry.acked) = (false, false);
        }
        drop(inner);
        self.news.notify_one();
    }

    /// Everything about `workspace` up to `sequence` is committed.
    pub fn ack(&self, workspace: WorkspaceUid, sequence: i64) {
        let mut inner = self.lock();
        let (first, last) = (edge(i64::MIN), edge(i64::MAX));
        for (_, entry) in inner.latest.range_mut((workspace, first)..=(workspace, last)) {
            entry.acked |= entry.observation.sequence <= sequence;
        }
    }

    /// Forgets what was acked and is not `wanted` any more.
    pub fn prune(&self, wanted: impl Fn(WorkspaceUid, Pair) -> bool) {
        self.lock().latest.retain(|key, entry| !entry.acked || wanted(key.0, key.1));
    }
}

/// The first or the last of all pairs.
fn edge(number: i64) -> Pair {
    Pair { incarnation: number, generation: Generation(number) }
}

#[cfg(test)]
mod tests {
    use carrel_common::model::Stage;

    use super::*;

    const FIRST: Pair = Pair { incarnation: 1, generation: Generation(1) };

    fn starting(stage: Stage) -> Report {
        Report::of(Observed::Starting(stage))
    }

    #[test]
    fn sends_only_the_newest_of_an_incarnation() {
        let (reports, workspace) = (Reports::default(), WorkspaceUid::new());
        reports.report(workspace, FIRST, starting(Stage::Creating));
        reports.report(workspace, FIRST, starting(Stage::Probing));
        let sent = reports.take_unsent(Duration::ZERO);
        assert_eq!(
            sent.iter().map(|o| o.state.clone()).collect::<Vec<_>>(),
            [Observed::Starting(Stage::Probing)]
        );
        assert_eq!(reports.take_unsent(Duration::ZERO), []);
    }

    #[test]
    fn tells_everything_again_on_a_new_session_with_a_higher_sequence() {
        let (reports, workspace) = (Reports::default(), WorkspaceUid::new());
        reports.report(workspace, FIRST, starting(Stage::Creating));
        let first = reports.take_unsent(Duration::ZERO);
        reports.ack(workspace, first[0].sequence);
        reports.renew();
        let again = reports.take_unsent(Duration::ZERO);
        assert_eq!(again.len(), 1);
        assert!(again[0].sequence > first[0].sequence);
    }

    #[test]
    fn keeps_what_is_not_acked_when_nothing_wants_it_any_more() {
        let (reports, workspace) = (Reports::default(), WorkspaceUid::new());
        reports.report(workspace, FIRST, starting(Stage::Creating));
        reports.prune(|_, _| false);
        let sent = reports.take_unsent(Duration::ZERO);
        assert_eq!(sent.len(), 1);
        reports.ack(workspace, sent[0].sequence);
        reports.prune(|_, _| false);
        reports.renew();
        assert_eq!(reports.take_unsent(Duration::ZERO), []);
    }

    #[test]
    fn a_refused_stop_tells_how_long_ago_there_was_activity_whenever_it_is_told() {
        let (reports, workspace, seconds) = (Reports::default(), WorkspaceUid::new(), Duration::from_secs);
        assert!(!reports.refuse_stop(workspace, FIRST, seconds(10)), "nothing is known of it");
        reports.report(workspace, FIRST, starting(Stage::Probing));
        assert!(!reports.refuse_stop(workspace, FIRST, seconds(10)), "it does not answer");
        let endpoint = "127.0.0.1:1".to_owned();
        reports.report(workspace, FIRST, Report::of(Observed::Running { endpoint: endpoint.clone() }));
        let running = reports.take_unsent(seconds(11)).remove(0);
        assert!(reports.refuse_stop(workspace, FIRST, seconds(10)));
        for now in [12, 40] {
            let told = reports.take_unsent(seconds(now)).remove(0);
            let seen_ago = seconds(now - 10);
            assert_eq!(told.state, Observed::RefusedStop { endpoint: endpoint.clone(), seen_ago });
            assert!(told.sequence > running.sequence);
            reports.renew();
        }
    }

    #[test]
    fn the_same_generation_of_a_later_incarnation_is_another_container() {
        let (reports, workspace) = (Reports::default(), WorkspaceUid::new());
        reports.report(workspace, FIRST, Report::of(Observed::Gone { purge: Ok(false) }));
        reports.report(workspace, Pair { incarnation: 2, ..FIRST }, starting(Stage::Creating));
        let told: Vec<_> = reports
            .take_unsent(Duration::ZERO)
            .iter()
            .map(|o| (o.pair().incarnation, o.state.clone()))
            .collect();
        assert_eq!(
            told,
            [(1, Observed::Gone { purge: Ok(false) }), (2, Observed::Starting(Stage::Creating))]
        );
    }

    #[test]
    fn an_ack_of_an_older_report_does_not_cover_a_newer_one() {
        let (reports, workspace) = (Reports::default(), WorkspaceUid::new());
        reports.report(workspace, FIRST, starting(Stage::Creating));
        let old = reports.take_unsent(Duration::ZERO)[0].sequence;
        reports.report(workspace, FIRST, starting(Stage::Probing));
        reports.ack(workspace, old);
        reports.prune(|_, _| false);
        assert_eq!(reports.take_unsent(Duration::ZERO).len(), 1);
    }
}
