//! Reading the event log, and following it.

use carrel_common::id::WorkspaceUid;

use super::{App, AppError, Result, WorkspaceView};
use crate::store::{EventQuery, Position, StoredEvent};

/// Events read at a time.
const BATCH: i64 = 500;

impl App {
    /// A page of the log, and whether there is more.
    ///
    /// # Errors
    /// The database.
    pub async fn events(&self, query: &EventQuery, page_size: usize) -> Result<(Vec<StoredEvent>, bool)> {
        let limit = i64::try_from(page_size).unwrap_or(i64::MAX).saturating_add(1);
        let mut found = self.store.list_events(query, limit).await?;
        let more = found.len() > page_size;
        found.truncate(page_size);
        Ok((found, more))
    }

    /// Where a reader that begins now, or goes on, stands.
    ///
    /// # Errors
    /// [`AppError::ResumeTokenTooOld`] when events after `resume` have been dropped; the database.
    pub async fn stand(&self, resume: Option<(i64, Position)>) -> Result<Position> {
        match resume {
            None => Ok(self.store.events_tail().await?),
            Some((incarnation, _)) if incarnation != self.store.state().await?.incarnation => {
                Err(AppError::ResumeTokenTooOld)
            }
            Some((_, position)) => match self.store.events_pruned().await? {
                Some(pruned) if position < pruned => Err(AppError::ResumeTokenTooOld),
                _ => Ok(position),
            },
        }
    }

    /// The next events after a place; may be none.
    ///
    /// # Errors
    /// The database.
    pub async fn events_after(&self, query: &EventQuery, after: Position) -> Result<Vec<StoredEvent>> {
        let query = EventQuery { after: Some(after), newest_first: false, ..query.clone() };
        Ok(self.store.list_events(&query, BATCH).await?)
    }

    /// Workspaces as they are now, deleted ones too.
    ///
    /// # Errors
    /// The database.
    pub async fn workspaces_now(&self, uids: Vec<WorkspaceUid>) -> Result<Vec<WorkspaceView>> {
        let found = self.store.workspaces_by_uid(uids).await?;
        self.view_lately(found).await
    }
}
