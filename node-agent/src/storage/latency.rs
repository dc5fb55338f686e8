//! How long looks at the share took lately. PURE.

use std::collections::VecDeque;
use std::time::Duration;

use carrel_common::model::Latency;

/// Some twelve minutes of looks at a healthy share: a moment's trouble is still in the 99th, and is forgotten within a lesson.
const KEPT: usize = 100;

/// The last looks.
#[derive(Debug, Clone, Default)]
pub(super) struct Looks(VecDeque<Duration>);

impl Looks {
    /// One more.
    pub(super) fn note(&mut self, took: Duration) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(took);
    }

    /// What they amount to; `None` before the first.
    pub(super) fn latency(&self) -> Option<Latency> {
        let mut sorted: Vec<_> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        // The smallest that so many in a hundred do not exceed.
        let rank = |of_hundred: usize| {
            let index = (sorted.len() * of_hundred).div_ceil(100).saturating_sub(1);
            sorted.get(index).copied()
        };
        Some(Latency { p50: rank(50)?, p99: rank(99)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn tells_what_half_and_what_nearly_all_of_the_last_looks_took_at_most() {
        let mut looks = Looks::default();
        assert_eq!(looks.latency(), None);
        looks.note(millis(7));
        assert_eq!(looks.latency(), Some(Latency { p50: millis(7), p99: millis(7) }));
        for n in (1..=100).rev() {
            looks.note(millis(n));
        }
        assert_eq!(
            looks.latency(),
            Some(Latency { p50: millis(50), p99: millis(99) }),
            "the first is forgotten"
        );
    }
}
