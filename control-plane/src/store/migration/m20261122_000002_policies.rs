//! Policies, what could not be observed, and when each kind of signal was last seen.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(super) struct Migration;

const UP: &str = r"
CREATE TABLE policies (
    scope text PRIMARY KEY,
    version bigint NOT NULL DEFAULT 1,
    policy jsonb NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
-- Times in which nobody's activity could be recorded: they are not idleness.
CREATE TABLE pauses (
    from_at timestamptz NOT NULL,
    to_at timestamptz NOT NULL
);
CREATE INDEX pauses_to ON pauses (to_at);
-- rules_version rises with each change of a policy and each pause; alive_at is the last sign of life of any replica.
ALTER TABLE cluster ADD COLUMN rules_version bigint NOT NULL DEFAULT 1,
                    ADD COLUMN alive_at timestamptz NOT NULL DEFAULT clock_timestamp();
ALTER TABLE workspace_activity ADD COLUMN lms_input_at timestamptz,
                               ADD COLUMN editor_input_at timestamptz,
                               ADD COLUMN keep_working_at timestamptz;
";

const DOWN: &str = "
ALTER TABLE workspace_activity DROP COLUMN lms_input_at, DROP COLUMN editor_input_at, DROP COLUMN keep_working_at;
ALTER TABLE cluster DROP COLUMN rules_version, DROP COLUMN alive_at;
DROP TABLE pauses, policies;
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
