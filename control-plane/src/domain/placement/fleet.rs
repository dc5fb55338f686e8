//! The nodes as a placement sees them, and the choice among them.

use std::collections::HashMap;

use carrel_common::id::{CourseId, NodeId};
use carrel_common::model::Resources;

use super::no_place::{Lack, NoPlace, OutOfService};
use super::ranking::Ranking;

/// So many rankings are kept: classes that start at once need so many different things at most, and who comes behind ranks anew.
const RANKINGS: usize = 64;

/// Whether the emptiest node is preferred, or the fullest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strategy {
    /// The emptiest first, so that a lost node hurts few and each student has the most to himself.
    #[default]
    Spread,
    /// The fullest first, so that whole nodes stay empty and can be given back.
    Pack,
}

/// Whether a node takes anything, and if not, why; the first that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Heard of, its Docker and storage are healthy, and it is not cordoned.
    Ready,
    /// Being emptied, or emptied.
    Draining,
    /// Cordoned.
    Cordoned,
    /// Its Docker or its storage is not healthy.
    Unhealthy,
    /// Not heard of.
    Silent,
}

/// A node as a placement sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// Whether it takes anything.
    pub service: Service,
    /// Availability zone; may be empty.
    pub zone: String,
    /// What it can hold, over-commit included.
    pub capacity: Resources,
    /// Its processors in thousandths, as they are: Docker gives no single container more, whatever the over-commit.
    pub processors: i64,
    /// What its unreleased placements hold.
    pub allocated: Resources,
    /// Unreleased placements.
    pub count: i64,
    /// Placements at most.
    pub most: i64,
    /// Starts under way.
    pub starting: i64,
    /// Starts that failed there lately, with none that came up since.
    pub failures: i64,
    /// The images on it, of those that are asked for; canonical.
    pub images: Vec<String>,
}

impl Candidate {
    pub(super) fn is_ready(&self) -> bool {
        self.service == Service::Ready
    }

    fn has_memory(&self, need: &Resources) -> bool {
        self.allocated.memory_bytes.saturating_add(need.memory_bytes) <= self.capacity.memory_bytes
    }

    fn has_cpu(&self, need: &Resources) -> bool {
        need.cpu_millicores <= self.processors
            && self.allocated.cpu_millicores.saturating_add(need.cpu_millicores)
                <= self.capacity.cpu_millicores
    }

    fn has_place(&self) -> bool {
        self.count < self.most
    }

    pub(super) fn fits(&self, need: &Resources) -> bool {
        self.has_place() && self.has_memory(need) && self.has_cpu(need)
    }

    fn could_ever_fit(&self, need: &Resources) -> bool {
        self.most > 0
            && need.cpu_millicores <= self.processors.min(self.capacity.cpu_millicores)
            && need.memory_bytes <= self.capacity.memory_bytes
    }

    /// Whether it could take that, now or once places become free.
    fn could_take(&self, ask: &Ask<'_>) -> bool {
        self.is_ready() && !ask.avoid.contains(&self.node) && self.could_ever_fit(&ask.need)
    }

    /// How large a share of it has to become free before it fits, in millionths: of memory, processors or places, whichever is the
    /// largest. So much of what runs there has to leave, be the node large or small.
    fn shortfall(&self, need: &Resources) -> i64 {
        let lacks = |need: i64, used: i64, all: i64| {
            let lacking = used.saturating_add(need).saturating_sub(all).max(0);
            lacking.saturating_mul(1_000_000).checked_div(all).unwrap_or_default()
        };
        let memory = lacks(need.memory_bytes, self.allocated.memory_bytes, self.capacity.memory_bytes);
        let cpu = lacks(need.cpu_millicores, self.allocated.cpu_millicores, self.capacity.cpu_millicores);
        memory.max(cpu).max(lacks(1, self.count, self.most))
    }

    /// Share of the memory in use after the placement, in thousandths.
    pub(super) fn memory_permille(&self, need: &Resources) -> i64 {
        let used = self.allocated.memory_bytes.saturating_add(need.memory_bytes);
        used.saturating_mul(1000).checked_div(self.capacity.memory_bytes).unwrap_or(i64::MAX)
    }
}

