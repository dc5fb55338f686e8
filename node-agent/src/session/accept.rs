//! Which desired sets are taken. PURE. Leaderless replicas are safe because a set that is older than the accepted one is refused,
//! whoever sends it.

use carrel_common::model::{DesiredPair, DesiredSet};

/// What to do with a set offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offer {
    /// It is newer: it holds from now on.
    Take,
    /// It is the one that holds.
    Same,
    /// It is older, or says something else under the same name.
    Refuse {
        /// The pair that holds.
        accepted: DesiredPair,
    },
}

/// Judges `offered` against the set that holds; a process that holds none yet takes nothing below `floor`, the highest pair that
/// one before it accepted.
pub(super) fn judge(holds: Option<&DesiredSet>, floor: Option<DesiredPair>, offered: &DesiredSet) -> Offer {
    match holds {
        None => match floor.filter(|floor| offered.pair < *floor) {
            Some(accepted) => Offer::Refuse { accepted },
            None => Offer::Take,
        },
        Some(holds) if offered.pair > holds.pair => Offer::Take,
        Some(holds) if offered.pair == holds.pair && offered.digest == holds.digest => Offer::Same,
        Some(holds) => Offer::Refuse { accepted: holds.pair },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(incarnation: i64, generation: i64, digest: &str) -> DesiredSet {
        DesiredSet { pair: DesiredPair { incarnation, generation }, digest: digest.into(), items: Vec::new() }
    }

    #[test]
    fn only_a_higher_pair_replaces_the_set_that_holds() {
        let holds = set(2, 5, "a");
        let refuse = Offer::Refuse { accepted: holds.pair };
        for (offered, expected) in [
            (set(2, 6, "b"), Offer::Take),
            (set(3, 1, "b"), Offer::Take),
            (set(2, 5, "a"), Offer::Same),
            (set(2, 5, "b"), refuse),
            (set(2, 4, "a"), refuse),
            (set(1, 9, "a"), refuse),
        ] {
            assert_eq!(judge(Some(&holds), None, &offered), expected, "{:?}", offered.pair);
        }
        assert_eq!(judge(None, None, &holds), Offer::Take);
    }

    #[test]
    fn a_new_process_takes_nothing_below_what_the_one_before_accepted() {
        let floor = DesiredPair { incarnation: 2, generation: 5 };
        for (offered, expected) in [
            (set(2, 5, "a"), Offer::Take),
            (set(3, 1, "a"), Offer::Take),
            (set(2, 4, "a"), Offer::Refuse { accepted: floor }),
            (set(1, 9, "a"), Offer::Refuse { accepted: floor }),
        ] {
            assert_eq!(judge(None, Some(floor), &offered), expected, "{:?}", offered.pair);
        }
    }
}
