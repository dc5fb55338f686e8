//! A fleet on one machine: hosts with their own network, Docker and agent, replicas over one Postgres, one share.
//!
//! ```text
//!  this machine's network              bridge cr-N, 198.18.N.1/24
//!  ┌────────────────────────────┐       │
//!  │ replica 0 … m    Postgres  ├───────┤
//!  └────────────────────────────┘       ├── eth0 ┌ host 0: network, mounts, host name, machine id, boot id ┐
//!    share: a mount that every          │   TLS  │ dockerd (containers below cr-N-h0)   agent   fence      │
//!    host sees at the same path         │        └─────────────────────────────────────────────────────────┘
//!                                       └── eth0 ┌ host 1 …
//! ```
//!
//! Everything can be killed, frozen, cut off and started again, singly. What is made outside the rig's directory is
//! called after its bridge, so that the next rig can clear up after one whose process was killed.

mod cgroups;
mod host;
mod namespace;
mod network;
mod replica;
mod shape;
mod share;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub use self::host::{Host, Loss};
pub use self::replica::Replica;
pub use self::shape::Shape;
pub use self::share::Share;

use self::host::Parts;
use self::network::Network;
use crate::callers::Callers;
use crate::client::Client;
use crate::cluster::mark_share;
use crate::database::Database;
use crate::docker::Found;
use crate::leftovers::{left_behind, note, owned_dir};
use crate::own_clock::OwnClock;
use crate::own_postgres::OwnPostgres;
use crate::relay::Relay;
use crate::{pki, settings};

/// Of a rig's directory below /tmp. Short, as what lies below has to be.
const PREFIX: &str = "cr-";

/// The container of a running desk: equal to itself only as long as nobody stopped or started it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desk {
    /// Index of the host.
    pub host: usize,
    /// Docker's id.
    pub id: String,
    /// Its generation, by its label.
    pub generation: i64,
    /// When it was last started, by Docker.
    pub started_at: String,
}

/// A running fleet. Everything it made goes when it is dropped.
#[derive(Debug)]
pub struct Rig {
    // Dropped in this order: who looks after containers before who decides, before what both stand on.
    hosts: Vec<Host>,
    replicas: Vec<Replica>,
    database: Database,
    postgres: OwnPostgres,
    share: Share,
    network: Arc<Network>,
    dir: TempDir,
    cluster_id: String,
}

impl Rig {
    /// Starts all of it, and returns once every agent is heard.
    pub async fn start(shape: Shape) -> Self {
        let mut rig = Self::start_without_agents(shape).await;
        for host in &mut rig.hosts {
            host.spawn_agent();
            host.spawn_fence();
        }
        for index in 0..rig.hosts.len() {
            rig.wait_for_agent(index, 0).await;
        }
        rig
    }

