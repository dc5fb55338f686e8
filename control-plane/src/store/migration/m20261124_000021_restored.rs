//! A store that has gone back in time: what shows it, what was declared, and which nodes have told since what they run.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(super) struct Migration;

const UP: &str = r"
-- behind_*: an agent has shown that the store went back in time: since when, which, by what. seen_incarnation: the highest that any
-- of them named. declared_at: when an operator declared the store restored. awaited_nodes: nodes that have not told yet, since
-- then or since the store is behind, what they run. awaits_unknown: the declared store knew of no node at all. awaits: false when
-- the operator said that all have told or are dead. A row of its own, the last of all locks: that of the cluster is taken each
-- second by who then goes on to nodes and workspaces.
CREATE TABLE restoration (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    behind_since timestamptz,
    behind_node uuid,
    behind_evidence text NOT NULL DEFAULT '',
    seen_incarnation bigint NOT NULL DEFAULT 0,
    declared_at timestamptz,
    awaited_nodes uuid[] NOT NULL DEFAULT '{}',
    awaits_unknown boolean NOT NULL DEFAULT false,
    awaits boolean NOT NULL DEFAULT true
);
INSERT INTO restoration DEFAULT VALUES;
-- The incarnation in which its node last confirmed that the container is there; 0: in none after the one it was made in.
ALTER TABLE placements ADD COLUMN confirmed_in bigint NOT NULL DEFAULT 0;
-- agent_process, agent_connected: the process that holds the session, and whether its stream stands as far as is known.
-- challenger*: a second one that says it is this node, since when, and whether operators were told.
ALTER TABLE nodes ADD COLUMN agent_process text NOT NULL DEFAULT '',
                  ADD COLUMN agent_connected boolean NOT NULL DEFAULT false,
                  ADD COLUMN challenger text NOT NULL DEFAULT '',
                  ADD COLUMN challenged_at timestamptz,
                  ADD COLUMN challenge_told boolean NOT NULL DEFAULT false,
                  ADD COLUMN stops_withheld int NOT NULL DEFAULT 0;
-- What the container says it was made of; null when it does not say.
ALTER TABLE orphans ADD COLUMN spec jsonb;
";

const DOWN: &str = "
ALTER TABLE orphans DROP COLUMN spec;
ALTER TABLE nodes DROP COLUMN agent_process, DROP COLUMN agent_connected, DROP COLUMN challenger, DROP COLUMN challenged_at,
                  DROP COLUMN challenge_told, DROP COLUMN stops_withheld;
ALTER TABLE placements DROP COLUMN confirmed_in;
DROP TABLE restoration;
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
