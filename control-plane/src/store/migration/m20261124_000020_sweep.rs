//! The sweep finds what may be due without reading what is stopped, and without reading every workspace that runs.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(super) struct Migration;

// No heartbeat changes `closed`, so each stays a heap-only update.
const UP: &str = "
CREATE INDEX workspace_activity_open ON workspace_activity (workspace_id) WHERE NOT closed;
CREATE INDEX workspaces_warned ON workspaces (id) WHERE warning IS NOT NULL;
CREATE INDEX workspaces_ready ON workspaces (ready_at) WHERE state = 'RUNNING';
";

const DOWN: &str = "DROP INDEX workspace_activity_open, workspaces_warned, workspaces_ready;";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(UP).await.map(|_| ())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(DOWN).await.map(|_| ())
    }
}
