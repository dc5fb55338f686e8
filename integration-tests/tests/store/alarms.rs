//! No false alarm: a store that kept everything is not behind, whatever its agents tell of it, and however late.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use carrel_common::id::{NodeId, Pair, PlacementId, StudentId};
use carrel_common::model::{Container, DesiredItem, DesiredPair, Health, HeartbeatCount, Observed, Run};
use control_plane::app::{App, AppError, Greeting, HeartbeatOutcome};
use integration_tests::chance::Chance;

use crate::rig::{Rig, call, id, secret_of};

/// Desks of two hosts, so few that each is started, stopped, moved and deleted again and again.
const STUDENTS: [&str; 4] = ["ada", "bob", "eve", "fay"];

/// Orders of each of the callers.
const ORDERS: usize = 60;

/// An agent with the longest memory that one can have: it still has every container that it was ever told to run, as a host would
/// that was off for long, and names the highest of all that was confirmed to it.
struct Agent<'a> {
    rig: &'a Rig,
    node: NodeId,
    containers: Vec<Container>,
    /// Containers that the newest set names.
    ordered: BTreeSet<String>,
    accepted: Option<DesiredPair>,
    acked: Option<HeartbeatCount>,
}

impl<'a> Agent<'a> {
    async fn of(rig: &'a Rig) -> Self {
        Self {
            rig,
            node: rig.node(4).await,
            containers: vec![],
            ordered: BTreeSet::new(),
            accepted: None,
            acked: None,
        }
    }

    /// A new session, in which it tells everything; as another process of the same host at times.
    async fn connect(&self, process_start: bool) {
        let mut work = self.rig.app.store.begin().await.unwrap();
        let nodes = work.list_nodes().await.unwrap();
        drop(work);
        let facts = nodes.into_iter().find(|node| node.id == self.node).unwrap().facts;
        let told = Greeting {
            cluster: Some(self.rig.app.state.cluster()),
            accepted: self.accepted,
            acked: self.acked,
            containers: self.containers.clone(),
            ..Greeting::of(facts, process_start)
        };
        let greeted = self.rig.app.accept_session(&secret_of(self.node), &told).await.unwrap();
        assert_eq!(greeted.state.behind, None);
    }

    async fn beat(&mut self) {
        let healthy = Health { problem: None, age: Duration::ZERO, latency: None };
        let epoch = self.rig.epoch(self.node).await;
        let app = &self.rig.app;
        if let HeartbeatOutcome::Committed(count) | HeartbeatOutcome::BackFromSilence(count) =
            app.heartbeat_node(self.node, epoch, &healthy, &healthy).await.unwrap()
        {
            self.acked = self.acked.max(Some(count));
        }
    }

    /// Takes the newest set, and reports; that a start gave way to an earlier container of the same student, too.
    async fn obey(
        &mut self,
        shares: &BTreeMap<StudentId, Vec<(Pair, Option<PlacementId>)>>,
        chance: &mut Chance,
    ) {
        let set = self.rig.desired_set(self.node).await;
        self.accepted = self.accepted.max(Some(set.pair));
        self.ordered = set.items.iter().map(name).collect();
        for item in set.items {
            if let Run::Running { .. } = item.run {
                let container_id = name(&item);
                if !self.containers.iter().any(|known| known.container_id == container_id) {
                    self.containers.push(Container {
                        container_id,
                        workspace: item.workspace,
                        student: item.student.clone(),
                        generation: item.generation,
                        incarnation: item.incarnation,
                        node: self.node,
                        running: true,
                        placement: Some(item.placement),
                        spec: Some(item.spec.clone()),
                    });
                }
                let earlier = shares.get(&item.student).map_or(&[][..], Vec::as_slice);
                if !earlier.is_empty() && chance.below(4) == 0 {
                    let share = chance.one_of(earlier);
                    self.rig.give_way_of(self.node, item.workspace, item.generation, share).await;
                    continue;
                }
            }
            let state = match item.run {
                Run::Running { .. } => Observed::Running { endpoint: "127.0.0.1:1".into() },
                Run::Stopped { purge_files, .. } => Observed::Gone { purge: Ok(purge_files) },
            };
            self.rig.report(self.node, item.workspace, item.generation, state).await;
        }
    }

    /// What it has of each student, as the share would have it.
    fn pairs(&self) -> BTreeMap<StudentId, Vec<(Pair, Option<PlacementId>)>> {
        let mut pairs: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for container in &self.containers {
            pairs.entry(container.student.clone()).or_default().push((container.pair(), container.placement));
        }
        pairs
    }

    async fn live(mut self, mut chance: Chance, over: &AtomicBool) {
        while !over.load(Ordering::Relaxed) {
            match chance.below(5) {
                0 => self.connect(chance.coin()).await,
                1 => {
                    let orphans =
                        self.containers.iter().filter(|one| !self.ordered.contains(&one.container_id));
                    let orphans: Vec<_> = orphans.cloned().collect();
                    self.rig.judge_report(self.node, &orphans, &[]).await;
                }
                2 => self.beat().await,
                _ => {
                    let shares = self.pairs();
                    self.obey(&shares, &mut chance).await;
                }
            }
        }
        self.connect(true).await;
    }
}

/// What its container is called.
fn name(item: &DesiredItem) -> String {
    format!("{}-{}", item.workspace, item.pair())
}

/// Orders at random; what is refused is refused.
async fn order(app: &App, mut chance: Chance) {
    for _ in 0..ORDERS {
        let student = id(chance.one_of(&STUDENTS));
        let done = match chance.below(8) {
            0 => app.stop(&call("StopWorkspace"), &student, false, "").await.map(|_| ()),
            1 | 2 => app.restart(&call("RestartWorkspace"), &student).await.map(|_| ()),
            3 => app.delete(&call("DeleteWorkspace"), &student, "", chance.coin()).await.map(|_| ()),
            _ => app.start(&call("StartWorkspace"), &student, None).await.map(|_| ()),
        };
        assert!(!matches!(done, Err(AppError::StoreBehind { .. })), "{done:?}");
        app.place_waiting().await.unwrap();
        tokio::time::sleep(chance.millis(0..8)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_kept_everything_is_not_behind_whatever_is_told_meanwhile() {
    let rig = Rig::new().await;
    let (one, other) = (Agent::of(&rig).await, Agent::of(&rig).await);
    let (here, there) = (rig.app.clone(), rig.replica());
    let over = AtomicBool::new(false);
    let ordering = async {
        tokio::join!(order(&here, Chance::of("orders")), order(&there, Chance::of("orders there")));
        over.store(true, Ordering::Relaxed);
    };
    tokio::join!(
        ordering,
        one.live(Chance::of("the one"), &over),
        other.live(Chance::of("the other"), &over)
    );
    assert_eq!(rig.database.behind().await, "");
    let started = rig.database.text("SELECT sum(generation)::text FROM workspaces").await;
    eprintln!("{started} containers");
    assert!(started.parse::<i64>().unwrap() > 10, "hardly anything was started");
    rig.end().await;
}