/// What is to be placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask<'a> {
    /// What it needs.
    pub need: Resources,
    /// Its image, canonical.
    pub image: &'a str,
    /// Its course.
    pub course: Option<&'a CourseId>,
    /// Nodes on which this start has failed.
    pub avoid: &'a [NodeId],
}

/// All nodes at one moment, and what is placed on them since, in memory.
#[derive(Debug, Clone)]
pub struct Fleet {
    strategy: Strategy,
    /// In the order of their ids.
    nodes: Vec<Candidate>,
    /// Number of the zone of each node.
    zones: Vec<usize>,
    zone_count: usize,
    /// Workspaces of each course, by zone.
    of_course: HashMap<Option<CourseId>, Vec<i64>>,
    /// For each need and image that was asked for lately.
    rankings: Vec<Ranking>,
    /// The node whose places are kept for one that has waited for long.
    kept: Option<usize>,
}

impl Fleet {
    /// These nodes. `places` says how many workspaces of a course are on a node; of little use where there is one zone.
    pub fn new(
        strategy: Strategy,
        mut nodes: Vec<Candidate>,
        places: impl IntoIterator<Item = (NodeId, Option<CourseId>, i64)>,
    ) -> Self {
        nodes.sort_by_key(|node| node.node);
        let mut numbers = HashMap::new();
        let mut zones = Vec::with_capacity(nodes.len());
        for node in &nodes {
            let next = numbers.len();
            zones.push(*numbers.entry(node.zone.clone()).or_insert(next));
        }
        let zone_count = numbers.len();
        let zone_of: HashMap<NodeId, usize> =
            nodes.iter().map(|n| n.node).zip(zones.iter().copied()).collect();
        let mut of_course: HashMap<Option<CourseId>, Vec<i64>> = HashMap::new();
        for (node, course, count) in places {
            if let Some(zone) = zone_of.get(&node) {
                of_course.entry(course).or_insert_with(|| vec![0; zone_count])[*zone] += count;
            }
        }
        Self { strategy, nodes, zones, zone_count, of_course, rankings: Vec::new(), kept: None }
    }

    /// More than one zone: how many workspaces of a course are in each matters.
    pub fn has_zones(&self) -> bool {
        self.zone_count > 1
    }

    /// The nodes.
    pub fn nodes(&self) -> &[Candidate] {
        &self.nodes
    }

    /// Takes what is now known of a node in place of what was known before.
    pub fn refresh(&mut self, fresh: Candidate) {
        if let Some(known) = self.nodes.iter_mut().find(|known| known.node == fresh.node) {
            *known = fresh;
            self.rankings.clear();
        }
    }

    /// Whether a node other than those it avoids could take it now or once places become free; `having` restricts to
    /// nodes that have its image.
    pub fn could_take_elsewhere(&self, ask: &Ask<'_>, having: bool) -> bool {
        let has_it = |node: &Candidate| node.images.iter().any(|image| image == ask.image);
        self.nodes.iter().any(|node| node.could_take(ask) && (!having || has_it(node)))
    }

    /// The node that takes `ask`.
    ///
    /// # Errors
    /// [`NoPlace`] says why none does.
    pub fn place(&mut self, ask: &Ask<'_>) -> Result<NodeId, NoPlace> {
        self.best(ask).map(|index| self.nodes[index].node)
    }

    /// As [`Fleet::place`], and the place is taken: whoever comes next finds it so.
    ///
    /// # Errors
    /// As [`Fleet::place`].
    pub fn take(&mut self, ask: &Ask<'_>) -> Result<NodeId, NoPlace> {
        let index = self.best(ask)?;
        self.occupy(index, ask);
        Ok(self.nodes[index].node)
    }

    /// Takes a place on this very node; false when it has none.
    pub fn take_on(&mut self, node: NodeId, ask: &Ask<'_>) -> bool {
        let index = self.nodes.iter().position(|known| known.node == node);
        let Some(index) =
            index.filter(|index| self.nodes[*index].is_ready() && self.nodes[*index].fits(&ask.need))
        else {
            return false;
        };
        self.occupy(index, ask);
        true
    }

