//! What placements are chosen by, and what a waiting workspace is told: images, failed starts, how long things took.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(super) struct Migration;

const UP: &str = r"
-- Apart from the node's row, which every heartbeat writes anew: the list is longer than the rest of it.
CREATE TABLE node_images (
    node_id uuid PRIMARY KEY REFERENCES nodes (id) ON DELETE CASCADE,
    images text[] NOT NULL
);
-- Starts that failed and may have been the node's fault. proven: the same start came up on another node. over: a start
-- came up on the node since, or an operator took its cordon away.
CREATE TABLE start_failures (
    id bigserial PRIMARY KEY,
    node_id uuid NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    workspace_id uuid NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    reason text NOT NULL,
    proven boolean NOT NULL DEFAULT false,
    over boolean NOT NULL DEFAULT false
);
CREATE INDEX start_failures_at ON start_failures (at);
CREATE INDEX start_failures_of_node ON start_failures (node_id) WHERE NOT over;
CREATE INDEX start_failures_unproven ON start_failures (workspace_id) WHERE NOT proven;

-- attempts: the nodes that this start has failed on, and since when it has been tried.
ALTER TABLE workspaces ADD COLUMN pull_percent smallint NOT NULL DEFAULT 0,
                       ADD COLUMN attempts jsonb;
-- ready_at: the editor first answered; stop_seconds: from the order to stop to the proof. What waits is told by these when
-- it may be ready.
ALTER TABLE placements ADD COLUMN ready_at timestamptz,
                       ADD COLUMN stop_seconds double precision;
CREATE INDEX placements_ready ON placements (ready_at) WHERE ready_at IS NOT NULL;
-- The sums of what nodes hold, and how many places each course has on each node, are read from the indexes alone.
DROP INDEX placements_of_node;
CREATE INDEX placements_of_node ON placements (node_id) INCLUDE (cpu_millicores, memory_bytes) WHERE released_at IS NULL;
CREATE INDEX workspaces_places ON workspaces (course_id, node_id) WHERE node_id IS NOT NULL;
";

const DOWN: &str = "
DROP INDEX workspaces_places, placements_of_node, placements_ready;
CREATE INDEX placements_of_node ON placements (node_id) WHERE released_at IS NULL;
ALTER TABLE placements DROP COLUMN ready_at, DROP COLUMN stop_seconds;
ALTER TABLE workspaces DROP COLUMN pull_percent, DROP COLUMN attempts;
DROP TABLE start_failures, node_images;
";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(UP).await.map(|_| ())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(DOWN).await.map(|_| ())
    }
}
