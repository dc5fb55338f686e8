//! What is kept for a while only.

use std::time::Duration;

use sea_orm::ConnectionTrait;

use super::error::{Result, StoreError};
use super::{Store, sql};
use crate::domain::policy::LONGEST_TIME;

/// Placements that are over are kept this long, for people who ask where a workspace ran; the last of each workspace longer.
const PLACEMENTS_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Long past the time for which failed starts count.
const FAILURES_KEPT: Duration = Duration::from_secs(24 * 3600);
/// The API promises the first answer again within 24 h.
const ANSWERS_KEPT: Duration = Duration::from_secs(24 * 3600);
/// No deadline is as old, even if half the time before it could not be observed.
const PAUSES_KEPT: Duration = LONGEST_TIME.saturating_mul(2);
/// Readers of logs give a sign of life each few seconds; one whose replica was killed could not clear up.
const LOGS_KEPT: Duration = Duration::from_secs(3600);

impl Store {
    /// Drops old events (and remembers how far), answered requests, join tokens that have ended, released placements,
    /// failed starts and pauses; how many rows went.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn drop_old(&self, events_kept: Duration) -> Result<u64> {
        let operation = "drop what is old";
        let events = self
            .db
            .execute_raw(sql(
                "WITH old AS (DELETE FROM events WHERE at < clock_timestamp() - make_interval(secs => $1) RETURNING xid, id),
                      last AS (SELECT xid, id FROM old ORDER BY xid DESC, id DESC LIMIT 1)
                 UPDATE cluster SET pruned_position = last.xid || '.' || last.id FROM last",
                [events_kept.as_secs_f64().into()],
            ))
            .await
            .map_err(StoreError::sort(operation))?;
        let mut rows = events.rows_affected();
        for (statement, kept) in [
            (
                "DELETE FROM requests WHERE created_at < clock_timestamp() - make_interval(secs => $1)",
                ANSWERS_KEPT,
            ),
            (
                "DELETE FROM join_tokens WHERE expires_at < clock_timestamp() - make_interval(secs => $1)",
                ANSWERS_KEPT,
            ),
            (
                // What was placed last of a desk stays: it says that the time of a container that turns up late is over.
                "DELETE FROM placements old WHERE released_at < clock_timestamp() - make_interval(secs => $1)
                 AND EXISTS (SELECT 1 FROM placements newer WHERE newer.workspace_id = old.workspace_id
                             AND (newer.incarnation, newer.generation) > (old.incarnation, old.generation))",
                PLACEMENTS_KEPT,
            ),
            (
                "DELETE FROM log_tails WHERE wanted_at < clock_timestamp() - make_interval(secs => $1)",
                LOGS_KEPT,
            ),
            (
                "DELETE FROM start_failures WHERE at < clock_timestamp() - make_interval(secs => $1)",
                FAILURES_KEPT,
            ),
            ("DELETE FROM pauses WHERE to_at < clock_timestamp() - make_interval(secs => $1)", PAUSES_KEPT),
        ] {
            rows += self
                .db
                .execute_raw(sql(statement, [kept.as_secs_f64().into()]))
                .await
                .map_err(StoreError::sort(operation))?
                .rows_affected();
        }
        Ok(rows)
    }
}
