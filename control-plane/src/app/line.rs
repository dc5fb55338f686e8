//! The line as it is shown: who stands where, and when they may be ready.
//!
//! A pass over the line puts it on a board of this replica, from which the streams read it: a line of hundreds moves often,
//! and is told without a word in the event log.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use carrel_common::id::WorkspaceUid;
use time::OffsetDateTime;

use super::{App, Result};
use crate::domain::placement::{self, Outlook, Waiting};
use crate::store::InLine;

/// What is known of starts and stops is read again after this long: it changes slowly, and is asked for often.
const OUTLOOK_FOR: time::Duration = time::Duration::SECOND;

/// A place in line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinePlace {
    /// From 1.
    pub position: i64,
    /// When its editor may answer; `None` when nothing tells.
    pub ready_at: Option<OffsetDateTime>,
}

/// Everybody who waits.
pub type Line = HashMap<WorkspaceUid, LinePlace>;

/// The line as this replica last saw it.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Mutex<Shown>>);

#[derive(Debug, Default)]
struct Shown {
    line: Arc<Line>,
    /// With the database's time when it was read.
    outlook: Option<(OffsetDateTime, Arc<Outlook>)>,
}

impl Board {
    fn lock(&self) -> std::sync::MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As it was last seen.
    pub fn line(&self) -> Arc<Line> {
        Arc::clone(&self.lock().line)
    }
}

impl App {
    /// Who stands where at this moment.
    ///
    /// # Errors
    /// The database.
    pub async fn line(&self) -> Result<Arc<Line>> {
        let (line, now) = self.store.waiting().await?;
        let in_line = line.into_iter().filter(|one| one.held.is_none());
        let mut line: Vec<_> = in_line.map(|InLine { waiting, .. }| waiting).collect();
        placement::in_line(&mut line, &self.store.held().await?);
        self.publish_line(&line, now).await
    }

    /// Puts a line, in its order, on the board.
    pub(super) async fn publish_line(&self, line: &[Waiting], now: OffsetDateTime) -> Result<Arc<Line>> {
        self.metrics.queue_length(line.len());
        let outlook = if line.is_empty() { Arc::default() } else { self.outlook(now).await? };
        let place = |(index, w): (usize, &Waiting)| {
            let place = LinePlace {
                position: i64::try_from(index + 1).unwrap_or(i64::MAX),
                ready_at: outlook.ready_in_line(index + 1, now),
            };
            (w.uid, place)
        };
        let line = Arc::new(line.iter().enumerate().map(place).collect::<Line>());
        self.board.lock().line = Arc::clone(&line);
        Ok(line)
    }

    /// What starts and stops took lately, and how places became free.
    ///
    /// # Errors
    /// The database.
    pub async fn outlook(&self, now: OffsetDateTime) -> Result<Arc<Outlook>> {
        let known = self.board.lock().outlook.clone();
        if let Some((read_at, outlook)) = known
            // Else it is old, or the clock was set.
            && (time::Duration::ZERO..OUTLOOK_FOR).contains(&(now - read_at))
        {
            return Ok(outlook);
        }
        let mut outlook = self.store.outlook().await?;
        if outlook.wants_deadlines() {
            let rules = self.rules.get();
            let next = self.store.next_idle().await?;
            let deadline = |idle: &crate::store::NextIdle| {
                let times = rules.book.times(idle.course.as_ref(), &idle.student);
                let quiet = times.quiet.iter().any(|(from, to)| (*from..*to).contains(&now));
                (!quiet).then(|| idle.basis_at + times.idle_timeout)
            };
            outlook.deadlines = next.iter().filter_map(deadline).collect();
            outlook.deadlines.sort_unstable();
        }
        let outlook = Arc::new(outlook);
        self.board.lock().outlook = Some((now, Arc::clone(&outlook)));
        Ok(outlook)
    }
}
