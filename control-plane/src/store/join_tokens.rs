//! Join tokens: only the hash of their secret is here.

use std::time::Duration;

use carrel_common::id::NodeId;
use sea_orm::{ConnectionTrait, QueryResult};
use time::OffsetDateTime;
use uuid::Uuid;

use super::error::{Result, StoreError};
use super::{Work, sql};
use crate::domain::join::{JoinToken, Use};

fn token(row: &QueryResult) -> Result<JoinToken> {
    let get = StoreError::sort("read a join token");
    let node: Option<Uuid> = row.try_get("", "node_id").map_err(&get)?;
    let used_by: Option<Uuid> = row.try_get("", "used_by").map_err(&get)?;
    let used = match used_by {
        None => None,
        Some(node) => Some(Use {
            node: NodeId(node),
            key: row.try_get("", "used_key").map_err(&get)?,
            session_epoch: row.try_get("", "used_epoch").map_err(&get)?,
        }),
    };
    Ok(JoinToken { node: node.map(NodeId), expires_at: row.try_get("", "expires_at").map_err(&get)?, used })
}

impl Work {
    /// A new token that ends after `ttl`; when that is.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn insert_join_token(
        &mut self,
        secret_hash: &str,
        node: Option<NodeId>,
        ttl: Duration,
    ) -> Result<OffsetDateTime> {
        let operation = "keep a join token";
        let row = self
            .tx
            .query_one_raw(sql(
                "INSERT INTO join_tokens (secret_hash, node_id, expires_at)
                 VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3)) RETURNING expires_at",
                [secret_hash.into(), node.map(|node| node.0).into(), ttl.as_secs_f64().into()],
            ))
            .await
            .map_err(StoreError::sort(operation))?
            .ok_or(StoreError::Conflict { operation })?;
        row.try_get("", "expires_at").map_err(StoreError::sort(operation))
    }

    /// A token by the hash of its secret, locked: of two hosts that enrol with it, the second sees what the first did.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn lock_join_token(&mut self, secret_hash: &str) -> Result<Option<JoinToken>> {
        let row = self
            .tx
            .query_one_raw(sql(
                "SELECT node_id, expires_at, used_by, used_key, used_epoch FROM join_tokens WHERE secret_hash = $1 FOR UPDATE",
                [secret_hash.into()],
            ))
            .await
            .map_err(StoreError::sort("lock a join token"))?;
        row.map(|row| token(&row)).transpose()
    }

    /// Notes who has enrolled with a locked token.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn spend_join_token(&mut self, secret_hash: &str, by: &Use) -> Result<()> {
        self.tx
            .execute_raw(sql(
                "UPDATE join_tokens SET used_at = clock_timestamp(), used_by = $2, used_key = $3, used_epoch = $4
                 WHERE secret_hash = $1",
                [secret_hash.into(), by.node.0.into(), by.key.clone().into(), by.session_epoch.into()],
            ))
            .await
            .map_err(StoreError::sort("spend a join token"))?;
        Ok(())
    }
}
