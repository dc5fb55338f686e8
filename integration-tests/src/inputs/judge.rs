//! Says from the test's own log and the event log what was done wrong. PURE.
//!
//! Bounds are taken so that no doubt is to the product's favour where it must not stop (an input counts from the earliest
//! moment it can have been, an ack by itself), and none to its disfavour where it must stop (an input without an answer may
//! have been recorded, as late as it was given up).

mod record;

use std::collections::BTreeMap;

use super::Line;
use record::{Claim, Record};

const SECOND: i64 = 1_000_000;
/// What the 99th of 100 stops may be late.
const LATE: i64 = 5 * SECOND;
/// A stop that was decided just before a step is told just after it: a transaction lasts so long at most.
const UNDER_WAY: i64 = SECOND / 4;

/// An event, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Whose.
    pub student: String,
    /// Its type, without `workspace.`.
    pub kind: String,
    /// Its reason.
    pub reason: String,
    /// Of which incarnation.
    pub generation: i64,
    /// On which node; empty when on none.
    pub node: String,
    /// The version of the deadline that it names; 0 when it names none.
    pub version: i64,
    /// When, by the database's clock, in microseconds since 1970.
    pub time: i64,
}

/// What must not be. Times in microseconds since the log was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// An idle stop before its time.
    Early {
        /// Whose.
        student: String,
        /// When.
        at: i64,
        /// Not before.
        due: i64,
    },
    /// A stop without the whole lead of a warning that stood; none: without any.
    ShortLead {
        /// Whose.
        student: String,
        /// When.
        at: i64,
        /// How long the warning was out.
        lead: Option<i64>,
    },
    /// A stop by a warning that spoke of another deadline: what was acked since moved it.
    MovedOn {
        /// Whose.
        student: String,
        /// When.
        at: i64,
        /// When the warning was given.
        warned: i64,
    },
    /// A warning while one stood, or the withdrawal of one that did not stand.
    Withdrawal {
        /// Whose.
        student: String,
        /// When.
        at: i64,
    },
    /// Somebody was told that the desk does not run, which nobody had stopped.
    Refused {
        /// Who.
        student: String,
        /// When it was asked.
        at: i64,
    },
    /// A stop whose warning was given before the database or the node was away, or the clock was set.
    StaleLead {
        /// Whose.
        student: String,
        /// When.
        at: i64,
    },
    /// The 99th of 100 stops was this late.
    Late {
        /// Of those that had an outage to excuse them; else of those that had none.
        excused: bool,
        /// After what the log says, without what outages excuse.
        p99: i64,
    },
    /// At the end somebody is neither stopped nor about to be.
    Stuck {
        /// Who.
        student: String,
        /// The last that was told.
        last: String,
    },
    /// Something happened that nobody asked for.
    Unasked {
        /// To whom.
        student: String,
        /// What, and why.
        what: String,
    },
    /// An event whose time fits no setting of the database's clock, or several.
    Untimed {
        /// Whose.
        student: String,
        /// Which.
        kind: String,
    },
    /// The log itself cannot be used.
    Unusable(String),
}

/// What the logs say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What was done wrong.
    pub violations: Vec<Violation>,
    /// How late each idle stop was that no outage excuses, sorted; in microseconds.
    pub unexcused: Vec<i64>,
    /// How late each other one was beyond what outages excuse, sorted; in microseconds.
    pub excused: Vec<i64>,
    /// Inputs, extensions and jobs that were acked.
    pub acked: usize,
    /// How often each kind of thing was done to the fleet.
    pub strikes: BTreeMap<String, usize>,
}

/// How late the stop at this share of sorted ones is; 0 without any.
pub fn lateness_at(percent: usize, sorted: &[i64]) -> i64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

