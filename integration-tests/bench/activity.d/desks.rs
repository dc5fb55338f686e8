//! A control plane over a database full of running workspaces.

use std::process::Command;
use std::time::{Duration, Instant};

use carrel_proto::v1::policy_service_client::PolicyServiceClient;
use carrel_proto::v1::workspace_service_client::WorkspaceServiceClient;
use integration_tests::database::Database;
use integration_tests::own_postgres::OwnPostgres;
use integration_tests::process::Process;
use integration_tests::{http, settings};
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgPool, PgPoolOptions};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

/// A node that was heard of, so that nobody gives its workspaces up.
const NODE: &str = "
INSERT INTO nodes (id, secret_hash, facts, docker, storage, state, told, last_heartbeat_at)
VALUES ('00000000-0000-7000-8000-000000000001', '',
        '{\"hostname\": \"h\", \"machine_id\": \"m\", \"boot_id\": \"b\", \"docker_id\": \"d\", \"docker_version\": \"20\", \"agent_version\": \"0\",
          \"cpu_millicores\": 1, \"memory_bytes\": 1, \"max_workspaces\": 1, \"advertise_address\": \"127.0.0.1\"}',
        '{\"problem\": null, \"age\": {\"secs\": 0, \"nanos\": 0}}', '{\"problem\": null, \"age\": {\"secs\": 0, \"nanos\": 0}}',
        'READY', true, now())";

/// `$1`: first number, `$2`: last number, `$3`: state.
const DESKS: &str = "
WITH made AS (
    INSERT INTO workspaces (id, student_id, course_id, state, state_since, desired, generation, version, status_message, spec,
                            image_digest, endpoint, force, created_at, started_at, ready_at, updated_at, traceparent, node_id, last_node_id)
    SELECT gen_random_uuid(), 'student-' || n, 'course-' || n % 100, $3, now(), CASE $3 WHEN 'RUNNING' THEN 'RUNNING' ELSE 'STOPPED' END, 1, 1, '',
           '{\"image\": \"i\", \"resources\": {\"cpu_millicores\": 1000, \"memory_bytes\": 1073741824, \"pids\": 512}, \"probe_port\": 8080,
             \"probe_path\": \"/healthz\"}',
           '', '127.0.0.1:1', false, now(), now(), now(), now(), '',
           '00000000-0000-7000-8000-000000000001', '00000000-0000-7000-8000-000000000001'
    FROM generate_series($1, $2) AS n
    RETURNING id, state
)
INSERT INTO workspace_activity (workspace_id, closed, generation, lms_input_at)
SELECT id, state <> 'RUNNING', 1, now() FROM made";

/// What is measured.
pub(crate) struct Desks {
    pub(crate) running: u64,
    pub(crate) pool: PgPool,
    database: Database,
    address: String,
    _control_plane: Process,
    _dir: TempDir,
}

impl Desks {
    /// Fills a database and starts a control plane over it.
    pub(crate) async fn start(postgres: &OwnPostgres, running: u64) -> Self {
        let database = Database::create(&postgres.url()).await;
        let program = settings::binary("control-plane");
        let migrated = Command::new(&program)
            .args(["migrate", "--database-url", &database.url()])
            .status()
            .expect("migrate");
        assert!(migrated.success(), "migrate");
        let pool = PgPoolOptions::new().max_connections(8).connect(&database.url()).await.expect("a pool");
        sqlx::query(NODE).execute(&pool).await.expect("a node");
        let dir = tempfile::tempdir().expect("a directory");
        let (port, agents) = (settings::free_port(), settings::free_port());
        let address = format!("127.0.0.1:{port}");
        let mut command = Command::new(program);
        command
            .args(["serve", "--dev", "--log=warn", "--database-url", &database.url(), "--listen", &address])
            .args(["--agent-listen", &format!("127.0.0.1:{agents}")])
            // No agent takes part; a minute of warning and a day of silence keep everything as it was filled in.
            .args(["--unreachable-after=24h", "--fence-after=48h"]);
        let control_plane = Process::spawn("control-plane", &mut command, &dir.path().join("log"));
        let desks = Self { running, pool, database, address, _control_plane: control_plane, _dir: dir };
        desks.fill(1, running, "RUNNING").await;
        let start = Instant::now();
        while !http::is_ok(&format!("http://{}/readyz", desks.address)).await {
            assert!(start.elapsed() < Duration::from_secs(30), "the control plane is not ready");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        desks
    }

    /// Makes workspaces with these numbers, and lets Postgres know of them.
    pub(crate) async fn fill(&self, first: u64, last: u64, state: &str) {
        let number = |n: u64| i64::try_from(n).expect("a number");
        sqlx::query(DESKS)
            .bind(number(first))
            .bind(number(last))
            .bind(state)
            .execute(&self.pool)
            .await
            .expect("workspaces");
        for table in ["workspaces", "workspace_activity"] {
            sqlx::query(AssertSqlSafe(format!("VACUUM ANALYZE {table}")))
                .execute(&self.pool)
                .await
                .expect("vacuum");
        }
    }

    pub(crate) async fn text(&self, query: &str) -> String {
        self.database.text(query).await
    }

    pub(crate) fn database_url(&self) -> String {
        self.database.url()
    }

    fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address))
            .expect("an address")
            .tcp_nodelay(true)
            .connect_lazy()
    }

    pub(crate) fn workspaces(&self) -> WorkspaceServiceClient<Channel> {
        WorkspaceServiceClient::new(self.channel()).max_decoding_message_size(64 << 20)
    }

    pub(crate) fn policies(&self) -> PolicyServiceClient<Channel> {
        PolicyServiceClient::new(self.channel())
    }

    /// The name of a workspace drawn evenly.
    pub(crate) fn any(&self) -> String {
        format!("workspaces/student-{}", rand::random_range(1..=self.running))
    }
}
