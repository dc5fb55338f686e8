use std::time::Duration;

use carrel_common::model::Signal;
use control_plane::store::Store;
use integration_tests::{database::Database, settings};

use crate::rig::{Rig, beat, call, id};

#[tokio::test]
async fn four_that_migrate_at_once_all_succeed() {
    let database = Database::create(&settings::database_url()).await;
    let url = database.url();
    let (a, b, c, d) =
        tokio::join!(Store::migrate(&url), Store::migrate(&url), Store::migrate(&url), Store::migrate(&url));
    for done in [a, b, c, d] {
        done.unwrap();
    }
    let store = Store::open(&url, 2).unwrap();
    assert!(store.schema_is_current().await.unwrap());
    store.close().await;
    database.drop_now().await;
}

#[tokio::test]
async fn an_empty_database_is_told_from_a_current_one() {
    let database = Database::create(&settings::database_url()).await;
    let store = Store::open(&database.url(), 2).unwrap();
    assert!(!store.schema_is_current().await.unwrap());
    store.close().await;
    database.drop_now().await;
}

/// Else each heartbeat would write the index as well as the row.
#[tokio::test]
async fn no_index_speaks_of_what_a_heartbeat_writes() {
    let database = Database::create(&settings::database_url()).await;
    Store::migrate(&database.url()).await.unwrap();
    let indexed = "SELECT string_agg(DISTINCT column_name, ' ' ORDER BY column_name)
                   FROM information_schema.columns c JOIN pg_indexes i ON i.tablename = c.table_name
                   WHERE c.table_name = 'workspace_activity' AND i.indexdef ~ ('\\m' || c.column_name || '\\M')";
    assert_eq!(database.text(indexed).await, "closed student_key workspace_id");
    database.drop_now().await;
}

/// Else a statement that is planned while the table is small would go on to read the whole index when it no longer is.
#[tokio::test]
async fn a_students_key_is_there_once_and_can_only_be_looked_up() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    for student in ["ada", "bob"] {
        rig.running(node, student).await;
    }
    let by = "SELECT string_agg(am.amname || ' ' || pg_get_indexdef(i.indexrelid, 1, true), ', ')
              FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am am ON am.oid = c.relam
              WHERE i.indrelid = 'workspace_activity'::regclass AND pg_get_indexdef(i.indexrelid) ~ 'student_key'";
    assert_eq!(rig.database.text(by).await, "hash student_key");
    let twice = "DO $$ BEGIN
                     UPDATE workspace_activity SET student_key = 'ada' WHERE student_key = 'bob';
                     RAISE 'there are two';
                 EXCEPTION WHEN exclusion_violation THEN NULL;
                 END $$";
    rig.database.execute(twice).await;
    rig.end().await;
}

#[tokio::test]
async fn desks_of_before_have_their_keys_and_copies() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    rig.running(node, "Ada").await;
    for student in ["bob", "eve"] {
        rig.was_on(node, student).await;
    }
    rig.app.delete(&call("DeleteWorkspace"), &id("eve"), "", false).await.unwrap();
    let back = "DROP TRIGGER copy_from_workspace ON workspace_activity;
                DROP TRIGGER copy_to_activity ON workspaces;
                DROP FUNCTION copy_from_workspace(), copy_to_activity();
                ALTER TABLE workspace_activity DROP COLUMN student_key, DROP COLUMN running, DROP COLUMN course_id,
                    DROP COLUMN node_id, DROP COLUMN ready_at, DROP COLUMN extended_until, DROP COLUMN resumed_at,
                    DROP COLUMN warning;
                DELETE FROM seaql_migrations WHERE version > 'm20261129_000025_steps'";
    rig.database.execute(back).await;
    assert!(!rig.app.store.schema_is_current().await.unwrap());
    Store::migrate(&rig.database.url()).await.unwrap();
    assert_eq!(rig.copies_apart().await, "");
    let keys =
        "SELECT string_agg(coalesce(student_key, '-'), ' ' ORDER BY student_key) FROM workspace_activity";
    assert_eq!(rig.database.text(keys).await, "ada bob -");
    rig.app.record(vec![beat("ada", Signal::LmsInput, Duration::ZERO)]).await.unwrap().remove(0).unwrap();
    rig.end().await;
}
