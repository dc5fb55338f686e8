//! Logs that a caller wants of a replica which does not hold the node's session.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(super) struct Migration;

// Unlogged: a log that was cut off by a crash is asked for anew, and what passes through here is not worth a WAL.
const UP: &str = r"
CREATE UNLOGGED TABLE log_tails (
    id bigserial PRIMARY KEY,
    node_id uuid NOT NULL,
    workspace_id uuid NOT NULL,
    lines integer NOT NULL,
    follow boolean NOT NULL,
    wanted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    served_at timestamptz
);
CREATE INDEX log_tails_unserved ON log_tails (id) WHERE served_at IS NULL;
CREATE UNLOGGED TABLE log_pieces (
    id bigserial PRIMARY KEY,
    tail_id bigint NOT NULL REFERENCES log_tails (id) ON DELETE CASCADE,
    generation bigint NOT NULL,
    text bytea NOT NULL, -- programs print noughts, which Postgres' text refuses
    broken text,
    is_end boolean NOT NULL
);
CREATE INDEX log_pieces_of_tail ON log_pieces (tail_id, id);
";

const DOWN: &str = "DROP TABLE log_pieces, log_tails;";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(UP).await.map(|_| ())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(DOWN).await.map(|_| ())
    }
}