/// What one incarnation has gone through.
#[derive(Clone, Debug, Default)]
struct Life<'a> {
    generation: i64,
    node: &'a str,
    first_ready: Option<i64>,
    last_ready: Option<i64>,
    /// When the warning that stands was given, and the version that it names.
    warned: Option<(i64, i64)>,
    /// When it was stopped for idleness.
    idle_stop: Option<i64>,
}

/// When the order to stop an incarnation stood: until its node refused it, if it did.
#[derive(Clone, Copy, Debug)]
struct Stopping {
    generation: i64,
    from: i64,
    to: i64,
}

/// Judges a whole run. The events of each student are in the order of their positions.
pub fn judge(lines: &[Line], events: &[Told]) -> Verdict {
    match Record::read(lines) {
        Ok(record) => sit(&record, events),
        Err(problem) => Verdict { violations: vec![Violation::Unusable(problem)], ..Verdict::default() },
    }
}

fn sit(record: &Record<'_>, events: &[Told]) -> Verdict {
    let mut verdict =
        Verdict { acked: record.acked(), strikes: record.strikes.clone(), ..Verdict::default() };
    let mut by_student: BTreeMap<&str, Vec<&Told>> = BTreeMap::new();
    for told in events {
        by_student.entry(&told.student).or_default().push(told);
    }
    for student in record.students().filter(|student| !by_student.contains_key(*student)) {
        let problem = format!("no events of {student}");
        verdict.violations.push(Violation::Unusable(problem));
    }
    for (student, told) in by_student {
        Follower { record, student, verdict: &mut verdict, stoppings: vec![] }.follow(&told);
    }
    verdict.unexcused.sort_unstable();
    verdict.excused.sort_unstable();
    for (excused, late) in [(false, &verdict.unexcused), (true, &verdict.excused)] {
        let p99 = lateness_at(99, late);
        if p99 > LATE {
            verdict.violations.push(Violation::Late { excused, p99 });
        }
    }
    verdict
}

/// Follows one student's desk through its events.
struct Follower<'a> {
    record: &'a Record<'a>,
    student: &'a str,
    verdict: &'a mut Verdict,
    stoppings: Vec<Stopping>,
}

impl<'a> Follower<'a> {
    fn student(&self) -> String {
        self.student.to_owned()
    }

    fn accuse(&mut self, violation: Violation) {
        self.verdict.violations.push(violation);
    }

    /// A warning ended, or none stood: `well`, or not.
    fn ends(&mut self, well: bool, at: i64) {
        if !well {
            self.accuse(Violation::Withdrawal { student: self.student(), at });
        }
    }

    fn unasked(&mut self, told: &Told) {
        let what = format!("{} {}", told.kind, told.reason).trim_end().to_owned();
        self.accuse(Violation::Unasked { student: self.student(), what });
    }

