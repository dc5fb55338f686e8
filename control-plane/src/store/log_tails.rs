//! Logs on their way from the replica that holds a node's session to the one that was asked: a row for the wish, rows for
//! the pieces, which are taken away as they are read.
//!
//! Both ends give signs of life in the row, so each notices when the other is gone. Times are compared by the database's
//! clock within one statement; a step of it cuts a log off at worst.

use std::time::Duration;

use carrel_common::id::{NodeId, WorkspaceUid};
use sea_orm::{ConnectionTrait, QueryResult};

use super::error::{Result, StoreError};
use super::{Store, sql};

/// A reader, or a server, that was silent for this long is gone.
const SILENCE: Duration = Duration::from_secs(20);
/// Pieces that may wait for the reader; beyond, the log breaks off.
const MOST_WAITING: i64 = 64;

/// A log that another replica wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantedLog {
    /// Names the wish.
    pub id: i64,
    /// The node that has the log.
    pub node: NodeId,
    /// The workspace.
    pub workspace: WorkspaceUid,
    /// Last lines wanted.
    pub lines: i32,
    /// Go on with what comes.
    pub follow: bool,
}

/// A piece of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPiece {
    /// Of which incarnation.
    pub generation: i64,
    /// Whole lines.
    pub text: String,
    /// Why it broke off.
    pub broken: Option<String>,
    /// Nothing more will come.
    pub is_end: bool,
}

/// How a log fares that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// No replica has taken it on yet.
    NotYet,
    /// One has.
    Now,
    /// The one that had is gone, or the wish is.
    NoMore,
}

fn wanted(row: &QueryResult) -> Result<WantedLog> {
    let get = StoreError::sort("read the logs wanted");
    Ok(WantedLog {
        id: row.try_get("", "id").map_err(&get)?,
        node: NodeId(row.try_get("", "node_id").map_err(&get)?),
        workspace: WorkspaceUid(row.try_get("", "workspace_id").map_err(&get)?),
        lines: row.try_get("", "lines").map_err(&get)?,
        follow: row.try_get("", "follow").map_err(&get)?,
    })
}

impl Store {
    /// Asks the replicas for a log; gives the wish's name. `None`: the node is silent, so none can have its session.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn ask_for_log(
        &self,
        node: NodeId,
        workspace: WorkspaceUid,
        lines: i32,
        follow: bool,
    ) -> Result<Option<i64>> {
        let operation = "ask for a log";
        let row = self
            .db
            .query_one_raw(sql(
                "INSERT INTO log_tails (node_id, workspace_id, lines, follow)
                 SELECT id, $2, $3, $4 FROM nodes WHERE id = $1 AND state <> 'UNREACHABLE' RETURNING id",
                [node.0.into(), workspace.0.into(), lines.into(), follow.into()],
            ))
            .await
            .map_err(StoreError::sort(operation))?;
        row.map(|row| row.try_get("", "id").map_err(StoreError::sort(operation))).transpose()
    }

    /// Gives the reader's sign of life, and says whether the log is served.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn want_log(&self, id: i64) -> Result<Served> {
        let operation = "want a log";
        let row = self
            .db
            .query_one_raw(sql(
                "UPDATE log_tails SET wanted_at = clock_timestamp() WHERE id = $1
                 RETURNING served_at IS NULL AS not_yet,
                           served_at < clock_timestamp() - make_interval(secs => $2) AS silent",
                [id.into(), SILENCE.as_secs_f64().into()],
            ))
            .await
            .map_err(StoreError::sort(operation))?;
        let Some(row) = row else { return Ok(Served::NoMore) };
        let get = StoreError::sort(operation);
        Ok(if row.try_get("", "not_yet").map_err(&get)? {
            Served::NotYet
        } else if row.try_get("", "silent").map_err(&get)? {
            Served::NoMore
        } else {
            Served::Now
        })
    }

    /// Takes the pieces that have come, in their order.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn take_log_pieces(&self, id: i64) -> Result<Vec<StoredPiece>> {
        let operation = "take pieces of a log";
        let rows = self
            .db
            .query_all_raw(sql(
                "WITH taken AS (DELETE FROM log_pieces WHERE tail_id = $1
                                RETURNING id, generation, text, broken, is_end)
                 SELECT generation, text, broken, is_end FROM taken ORDER BY id",
                [id.into()],
            ))
            .await
            .map_err(StoreError::sort(operation))?;
        let get = StoreError::sort(operation);
        rows.iter()
            .map(|row| {
                let text: Vec<u8> = row.try_get("", "text").map_err(&get)?;
                Ok(StoredPiece {
                    generation: row.try_get("", "generation").map_err(&get)?,
                    text: String::from_utf8_lossy(&text).into_owned(),
                    broken: row.try_get("", "broken").map_err(&get)?,
                    is_end: row.try_get("", "is_end").map_err(&get)?,
                })
            })
            .collect()
    }

    /// The reader wants no more.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn forget_log(&self, id: i64) -> Result<()> {
        self.db
            .execute_raw(sql("DELETE FROM log_tails WHERE id = $1", [id.into()]))
            .await
            .map_err(StoreError::sort("forget a log"))?;
        Ok(())
    }

    /// The logs that nobody serves yet.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn unserved_logs(&self) -> Result<Vec<WantedLog>> {
        let rows = self
            .db
            .query_all_raw(sql(
                "SELECT id, node_id, workspace_id, lines, follow FROM log_tails WHERE served_at IS NULL ORDER BY id",
                [],
            ))
            .await
            .map_err(StoreError::sort("read the logs wanted"))?;
        rows.iter().map(wanted).collect()
    }

    /// Takes a log on; false when another replica was first, or it is wanted no more.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn serve_log(&self, id: i64) -> Result<bool> {
        let done = self
            .db
            .execute_raw(sql(
                "UPDATE log_tails SET served_at = clock_timestamp() WHERE id = $1 AND served_at IS NULL",
                [id.into()],
            ))
            .await
            .map_err(StoreError::sort("serve a log"))?;
        Ok(done.rows_affected() == 1)
    }

    /// Gives the server's sign of life; false when nobody reads any more.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn go_on_serving_log(&self, id: i64) -> Result<bool> {
        let done = self
            .db
            .execute_raw(sql(
                "UPDATE log_tails SET served_at = clock_timestamp()
                 WHERE id = $1 AND wanted_at > clock_timestamp() - make_interval(secs => $2)",
                [id.into(), SILENCE.as_secs_f64().into()],
            ))
            .await
            .map_err(StoreError::sort("serve a log"))?;
        Ok(done.rows_affected() == 1)
    }

    /// Hands a piece on; false when it is wanted no more, or the reader does not keep up.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn add_log_piece(&self, id: i64, piece: &StoredPiece) -> Result<bool> {
        let done = self
            .db
            .execute_raw(sql(
                "INSERT INTO log_pieces (tail_id, generation, text, broken, is_end)
                 SELECT id, $2, $3, $4, $5 FROM log_tails
                 WHERE id = $1 AND ($5 OR (SELECT count(*) FROM log_pieces WHERE tail_id = $1) < $6)",
                [
                    id.into(),
                    piece.generation.into(),
                    piece.text.as_bytes().to_vec().into(),
                    piece.broken.clone().into(),
                    piece.is_end.into(),
                    MOST_WAITING.into(),
                ],
            ))
            .await
            .map_err(StoreError::sort("hand a piece of a log on"))?;
        Ok(done.rows_affected() == 1)
    }
}
