//! What a node tells of students whom the store has never placed on it keeps nobody waiting.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(super) struct Migration;

// What is there counts as before until its node tells of it again.
const UP: &str = "ALTER TABLE orphans ADD COLUMN own boolean NOT NULL DEFAULT true;";

const DOWN: &str = "ALTER TABLE orphans DROP COLUMN own;";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(UP).await.map(|_| ())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(DOWN).await.map(|_| ())
    }
}
