//! The images on the nodes.

use carrel_common::id::NodeId;
use sea_orm::ConnectionTrait;

use super::error::{Result, StoreError};
use super::{Store, sql};

impl Store {
    /// Keeps what a node has, as its present session tells it; false when that session is over.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn set_images(&self, node: NodeId, session_epoch: i64, images: &[String]) -> Result<bool> {
        let done = self
            .db
            .execute_raw(sql(
                "INSERT INTO node_images (node_id, images)
                 SELECT id, $3 FROM nodes WHERE id = $1 AND session_epoch = $2
                 ON CONFLICT (node_id) DO UPDATE SET images = excluded.images",
                [node.0.into(), session_epoch.into(), images.to_vec().into()],
            ))
            .await
            .map_err(StoreError::sort("keep a node's images"))?;
        Ok(done.rows_affected() == 1)
    }
}