    /// Starts the hosts with their Docker, and the replicas.
    pub async fn start_without_agents(shape: Shape) -> Self {
        clear_up();
        let dir = owned_dir(PREFIX);
        let network = Arc::new(Network::new());
        note(dir.path(), &[&network.bridge()]);
        let share = if shape.gated_share { Share::mount_gated(dir.path()) } else { Share::mount(dir.path()) };
        let postgres =
            if shape.own_clocks { OwnPostgres::with_own_clock().await } else { OwnPostgres::start().await };
        let database = Database::create(&postgres.url()).await;
        migrate(&database);
        let cluster_id = database.text("SELECT cluster_id::text FROM cluster").await;
        mark_share(share.path(), &cluster_id);

        let authority = dir.path().join("ca");
        pki::ca(&["init"], &authority);
        let mut replicas = Vec::new();
        for index in 0..shape.replicas {
            let sockets = dir.path().join(format!("pg-{index}"));
            std::fs::create_dir(&sockets).expect("a directory");
            let way = Relay::new(&sockets, &postgres);
            let mut arguments = vec![format!("--database-url={}", database.url_in(way.url()))];
            arguments.push(format!("--ca-dir={}", authority.display()));
            arguments.extend(flags(&shape.options.control_plane));
            let environment = shape.options.environment.clone();
            let clock = shape.own_clocks.then(|| OwnClock::new(dir.path(), &format!("replica-{index}")));
            let mut replica =
                Replica::new(index, arguments, environment, way, network.hub(), dir.path(), clock);
            replica.start().await;
            replicas.push(replica);
        }

        let endpoints: Vec<_> = replicas.iter().map(Replica::agents_url).collect();
        let images: Vec<_> = shape.images.iter().map(String::as_str).collect();
        let booted = (0..shape.hosts).map(|index| {
            let mut agent_arguments = vec![format!("--control-plane={}", endpoints.join(","))];
            agent_arguments.push(format!("--workspace-base-path={}", share.path().display()));
            agent_arguments.extend(flags(&shape.options.agent));
            let parts = Parts {
                index,
                dir: dir.path().join(index.to_string()),
                network: Arc::clone(&network),
                live_restore: shape.live_restore,
                agent_arguments,
                own_clock: shape.own_clocks,
            };
            Host::boot(parts, &images)
        });
        let hosts = futures_util::future::join_all(booted).await;
        let rig = Self { hosts, replicas, database, postgres, share, network, dir, cluster_id };
        for host in &rig.hosts {
            rig.give_join_token(host, "").await;
        }
        rig
    }

    /// Its clocks by name, each right until it is set: Postgres', those of the replicas, those of the hosts' agents.
    pub fn clocks(&self) -> Vec<(String, OwnClock)> {
        let postgres = ("Postgres".to_owned(), self.postgres.clock().clone());
        let replicas =
            self.replicas.iter().enumerate().map(|(n, it)| (format!("replica {n}"), it.clock().clone()));
        let hosts = self.hosts.iter().enumerate().map(|(n, it)| (format!("host {n}"), it.clock().clone()));
        std::iter::once(postgres).chain(replicas).chain(hosts).collect()
    }

    /// From here on there are two truths, as when a copy of the database goes on beside it, and each has a host of its own: replica 0
    /// and host 0 stay with the first; replica 1 and host 1 have the second, which this returns.
    pub async fn split(&mut self) -> Database {
        for replica in &mut self.replicas {
            replica.kill();
        }
        let second = self.database.copy().await;
        self.replicas[1].use_database(&second);
        for (replica, host) in self.replicas.iter_mut().zip(&mut self.hosts) {
            replica.start().await;
            host.kill_agent();
            host.dial(&replica.agents_url());
            host.spawn_agent();
        }
        second
    }

    /// Gives a host what its agent enrols with; of the node of that name, or of a new one.
    pub async fn give_join_token(&self, host: &Host, node: &str) {
        let token = pki::join_token(&self.replicas[0].address(), node).await.expect("CreateJoinToken");
        std::fs::write(host.join_token_file(), token).expect("the token is written");
    }

    /// A host.
    pub fn host(&mut self, index: usize) -> &mut Host {
        &mut self.hosts[index]
    }

    /// All hosts.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// A replica.
    pub fn replica(&mut self, index: usize) -> &mut Replica {
        &mut self.replicas[index]
    }

    /// All replicas.
    pub fn replicas(&self) -> &[Replica] {
        &self.replicas
    }

    /// Its Postgres, with nothing else in it.
    pub fn postgres(&mut self) -> &mut OwnPostgres {
        &mut self.postgres
    }

    /// Its database.
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// What all hosts have mounted.
    pub fn share(&self) -> &Share {
        &self.share
    }

    /// Its id, as in the labels.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// A directory of the test's own, with every log.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A client of the first replica.
    pub fn client(&self) -> Client {
        self.replicas[0].client()
    }

    /// A caller that knows all replicas.
    pub fn callers(&self) -> Callers {
        Callers::of(&self.replicas.iter().map(Replica::address).collect::<Vec<_>>())
    }

