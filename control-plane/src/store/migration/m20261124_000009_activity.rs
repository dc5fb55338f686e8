//! A time for each kind of signal instead of one for all, so that the policy says what counts; the generation that reports
//! are checked against; declared jobs; warnings that have arrived; whether a node has told all that it saw.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(super) struct Migration;

const UP: &str = "
ALTER TABLE workspace_activity ADD COLUMN generation bigint NOT NULL DEFAULT 0,
                               ADD COLUMN job_at timestamptz,
                               ADD COLUMN awake_until timestamptz,
                               ADD COLUMN awake_granted_seconds float8 NOT NULL DEFAULT 0,
                               ADD COLUMN acked_warning_at timestamptz,
                               ADD COLUMN warning_acked_at timestamptz,
                               DROP COLUMN last_active_at,
                               DROP COLUMN last_signal;
UPDATE workspace_activity a SET generation = w.generation FROM workspaces w WHERE w.id = a.workspace_id;
ALTER TABLE nodes ADD COLUMN told boolean NOT NULL DEFAULT false;
";

const DOWN: &str = "
ALTER TABLE nodes DROP COLUMN told;
ALTER TABLE workspace_activity ADD COLUMN last_active_at timestamptz, ADD COLUMN last_signal text;
UPDATE workspace_activity SET last_active_at = greatest(lms_input_at, editor_input_at, keep_working_at),
       last_signal = CASE greatest(lms_input_at, editor_input_at, keep_working_at)
           WHEN lms_input_at THEN 'LMS_INPUT' WHEN editor_input_at THEN 'EDITOR_INPUT'
           WHEN keep_working_at THEN 'KEEP_WORKING' END;
ALTER TABLE workspace_activity DROP COLUMN generation, DROP COLUMN job_at, DROP COLUMN awake_until,
                               DROP COLUMN awake_granted_seconds, DROP COLUMN acked_warning_at,
                               DROP COLUMN warning_acked_at;
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
