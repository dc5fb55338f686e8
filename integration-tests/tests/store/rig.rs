//! A control plane without its doors: the use cases over a database of the test's own, and a node that obeys.

use std::sync::Arc;
use std::time::Duration;

use carrel_common::id::{Generation, NodeId, Pair, PlacementId, StudentId, WorkspaceUid};
use carrel_common::model::{
    Container, DesiredSet, Health, NodeFacts, Observation, Observed, Resources, Run, Signal, StatusReason,
    WorkspaceSpec,
};
use control_plane::app::{
    App, Board, Call, Credentials, Greeted, Greeting, Heartbeats, Judged, LastReading, LogTails, Nudge,
    Settings, SharedRules, SharedState,
};
use control_plane::domain::activity::BySignal;
use control_plane::domain::idle::IdlePolicy;
use control_plane::domain::lease::LeaseTerms;
use control_plane::domain::placement::Strategy;
use control_plane::domain::policy::Defaults;
use control_plane::domain::reconcile::OrderTimes;
use control_plane::domain::workspace::{State, Stays, Workspace};
use control_plane::metrics::Metrics;
use control_plane::store::{Beat, CandidateLimits, Store};
use integration_tests::database::Database;
use integration_tests::settings;
use tokio_util::sync::CancellationToken;

pub(crate) const GIB: i64 = 1 << 30;

pub(crate) struct Rig {
    pub(crate) app: App,
    pub(crate) database: Database,
    stop: CancellationToken,
}