    fn follow(mut self, events: &[&'a Told]) {
        let (mut life, mut last) = (Life::default(), "");
        for (n, told) in events.iter().enumerate() {
            let Some(at) = self.record.time_of(told.time) else {
                self.accuse(Violation::Untimed { student: self.student(), kind: told.kind.clone() });
                continue;
            };
            if told.generation != life.generation {
                life = Life { generation: told.generation, ..Life::default() };
            }
            match (told.kind.as_str(), told.reason.as_str()) {
                ("ready", _) => {
                    life.node = &told.node;
                    life.first_ready = life.first_ready.or(Some(at));
                    life.last_ready = Some(at);
                }
                ("warning", _) => {
                    let stood = life.warned.replace((at, told.version));
                    self.ends(stood.is_none(), at);
                }
                ("warning_withdrawn", _) => {
                    let stood = life.warned.take();
                    self.ends(stood.is_some_and(|(_, version)| version == told.version), at);
                }
                ("stopping", why @ ("IDLE" | "USER")) => {
                    self.stoppings.push(Stopping { generation: life.generation, from: at, to: i64::MAX });
                    if why == "IDLE" {
                        let is_end =
                            |told: &&&Told| ["stop_refused", "stopped"].contains(&told.kind.as_str());
                        let refused =
                            events[n..].iter().find(is_end).is_some_and(|end| end.kind == "stop_refused");
                        self.idle_stop(&life, at, refused);
                        life.idle_stop = Some(at);
                    }
                    life.warned = None;
                }
                ("stop_refused", _) => {
                    self.stoppings.iter_mut().rev().take(1).for_each(|stopping| stopping.to = at);
                    let unknown = |claim: &Claim| {
                        claim.touch && life.idle_stop.is_some_and(|stop| claim.sent < at && claim.from > stop)
                    };
                    // By a clock that was set forward what was seen before seems to be older than its node knows it to be.
                    let seems_new = |claim: &Claim| claim.touch && self.record.is_set_forward(claim.sent, at);
                    let may_refuse = |claim: Claim| unknown(&claim) || seems_new(&claim);
                    if !self.record.claims(self.student, life.generation).any(may_refuse) {
                        self.unasked(told);
                    }
                }
                ("stopping" | "failed" | "moved" | "restarting", _) => self.unasked(told),
                _ => {}
            }
            last = &told.kind;
        }
        if last != "stopped" {
            self.accuse(Violation::Stuck { student: self.student(), last: last.to_owned() });
        }
        for (generation, sent, answered) in self.record.refusals(self.student) {
            let stops = |stopping: &Stopping| {
                stopping.generation == generation && stopping.from <= answered && stopping.to >= sent
            };
            if !self.stoppings.iter().any(stops) {
                self.accuse(Violation::Refused { student: self.student(), at: sent });
            }
        }
    }

    /// `refused`: the node did not carry it out, as there was input that only it knew of.
    fn idle_stop(&mut self, life: &Life<'_>, at: i64, refused: bool) {
        let student = || self.student.to_owned();
        let (record, mut found) = (self.record, vec![]);
        let first_ready = life.first_ready.unwrap_or(at);
        let mut due = record.moved_on(life.node, first_ready, first_ready + record.idle, at);
        let mut latest = life.last_ready.unwrap_or(at) + record.idle;
        for claim in record.claims(self.student, life.generation) {
            // What was touched while the node went about the stop may have come too late; and of a stop that was refused the desk ran
            // on, so that all the rest of its time comes behind it.
            let unknown = claim.touch && (refused || claim.answered > at);
            let behind = refused && claim.answered > at;
            if claim.acked && !unknown && !behind {
                let moved = claim.since.map(|since| record.moved_on(life.node, since, claim.from, at));
                due = due.max(moved.unwrap_or(claim.from));
                let moves = |warned: i64| claim.sent > warned && claim.from > warned + record.lead;
                if let Some((warned, _)) = life.warned.filter(|(warned, _)| moves(*warned)) {
                    let moved_on = Violation::MovedOn { student: student(), at, warned };
                    found.extend((!found.contains(&moved_on)).then_some(moved_on));
                }
            }
            if claim.sent <= at {
                latest = latest.max(claim.to);
            }
        }
        if at < due {
            found.push(Violation::Early { student: student(), at, due });
        }
        let lead = life.warned.map(|(warned, _)| at - warned);
        if lead.is_none_or(|lead| lead < record.lead) {
            found.push(Violation::ShortLead { student: student(), at, lead });
        }
        let stale = |(from, to): (i64, i64)| {
            life.warned.is_some_and(|(warned, _)| warned < from) && at > to + UNDER_WAY
        };
        if record.breaks(life.node).any(stale) {
            found.push(Violation::StaleLead { student: student(), at });
        }
        self.verdict.violations.extend(found);
        if !refused {
            let excused = record.excused(life.node, latest, at);
            let late = if excused == 0 { &mut self.verdict.unexcused } else { &mut self.verdict.excused };
            late.push((at - latest - excused).max(0));
        }
    }
}

#[cfg(test)]
mod tests;
