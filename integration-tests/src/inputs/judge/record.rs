//! What the test's own log says, sorted for the judge.

use std::collections::BTreeMap;

use super::super::{Answer, Asked, DATABASE, Line, Stamp};
use super::SECOND;

/// What is slowed down by an outage is as fast as ever after so long.
const AFTER_AN_OUTAGE: i64 = 10 * SECOND;
/// What an outage takes of a wait is at most this longer than itself: the signs of life before and after it.
const AROUND_AN_OUTAGE: i64 = 2 * SECOND;
/// Of an outage of the database that is longer it is known that it was one: the clock stands still, and then a lead begins anew.
/// So it is of an agent's that is longer than its node may be silent and this.
const NOTICED: i64 = 4 * SECOND;
/// The machine's two clocks may drift apart by this in a test; more and its own clock was set, so that nothing can be said.
const DRIFT: i64 = SECOND / 10;

/// Why a desk is to run on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    pub(super) sent: i64,
    pub(super) answered: i64,
    pub(super) acked: bool,
    /// Only its node knows of it, for some time.
    pub(super) touch: bool,
    /// The earliest moment from which the idle timeout is counted; none where a time was asked for.
    pub(super) since: Option<i64>,
    /// What it holds a stop back until: the earliest and the latest that can have been recorded.
    pub(super) from: i64,
    pub(super) to: i64,
}

#[derive(Debug)]
struct Outage<'a> {
    /// Whose desks it concerns; none: everybody's.
    node: Option<&'a str>,
    from: i64,
    to: i64,
    /// A wait takes longer by it. Else only what is to be done in it, or just after it, is done late.
    lengthens: bool,
    /// The clock stands still for it, and a lead begins anew.
    noticed: bool,
}

impl Outage<'_> {
    fn concerns(&self, node: &str) -> bool {
        self.node.is_none_or(|own| own == node)
    }
}

#[derive(Debug)]
pub(super) struct Record<'a> {
    pub(super) idle: i64,
    pub(super) lead: i64,
    pub(super) strikes: BTreeMap<String, usize>,
    /// Of each student.
    asked: BTreeMap<&'a str, Vec<&'a Line>>,
    outages: Vec<Outage<'a>>,
    /// How far the database's clock was off, at some time.
    offs: Vec<i64>,
    /// When it was set forward.
    forward: Vec<i64>,
    begun: Stamp,
    over: Stamp,
}

/// What "replica 1" is one of.
fn kind_of(what: &str) -> &str {
    what.trim_end_matches(|c: char| c.is_ascii_digit() || c == ' ')
}

/// How much of these times there is, counting once what is in several.
fn union(mut spans: Vec<(i64, i64)>) -> i64 {
    spans.sort_unstable();
    let (mut sum, mut reached) = (0, i64::MIN);
    for (from, to) in spans {
        sum += (to - from.max(reached)).max(0);
        reached = reached.max(to);
    }
    sum
}

impl<'a> Record<'a> {
    /// Whether the database's clock was set forward between two moments.
    pub(super) fn is_set_forward(&self, from: i64, to: i64) -> bool {
        self.forward.iter().any(|at| (from..to).contains(at))
    }

    pub(super) fn read(lines: &'a [Line]) -> Result<Self, String> {
        let (
            Some(Line::Begun { at: begun, idle_timeout, warning_lead, unreachable_after, nodes }),
            Some(Line::Over { at: over }),
        ) = (lines.first(), lines.last())
        else {
            return Err("it has no beginning or no end".into());
        };
        let drift = (over.wall - begun.wall) - (over.at - begun.at);
        if drift.abs() > DRIFT {
            return Err(format!("the machine's own clock was set by {drift} µs"));
        }
        let mut record = Self {
            idle: *idle_timeout,
            lead: *warning_lead,
            strikes: BTreeMap::new(),
            asked: BTreeMap::new(),
            outages: vec![],
            offs: vec![0],
            forward: vec![],
            begun: *begun,
            over: *over,
        };
        // One that is set to what it was is not set.
        let mut offs = BTreeMap::new();
        for line in lines {
            match line {
                Line::Begun { .. } | Line::Over { .. } => {}
                Line::Asked { student, .. } => record.asked.entry(student).or_default().push(line),
                Line::Down { what, from, to } => {
                    record.struck(format!("{} killed", kind_of(what)));
                    let (from, to, node) = (from.at, to.at, nodes.get(what).map(String::as_str));
                    let bearable = if node.is_some() { unreachable_after + NOTICED } else { NOTICED };
                    let lengthens = what == DATABASE || node.is_some();
                    let noticed = lengthens && to - from > bearable;
                    record.outages.push(Outage { node, from, to, lengthens, noticed });
                }
                Line::Set { clock, at, off_by } => {
                    let before = offs.insert(clock, *off_by).unwrap_or(0);
                    if before == *off_by {
                        continue;
                    }
                    let way = if *off_by > before { "forward" } else { "back" };
                    record.struck(format!("{}'s clock set {way}", kind_of(clock)));
                    // Of any other clock nothing is to be noticed.
                    if clock == DATABASE {
                        let (from, to) = (at.at, at.at);
                        let (lengthens, noticed) = (true, true);
                        record.outages.push(Outage { node: None, from, to, lengthens, noticed });
                        record.offs.push(*off_by);
                        record.forward.extend((*off_by > before).then_some(at.at));
                    }
                }
            }
        }
        record.offs.sort_unstable();
        record.offs.dedup();
        record.outages.sort_unstable_by_key(|outage| outage.from);
        Ok(record)
    }

