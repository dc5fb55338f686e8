//! Whether a drain may break an exam that is set after it.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(super) struct Migration;

// Those under way keep their deadlines.
const UP: &str = "ALTER TABLE nodes ADD COLUMN drain_forced boolean NOT NULL DEFAULT true;";

const DOWN: &str = "ALTER TABLE nodes DROP COLUMN drain_forced;";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(UP).await.map(|_| ())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(DOWN).await.map(|_| ())
    }
}
