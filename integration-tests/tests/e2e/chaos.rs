//! `kill -9` of each part at random moments of start and stop. Afterwards every desk reaches the right state by itself;
//! at no moment do two containers of one student run; nothing is left over.
//!
//! `CARREL_CHAOS_ROUNDS` kills (default 8), `CARREL_CHAOS_SEED` for the same sequence again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use carrel_proto::v1::workspace::State;
use integration_tests::client::Client;
use integration_tests::cluster::{Cluster, Options};
use integration_tests::docker::Docker;
use integration_tests::own_docker::OwnDocker;
use integration_tests::own_postgres::OwnPostgres;
use integration_tests::settings;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

const STUDENTS: [&str; 4] = ["ada", "bob", "eve", "kim"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    ControlPlane,
    Agent,
    Postgres,
    Docker,
}

const VICTIMS: [Victim; 4] = [Victim::ControlPlane, Victim::Agent, Victim::Postgres, Victim::Docker];

/// Looks for two running containers of one student, all the time.
async fn watch_for_twins(docker: Docker, label: String, listings: Arc<AtomicUsize>, over: Arc<AtomicBool>) {
    while !over.load(Ordering::Relaxed) {
        let mut running = HashMap::new();
        for found in docker.try_list(&label).await.unwrap_or_default() {
            if found.running
                && let Some(twin) = running.insert(found.student.clone(), found.name.clone())
            {
                panic!("{} and {twin} run at once", found.name);
            }
        }
        listings.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// One order, until it is accepted; what became of attempts in between is unknown, as to any client. False: there is no
/// desk to stop, as none was ever started.
async fn order(client: &Client, student: &str, run: bool) -> bool {
    let start = Instant::now();
    loop {
        let answer = if run { client.try_start(student).await } else { client.try_stop(student).await };
        match answer {
            Ok(_) => return true,
            Err(status) if !run && status.code() == tonic::Code::NotFound => return false,
            Err(status) => assert!(start.elapsed() < Duration::from_secs(60), "{student}: {status}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

struct World {
    cluster: Cluster,
    docker: OwnDocker,
    postgres: OwnPostgres,
}

impl World {
    async fn start(live_restore: bool) -> Self {
        let docker = OwnDocker::start(live_restore).await;
        docker.load(&settings::docker_host(), &settings::tiny_image());
        let postgres = OwnPostgres::start().await;
        let options = Options::new().docker(&docker.host()).postgres(&postgres.url());
        Self { cluster: Cluster::start(options).await, docker, postgres }
    }

    /// Kills them, lets them be dead for a while, and starts them again as systemd would.
    async fn strike(&mut self, victims: &[Victim], dead_for: Duration) {
        for victim in victims {
            match victim {
                Victim::ControlPlane => self.cluster.control_plane().kill(),
                Victim::Agent => self.cluster.agent().kill(),
                Victim::Postgres => self.postgres.kill(),
                Victim::Docker => self.docker.kill(),
            }
        }
        tokio::time::sleep(dead_for).await;
        for victim in victims {
            match victim {
                Victim::ControlPlane => self.cluster.spawn_control_plane(),
                Victim::Agent => self.cluster.spawn_agent(),
                Victim::Postgres => self.postgres.start_again().await,
                Victim::Docker => self.docker.start_again().await,
            }
        }
    }

    /// Every desk becomes as it was last ordered, and Docker agrees.
    async fn check(&mut self, client: &Client, wanted: &HashMap<&str, bool>) {
        let mut right: Vec<_> =
            wanted.iter().filter(|(_, run)| **run).map(|(s, _)| ((*s).to_owned(), true)).collect();
        right.sort();
        let start = Instant::now();
        loop {
            for (student, run) in wanted {
                let state = if *run { State::Running } else { State::Stopped };
                let is_right = |w: &carrel_proto::v1::Workspace| !w.reconciling && w.state() == state;
                client.wait_within(Duration::from_secs(90), student, state.as_str_name(), is_right).await;
            }
            // What Docker did when it came back may not be known yet: then the states change once more.
            let label = format!("carrel.cluster={}", self.cluster.id());
            let listed = self.cluster.docker().try_list(&label).await;
            let mut found: Vec<_> = listed.into_iter().flatten().map(|c| (c.student, c.running)).collect();
            found.sort();
            if found == right {
                break;
            }
            assert!(
                start.elapsed() < Duration::from_secs(90),
                "an orphan, or somebody missing: {found:?}, not {right:?}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for process in ["control plane", "agent"] {
            let child = if process == "agent" { self.cluster.agent() } else { self.cluster.control_plane() };
            assert!(child.ended().is_none(), "the {process} ended by itself:\n{}", child.log_tail(40));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_desk_reaches_the_right_state_whatever_is_killed() {
    let seed = settings::number("CARREL_CHAOS_SEED", rand::random());
    let rounds = settings::number("CARREL_CHAOS_ROUNDS", 8);
    eprintln!("CARREL_CHAOS_SEED={seed} CARREL_CHAOS_ROUNDS={rounds}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut world = World::start(rng.random()).await;
    let client = world.cluster.client();
    let (listings, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let label = format!("carrel.cluster={}", world.cluster.id());
    let twins = tokio::spawn(watch_for_twins(
        Docker::at(&world.docker.host()),
        label,
        listings.clone(),
        over.clone(),
    ));

    let mut wanted = HashMap::new();
    for round in 0..rounds {
        // One of them, at times two at once.
        let count = 1 + usize::from(rng.random_bool(0.2));
        let mut victims: Vec<_> = VICTIMS.choose_multiple(&mut rng, count).copied().collect();
        victims.sort();
        let (after, dead_for) = (rng.random_range(0..900), rng.random_range(0..1500));
        let orders = STUDENTS.map(|student| (student, rng.random_bool(0.6), rng.random_range(0..600)));
        let start = Instant::now();
        let giving = futures_util::future::join_all(orders.map(|(student, run, delay)| {
            let client = client.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(delay)).await;
                order(&client, student, run).await.then_some((student, run))
            }
        }));
        let striking = async {
            tokio::time::sleep(Duration::from_millis(after)).await;
            world.strike(&victims, Duration::from_millis(dead_for)).await;
        };
        let (given, ()) = tokio::join!(giving, striking);
        wanted.extend(given.into_iter().flatten());
        let mut known = wanted.clone();
        for student in STUDENTS {
            // Never started: there is nothing to be stopped.
            if client.try_get(student).await.is_err_and(|status| status.code() == tonic::Code::NotFound) {
                known.remove(student);
            }
        }
        world.check(&client, &known).await;
        eprintln!(
            "round {round}: {victims:?} killed after {after} ms, dead for {dead_for} ms; all right after {:?}",
            start.elapsed()
        );
        assert!(!twins.is_finished(), "two containers of one student");
    }
    over.store(true, Ordering::Relaxed);
    twins.await.expect("never two containers of one student");
    assert_eq!(world.cluster.database().behind().await, "", "the store has lost nothing");
    eprintln!("{} listings without twins", listings.load(Ordering::Relaxed));
}
