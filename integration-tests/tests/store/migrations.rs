use control_plane::store::Store;
use integration_tests::{database::Database, settings};

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
    assert_eq!(database.text(indexed).await, "closed workspace_id");
    database.drop_now().await;
}
