//! When one who waits may be ready: from what starts and stops took lately, and from how places became free.

use std::time::Duration;

use time::OffsetDateTime;

/// Places that became free within this long tell how fast they do.
pub const RELEASES_COUNT_FOR: Duration = Duration::from_secs(1800);

/// Fewer releases say nothing about how fast places become free.
const FEWEST_RELEASES: usize = 3;

/// What is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outlook {
    /// What a start takes, from its place to an editor that answers; `None`: none has come up lately.
    pub start: Option<Duration>,
    /// What a stop takes.
    pub stop: Duration,
    /// Stops under way.
    pub stopping: usize,
    /// Places that became free within [`RELEASES_COUNT_FOR`].
    pub released: usize,
    /// When those that run would be stopped for idleness if nobody touched them again, the earliest first.
    pub deadlines: Vec<OffsetDateTime>,
}

impl Outlook {
    /// Hardly a place became free lately: then only the deadlines tell.
    pub fn wants_deadlines(&self) -> bool {
        self.released < FEWEST_RELEASES
    }

    /// When a start that was placed at `placed_at` is likely to be ready; `None` when nothing is known, or it is late.
    pub fn ready_after(&self, placed_at: OffsetDateTime, now: OffsetDateTime) -> Option<OffsetDateTime> {
        Some(placed_at + self.start?).filter(|ready_at| *ready_at > now)
    }

    /// When the `position`-th in line, from 1, is likely to be ready; `None` when nothing tells.
    ///
    /// The first places are those of the stops under way. Then it goes on as it did lately; when hardly a place became
    /// free lately, those come next that would be idle first. Both are estimates: who works on keeps a place.
    pub fn ready_in_line(&self, position: usize, now: OffsetDateTime) -> Option<OffsetDateTime> {
        let start = self.start?;
        if position <= self.stopping {
            return Some(now + self.stop + start);
        }
        let rest = position - self.stopping;
        // Whoever is behind those gets no place before them.
        let earliest = if self.stopping > 0 { now + self.stop } else { now };
        let free_at = if !self.wants_deadlines() {
            let times = u32::try_from(rest).unwrap_or(u32::MAX);
            let every = RELEASES_COUNT_FOR / u32::try_from(self.released).unwrap_or(u32::MAX);
            now + every.saturating_mul(times)
        } else {
            (*self.deadlines.get(rest.checked_sub(1)?)?).max(now) + self.stop
        };
        Some(free_at.max(earliest) + start)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-03-02 10:00:00 UTC);

    fn at(seconds: i64) -> OffsetDateTime {
        NOW + time::Duration::seconds(seconds)
    }

    fn outlook() -> Outlook {
        Outlook {
            start: Some(Duration::from_secs(2)),
            stop: Duration::from_secs(3),
            stopping: 2,
            released: 0,
            deadlines: vec![at(100), at(300)],
        }
    }

    #[test]
    fn stops_under_way_come_first_then_who_would_be_idle_first() {
        let told: Vec<_> = (1..=5).map(|position| outlook().ready_in_line(position, NOW)).collect();
        assert_eq!(told, [Some(at(5)), Some(at(5)), Some(at(105)), Some(at(305)), None]);
    }

    #[test]
    fn places_go_on_becoming_free_as_they_did_lately() {
        let busy = Outlook { released: 30, ..outlook() };
        // One a minute.
        let told: Vec<_> = (2..=4).map(|position| busy.ready_in_line(position, NOW)).collect();
        assert_eq!(told, [Some(at(5)), Some(at(62)), Some(at(122))]);
    }

    #[test]
    fn nothing_is_told_when_nothing_is_known() {
        let unknown = Outlook { start: None, ..outlook() };
        assert_eq!((unknown.ready_in_line(1, NOW), unknown.ready_after(NOW, NOW)), (None, None));
        assert_eq!(Outlook { deadlines: vec![], stopping: 0, ..outlook() }.ready_in_line(1, NOW), None);
    }

    #[test]
    fn a_start_that_is_late_is_told_no_time() {
        assert_eq!(outlook().ready_after(at(-1), NOW), Some(at(1)));
        assert_eq!(outlook().ready_after(at(-2), NOW), None);
    }

    proptest! {
        #[test]
        fn who_is_later_in_line_is_told_no_earlier_time(
            stopping in 0..5_usize,
            released in 0..2000_usize,
            mut deadlines in proptest::collection::vec(-100..1000_i64, 0..10),
        ) {
            deadlines.sort_unstable();
            let outlook = Outlook { stopping, released, deadlines: deadlines.into_iter().map(at).collect(), ..outlook() };
            let told: Vec<_> = (1..30).map_while(|position| outlook.ready_in_line(position, NOW)).collect();
            prop_assert!(told.is_sorted() && told.iter().all(|ready_at| *ready_at > NOW));
        }
    }
}
