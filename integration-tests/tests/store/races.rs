//! Wills that meet the idle decision at the same moment: activity, Start, an extension, a change of policy; many desks at
//! once, decided by two replicas with connections of their own.
//!
//! `CARREL_RACE_ROUNDS` rounds of each (default 40). Each round aims at where the last one of its desk was nearly a draw.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use carrel_common::id::{NodeId, WorkspaceUid};
use carrel_common::model::{Observed, Signal, StopReason};
use control_plane::app::{App, AppError, Extended, Extent};
use control_plane::domain::policy::{Policy, Scope};
use control_plane::domain::workspace::{Desired, State, Workspace};
use control_plane::store::Store;
use integration_tests::settings;
use time::OffsetDateTime;

use crate::rig::{Rig, beat, call};

const TIMEOUT: Duration = Duration::from_millis(100);
const LEAD: Duration = Duration::from_millis(40);
/// As many as two cores that are busy with other things can move through a round before the clocks of all have run out.
const DESKS: u64 = 12;
/// How much a desk's next aim moves at least.
const STEP: Duration = Duration::from_micros(300);
/// Tries until something that needs a few is called stuck.
const PATIENCE: usize = 400;

/// What meets the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Will {
    Report,
    Start,
    Extend,
    Policy,
}

/// What the caller was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// It counts: no idle stop is decided before this time. `active_at`: what the evidence of the next has to know.
    Counts { until: OffsetDateTime, active_at: Option<OffsetDateTime> },
    /// The stop was first.
    StoppedBefore,
}

#[derive(Clone, Copy, Debug, Default)]
struct Score {
    stopped: u32,
    kept: u32,
}

struct Race {
    rig: Rig,
    other: App,
    node: NodeId,
    /// Every desk: one of the replicas decides about all of them in one go.
    desks: Mutex<BTreeSet<WorkspaceUid>>,
}

impl Race {
    async fn prepare() -> Self {
        let rig = Rig::with_idle(TIMEOUT, LEAD).await;
        let node = rig.node(64).await;
        let other = App { store: Store::open(&rig.database.url(), 12).unwrap(), ..rig.replica() };
        Self { rig, other, node, desks: Mutex::default() }
    }

    /// Decides about one desk, and about every other in the same transaction.
    async fn decide(&self, desk: WorkspaceUid) {
        self.rig.app.check_idle(desk).await.unwrap();
        let all: Vec<_> = self.desks.lock().unwrap().iter().copied().collect();
        for (_, check) in self.other.check_idle_all(&all).await {
            check.unwrap();
        }
    }

    /// Does what an agent does of one desk until it runs; whatever state it is in, that takes a few steps only.
    async fn bring_up(&self, student: &str) -> Workspace {
        for _ in 0..PATIENCE {
            let desk = self.rig.get(student).await;
            match (desk.state, desk.node) {
                (State::Running, _) => return desk,
                (State::Starting, Some(_)) => {
                    let running = Observed::Running { endpoint: "127.0.0.1:1".into() };
                    self.rig.report(self.node, desk.uid, desk.generation, running).await;
                }
                (State::Stopping, Some(_)) => self.clear(&desk).await,
                (State::Pending, _) => {
                    self.rig.app.place_waiting().await.unwrap();
                }
                (State::Stopped, _) => {
                    self.rig.start(student).await.unwrap();
                }
                _ => panic!("{student} is stuck: {desk:#?}"),
            }
        }
        panic!("{student} never runs: {:#?}", self.rig.get(student).await);
    }

    async fn clear(&self, desk: &Workspace) {
        self.rig.report(self.node, desk.uid, desk.generation, Observed::Gone { purge: Ok(false) }).await;
    }

