//! Leases: what a node was promised, and what becomes of one that is given up.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(super) struct Migration;

const UP: &str = r"
-- leased_seconds: how long after its last ack the node goes on, as its agent was told; NULL: it was told nothing.
-- fenced_at: when it was last given up. releasing: its workspaces are still to be moved or stopped.
-- replacement_held: it would have been given up, but for so many others that were silent, too.
ALTER TABLE nodes ADD COLUMN leased_seconds double precision,
                  ADD COLUMN fenced_at timestamptz,
                  ADD COLUMN releasing boolean NOT NULL DEFAULT false,
                  ADD COLUMN replacement_held boolean NOT NULL DEFAULT false;
";

const DOWN: &str = "
ALTER TABLE nodes DROP COLUMN leased_seconds, DROP COLUMN fenced_at, DROP COLUMN releasing, DROP COLUMN replacement_held;
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