    /// Gives nobody else a place on the node that comes nearest to having one for `ask`; false when there is none.
    pub fn keep_for(&mut self, ask: &Ask<'_>) -> bool {
        let able = self.nodes.iter().enumerate().filter(|(_, node)| node.could_take(ask));
        // Of equals the one with the lowest id.
        let nearest = able.min_by_key(|(_, node)| node.shortfall(&ask.need));
        self.kept = nearest.map(|(index, _)| index);
        self.kept.is_some()
    }

    fn occupy(&mut self, index: usize, ask: &Ask<'_>) {
        let (zone, zones) = (self.zones[index], self.zone_count);
        let node = &mut self.nodes[index];
        node.allocated.cpu_millicores += ask.need.cpu_millicores;
        node.allocated.memory_bytes += ask.need.memory_bytes;
        node.count += 1;
        node.starting += 1;
        for ranking in &mut self.rankings {
            ranking.put(index, zone, node);
        }
        self.of_course.entry(ask.course.cloned()).or_insert_with(|| vec![0; zones])[zone] += 1;
    }

    fn best(&mut self, ask: &Ask<'_>) -> Result<usize, NoPlace> {
        let at = self.ranking(ask);
        let of_course = self.of_course.get(&ask.course.cloned());
        let avoided = |index: usize| !ask.avoid.is_empty() && ask.avoid.contains(&self.nodes[index].node);
        let best = self.rankings[at].best(
            |index| self.kept != Some(index) && !avoided(index),
            |zone| of_course.map_or(0, |zones| zones[zone]),
        );
        best.ok_or_else(|| self.why_not(ask))
    }

    /// Which ranking is for those.
    fn ranking(&mut self, ask: &Ask<'_>) -> usize {
        if let Some(known) = self.rankings.iter().position(|ranking| ranking.is_for(&ask.need, ask.image)) {
            return known;
        }
        let mut ranking = Ranking::new(self.strategy, ask.need, ask.image, self.zone_count);
        for (index, (node, zone)) in self.nodes.iter().zip(&self.zones).enumerate() {
            ranking.put(index, *zone, node);
        }
        if self.rankings.len() == RANKINGS {
            self.rankings.clear();
        }
        self.rankings.push(ranking);
        self.rankings.len() - 1
    }

    fn why_not(&self, ask: &Ask<'_>) -> NoPlace {
        if !self.nodes.is_empty() && !self.nodes.iter().any(|node| node.could_ever_fit(&ask.need)) {
            return NoPlace::TooLarge;
        }
        let ready: Vec<_> = self.nodes.iter().filter(|node| node.is_ready()).collect();
        if ready.is_empty() {
            let of = |service| self.nodes.iter().filter(|node| node.service == service).count();
            return NoPlace::NoneReady(OutOfService {
                draining: of(Service::Draining),
                cordoned: of(Service::Cordoned),
                unhealthy: of(Service::Unhealthy),
                silent: of(Service::Silent),
            });
        }
        let left: Vec<_> = ready.into_iter().filter(|node| !ask.avoid.contains(&node.node)).collect();
        if left.is_empty() {
            return NoPlace::FailedOnAll;
        }
        let kept = self.kept.map(|index| &self.nodes[index]);
        if kept.is_some_and(|kept| kept.could_take(ask) && kept.fits(&ask.need)) {
            return NoPlace::NotItsTurn;
        }
        let with = |has: &dyn Fn(&Candidate) -> bool| left.iter().filter(|node| has(node)).count();
        let lacks = [
            (with(&|node| node.has_memory(&ask.need)), Lack::Memory),
            (with(&|node| node.has_cpu(&ask.need)), Lack::Cpu),
            (with(&|node| node.has_place()), Lack::Places),
        ];
        // Of those that are equally short, the first named.
        let (with_room, lack) = lacks.into_iter().min_by_key(|(with, _)| *with).unwrap_or((0, Lack::Memory));
        NoPlace::Full { lack, with_room, of: left.len(), need: ask.need }
    }
}

#[cfg(test)]
mod tests;
