//! Workspaces that are written into a database as if an agent had brought them up: no container runs.

use carrel_proto::v1::workspace::State;
use sqlx::postgres::PgPool;

/// `$1`: node, `$2`: first number, `$3`: last number, `$4`: state. What runs has its place on the node. A trigger copies into each row of
/// activity what it has of its workspace, which was made before it.
const FILL: &str = "
WITH made AS (
    INSERT INTO workspaces (id, student_id, course_id, state, state_since, desired, generation, version, status_message, spec,
                            image_digest, endpoint, force, created_at, started_at, ready_at, updated_at, traceparent, node_id, last_node_id)
    SELECT gen_random_uuid(), 'student-' || n, 'course-' || n % 100, $4, now(), $4, 1, 1, '',
           '{\"image\": \"carrel/workspace:dev\", \"resources\": {\"cpu_millicores\": 1000, \"memory_bytes\": 1073741824, \"pids\": 512},
             \"probe_port\": 8080, \"probe_path\": \"/healthz\"}',
           '', '127.0.0.1:1', false, now(), now(), now(), now(), '', CASE $4 WHEN 'RUNNING' THEN $1 END, $1
    FROM generate_series($2, $3) AS n
    RETURNING id, student_id, spec, node_id
), active AS (
    INSERT INTO workspace_activity (workspace_id, closed, generation, lms_input_at) SELECT id, node_id IS NULL, 1, now() FROM made
), placed AS (
    INSERT INTO placements (id, workspace_id, node_id, generation, spec, cpu_millicores, memory_bytes, incarnation)
    SELECT gen_random_uuid(), id, node_id, 1, spec, 1000, 1073741824, 1 FROM made WHERE node_id IS NOT NULL
    RETURNING workspace_id, id
)
SELECT made.id, placed.id, made.student_id FROM made JOIN placed ON placed.workspace_id = made.id";

/// A workspace that runs: its id, that of its placement, and its student.
pub type Placed = (uuid::Uuid, uuid::Uuid, String);

/// Makes workspaces of the students with these numbers, which run on a node, or were stopped there; those that run.
pub async fn fill(pool: &PgPool, node: uuid::Uuid, [first, last]: [i64; 2], state: State) -> Vec<Placed> {
    let state = state.as_str_name().trim_start_matches("STATE_");
    let rows = sqlx::query_as(FILL).bind(node).bind(first).bind(last).bind(state);
    rows.fetch_all(pool).await.expect("workspaces")
}
