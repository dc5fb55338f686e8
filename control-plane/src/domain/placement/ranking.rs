//! How the nodes rank for all that need the same and run the same image.

use std::collections::BTreeSet;

use carrel_common::model::Resources;

use super::fleet::{Candidate, Strategy};

/// An agent lets six starts go on at once: a node with more of them under way makes the next one wait for its turn.
const STARTS_AT_ONCE: i64 = 6;

/// How well a node suits; the smallest is taken, among equals the node with the lowest id. The order of the fields is the policy.
///
/// A restart is not asked by it: it keeps the place that it has, where its image is and where it came up, as long as that node
/// may take it. Only when it may not, it stands in line and goes by the score like a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    /// A node where starts fail comes behind every other: one more failure costs a student more than anything below.
    failures: i64,
    /// A pull costs tens of seconds; nothing below costs so much.
    image_missing: bool,
    /// Workspaces of the same course in its zone: a zone that is lost takes as few of a course with it as can be.
    of_course_in_zone: i64,
    /// How many times over the starts under way fill what an agent starts at once: a start that waits for its turn is late.
    waves: i64,
    /// Share of memory in use after the placement, in thousandths, negative to pack: memory is what runs out first.
    memory: i64,
    /// Workspaces on it, negative to pack.
    count: i64,
}

/// The nodes of each zone in the order of their scores, kept as they fill up rather than worked out for each that is placed: a
/// pass of ten thousand over a thousand nodes would compare ten million of them.
#[derive(Debug, Clone)]
pub(super) struct Ranking {
    strategy: Strategy,
    need: Resources,
    image: String,
    /// By number of the zone; nodes by their index. In a zone a course counts for all the same, so it is left out until one asks.
    zones: Vec<BTreeSet<(Score, usize)>>,
    /// The score that each node stands there by; `None`: it has no room, or takes nothing.
    scores: Vec<Option<Score>>,
}

impl Ranking {
    /// Of no node yet.
    pub(super) fn new(strategy: Strategy, need: Resources, image: &str, zones: usize) -> Self {
        let image = image.to_owned();
        Self { strategy, need, image, zones: vec![BTreeSet::new(); zones], scores: Vec::new() }
    }

    /// Whether it is for those.
    pub(super) fn is_for(&self, need: &Resources, image: &str) -> bool {
        self.need == *need && self.image == image
    }

    /// One more node, or one that changed.
    pub(super) fn put(&mut self, index: usize, zone: usize, node: &Candidate) {
        let score = self.score(node);
        if self.scores.len() <= index {
            self.scores.resize(index + 1, None);
        }
        if let Some(former) = std::mem::replace(&mut self.scores[index], score) {
            self.zones[zone].remove(&(former, index));
        }
        self.zones[zone].extend(score.map(|score| (score, index)));
    }

    /// The best of those that `may` take it.
    pub(super) fn best(
        &self,
        may: impl Fn(usize) -> bool,
        of_course_in_zone: impl Fn(usize) -> i64,
    ) -> Option<usize> {
        let first = |(zone, ranked): (usize, &BTreeSet<(Score, usize)>)| {
            let (score, index) = ranked.iter().find(|(_, index)| may(*index))?;
            Some((Score { of_course_in_zone: of_course_in_zone(zone), ..*score }, *index))
        };
        self.zones.iter().enumerate().filter_map(first).min().map(|(_, index)| index)
    }

    fn score(&self, node: &Candidate) -> Option<Score> {
        let sign = if self.strategy == Strategy::Spread { 1 } else { -1 };
        (node.is_ready() && node.fits(&self.need)).then(|| Score {
            failures: node.failures,
            image_missing: !node.images.contains(&self.image),
            of_course_in_zone: 0,
            waves: node.starting / STARTS_AT_ONCE,
            memory: sign * node.memory_permille(&self.need),
            count: sign * node.count,
        })
    }
}
