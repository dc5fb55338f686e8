//! The line as it is shown: who stands where, and when they may be ready.
//!
//! A pass over the line puts it on a board of this replica, from which the streams read it: a line of hundreds moves often,
//! and is told without a word in the event log.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use carrel_common::id::WorkspaceUid;
use carrel_common::model::StatusReason;
use time::OffsetDateTime;
use tokio::time::timeout;

use super::{App, Result};
use crate::domain::placement::{self, NoPlace, Outlook, Waiting};
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
        let short = line.iter().filter(|one| waits_for_room(one)).map(|one| one.waiting.uid).collect();
        let in_line = line.into_iter().filter(|one| one.held.is_none());
        let mut line: Vec<_> = in_line.map(|InLine { waiting, .. }| waiting).collect();
        placement::in_line(&mut line, &self.store.held().await?);
        let hidden = self.hidden(&line).await?;
        self.publish_line(&line, &short, &hidden, now).await
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

    /// Puts a line, in its order, on the board. `short`: those of it for whom there was no room; only to them it says something
    /// how places become free. `hidden`: those that wait for hosts to be known, whatever becomes free.
    pub(super) async fn publish_line(
        &self,
        line: &[Waiting],
        short: &HashSet<WorkspaceUid>,
        hidden: &HashSet<WorkspaceUid>,
        now: OffsetDateTime,
    ) -> Result<Arc<Line>> {
        self.metrics.queue_length(line.len());
        let outlook = if line.is_empty() { Arc::default() } else { self.outlook(now).await? };
        let seen = self.unknown_hosts_are_over_at(now).and_then(|at| Some(at + outlook.start?));
        let mut before = 0;
        let mut place = |(index, w): (usize, &Waiting)| {
            let ready_at = if hidden.contains(&w.uid) {
                seen
            } else if short.contains(&w.uid) {
                before += 1;
                outlook.ready_in_line(before, now)
            } else {
                None
            };
            (w.uid, LinePlace { position: i64::try_from(index + 1).unwrap_or(i64::MAX), ready_at })
        };
        let line = Arc::new(line.iter().enumerate().map(&mut place).collect::<Line>());
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

/// Whether there was no room for it when it was looked at last. What waits for its turn may have its place at once, and what waits for
/// a host, or a larger one, has none however many places become free.
fn waits_for_room(InLine { told, .. }: &InLine) -> bool {
    told.0 == Some(StatusReason::NoCapacity) && *told != NoPlace::TooLarge.explain()
}
