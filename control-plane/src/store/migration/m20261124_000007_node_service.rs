//! Nodes that are taken out of service, and the containers that were left alone.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(super) struct Migration;

const UP: &str = r"
-- cordon_reason: nothing is placed there; NULL is schedulable. A drain ends when it is lifted; drained_at: it is empty.
ALTER TABLE nodes ADD COLUMN cordon_reason text,
                  ADD COLUMN drain_deadline_at timestamptz,
                  ADD COLUMN drain_reason text,
                  ADD COLUMN drained_at timestamptz;
-- As the node last reported them; a row goes when it is no longer reported. withheld: a stop that the node's breaker
-- held back. resolution: an operator's word.
CREATE TABLE orphans (
    node_id uuid NOT NULL REFERENCES nodes (id),
    container_id text NOT NULL,
    workspace_id uuid NOT NULL,
    student_id text NOT NULL,
    generation bigint NOT NULL,
    incarnation bigint NOT NULL,
    made_by uuid NOT NULL,
    placement_id uuid,
    running boolean NOT NULL,
    verdict text NOT NULL,
    reason text NOT NULL,
    withheld boolean NOT NULL DEFAULT false,
    first_seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    resolution text,
    PRIMARY KEY (node_id, container_id)
);
";

const DOWN: &str = "
DROP TABLE orphans;
ALTER TABLE nodes DROP COLUMN cordon_reason, DROP COLUMN drain_deadline_at, DROP COLUMN drain_reason,
                  DROP COLUMN drained_at;
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
