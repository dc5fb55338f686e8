//! A control plane over a database full of running workspaces.

use std::time::Duration;

use carrel_proto::v1::policy_service_client::PolicyServiceClient;
use carrel_proto::v1::workspace::State;
use carrel_proto::v1::workspace_service_client::WorkspaceServiceClient;
use integration_tests::bench::fill::fill;
use integration_tests::bench::replica::Replica;
use integration_tests::database::Database;
use integration_tests::own_postgres::OwnPostgres;
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgPool, PgPoolOptions};
use tonic::transport::Channel;

const NODE: uuid::Uuid = uuid::Uuid::from_u128(1);

/// A node that was heard of, so that nobody gives its workspaces up, in a session that stands, so that they are decided about.
const INSERT_NODE: &str = "
INSERT INTO nodes (id, secret_hash, facts, docker, storage, state, told, agent_connected, last_heartbeat_at)
VALUES ($1, '',
        '{\"hostname\": \"h\", \"machine_id\": \"m\", \"boot_id\": \"b\", \"docker_id\": \"d\", \"docker_version\": \"20\", \"agent_version\": \"0\",
          \"cpu_millicores\": 1, \"memory_bytes\": 1, \"max_workspaces\": 1, \"advertise_address\": \"127.0.0.1\"}',
        '{\"problem\": null, \"age\": {\"secs\": 0, \"nanos\": 0}}', '{\"problem\": null, \"age\": {\"secs\": 0, \"nanos\": 0}}',
        'READY', true, true, now())";

/// What is measured.
pub(crate) struct Desks {
    pub(crate) running: u64,
    pub(crate) pool: PgPool,
    replica: Replica,
}

impl Desks {
    /// Starts a control plane and fills its database.
    pub(crate) async fn start(postgres: &OwnPostgres, running: u64) -> Self {
        // No agent takes part; a minute of warning and a day of silence keep everything as it was filled in.
        let flags = ["--heartbeat-interval=8h", "--unreachable-after=24h", "--fence-after=48h"];
        let replica = Replica::start(postgres, &flags).await;
        let url = replica.database().url();
        let pool = PgPoolOptions::new().max_connections(8).connect(&url).await.expect("a pool");
        sqlx::query(INSERT_NODE).bind(NODE).execute(&pool).await.expect("a node");
        let desks = Self { running, pool, replica };
        desks.fill(1, running, State::Running).await;
        desks
    }

    /// Makes workspaces with these numbers, and lets Postgres know of them.
    pub(crate) async fn fill(&self, first: u64, last: u64, state: State) {
        let numbers = [first, last].map(|n| i64::try_from(n).expect("a number"));
        fill(&self.pool, NODE, numbers, state).await;
        for table in ["workspaces", "workspace_activity", "placements"] {
            let vacuum = AssertSqlSafe(format!("VACUUM ANALYZE {table}"));
            sqlx::query(vacuum).execute(&self.pool).await.expect("vacuum");
        }
    }

    pub(crate) fn database(&self) -> &Database {
        self.replica.database()
    }

    /// Time of the control plane on a processor so far.
    pub(crate) fn busy(&self) -> Duration {
        self.replica.busy()
    }

    pub(crate) async fn text(&self, query: &str) -> String {
        self.database().text(query).await
    }

    pub(crate) fn workspaces(&self) -> WorkspaceServiceClient<Channel> {
        WorkspaceServiceClient::new(self.replica.channel()).max_decoding_message_size(64 << 20)
    }

    pub(crate) fn policies(&self) -> PolicyServiceClient<Channel> {
        PolicyServiceClient::new(self.replica.channel())
    }
}

/// The name of one of so many workspaces, drawn evenly.
pub(crate) fn any_of(running: u64) -> String {
    format!("workspaces/student-{}", rand::random_range(1..=running))
}
