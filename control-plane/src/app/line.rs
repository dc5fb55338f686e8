//! The line as it is shown: who stands where, and when they may be ready.
//!
//! A pass over the line puts it on a board of this replica, from which the streams read it: a line of hundreds moves often,
//! and is told without a word in the event log.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use carrel_common::id::WorkspaceUid;
use time::OffsetDateTime;
use tokio::time::timeout;

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

/// Who joins the line waits so long for another's reading of it, then is told no place: the caller waits, and a watch tells it.
const READ_WITHIN: Duration = Duration::from_secs(1);

/// The line as this replica last saw it.
#[derive(Debug, Clone, Default)]
pub struct Board {
    shown: Arc<Mutex<Shown>>,
    /// Held by the one who reads the line for those who joined it.
    reading: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Default)]
struct Shown {
    line: Arc<Line>,
    /// How often it was begun to be read for those who joined it.
    readings: u64,
    /// With the database's time when it was read.
    outlook: Option<(OffsetDateTime, Arc<Outlook>)>,
}

impl Board {
    fn lock(&self) -> std::sync::MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
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
        let hidden = self.hidden(&line).await?;
        self.publish_line(&line, &hidden, now).await
    }

    /// The line for those who have just joined it. One reads it at a time, for all who came while the one before read it: a class
    /// that presses Start has it read a few times, not once for each.
    pub(super) async fn line_joined(&self) -> Result<Arc<Line>> {
        let asked = self.board.lock().readings;
        let Ok(_reading) = timeout(READ_WITHIN, self.board.reading.lock()).await else {
            return Ok(self.board.line());
        };
        {
            let mut shown = self.board.lock();
            // One that began since has read what was committed before.
            if shown.readings > asked {
                return Ok(Arc::clone(&shown.line));
            }
            shown.readings += 1;
        }
        self.line().await
    }

    /// Puts a line, in its order, on the board. `hidden`: those of it that wait for hosts to be known, whatever becomes free.
    pub(super) async fn publish_line(
        &self,
        line: &[Waiting],
        hidden: &HashSet<WorkspaceUid>,
        now: OffsetDateTime,
    ) -> Result<Arc<Line>> {
        self.metrics.queue_length(line.len());
        let outlook = if line.is_empty() { Arc::default() } else { self.outlook(now).await? };
        let seen = self.unknown_hosts_are_over_at(now).and_then(|at| Some(at + outlook.start?));
        let ready_at = |position, w: &Waiting| match outlook.ready_in_line(position, now) {
            in_turn if !hidden.contains(&w.uid) => in_turn,
            in_turn => Some(seen?.max(in_turn.unwrap_or(now))),
        };
        let place = |(index, w): (usize, &Waiting)| {
            let place = LinePlace {
                position: i64::try_from(index + 1).unwrap_or(i64::MAX),
                ready_at: ready_at(index + 1, w),
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
