//! Join tokens, when a node's certificate ends, and nodes taken out for good.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(super) struct Migration;

const UP: &str = r"
CREATE TABLE join_tokens (
    secret_hash text PRIMARY KEY,
    -- The node that may come back with it.
    node_id uuid REFERENCES nodes (id),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL,
    used_at timestamptz,
    used_by uuid REFERENCES nodes (id),
    -- Names the key of the host that used it, which may ask for the answer again until the node has had a session.
    used_key text,
    used_epoch bigint
);
-- A node with a certificate has no secret.
ALTER TABLE nodes ALTER COLUMN secret_hash DROP NOT NULL,
                  ADD COLUMN certificate_expires_at timestamptz,
                  ADD COLUMN removed_at timestamptz;
";

const DOWN: &str = "
ALTER TABLE nodes DROP COLUMN certificate_expires_at, DROP COLUMN removed_at;
UPDATE nodes SET secret_hash = '' WHERE secret_hash IS NULL;
ALTER TABLE nodes ALTER COLUMN secret_hash SET NOT NULL;
DROP TABLE join_tokens;
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
