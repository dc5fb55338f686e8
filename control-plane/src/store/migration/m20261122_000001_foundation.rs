//! Workspaces, their activity, nodes, placements, the event log, answered requests.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(super) struct Migration;

const UP: &str = r"
CREATE TABLE cluster (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    cluster_id uuid NOT NULL DEFAULT gen_random_uuid(),
    incarnation bigint NOT NULL DEFAULT 1,
    pruned_position text NOT NULL DEFAULT ''
);
INSERT INTO cluster DEFAULT VALUES;

CREATE TABLE nodes (
    id uuid PRIMARY KEY,
    secret_hash text NOT NULL,
    facts jsonb NOT NULL,
    docker jsonb NOT NULL,
    storage jsonb NOT NULL,
    state text NOT NULL,
    session_epoch bigint NOT NULL DEFAULT 0,
    boot_epoch bigint NOT NULL DEFAULT 0,
    desired_generation bigint NOT NULL DEFAULT 0,
    renewals bigint NOT NULL DEFAULT 0,
    last_heartbeat_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 70);

CREATE TABLE workspaces (
    id uuid PRIMARY KEY,
    student_id text NOT NULL,
    course_id text,
    state text NOT NULL,
    state_since timestamptz NOT NULL,
    desired text NOT NULL,
    generation bigint NOT NULL,
    version bigint NOT NULL,
    status_reason jsonb,
    status_message text NOT NULL,
    stage jsonb,
    node_id uuid REFERENCES nodes (id),
    last_node_id uuid,
    spec jsonb NOT NULL,
    image_digest text NOT NULL,
    endpoint text,
    stop jsonb,
    force boolean NOT NULL,
    warning jsonb,
    extended_until timestamptz,
    resumed_at timestamptz,
    deletion jsonb,
    deleted_at timestamptz,
    created_at timestamptz NOT NULL,
    started_at timestamptz,
    ready_at timestamptz,
    updated_at timestamptz NOT NULL,
    traceparent text NOT NULL
) WITH (fillfactor = 80);
-- One student has one desk; a deleted one stays as a tombstone, so that its generations never begin again.
CREATE UNIQUE INDEX workspaces_student ON workspaces (lower(student_id)) WHERE deleted_at IS NULL;
CREATE INDEX workspaces_tombstones ON workspaces (lower(student_id)) WHERE deleted_at IS NOT NULL;
-- The loops look only at these; a stopped workspace costs them nothing.
CREATE INDEX workspaces_moving ON workspaces (state) WHERE state IN ('PENDING', 'STARTING', 'STOPPING');
CREATE INDEX workspaces_running ON workspaces (id) WHERE state = 'RUNNING';
CREATE INDEX workspaces_deleting ON workspaces (id) WHERE deletion IS NOT NULL AND deleted_at IS NULL;
CREATE INDEX workspaces_node ON workspaces (node_id) WHERE node_id IS NOT NULL;

-- Narrow, with room on each page and no index but the key: a heartbeat is then a heap-only update.
CREATE TABLE workspace_activity (
    workspace_id uuid PRIMARY KEY REFERENCES workspaces (id) ON DELETE CASCADE,
    last_active_at timestamptz,
    last_signal text,
    version bigint NOT NULL DEFAULT 0,
    closed boolean NOT NULL DEFAULT true
) WITH (fillfactor = 50);

CREATE TABLE placements (
    id uuid PRIMARY KEY,
    workspace_id uuid NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    node_id uuid NOT NULL REFERENCES nodes (id),
    generation bigint NOT NULL,
    spec jsonb NOT NULL,
    cpu_millicores bigint NOT NULL,
    memory_bytes bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    released_at timestamptz
);
-- At most one unreleased placement a workspace: the database keeps this promise, not our care.
CREATE UNIQUE INDEX placements_unreleased ON placements (workspace_id) WHERE released_at IS NULL;
CREATE INDEX placements_of_node ON placements (node_id) WHERE released_at IS NULL;
CREATE INDEX placements_released ON placements (released_at) WHERE released_at IS NOT NULL;

-- Read in the order (xid, id) and only below the oldest open transaction: an event that commits late is never missed.
CREATE TABLE events (
    id bigserial PRIMARY KEY,
    xid bigint NOT NULL DEFAULT (pg_current_xact_id()::text::bigint),
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind text NOT NULL,
    workspace_id uuid,
    student_id text,
    node_id uuid,
    actor text NOT NULL,
    reason text NOT NULL,
    data jsonb NOT NULL
);
CREATE INDEX events_order ON events (xid, id);
CREATE INDEX events_student ON events (lower(student_id), xid, id) WHERE student_id IS NOT NULL;
CREATE INDEX events_node ON events (node_id, xid, id) WHERE node_id IS NOT NULL;
CREATE INDEX events_at ON events (at);

CREATE TABLE requests (
    rpc text NOT NULL,
    request_id uuid NOT NULL,
    fingerprint text NOT NULL,
    answer jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (rpc, request_id)
);
CREATE INDEX requests_created ON requests (created_at);
";

const DOWN: &str = "DROP TABLE requests, events, placements, workspace_activity, workspaces, nodes, cluster;";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(UP).await.map(|_| ())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(DOWN).await.map(|_| ())
    }
}
