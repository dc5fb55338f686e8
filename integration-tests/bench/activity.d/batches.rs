//! Heartbeats in batches, beside the same rows written by a client of Postgres alone.

use std::collections::BTreeSet;
use std::time::Instant;

use carrel_proto::v1 as pb;

use crate::desks::Desks;
use crate::figures::{compare, round, rounds};

/// Heartbeats a call.
const BATCH: usize = 500;
/// Callers at once.
const CALLERS: usize = 4;

/// The same update by hand: each row found by its student's key, written in the order of the keys as they are given, monotone.
const RAW: &str = "
UPDATE workspace_activity a SET lms_input_at = greatest(a.lms_input_at, clock_timestamp()), version = a.version + 1
FROM unnest($1::text[]) AS beaten (key)
WHERE a.student_key = beaten.key AND NOT a.closed";

/// Distinct workspaces, in the order of their keys.
fn keys(desks: &Desks) -> Vec<String> {
    let mut keys = BTreeSet::new();
    while keys.len() < BATCH {
        keys.insert(format!("student-{}", rand::random_range(1..=desks.running)));
    }
    keys.into_iter().collect()
}

async fn raw(desks: &Desks, writers: usize) -> f64 {
    let begun = Instant::now();
    let until = begun + round();
    let writing = (0..writers).map(|_| async {
        let mut rows = 0;
        while Instant::now() < until {
            match sqlx::query(RAW).bind(keys(desks)).execute(&desks.pool).await {
                Ok(done) => rows += done.rows_affected(),
                // Two writers may meet in another order than that of the keys: tried again, as we would.
                Err(error) => assert_eq!(
                    error.as_database_error().and_then(|e| e.code()).as_deref(),
                    Some("40P01"),
                    "{error}"
                ),
            }
        }
        rows
    });
    let rows: u64 = futures_util::future::join_all(writing).await.into_iter().sum();
    rate(rows, begun)
}

async fn carrel(desks: &Desks) -> f64 {
    let begun = Instant::now();
    let until = begun + round();
    let calling = (0..CALLERS).map(|_| async {
        let (mut client, mut rows) = (desks.workspaces(), 0);
        while Instant::now() < until {
            let heartbeats = keys(desks)
                .into_iter()
                .map(|key| pb::RecordHeartbeatRequest {
                    name: format!("workspaces/{key}"),
                    ..Default::default()
                })
                .collect();
            let answer =
                client.record_heartbeats(pb::RecordHeartbeatsRequest { heartbeats }).await.expect("recorded");
            let results = answer.into_inner().results;
            assert!(
                results.iter().all(|one| matches!(one.result, Some(pb::heartbeat_result::Result::Idle(_))))
            );
            rows += u64::try_from(results.len()).expect("a count");
        }
        rows
    });
    let rows: u64 = futures_util::future::join_all(calling).await.into_iter().sum();
    rate(rows, begun)
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn rate(rows: u64, begun: Instant) -> f64 {
    rows as f64 / begun.elapsed().as_secs_f64()
}

pub(crate) async fn measure(desks: &Desks) -> bool {
    let (mut below, mut ours) = (Vec::new(), Vec::new());
    for turn in 0..=rounds() {
        let by_hand = raw(desks, 1).await.max(raw(desks, 4).await);
        let by_carrel = carrel(desks).await;
        if turn > 0 {
            below.push(by_hand);
            ours.push(by_carrel);
        }
    }
    let what = format!("RecordHeartbeats, {BATCH} a call, {CALLERS} callers");
    compare(
        &what,
        "rows a second",
        [("the same update by sqlx alone (best of 1 and 4 writers)", &below), ("Carrel", &ours)],
        0.5,
    )
}
