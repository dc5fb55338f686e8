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
