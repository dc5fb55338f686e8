//! The loop against the fake engine.

use std::path::PathBuf;

use carrel_common::clock::SystemClock;
use carrel_common::id::{ClusterId, Generation, NodeId, Pair, PlacementId};
use carrel_common::model::{
    DesiredPair, Observation, Observed, Resources, Run, Stage, StatusReason, StopReason, WorkspaceSpec,
};

use super::*;
use crate::driver::fence_watch::{FenceWatch, FencedOff};
use crate::driver::host::{Kept, Limits};
use crate::fence::Terms;
use crate::metrics::Metrics;
use crate::reconcile::crash::Budget;
use crate::runtime::fake::Fake;
use crate::runtime::{Plan, Scope};
use crate::storage::check::{Expected, Kind};
use crate::storage::errand::Place;
use crate::storage::fence_file::Token;
use crate::storage::fences::{Claim, Fences};
use crate::storage::layout::Base;
use crate::storage::marker;
use crate::storage::probe::Storage;
use crate::storage::prober::Prober;

const PATIENCE: Duration = Duration::from_secs(30);

const TERMS: Terms = Terms { fence_after: Duration::from_secs(600), stop_budget: Duration::from_secs(30) };

pub(super) struct Bench {
    pub(super) engine: Fake,
    pub(super) host: Arc<Host<Fake>>,
    accepted: watch::Sender<Accepted>,
    state: watch::Receiver<EngineState>,
    pub(super) told: Vec<Observation>,
    generation: i64,
    _verdicts: mpsc::Sender<Vec<(String, Verdict)>>,
    _tasks: JoinSet<()>,
    dir: tempfile::TempDir,
}

