//! Answers that were given, so that a repeated call has one effect.

use carrel_common::id::RequestId;
use sea_orm::ConnectionTrait;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::entity::{json, value};
use super::error::{Result, StoreError};
use super::{Work, sql};

/// What is known of a request id.
#[derive(Debug, Clone, PartialEq)]
pub enum Replay<T> {
    /// It is new, and reserved by this transaction.
    New,
    /// The same call was answered with this before.
    Answered(Box<T>),
    /// It was used with other content.
    OtherContent,
}

/// Arbitrary, but ours: the first half of the advisory locks of request ids.
const REQUEST_LOCK: i32 = 0x5ca2;

impl Work {
    /// Reserves a request id to the end of the transaction. A call with the same id that is under way is waited for.
    ///
    /// By an advisory lock: a row would give this transaction its number before it has locked any workspace, and the event log would
    /// tell what it does there before what others did first.
    ///
    /// # Errors
    /// When the database cannot be reached, or the other call does not end in time.
    pub async fn reserve<T: DeserializeOwned>(
        &mut self,
        rpc: &'static str,
        id: RequestId,
        fingerprint: &str,
    ) -> Result<Replay<T>> {
        let operation = "reserve a request id";
        self.tx
            .execute_raw(sql(
                "SELECT pg_advisory_xact_lock($1, hashtext($2))",
                [REQUEST_LOCK.into(), format!("{rpc} {}", id.0).into()],
            ))
            .await
            .map_err(StoreError::sort(operation))?;
        // A statement of its own: it has to see what was committed while the lock was waited for.
        let row = self
            .tx
            .query_one_raw(sql(
                "SELECT fingerprint, answer FROM requests WHERE rpc = $1 AND request_id = $2",
                [rpc.into(), id.0.into()],
            ))
            .await
            .map_err(StoreError::sort(operation))?;
        let Some(row) = row else { return Ok(Replay::New) };
        let known: String = row.try_get("", "fingerprint").map_err(StoreError::sort(operation))?;
        if known != fingerprint {
            return Ok(Replay::OtherContent);
        }
        let answer: Option<serde_json::Value> =
            row.try_get("", "answer").map_err(StoreError::sort(operation))?;
        let answer = answer.ok_or(StoreError::Conflict { operation })?;
        Ok(Replay::Answered(Box::new(value("requests", answer)?)))
    }

    /// Keeps the answer to a reserved request id.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn answer<T: Serialize>(
        &mut self,
        rpc: &'static str,
        id: RequestId,
        fingerprint: &str,
        answer: &T,
    ) -> Result<()> {
        self.tx
            .execute_raw(sql(
                "INSERT INTO requests (rpc, request_id, fingerprint, answer) VALUES ($1, $2, $3, $4)",
                [rpc.into(), id.0.into(), fingerprint.into(), json("requests", answer)?.into()],
            ))
            .await
            .map_err(StoreError::sort("keep an answer"))?;
        Ok(())
    }
}
