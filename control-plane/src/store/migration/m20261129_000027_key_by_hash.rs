//! Students' keys are looked up by their hash.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(super) struct Migration;

// A look at one page instead of a comparison of texts on each of three, which a heartbeat feels. And it can serve nothing but a lookup: a
// statement that was planned while the table was small can not go on to read an index like this from end to end. Unique as before;
// Postgres has that of a hash only as an exclusion.
const UP: &str = "
DROP INDEX workspace_activity_student;
ALTER TABLE workspace_activity ADD CONSTRAINT workspace_activity_student EXCLUDE USING hash (student_key WITH =);
";

const DOWN: &str = "
ALTER TABLE workspace_activity DROP CONSTRAINT workspace_activity_student;
CREATE UNIQUE INDEX workspace_activity_student ON workspace_activity (student_key);
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
