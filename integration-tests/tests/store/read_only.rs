//! A Postgres that answers and takes no changes, as one does that stepped down for another.

use std::time::Duration;

use carrel_common::model::Signal;
use control_plane::store::StoreError;
use integration_tests::own_postgres::OwnPostgres;
use tokio::time::Instant;

use crate::rig::{Rig, beat};

/// Asks until it is so.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < Duration::from_secs(20), "never: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whether input of ada's is recorded; that it is not is told as an outage.
async fn records(rig: &Rig) -> bool {
    let told = rig.app.record(vec![beat("ada", Signal::EditorInput, Duration::ZERO)]).await;
    match told.unwrap().remove(0) {
        Ok(_) => true,
        Err(error) => {
            assert!(error.is_passing(), "{error:?}");
            false
        }
    }
}

/// Whether bob's desk is started; that it is not is told as an outage.
async fn starts(rig: &Rig) -> bool {
    match rig.start("bob").await {
        Ok(_) => true,
        Err(error) => {
            assert!(error.is_passing(), "{error:?}");
            false
        }
    }
}

async fn is_away(rig: &Rig) -> bool {
    matches!(rig.app.store.answers().await, Err(StoreError::Unavailable { .. }))
}

#[tokio::test]
async fn a_postgres_that_takes_no_changes_is_away_until_it_does() {
    let postgres = OwnPostgres::start().await;
    let rig = Rig::on(&postgres.url(), |_| {}).await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    assert!(records(&rig).await && !is_away(&rig).await);

    // Of the connections that there are, too.
    rig.database.execute("ALTER SYSTEM SET default_transaction_read_only = on").await;
    rig.database.execute("SELECT pg_reload_conf()").await;
    until("it is away", async || is_away(&rig).await).await;
    assert!(is_away(&rig).await, "by a new connection, too");
    assert!(!records(&rig).await && !starts(&rig).await);

    rig.database.execute("ALTER SYSTEM RESET default_transaction_read_only").await;
    rig.database.execute("SELECT pg_reload_conf()").await;
    until("all goes on", async || records(&rig).await && starts(&rig).await && !is_away(&rig).await).await;
    rig.end().await;
}

/// Whether connections that are made from now on lead to a Postgres that takes changes; those that there are stay as they are.
async fn lead_to_one_that_takes_changes(rig: &Rig, they_do: bool) {
    let read_only = if they_do { "off" } else { "on" };
    let change = format!("ALTER DATABASE %I SET default_transaction_read_only = {read_only}");
    let change = format!("BEGIN EXECUTE format('{change}', current_database()); END");
    // It would else be refused by what it is to take back.
    rig.database.execute(&format!("BEGIN READ WRITE; DO $$ {change} $$; COMMIT")).await;
}

#[tokio::test]
async fn nobody_stays_on_connections_to_a_postgres_that_stepped_down() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    assert!(records(&rig).await);

    lead_to_one_that_takes_changes(&rig, false).await;
    let ended = "SELECT bool_and(pg_terminate_backend(pid, 10000))::text FROM pg_stat_activity
                 WHERE datname = current_database() AND pid <> pg_backend_pid()";
    assert_eq!(rig.database.text(ended).await, "true");
    for _ in 0..3 {
        assert!(!records(&rig).await && !starts(&rig).await);
    }

    lead_to_one_that_takes_changes(&rig, true).await;
    until("all goes on", async || records(&rig).await && starts(&rig).await && !is_away(&rig).await).await;
    rig.end().await;
}