    /// Its containers on every host whose Docker answers, running or not, each with the index of its host.
    pub async fn containers(&self) -> Vec<(usize, Found)> {
        let label = format!("carrel.cluster={}", self.cluster_id);
        let mut all = Vec::new();
        for (index, host) in self.hosts.iter().enumerate() {
            if let Some(docker) = crate::docker::Docker::try_at(&host.docker_host()) {
                let found = docker.try_list(&label).await.unwrap_or_default();
                all.extend(found.into_iter().map(|container| (index, container)));
            }
        }
        all
    }

    /// The containers of one student, running or not, each with the index of its host.
    pub async fn containers_of(&self, student: &str) -> Vec<(usize, Found)> {
        self.containers().await.into_iter().filter(|(_, found)| found.student == student).collect()
    }

    /// The one container of a student, which runs.
    pub async fn desk(&self, student: &str) -> Desk {
        let all = self.containers_of(student).await;
        let [(host, found)] = &all[..] else { panic!("not one container of {student}: {all:#?}") };
        assert!(found.running, "{student} does not run: {found:#?}");
        let inspected = self.hosts[*host].docker().inspect(&found.id).await;
        let started_at = inspected.state.and_then(|state| state.started_at).expect("it was started");
        Desk { host: *host, id: found.id.clone(), generation: found.generation, started_at }
    }

    /// The state of a host's node, as the database has it.
    pub async fn state_of(&self, host: usize) -> String {
        let name = self.hosts[host].name();
        self.database.text(&format!("SELECT state FROM nodes WHERE facts->>'hostname' = '{name}'")).await
    }

    /// The node that a host is, as `nodes/{id}`.
    pub async fn node_of(&self, host: usize) -> String {
        let name = self.hosts[host].name();
        let query = format!("SELECT 'nodes/' || id FROM nodes WHERE facts->>'hostname' = '{name}'");
        self.database.text(&query).await
    }

    /// The sessions that a host's agent has had.
    pub async fn sessions_of(&self, host: usize) -> i64 {
        let name = self.hosts[host].name();
        let query = format!(
            "SELECT coalesce(max(session_epoch), 0)::text FROM nodes
             WHERE facts->>'hostname' = '{name}' AND last_heartbeat_at IS NOT NULL"
        );
        self.database.text(&query).await.parse().expect("a number")
    }

    /// Waits until a host's agent has had more sessions than this and is heard.
    pub async fn wait_for_agent(&mut self, host: usize, before: i64) {
        let start = Instant::now();
        while self.sessions_of(host).await <= before {
            let agent = self.hosts[host].agent();
            assert!(agent.ended().is_none(), "the agent ended:\n{}", agent.log_tail(30));
            assert!(start.elapsed() < Duration::from_secs(30), "not connected:\n{}", agent.log_tail(30));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The address of this machine that hosts see.
    pub fn hub(&self) -> std::net::Ipv4Addr {
        self.network.hub()
    }

    /// The name of the rig's bridge, and of all that it makes outside its directory.
    pub fn name(&self) -> String {
        self.network.bridge()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // What hangs on the share could not be ended.
        self.share.let_go();
    }
}

fn flags(named: &[(String, String)]) -> impl Iterator<Item = String> {
    named.iter().map(|(name, value)| format!("--{name}={value}"))
}

fn migrate(database: &Database) {
    let output = Command::new(settings::binary("control-plane"))
        .args(["migrate", "--database-url", &database.url()])
        .output()
        .expect("control-plane starts");
    assert!(output.status.success(), "migrate: {}", String::from_utf8_lossy(&output.stderr));
}

/// Removes what rigs of killed tests left. Their own processes ended with them, containers did not.
pub(crate) fn clear_up() {
    for (dir, notes) in left_behind(PREFIX) {
        if let [bridge] = &notes[..] {
            let hosts = std::fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path());
            host::clear_up(hosts, bridge);
            network::clear_up(bridge);
        }
        share::clear_up(&dir.join("share"));
        let _ = std::fs::remove_dir_all(dir);
    }
}
