//! The images of the nodes: what is on them, and what is to be.

use carrel_common::id::NodeId;

use super::{App, Result};

impl App {
    /// Notes what an agent says of the images on its host; false when another session of the node took over.
    ///
    /// # Errors
    /// The database.
    pub async fn note_images(&self, node: NodeId, session_epoch: i64, images: &[String]) -> Result<bool> {
        Ok(self.store.set_images(node, session_epoch, images).await?)
    }

    /// The images that every node is to have ready, as this replica knows the policies; sorted.
    pub fn images_wanted(&self) -> Vec<String> {
        self.rules.get().book.images()
    }
}
