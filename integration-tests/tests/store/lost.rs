//! Reports of activity when the connections that are kept for them lead nowhere any more.

use std::time::Duration;

use control_plane::domain::activity::BySignal;
use control_plane::store::{Beaten, Input, Store, StoreError};
use futures_util::future::join_all;
use integration_tests::own_postgres::OwnPostgres;
use integration_tests::relay::Relay;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::rig::Rig;

/// As many reports are written at once: there are connections for so many.
const KEPT: usize = 4;

/// A store that reaches its Postgres by a way that can be cut.
struct Way {
    store: Store,
    relay: Relay,
    rig: Rig,
    _postgres: OwnPostgres,
    _dir: TempDir,
}

impl Way {
    async fn new() -> Self {
        let postgres = OwnPostgres::start().await;
        let rig = Rig::on(&postgres.url(), |_| {}).await;
        let node = rig.node(4).await;
        rig.running(node, "ada").await;
        let dir = tempfile::tempdir().unwrap();
        let relay = Relay::new(dir.path(), &postgres);
        let store = Store::open(&rig.database.url_in(relay.url()), 12).unwrap();
        Self { store, relay, rig, _postgres: postgres, _dir: dir }
    }

    /// So many reports at the same moment; whether each was recorded.
    async fn record(&self, reports: usize) -> Vec<bool> {
        let ages = BySignal { lms_input: Some(Duration::ZERO), ..BySignal::default() };
        let input = [Input { key: "ada".into(), generation: None, ages }];
        let record = |_| async {
            let written = self.store.write_input(&input).await?;
            self.store.what_became_of(&input, &written).await
        };
        let answers = join_all((0..reports).map(record)).await;
        let recorded = |answer: Result<Vec<_>, _>| match answer {
            Ok(beaten) => matches!(beaten[..], [Beaten::Recorded { .. }]),
            Err(StoreError::Unavailable { .. }) => false,
            Err(error) => panic!("{error:?}"),
        };
        answers.into_iter().map(recorded).collect()
    }

    async fn end(self) {
        self.store.close().await;
        self.rig.end().await;
    }
}

#[tokio::test]
async fn a_postgres_that_ended_its_connections_costs_no_report() {
    let way = Way::new().await;
    assert_eq!(way.record(KEPT).await, [true; KEPT]);
    // As one does that is stopped and started again.
    let ended = "SELECT bool_and(pg_terminate_backend(pid, 10000))::text FROM pg_stat_activity
                 WHERE datname = current_database() AND pid <> pg_backend_pid()";
    assert_eq!(way.rig.database.text(ended).await, "true");
    assert_eq!(way.record(KEPT).await, [true; KEPT]);

    way.relay.refuse();
    let began = Instant::now();
    while way.record(1).await == [true] {
        assert!(began.elapsed() < Duration::from_secs(10), "it can still be reached");
    }
    way.relay.mend();
    assert_eq!(way.record(KEPT).await, [true; KEPT], "the first ones after an outage");
    way.end().await;
}

#[tokio::test]
async fn a_postgres_that_falls_silent_holds_reports_up_for_a_while_and_none_after_it() {
    let way = Way::new().await;
    assert_eq!(way.record(KEPT).await, [true; KEPT]);
    way.relay.lose();
    // Nothing comes back, so time runs on from one limit to the next.
    tokio::time::pause();
    let began = Instant::now();
    assert_eq!(way.record(KEPT + 1).await, [false; KEPT + 1]);
    let waited = began.elapsed();
    tokio::time::resume();
    assert!((30..40).contains(&waited.as_secs()), "longer than Postgres allows a statement: {waited:?}");
    way.relay.mend();
    assert_eq!(way.record(KEPT).await, [true; KEPT]);
    way.end().await;
}