impl Rig {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        Self::on(&settings::database_url(), change).await
    }

    /// Whose desks are idle after this long, with a warning so long before.
    pub(crate) async fn with_idle(timeout: Duration, lead: Duration) -> Self {
        Self::with(|settings| {
            let idle = &mut settings.defaults.idle;
            (idle.idle_timeout, idle.warning_lead) = (timeout, lead);
        })
        .await
    }

    /// On a Postgres of the test's own.
    pub(crate) async fn on(postgres: &str, change: impl FnOnce(&mut Settings)) -> Self {
        let database = Database::create(postgres).await;
        Store::migrate(&database.url()).await.unwrap();
        let store = Store::open(&database.url(), 12).unwrap();
        let state = store.state().await.unwrap();
        let mut settings = Settings {
            dev: true,
            defaults: Defaults {
                spec: WorkspaceSpec {
                    image: "carrel/tiny:test".into(),
                    resources: Resources { cpu_millicores: 1000, memory_bytes: GIB, pids: 512 },
                    probe_port: 8080,
                    probe_path: "/healthz".into(),
                },
                idle: IdlePolicy {
                    idle_timeout: Duration::from_secs(900),
                    warning_lead: Duration::from_secs(120),
                    max_lifetime: Duration::ZERO,
                    extension_budget: Duration::from_secs(3600),
                    keep_awake_budget: Duration::from_secs(7200),
                    counts: BySignal::of(|_| true),
                    // Nobody acks here but the tests of acks.
                    ack_within: Duration::ZERO,
                    quiet: vec![],
                    drain: None,
                },
            },
            stays: Stays {
                pending: Duration::from_secs(60),
                pulling: Duration::from_secs(60),
                starting: Duration::from_secs(60),
                stopping: Duration::from_secs(60),
            },
            orders: OrderTimes {
                start_timeout: Duration::from_secs(60),
                stop_grace: Duration::from_secs(10),
            },
            placement: Strategy::Spread,
            limits: CandidateLimits { cpu_overcommit: 100.0, memory_overcommit: 1.0 },
            heartbeat_interval: Duration::from_secs(10),
            unreachable_after: Duration::from_secs(30),
            node_certificate_ttl: Duration::from_secs(86_400),
            drain_idle_moment: Duration::from_secs(120),
            lease: LeaseTerms {
                fence_after: Duration::from_secs(600),
                stop_budget: Duration::from_secs(30),
                margin: Duration::from_secs(60),
                replace_after: Duration::from_secs(690),
            },
            events_kept: Duration::from_secs(3600),
        };
        change(&mut settings);
        let (nudge, _) = Nudge::new();
        let (heartbeats, inbox) = Heartbeats::new();
        let app = App {
            store,
            authorities: None,
            rules: SharedRules::new(settings.defaults.clone()),
            state: SharedState::new(state),
            settings: Arc::new(settings),
            nudge,
            metrics: Metrics::default(),
            board: Board::default(),
            last_reading: LastReading::default(),
            heartbeats,
            log_tails: LogTails::default(),
        };
        let stop = CancellationToken::new();
        let (writer, stopped) = (app.clone(), stop.clone());
        tokio::spawn(async move { writer.write_heartbeats(inbox, stopped).await });
        app.pulse().await.unwrap();
        app.refresh_rules().await.unwrap();
        let (pulse, stopped) = (app.clone(), stop.clone());
        tokio::spawn(stopped.run_until_cancelled_owned(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                pulse.pulse().await.ok();
            }
        }));
        Self { app, database, stop }
    }

    /// A healthy node with room for `gib` workspaces of the default size.
    pub(crate) async fn node(&self, gib: i64) -> NodeId {
        let facts = NodeFacts {
            hostname: "h".into(),
            machine_id: uuid::Uuid::new_v4().to_string(),
            boot_id: "b".into(),
            docker_id: "d".into(),
            docker_version: "20".into(),
            agent_version: "0".into(),
            cpu_millicores: 2000,
            memory_bytes: gib * GIB,
            max_workspaces: 250,
            advertise_address: "127.0.0.1".into(),
            zone: String::new(),
            labels: std::collections::BTreeMap::new(),
            hardware_id: String::new(),
        };
        let (node, _) = self.app.enroll(&facts).await.unwrap();
        self.hello(node, &Greeting::of(facts, true)).await;
        node
    }

    /// A heartbeat in the present session of a healthy node.
    pub(crate) async fn heartbeat(&self, node: NodeId) {
        let healthy = Health { problem: None, age: Duration::ZERO, latency: None };
        let epoch = self.epoch(node).await;
        self.app.heartbeat_node(node, epoch, &healthy, &healthy).await.unwrap();
    }

    /// A new session of a node.
    pub(crate) async fn reconnect(&self, node: NodeId) {
        let mut work = self.app.store.begin().await.unwrap();
        let nodes = work.list_nodes().await.unwrap();
        drop(work);
        let facts = nodes.into_iter().find(|known| known.id == node).unwrap().facts;
        self.app.accept_session(&secret_of(node), &Greeting::of(facts, false)).await.unwrap();
    }

    /// Another replica on the same database: what one process knows, the other has yet to read.
    pub(crate) fn replica(&self) -> App {
        let (nudge, _) = Nudge::new();
        App { rules: SharedRules::new(self.app.settings.defaults.clone()), nudge, ..self.app.clone() }
    }

    /// A session of a node, and its first heartbeat.
    pub(crate) async fn hello(&self, node: NodeId, greeting: &Greeting) -> Greeted {
        let greeted = self.app.accept_session(&secret_of(node), greeting).await.unwrap();
        self.heartbeat(node).await;
        greeted
    }

    pub(crate) async fn start(&self, student: &str) -> control_plane::app::Result<Workspace> {
        let student = id(student);
        self.app.start(&call("StartWorkspace"), &student, None).await.map(|view| view.workspace)
    }

    pub(crate) async fn stop(&self, student: &str) -> Workspace {
        self.app.stop(&call("StopWorkspace"), &id(student), false, "").await.unwrap().workspace
    }

    pub(crate) async fn get(&self, student: &str) -> Workspace {
        self.app.get(&id(student)).await.unwrap().workspace
    }

    pub(crate) async fn report(
        &self,
        node: NodeId,
        uid: WorkspaceUid,
        generation: Generation,
        state: Observed,
    ) {
        self.try_report(node, self.epoch(node).await, uid, generation, state).await.unwrap();
    }

    /// The present session of a node.
    pub(crate) async fn epoch(&self, node: NodeId) -> i64 {
        let mut work = self.app.store.begin().await.unwrap();
        let nodes = work.list_nodes().await.unwrap();
        nodes.into_iter().find(|known| known.id == node).unwrap().session_epoch
    }

    /// What becomes of the orphans that a node reports in its present session.
    pub(crate) async fn judge_report(
        &self,
        node: NodeId,
        orphans: &[Container],
        withheld: &[String],
    ) -> Vec<Judged> {
        self.app.judge_report(node, self.epoch(node).await, orphans, withheld).await.unwrap()
    }

    /// A report in a session that may be over.
    pub(crate) async fn try_report(
        &self,
        node: NodeId,
        session_epoch: i64,
        uid: WorkspaceUid,
        generation: Generation,
        state: Observed,
    ) -> control_plane::app::Result<()> {
        self.observe(node, session_epoch, uid, generation, state, None).await
    }

    /// A start, or what ran, gave way to a later container that the share knows.
    pub(crate) async fn give_way(&self, node: NodeId, desk: &Workspace, share: (Pair, Option<PlacementId>)) {
        self.give_way_of(node, desk.uid, desk.generation, share).await;
    }

    /// The same, of a generation that may be over.
    pub(crate) async fn give_way_of(
        &self,
        node: NodeId,
        uid: WorkspaceUid,
        generation: Generation,
        share: (Pair, Option<PlacementId>),
    ) {
        let epoch = self.epoch(node).await;
        let state = Observed::Failed(StatusReason::StorageFenced);
        self.observe(node, epoch, uid, generation, state, Some(share)).await.unwrap();
    }

    async fn observe(
        &self,
        node: NodeId,
        session_epoch: i64,
        uid: WorkspaceUid,
        generation: Generation,
        state: Observed,
        share: Option<(Pair, Option<PlacementId>)>,
    ) -> control_plane::app::Result<()> {
        let observation = Observation {
            share_pair: share.map(|(pair, _)| pair),
            share_placement: share.and_then(|(_, placement)| placement),
            ..observation(uid, generation, state)
        };
        self.app.observe(node, session_epoch, &[observation]).await.map(|_| ())
    }

    /// What the agent of a node is told in a new session.
    pub(crate) async fn desired_set(&self, node: NodeId) -> DesiredSet {
        self.app.desired_set(node, None).await.unwrap().expect("it was told nothing before")
    }

    /// What an agent does that obeys at once: everything of its desired set is so, and reported.
    pub(crate) async fn obey(&self, node: NodeId) {
        for item in self.desired_set(node).await.items {
            let state = match item.run {
                Run::Running { .. } => Observed::Running { endpoint: "127.0.0.1:1".into() },
                Run::Stopped { purge_files, .. } => Observed::Gone { purge: Ok(purge_files) },
            };
            self.report(node, item.workspace, item.generation, state).await;
        }
    }

    /// A running workspace.
    pub(crate) async fn running(&self, node: NodeId, student: &str) -> Workspace {
        self.start(student).await.unwrap();
        self.obey(node).await;
        let workspace = self.get(student).await;
        assert_eq!(workspace.state, State::Running);
        workspace
    }

    /// A workspace that ran on a node, and is stopped.
    pub(crate) async fn was_on(&self, node: NodeId, student: &str) {
        self.running(node, student).await;
        self.stop(student).await;
        self.obey(node).await;
        assert_eq!(self.get(student).await.state, State::Stopped);
    }

    /// A placement of before the student's present desk.
    pub(crate) async fn placed_once(&self, node: NodeId, student: &str) -> PlacementId {
        let placement = PlacementId::new();
        let insert = format!(
            "INSERT INTO placements (id, workspace_id, node_id, generation, spec, cpu_millicores, memory_bytes, incarnation, released_at)
             SELECT '{placement}', id, '{node}', 0, spec, 0, 0, 1, now() FROM workspaces WHERE student_id = '{student}'"
        );
        self.database.execute(&insert).await;
        placement
    }

    /// The students of whose workspace the row of activity has something else than the workspace itself.
    pub(crate) async fn copies_apart(&self) -> String {
        let apart = "SELECT coalesce(string_agg(w.student_id, ' ' ORDER BY w.student_id), '')
                     FROM workspaces w JOIN workspace_activity a ON a.workspace_id = w.id
                     WHERE a.student_key IS DISTINCT FROM CASE WHEN w.deleted_at IS NULL THEN lower(w.student_id) END
                        OR a.running <> (w.state = 'RUNNING')
                        OR a.running AND (a.course_id, a.node_id, a.ready_at, a.extended_until, a.resumed_at, a.warning)
                           IS DISTINCT FROM (w.course_id, w.node_id, w.ready_at, w.extended_until, w.resumed_at, w.warning)";
        self.database.text(apart).await
    }

    /// Whatever a test has done, the database has kept the copies.
    pub(crate) async fn end(self) {
        assert_eq!(self.copies_apart().await, "");
        self.stop.cancel();
        self.app.store.close().await;
        self.database.drop_now().await;
    }
}

pub(crate) fn id(student: &str) -> StudentId {
    student.parse().unwrap()
}

/// What an agent tells of a desk at first.
pub(crate) fn observation(workspace: WorkspaceUid, generation: Generation, state: Observed) -> Observation {
    Observation {
        workspace,
        generation,
        incarnation: 0,
        sequence: 1,
        state,
        exit_code: None,
        oom_killed: false,
        message: String::new(),
        image_digest: "sha256:1".into(),
        traceparent: String::new(),
        pull_percent: 0,
        share_pair: None,
        share_placement: None,
    }
}

/// Input of a student, so long ago.
pub(crate) fn beat(student: &str, signal: Signal, age: Duration) -> Beat {
    Beat { student: id(student), generation: None, signal, age, keep_awake: Duration::ZERO }
}

/// As the listener has found them in `--dev`.
pub(crate) fn secret_of(node: NodeId) -> Credentials {
    Credentials { node, certificate: None, secret_hash: Some("secret".into()) }
}

pub(crate) fn call(rpc: &'static str) -> Call {
    Call { rpc, request_id: None, fingerprint: String::new() }
}
