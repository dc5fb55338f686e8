//! Nodes that are banned while something may still run on them.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(super) struct Migration;

// What was removed is banned as well, with or without this.
const UP: &str = "ALTER TABLE nodes ADD COLUMN banned_at timestamptz;";

const DOWN: &str = "ALTER TABLE nodes DROP COLUMN banned_at;";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(UP).await.map(|_| ())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(DOWN).await.map(|_| ())
    }
}