impl Bench {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let base: PathBuf = dir.path().join("base");
        std::fs::create_dir(&base).expect("base");
        std::fs::set_permissions(&base, std::os::unix::fs::PermissionsExt::from_mode(0o711)).expect("mode");
        let scope = Scope { cluster: ClusterId::new(), node: NodeId::new() };
        marker::mark(&base, scope.cluster).expect("marked");
        Self::begin(Fake::new(), dir, scope)
    }

    /// The agent is killed, and started again on the same host.
    fn next_process(self) -> Self {
        let Self { engine, host, dir, generation, .. } = self;
        Self { generation, ..Self::begin(engine, dir, host.scope) }
    }

    fn begin(engine: Fake, dir: tempfile::TempDir, scope: Scope) -> Self {
        let clock = Arc::new(SystemClock::new());
        let base = dir.path().join("base");
        let expected = Expected { kind: Kind::Directory, cluster: scope.cluster };
        let place = Place { base, expected, writer: scope.node.to_string() };
        let storage = Storage::new(place, Prober::here(), Duration::from_secs(10), clock.clone());
        let limits = Limits {
            start_concurrency: 2,
            budget: Budget { restarts: 1, window: Duration::from_secs(600) },
            reconcile_interval: Duration::from_millis(200),
            fence_file_interval: Duration::from_millis(200),
            docker_timeout: Duration::from_millis(200),
        };
        let state_dir = dir.path().join("state");
        let kept = Kept::open(&state_dir, "boot", clock.clone()).expect("opened");
        let (host, inbox) = Host::new(engine.clone(), storage, kept, Metrics::new(), clock, scope, limits);
        let host = Arc::new(host);
        host.lease.renew(host.lease.now(), TERMS).expect("leased");
        let (accepted, from_session) = watch::channel(Accepted::default());
        let (verdicts, from_verdicts) = mpsc::channel(1);
        let (engine_state, state) = watch::channel(EngineState::default());
        let orphans = watch::Sender::new(None);
        let (fenced, from_fences) = watch::channel(FencedOff::default());
        let fences = FenceWatch::new(Arc::clone(&host), state.clone(), from_session.clone(), fenced);
        let links = Links {
            accepted: from_session,
            verdicts: from_verdicts,
            fenced: from_fences,
            orphans,
            engine: engine_state,
            withheld: watch::Sender::new(0),
        };
        let mut tasks = JoinSet::new();
        let watched = Arc::clone(&host);
        tasks.spawn(async move { watched.storage.watch(CancellationToken::new()).await });
        tasks.spawn(fences.run(CancellationToken::new()));
        tasks.spawn(run(Arc::clone(&host), links, CancellationToken::new()));
        tasks.spawn(images::run(Arc::clone(&host), inbox, CancellationToken::new()));
        Self {
            engine,
            host,
            accepted,
            state,
            told: Vec::new(),
            generation: 0,
            _verdicts: verdicts,
            _tasks: tasks,
            dir,
        }
    }

    pub(super) fn want(&mut self, items: Vec<DesiredItem>) {
        self.generation += 1;
        let pair = DesiredPair { incarnation: 1, generation: self.generation };
        let set = Some(Arc::new(DesiredSet::new(pair, items)));
        let taken_at = self.host.clock.monotonic();
        self.accepted.send_replace(Accepted { set, fresh: true, taken_at });
    }

    /// The session ends.
    pub(super) fn cut_off(&self) {
        self.accepted.send_modify(|accepted| accepted.fresh = false);
    }

    /// The first report from now on about `item` that `is` holds of.
    pub(super) async fn until(&mut self, item: &DesiredItem, is: impl Fn(&Observed) -> bool) -> Observation {
        let wait = async {
            loop {
                let unsent = self.host.reports.take_unsent(Duration::ZERO);
                self.told.extend(unsent.clone());
                let about = |o: &&Observation| o.workspace == item.workspace && o.pair() == item.pair();
                if let Some(found) = unsent.iter().filter(about).find(|o| is(&o.state)) {
                    return found.clone();
                }
                self.host.reports.news().await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("in time")
    }

    /// As `until`, but of all that was ever told, each word once: for several workspaces at a time.
    pub(super) async fn until_told(
        &mut self,
        item: &DesiredItem,
        is: impl Fn(&Observed) -> bool,
    ) -> Observation {
        let wait = async {
            loop {
                self.told.extend(self.host.reports.take_unsent(Duration::ZERO));
                let wanted = |o: &Observation| {
                    o.workspace == item.workspace && o.pair() == item.pair() && is(&o.state)
                };
                if let Some(at) = self.told.iter().position(wanted) {
                    return self.told.remove(at);
                }
                self.host.reports.news().await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("in time")
    }

    pub(super) async fn running(&mut self, item: &DesiredItem) -> Observation {
        self.until(item, |state| matches!(state, Observed::Running { .. })).await
    }

    pub(super) async fn engine_is(&mut self, healthy: bool) {
        let state =
            self.state.wait_for(|state| state.asked_at.is_some() && state.problem.is_none() == healthy);
        tokio::time::timeout(PATIENCE, state).await.expect("in time").expect("the driver lives");
    }
}

pub(super) fn desk(student: &str, mode: &str) -> DesiredItem {
    DesiredItem {
        workspace: WorkspaceUid::new(),
        student: student.parse().expect("valid"),
        generation: Generation(1),
        incarnation: 1,
        placement: PlacementId::new(),
        spec: WorkspaceSpec {
            image: format!("tiny:{mode}"),
            resources: Resources { cpu_millicores: 1000, memory_bytes: 1 << 30, pids: 512 },
            probe_port: 8080,
            probe_path: "/healthz".into(),
        },
        run: Run::Running { start_timeout: Duration::from_secs(20) },
        traceparent: String::new(),
        idle_basis_age: None,
    }
}

pub(super) fn stopped(item: &DesiredItem) -> DesiredItem {
    let run = Run::Stopped { reason: StopReason::User, grace: Duration::ZERO, purge_files: false };
    DesiredItem { run, ..item.clone() }
}

#[tokio::test]
async fn a_start_takes_one_call_each_of_create_start_and_inspect() {
    let mut bench = Bench::new();
    bench.engine_is(true).await;
    let ada = desk("ada", "test");
    bench.want(vec![ada.clone()]);
    bench.running(&ada).await;
    let calls = ["create", "start", "inspect", "pull"].map(|verb| bench.engine.calls(verb));
    assert_eq!(calls, [1, 1, 1, 0]);
}

#[tokio::test]
async fn a_call_that_hangs_for_one_student_does_not_hold_up_another() {
    let mut bench = Bench::new();
    bench.engine.hang("ada");
    let (ada, bob) = (desk("ada", "test"), desk("bob", "test"));
    bench.want(vec![ada.clone()]);
    bench.until(&ada, |state| matches!(state, Observed::Starting(_))).await;
    bench.want(vec![ada.clone(), bob.clone()]);
    bench.running(&bob).await;
    bench.want(vec![ada, stopped(&bob)]);
    bench.until(&bob, |state| matches!(state, Observed::Gone { .. })).await;
}

#[tokio::test]
async fn nothing_is_decided_while_the_engine_is_away_and_all_goes_on_when_it_is_back() {
    let mut bench = Bench::new();
    let ada = desk("ada", "test");
    bench.want(vec![ada.clone()]);
    bench.running(&ada).await;
    let before = bench.engine.ids();
    bench.engine.set_down(true);
    bench.engine_is(false).await;
    assert!(bench.host.reports.take_unsent(Duration::ZERO).is_empty(), "no report about what cannot be seen");
    bench.engine.set_down(false);
    bench.engine_is(true).await;
    bench.running(&ada).await;
    assert_eq!(bench.engine.ids(), before, "the same container");
}

#[tokio::test]
async fn exits_that_an_outage_caused_cost_no_budget() {
    let mut bench = Bench::new();
    let ada = desk("ada", "test");
    bench.want(vec![ada.clone()]);
    bench.running(&ada).await;
    // More outages than the budget has restarts.
    for _ in 0..3 {
        bench.engine.set_down(true);
        bench.engine_is(false).await;
        bench.engine.set_down(false);
        bench.engine_is(true).await;
        bench.running(&ada).await;
    }
}

#[tokio::test]
async fn a_program_that_ends_by_itself_costs_budget() {
    let mut bench = Bench::new();
    let ada = desk("ada", "test");
    bench.want(vec![ada.clone()]);
    bench.running(&ada).await;
    let id = bench.engine.ids().remove(0);
    bench.engine.crash(&id, 7);
    let again = bench.running(&ada).await;
    assert_eq!(again.exit_code, Some(7), "how it ended is told with what came of it");
    bench.engine.crash(&id, 8);
    let failed = bench.until(&ada, |state| matches!(state, Observed::Failed(_))).await;
    assert_eq!((failed.state, failed.exit_code), (Observed::Failed(StatusReason::CrashLoop), Some(8)));
}

#[tokio::test]
async fn a_stop_that_comes_during_a_start_wins() {
    let mut bench = Bench::new();
    let ada = desk("ada", "deaf");
    bench.want(vec![ada.clone()]);
    bench.until(&ada, |state| matches!(state, Observed::Starting(_))).await;
    bench.want(vec![stopped(&ada)]);
    bench.until(&ada, |state| matches!(state, Observed::Gone { .. })).await;
    assert_eq!(bench.engine.ids(), Vec::<String>::new());
}

/// Decided on what was `basis_age` old.
fn idle_stop(item: &DesiredItem, basis_age: Duration) -> DesiredItem {
    let run = Run::Stopped { reason: StopReason::Idle, grace: Duration::ZERO, purge_files: false };
    DesiredItem { run, idle_basis_age: Some(basis_age), ..item.clone() }
}

/// Somebody works in the container of `item`; its directory.
pub(super) fn touch(bench: &Bench, item: &DesiredItem) -> PathBuf {
    let dir = bench.host.desks.ensure(item.workspace, item.generation).expect("it is there");
    let input = std::fs::File::options().write(true).open(dir.join("activity/input")).expect("open");
    input.set_modified(std::time::SystemTime::UNIX_EPOCH).expect("touched");
    dir
}

#[tokio::test]
async fn an_idle_stop_that_does_not_know_what_was_seen_here_is_refused_and_a_later_one_is_not() {
    let mut bench = Bench::new();
    let ada = desk("ada", "test");
    let idle_stop = |basis_age| idle_stop(&ada, basis_age);
    bench.want(vec![ada.clone()]);
    bench.running(&ada).await;
    let ids = bench.engine.ids();
    // At the last moment: nobody has looked since.
    let dir = touch(&bench, &ada);
    bench.want(vec![idle_stop(Duration::from_secs(900))]);
    bench.until(&ada, |state| matches!(state, Observed::RefusedStop { .. })).await;
    // Another set that says the same is refused as well; so is one that comes with other orders.
    bench.want(vec![idle_stop(Duration::from_secs(900)), desk("bob", "test")]);
    bench.until(&ada, |state| matches!(state, Observed::RefusedStop { .. })).await;
    bench.want(vec![ada.clone()]);
    bench.running(&ada).await;
    assert!(bench.engine.ids().contains(&ids[0]), "it was never stopped");
    bench.want(vec![idle_stop(Duration::ZERO)]);
    bench.until(&ada, |state| matches!(state, Observed::Gone { .. })).await;
    assert!(!dir.exists(), "its directory goes with it");
}

#[tokio::test]
async fn a_process_that_has_just_begun_refuses_an_idle_stop_older_than_what_its_predecessor_did_not_tell() {
    let mut bench = Bench::new();
    let (ada, bob) = (desk("ada", "test"), desk("bob", "test"));
    bench.want(vec![ada.clone()]);
    let endpoint = bench.until_told(&ada, |state| matches!(state, Observed::Running { .. })).await.state;
    // Hers is the first container, and his the second.
    bench.want(vec![ada.clone(), bob.clone()]);
    bench.until_told(&bob, |state| matches!(state, Observed::Running { .. })).await;
    touch(&bench, &ada);
    touch(&bench, &bob);
    let ids = bench.engine.ids();
    let mut bench = bench.next_process();
    bench.engine.crash(&ids[1], 1);
    bench.want([&ada, &bob].map(|item| idle_stop(item, Duration::from_secs(900))).into());
    let refused = bench.until_told(&ada, |state| !matches!(state, Observed::Running { .. })).await.state;
    let Observed::Running { endpoint } = endpoint else { panic!("as asked for") };
    assert!(matches!(refused, Observed::RefusedStop { endpoint: here, .. } if here == endpoint));
    bench.until_told(&bob, |state| matches!(state, Observed::Gone { .. })).await;
    bench.want(vec![ada.clone()]);
    bench.until_told(&ada, |state| matches!(state, Observed::Running { .. })).await;
    assert_eq!(bench.engine.ids(), ids[..1], "it was never stopped; what does not run goes");
}

#[tokio::test]
async fn a_container_that_somebody_removed_is_made_again() {
    let mut bench = Bench::new();
    let ada = desk("ada", "test");
    bench.want(vec![ada.clone()]);
    bench.running(&ada).await;
    let id = bench.engine.ids().remove(0);
    bench.engine.ensure_removed(&id).await.expect("removed");
    bench.running(&ada).await;
    assert_ne!(bench.engine.ids(), [id]);
}

#[tokio::test]
async fn more_starts_than_may_go_on_at_once_all_end() {
    let mut bench = Bench::new();
    let desks: Vec<_> = (0..10).map(|n| desk(&format!("s{n}"), "test")).collect();
    bench.want(desks.clone());
    let mut left: BTreeSet<_> = desks.iter().map(|desk| desk.workspace).collect();
    while !left.is_empty() {
        bench.host.reports.news().await;
        for told in bench.host.reports.take_unsent(Duration::ZERO) {
            if matches!(told.state, Observed::Running { .. }) {
                left.remove(&told.workspace);
            }
        }
    }
    assert_eq!(bench.engine.ids().len(), 10);
}

impl Bench {
    /// As another host says on the share that `later` is the student's container now.
    fn elsewhere(&self, item: &DesiredItem, later: i64) -> Token {
        let pair = Pair { incarnation: 1, generation: Generation(later) };
        let base = Base::open(self.host.storage.base(), self.host.scope.cluster).expect("ours");
        let fences = Fences::open(&base, "elsewhere").expect("opened");
        let token = Token { pair, placement: Some(PlacementId::new()) };
        assert_eq!(fences.claim(&item.student, &token).expect("claimed"), Claim::Held);
        token
    }
}

#[tokio::test]
async fn a_start_is_refused_while_the_share_knows_a_later_container() {
    let mut bench = Bench::new();
    let ada = desk("ada", "test");
    let later = bench.elsewhere(&ada, 4);
    bench.want(vec![ada.clone()]);
    let failed = bench.until(&ada, |state| matches!(state, Observed::Failed(_))).await;
    assert_eq!(failed.state, Observed::Failed(StatusReason::StorageFenced));
    assert_eq!((failed.share_pair, failed.share_placement), (Some(later.pair), later.placement));
    assert_eq!(bench.engine.calls("start"), 0);
    // The control plane goes above it.
    bench.want(vec![stopped(&ada)]);
    bench.until(&ada, |state| matches!(state, Observed::Gone { .. })).await;
    let above = DesiredItem { generation: Generation(5), placement: PlacementId::new(), ..ada };
    bench.want(vec![above.clone()]);
    bench.running(&above).await;
}

#[tokio::test]
async fn what_runs_is_stopped_once_the_share_knows_a_later_container_and_others_go_on() {
    let mut bench = Bench::new();
    let (ada, bob) = (desk("ada", "test"), desk("bob", "test"));
    bench.want(vec![ada.clone()]);
    bench.running(&ada).await;
    bench.want(vec![ada.clone(), bob.clone()]);
    bench.running(&bob).await;
    let later = bench.elsewhere(&ada, 2);
    let failed = bench.until(&ada, |state| matches!(state, Observed::Failed(_))).await;
    assert_eq!(failed.state, Observed::Failed(StatusReason::StorageFenced));
    assert_eq!((failed.share_pair, failed.share_placement), (Some(later.pair), later.placement));
    assert_eq!(bench.engine.calls("stop"), 1);
    assert_eq!(bench.engine.calls("remove"), 0, "that is for an order");
}

#[tokio::test]
async fn a_start_under_way_is_stopped_once_the_share_knows_a_later_container() {
    let mut bench = Bench::new();
    let ada = desk("ada", "deaf");
    bench.want(vec![ada.clone()]);
    bench.until(&ada, |state| *state == Observed::Starting(Stage::Probing)).await;
    bench.elsewhere(&ada, 2);
    let failed = bench.until(&ada, |state| matches!(state, Observed::Failed(_))).await;
    assert_eq!(failed.state, Observed::Failed(StatusReason::StorageFenced));
}

#[tokio::test]
async fn a_container_that_comes_up_by_itself_gives_way_before_any_order_is_known() {
    let mut bench = Bench::new();
    let ada = desk("ada", "test");
    bench.want(vec![ada.clone()]);
    bench.running(&ada).await;
    bench.want(vec![stopped(&ada)]);
    bench.until(&ada, |state| matches!(state, Observed::Gone { .. })).await;
    bench.elsewhere(&ada, 2);
    // As an agent that has just been started: it has no set yet, and a start of an earlier one completes.
    bench.accepted.send_replace(Accepted::default());
    let scope = bench.host.scope;
    let project_dir = bench.host.storage.base().join("ada");
    let ghost = bench
        .engine
        .ensure_created(&Plan { scope, item: ada.clone(), desk_dir: project_dir.clone(), project_dir })
        .await;
    let ghost = ghost.expect("made").id;
    bench.engine.ensure_started(&ghost).await.expect("started");
    bench.until(&ada, |state| *state == Observed::Failed(StatusReason::StorageFenced)).await;
    let look = bench.engine.inspect(&ghost, 8080).await.expect("there").expect("there");
    assert_eq!(look.phase, Phase::Exited);
}

#[tokio::test]
async fn a_fence_file_that_was_lost_or_overwritten_by_an_earlier_word_is_said_again() {
    let mut bench = Bench::new();
    let ada = DesiredItem { generation: Generation(3), ..desk("ada", "test") };
    bench.want(vec![ada.clone()]);
    bench.running(&ada).await;
    let file = bench.host.storage.base().join(".carrel/fence/ada");
    let own = std::fs::read_to_string(&file).expect("said");
    for word in [None, Some(own.replace("\"generation\":3", "\"generation\":2"))] {
        match word {
            None => std::fs::remove_file(&file).expect("lost"),
            Some(earlier) => std::fs::write(&file, earlier).expect("late"),
        }
        let again = async {
            while std::fs::read_to_string(&file).ok().as_ref() != Some(&own) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, again).await.expect("said again");
    }
    assert_eq!(bench.engine.calls("stop"), 0);
}
