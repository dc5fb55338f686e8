//! All that a heartbeat needs in the one row that it writes: whose that is, and what a deadline is derived from beside activity.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(super) struct Migration;

/// What is copied from the row `w` of workspaces, in this order everywhere below. A deleted workspace gives its student's key
/// free. As `StudentId::key` has it: only ASCII is lowered, whatever the database's locale.
const COPIES: &str =
    "student_key, running, course_id, node_id, ready_at, extended_until, resumed_at, warning";
const COPIED: &str = r#"
    CASE WHEN w.deleted_at IS NULL THEN lower(w.student_id COLLATE "C") END, w.state = 'RUNNING',
    w.course_id, w.node_id, w.ready_at, w.extended_until, w.resumed_at, w.warning"#;

// running: the copies after it are those of the workspace; of one that does not run they mean nothing, and so a start that is placed
// writes no second row. Kept by the database itself, so that no statement can forget it: whoever changes what is copied holds the row
// of activity already. No heartbeat changes the key, so each stays a heap-only update. A session plans what its triggers do once, maybe
// while the tables are small, and does it for as long as it lasts: so by the index.
const UP: &str = r#"
ALTER TABLE workspace_activity ADD COLUMN student_key text COLLATE "C",
                               ADD COLUMN running boolean NOT NULL DEFAULT false,
                               ADD COLUMN course_id text,
                               ADD COLUMN node_id uuid,
                               ADD COLUMN ready_at timestamptz,
                               ADD COLUMN extended_until timestamptz,
                               ADD COLUMN resumed_at timestamptz,
                               ADD COLUMN warning jsonb;

CREATE FUNCTION copy_to_activity() RETURNS trigger LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    w workspaces := NEW;
BEGIN
    UPDATE workspace_activity SET ({COPIES}) = ROW ({COPIED}) WHERE workspace_id = w.id;
    RETURN NULL;
END $$;
CREATE TRIGGER copy_to_activity AFTER UPDATE ON workspaces FOR EACH ROW
WHEN ((OLD.deleted_at IS NULL) <> (NEW.deleted_at IS NULL)
      OR (OLD.state = 'RUNNING' OR NEW.state = 'RUNNING')
         AND (OLD.state, OLD.course_id, OLD.node_id, OLD.ready_at, OLD.extended_until, OLD.resumed_at, OLD.warning)
             IS DISTINCT FROM (NEW.state, NEW.course_id, NEW.node_id, NEW.ready_at, NEW.extended_until, NEW.resumed_at, NEW.warning))
EXECUTE FUNCTION copy_to_activity();

CREATE FUNCTION copy_from_workspace() RETURNS trigger LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
    SELECT {COPIED} INTO {NEW} FROM workspaces w WHERE w.id = NEW.workspace_id;
    RETURN NEW;
END $$;
CREATE TRIGGER copy_from_workspace BEFORE INSERT ON workspace_activity FOR EACH ROW EXECUTE FUNCTION copy_from_workspace();

UPDATE workspace_activity a SET ({COPIES}) = (SELECT {COPIED} FROM workspaces w WHERE w.id = a.workspace_id);
CREATE UNIQUE INDEX workspace_activity_student ON workspace_activity (student_key);
"#;

const DOWN: &str = "
DROP TRIGGER copy_from_workspace ON workspace_activity;
DROP TRIGGER copy_to_activity ON workspaces;
DROP FUNCTION copy_from_workspace(), copy_to_activity();
ALTER TABLE workspace_activity DROP COLUMN student_key, DROP COLUMN running, DROP COLUMN course_id, DROP COLUMN node_id,
                               DROP COLUMN ready_at, DROP COLUMN extended_until, DROP COLUMN resumed_at, DROP COLUMN warning;
";

/// [`UP`] with what is copied written out.
fn up() -> String {
    let new = COPIES.split(", ").map(|column| format!("NEW.{column}")).collect::<Vec<_>>().join(", ");
    UP.replace("{COPIES}", COPIES).replace("{COPIED}", COPIED).replace("{NEW}", &new)
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(&up()).await.map(|_| ())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(DOWN).await.map(|_| ())
    }
}