    fn struck(&mut self, kind: String) {
        *self.strikes.entry(kind).or_default() += 1;
    }

    pub(super) fn students(&self) -> impl Iterator<Item = &'a str> {
        self.asked.keys().copied()
    }

    /// When an event was, by the log's own clock: of all settings of the database's clock only one lies within the test.
    pub(super) fn time_of(&self, time: i64) -> Option<i64> {
        let within = |off: &i64| {
            let at = time - off * SECOND - self.begun.wall + self.begun.at;
            (self.begun.at - DRIFT..=self.over.at + DRIFT).contains(&at).then_some(at)
        };
        let mut all = self.offs.iter().filter_map(within);
        all.next().filter(|_| all.next().is_none())
    }

    fn outages(&self, node: &str) -> impl Iterator<Item = &Outage<'a>> {
        self.outages.iter().filter(move |outage| outage.concerns(node))
    }

    /// When a stop was due that is counted from `since` on, would else have been due at `due` and was decided at `at`: for what was
    /// noticed before the clock stood still.
    pub(super) fn moved_on(&self, node: &str, since: i64, due: i64, at: i64) -> i64 {
        let is_before = |outage: &&Outage<'_>| outage.noticed && outage.from >= since && outage.to < at;
        self.outages(node).filter(is_before).fold(due, |due, outage| {
            // A silence is noticed a moment after it is one.
            let unnoticed = if outage.node.is_some() { NOTICED } else { SECOND };
            let least = (outage.to - outage.from - unnoticed).max(0);
            if outage.from < due { due + least } else { due }
        })
    }

    /// What a warning may not be older than.
    pub(super) fn breaks(&self, node: &str) -> impl Iterator<Item = (i64, i64)> {
        self.outages(node).filter(|outage| outage.noticed).map(|outage| (outage.from, outage.to))
    }

    /// How much later than due a stop may be that was due at `latest`: by all that lengthened its wait, and by what was slow in the
    /// last lead before it and after.
    pub(super) fn excused(&self, node: &str, latest: i64, at: i64) -> i64 {
        let lengthened: Vec<_> = self
            .outages(node)
            .filter(|outage| outage.lengthens)
            .map(|outage| (outage.from.max(latest - self.idle), (outage.to + AROUND_AN_OUTAGE).min(at)))
            .collect();
        let begin = latest + union(lengthened.clone()) - self.lead;
        let slowed =
            self.outages(node).map(|outage| (outage.from.max(begin), (outage.to + AFTER_AN_OUTAGE).min(at)));
        union(lengthened.iter().copied().chain(slowed).collect())
    }

    pub(super) fn acked(&self) -> usize {
        let all = self.asked.values().flatten();
        all.filter(|line| matches!(line, Line::Asked { answer: Answer::Acked, .. })).count()
    }

    fn asked(&self, student: &str) -> impl Iterator<Item = &'a Line> {
        self.asked.get(student).into_iter().flatten().copied()
    }

    /// What a student was refused: the generation, when it was asked and when it was answered.
    pub(super) fn refusals(&self, student: &str) -> impl Iterator<Item = (i64, i64, i64)> {
        self.asked(student).filter_map(|line| match line {
            Line::Asked { generation, sent, answered, answer: Answer::Refused(_), .. } => {
                Some((*generation, sent.at, answered.at))
            }
            _ => None,
        })
    }

    /// All that may have been recorded of an incarnation.
    pub(super) fn claims(&self, student: &str, generation: i64) -> impl Iterator<Item = Claim> {
        self.asked(student).filter_map(move |line| self.claim(line, generation))
    }

    fn claim(&self, line: &Line, of: i64) -> Option<Claim> {
        let Line::Asked { generation, asked, sent, answered, answer, .. } = line else { return None };
        if *generation != of || matches!(answer, Answer::Refused(_)) {
            return None;
        }
        let (sent, answered, idle) = (sent.at, answered.at, self.idle);
        let (since, holds) = match asked {
            Asked::Input { age, .. } => (Some(sent - age), idle - age),
            Asked::Touch => (Some(sent), idle),
            Asked::Job { by } if *by <= idle => (Some(sent), idle),
            Asked::Job { by } | Asked::Extension { by } => (None, *by),
        };
        Some(Claim {
            sent,
            answered,
            acked: *answer == Answer::Acked,
            touch: *asked == Asked::Touch,
            since,
            from: sent + holds,
            to: answered + holds,
        })
    }
}
