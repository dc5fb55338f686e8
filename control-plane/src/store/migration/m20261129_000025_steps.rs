//! How much of a pause is a step of the clock, and how much passed.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(super) struct Migration;

// Of those before nobody knows.
const UP: &str = "ALTER TABLE pauses ADD COLUMN set_forward_seconds float8 NOT NULL DEFAULT 0;";

const DOWN: &str = "ALTER TABLE pauses DROP COLUMN set_forward_seconds;";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(UP).await.map(|_| ())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(DOWN).await.map(|_| ())
    }
}
