//! The way to the editor.

use carrel_common::id::StudentId;

use super::{App, AppError, Result};
use crate::domain::workspace::State;

impl App {
    /// The address of a running editor. Until the ingress stands: the node's loopback address, with `--dev` only.
    ///
    /// # Errors
    /// [`AppError::AccessNeedsDev`], [`AppError::NotRunning`], the database.
    pub async fn editor_url(&self, student: &StudentId) -> Result<String> {
        if !self.settings.dev {
            return Err(AppError::AccessNeedsDev);
        }
        let found = self.store.find_workspace(student).await?;
        let workspace = found.ok_or_else(|| AppError::WorkspaceNotFound(student.clone()))?;
        match (workspace.state, &workspace.endpoint) {
            (State::Running, Some(endpoint)) => Ok(format!("http://{endpoint}/")),
            (state, _) => {
                Err(AppError::NotRunning { state: Some(state), stop: workspace.stop.map(Box::new) })
            }
        }
    }
}
