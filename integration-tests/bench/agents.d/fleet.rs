//! Enrols the agents, gives each its workspaces, and lets them run.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use carrel_proto::v1 as pb;
use carrel_proto::v1::agent_service_client::AgentServiceClient;
use carrel_proto::v1::workspace::State;
use futures_util::StreamExt as _;
use integration_tests::bench::fill;
use integration_tests::bench::replica::Replica;
use sqlx::postgres::PgPoolOptions;
use tokio::task::JoinSet;

use crate::agent::Agent;
use crate::desks::{Desk, Desks};
use crate::tally::Tally;

/// Enrolments at once.
const ENROLMENTS: usize = 16;

pub(crate) struct Fleet {
    tally: Arc<Tally>,
    desks: Vec<Arc<Mutex<Desks>>>,
    _agents: JoinSet<()>,
}

impl Fleet {
    pub(crate) async fn start(replica: &Replica, agents: u32, desks_each: u32) -> Self {
        let channel = replica.agents().connect_lazy();
        let enrol = |number: u32| {
            let (mut client, facts) = (AgentServiceClient::new(channel.clone()), facts(number));
            async move {
                let request = pb::EnrollRequest { facts: Some(facts.clone()), ..Default::default() };
                (number, facts, client.enroll(request).await.expect("enrolled").into_inner())
            }
        };
        let enrolled: Vec<_> =
            futures_util::stream::iter(0..agents).map(enrol).buffer_unordered(ENROLMENTS).collect().await;
        let pool =
            PgPoolOptions::new().max_connections(1).connect(&replica.database().url()).await.expect("a pool");
        let tally = Arc::new(Tally::default());
        let (mut all, mut tasks) = (Vec::new(), JoinSet::new());
        for (number, facts, identity) in enrolled {
            let desks = Arc::new(Mutex::new(Desks::new(
                desks_of(&pool, &identity.node_id, number, desks_each).await,
            )));
            all.push(Arc::clone(&desks));
            let agent = Agent {
                endpoint: replica.agents(),
                node: identity.node_id,
                secret: identity.secret,
                facts,
                desks,
                tally: Arc::clone(&tally),
            };
            tasks.spawn(agent.run());
        }
        sqlx::query("VACUUM ANALYZE").execute(&pool).await.expect("vacuum");
        Self { tally, desks: all, _agents: tasks }
    }

    pub(crate) fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.tally)
    }

    /// Workspaces that the agents hold.
    pub(crate) fn held(&self) -> usize {
        self.desks.iter().map(|desks| desks.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }
}

async fn desks_of(pool: &sqlx::PgPool, node: &str, number: u32, desks: u32) -> BTreeMap<String, Desk> {
    let first = i64::from(number) * i64::from(desks) + 1;
    let numbers = [first, first + i64::from(desks) - 1];
    let node = node.parse().expect("a node's id");
    let rows = fill::fill(pool, node, numbers, State::Running).await;
    let desk = |(uid, placement, student): fill::Placed| {
        let desk = Desk {
            student,
            generation: 1,
            incarnation: 1,
            placement: placement.to_string(),
            ready_at: Instant::now(),
            active_at: None,
        };
        (uid.to_string(), desk)
    };
    rows.into_iter().map(desk).collect()
}

/// A host with room for all it is given and more.
fn facts(number: u32) -> pb::NodeFacts {
    pb::NodeFacts {
        hostname: format!("host-{number}"),
        machine_id: format!("{number:032x}"),
        boot_id: uuid::Uuid::new_v4().to_string(),
        docker_id: format!("docker-{number}"),
        docker_version: "20.10".into(),
        agent_version: "0.1.0".into(),
        cpu_millicores: 32_000,
        memory_bytes: 256 << 30,
        max_workspaces: 200,
        advertise_address: "127.0.0.1".into(),
        ..Default::default()
    }
}