    /// The desk with its warning out, and when it will be stopped; `None` when it was stopped before anybody could look: all
    /// desks are decided about together, and on a busy machine a look lasts longer than a lead.
    async fn warned(&self, desk: &Workspace) -> Option<(Workspace, OffsetDateTime)> {
        let student = desk.student.as_str();
        for _ in 0..PATIENCE {
            self.rig.app.check_idle(desk.uid).await.unwrap();
            let view = self.rig.app.get(&desk.student).await.unwrap();
            let idle = view.idle?;
            if view.workspace.warning.is_some()
                && let Some(times) = idle.clock.running()
            {
                return Some((view.workspace, times.deadline_at));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{student} is never warned");
    }

    async fn bring_up_to_its_warning(&self, student: &str) -> (Workspace, OffsetDateTime) {
        for _ in 0..PATIENCE {
            let desk = self.bring_up(student).await;
            if let Some(warned) = self.warned(&desk).await {
                return warned;
            }
        }
        panic!("{student} is always stopped before its warning is seen");
    }

    async fn press(&self, will: Will, desk: &Workspace) -> Answer {
        let student = &desk.student;
        match will {
            Will::Report => {
                let beats = vec![beat(student.as_str(), Signal::EditorInput, Duration::ZERO)];
                match self.other.record(beats).await.unwrap().remove(0) {
                    Ok(recorded) => {
                        let (at, _) = recorded.idle.last.expect("it counts");
                        Answer::Counts { until: at + TIMEOUT, active_at: Some(at) }
                    }
                    Err(AppError::NotRunning { .. }) => Answer::StoppedBefore,
                    Err(error) => panic!("{error}"),
                }
            }
            Will::Start => {
                let view = self.other.start(&call("StartWorkspace"), student, None).await.unwrap();
                let pressed = view.workspace;
                if pressed.state != State::Running {
                    assert_eq!(pressed.desired, Desired::Running, "accepted, and runs afterwards");
                    return Answer::StoppedBefore;
                }
                assert_eq!(pressed.generation, desk.generation, "nothing changes");
                let (at, signal) = view.idle.and_then(|idle| idle.last).expect("it counts");
                assert_eq!(signal, Signal::KeepWorking);
                Answer::Counts { until: at + TIMEOUT, active_at: Some(at) }
            }
            Will::Extend => {
                let by = Extent::By(Duration::from_secs(600));
                match self.other.extend(&call("ExtendWorkspace"), student, by, "").await {
                    Ok(Extended { until, clamped: false, .. }) => Answer::Counts { until, active_at: None },
                    Err(AppError::NotRunning { .. }) => Answer::StoppedBefore,
                    other => panic!("{other:?}"),
                }
            }
            Will::Policy => {
                let hour = Duration::from_secs(3600);
                let policy = Policy { idle_timeout: Some(hour), ..Policy::default() };
                self.other
                    .set_policy(&call("SetPolicy"), &scope(student.as_str()), "", &policy)
                    .await
                    .unwrap();
                let now = self.rig.get(student.as_str()).await;
                match now.state {
                    State::Running => Answer::Counts { until: now.ready_at.unwrap() + hour, active_at: None },
                    _ => Answer::StoppedBefore,
                }
            }
        }
    }

    /// One round; true: the stop was first.
    async fn round(&self, will: Will, student: &str, aim: Duration) -> bool {
        let (desk, deadline_at) = self.bring_up_to_its_warning(student).await;
        let left = deadline_at - self.rig.app.store.now().await.unwrap();
        let left = Duration::try_from(left).unwrap_or_default();
        let deciding = async {
            tokio::time::sleep(left + STEP * rand::random_range(0..5)).await;
            for _ in 0..3 {
                self.decide(desk.uid).await;
            }
        };
        let pressing = async {
            let jitter = Duration::from_micros(rand::random_range(0..500));
            tokio::time::sleep((left + aim + jitter).saturating_sub(AHEAD)).await;
            self.press(will, &desk).await
        };
        let (answer, ()) = tokio::join!(pressing, deciding);
        self.decide(desk.uid).await;
        let after = self.rig.get(student).await;
        let stopped = self.judge(will, &desk, answer, &after).await;
        self.put_away(will, student, stopped).await;
        stopped
    }

    /// Whether it was stopped; panics when that breaks a promise.
    async fn judge(&self, will: Will, desk: &Workspace, answer: Answer, after: &Workspace) -> bool {
        assert_eq!(after.generation, desk.generation, "{will:?}: {after:#?}");
        match after.state {
            State::Running => {
                assert_ne!(answer, Answer::StoppedBefore, "{will:?}: refused, and yet it runs: {after:#?}");
                false
            }
            State::Stopping => {
                let stop = after.stop.clone().expect("it was stopped");
                let evidence = stop.evidence.expect("an idle stop has evidence");
                assert_eq!(stop.reason, StopReason::Idle);
                assert!(
                    evidence.decided_at >= evidence.warned_at + LEAD,
                    "{will:?}: without the full lead: {evidence:?}"
                );
                if let Answer::Counts { until, active_at } = answer {
                    assert!(
                        evidence.decided_at >= until,
                        "{will:?}: stopped although it was answered: {evidence:?} {answer:?}"
                    );
                    assert_eq!(
                        evidence.last_active_at, active_at,
                        "{will:?}: what was answered is not in the evidence"
                    );
                }
                if will == Will::Policy {
                    assert!(self.stopped_before_the_policy(desk).await, "by what held before: {evidence:?}");
                }
                let late = vec![beat(desk.student.as_str(), Signal::LmsInput, Duration::ZERO)];
                let late = self.rig.app.record(late).await.unwrap().remove(0);
                assert!(
                    matches!(late, Err(AppError::NotRunning { .. })),
                    "acked behind the stop's back: {late:?}"
                );
                answer == Answer::StoppedBefore
            }
            state => panic!("{will:?}: {state:?}"),
        }
    }

    /// Whether the last stop of a desk was decided before its student's policy was changed last: both write the log under the lock of
    /// the rules, so its order is theirs, however late anybody looks.
    async fn stopped_before_the_policy(&self, desk: &Workspace) -> bool {
        let last = |which: &str| format!("(SELECT max(id) FROM events WHERE {which})");
        let stop = last(&format!("workspace_id = '{}' AND kind = 'workspace.stopping'", desk.uid));
        let policy = format!("policies/{}", scope(desk.student.as_str()));
        let change = last(&format!("kind = 'policy.changed' AND data->>'policy' = '{policy}'"));
        self.rig.database.text(&format!("SELECT ({stop} < {change})::text")).await == "true"
    }

    /// The desk comes to rest as it should: a Start that came after the stop runs, everything else can be stopped.
    async fn put_away(&self, will: Will, student: &str, stopped: bool) {
        if will == Will::Start && stopped {
            let before = self.rig.get(student).await;
            assert_eq!(before.desired, Desired::Running, "a Start that was answered is forgotten");
            let runs = self.bring_up(student).await;
            // By the next generation, or, where that was idle before anybody looked, a later one.
            assert!(runs.generation > before.generation, "{runs:#?}");
        }
        if will == Will::Policy {
            self.rig.app.delete_policy(&call("DeletePolicy"), &scope(student), "").await.unwrap();
        }
        let stopping = self.rig.stop(student).await;
        if stopping.state == State::Stopping {
            self.clear(&stopping).await;
        }
        let rest = self.rig.get(student).await;
        assert_eq!((rest.state, rest.desired), (State::Stopped, Desired::Stopped), "{will:?}: {rest:#?}");
    }

    async fn rounds_of(&self, will: Will, desk: u64, rounds: u64) -> Score {
        let student = format!("s{desk}");
        let uid = self.rig.start(&student).await.unwrap().uid;
        self.desks.lock().unwrap().insert(uid);
        let (mut score, mut aim, mut step, mut last) = (Score::default(), AHEAD, STEP, None);
        for _ in 0..rounds {
            let stopped = self.round(will, &student, aim).await;
            // Far from a draw it comes nearer by more each time, however busy the machine is.
            step = if last == Some(stopped) { step * 2 } else { STEP };
            last = Some(stopped);
            if stopped {
                score.stopped += 1;
                aim = aim.saturating_sub(step);
            } else {
                score.kept += 1;
                aim = (aim + step).min(AHEAD * 2);
            }
        }
        score
    }
}

/// How far before the deadline a will may be aimed, and how far behind it.
const AHEAD: Duration = Duration::from_millis(20);

fn scope(student: &str) -> Scope {
    format!("student-{student}").parse().unwrap()
}

async fn race(will: Will) {
    let rounds = settings::number("CARREL_RACE_ROUNDS", 40);
    let race = Race::prepare().await;
    let hearing = async {
        // Whatever the machine is busy with: after a time that could not be observed the node tells anew.
        loop {
            race.rig.heartbeat(race.node).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    // At least a few rounds a desk, so that its aim finds the moment.
    let desks = (rounds / 10).clamp(1, DESKS);
    let racing = (0..desks).map(|desk| {
        let share = rounds / desks + u64::from(desk < rounds % desks);
        race.rounds_of(will, desk, share)
    });
    let scores = tokio::select! {
        scores = futures_util::future::join_all(racing) => scores,
        () = hearing => unreachable!("it never ends"),
    };
    let (stopped, kept) = scores.iter().fold((0, 0), |(s, k), score| (s + score.stopped, k + score.kept));
    eprintln!("{will:?}: {rounds} rounds, {desks} desks at once: {stopped} stopped, {kept} kept");
    assert!(stopped > 0 && kept > 0, "no race: {stopped} stopped, {kept} kept");
    race.other.store.close().await;
    race.rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acked_report_wins_over_the_idle_stop() {
    race(Will::Report).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_keeps_a_desk_or_runs_it_again_after_the_idle_stop() {
    race(Will::Start).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extension_that_was_answered_wins_over_the_idle_stop() {
    race(Will::Extend).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_was_answered_wins_over_the_idle_stop() {
    race(Will::Policy).await;
}
