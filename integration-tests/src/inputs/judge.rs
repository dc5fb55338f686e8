//! Says from the test's own log and the event log what was done wrong. PURE.
//!
//! Bounds are taken so that no doubt is to the product's favour where it must not stop (an input counts from the earliest
//! moment it can have been, an ack by itself), and none to its disfavour where it must stop (an input without an answer may
//! have been recorded, as late as it was given up).

use std::collections::BTreeMap;

use super::{Answer, Asked, DATABASE, Line};

const SECOND: i64 = 1_000_000;
/// An outage excuses its own length and this.
const AFTER_AN_OUTAGE: i64 = 10 * SECOND;
/// What the 99th of 100 stops may be late.
const LATE: i64 = 5 * SECOND;
/// Of an outage of the database that is longer it is known that it was one; and then a lead begins anew.
const NOTICED: i64 = 4 * SECOND;
/// A stop that was decided just before a step is told just after it: a transaction lasts so long at most.
const UNDER_WAY: i64 = SECOND / 4;
/// The machine's two clocks may drift apart by this in a test; more and its own clock was set, so that nothing can be said.
const DRIFT: i64 = SECOND / 10;

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
    /// A stop whose warning was given before the database was away or its clock was set.
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

/// What "replica 1" is one of.
fn kind_of(what: &str) -> &str {
    what.trim_end_matches(|c: char| c.is_ascii_digit() || c == ' ')
}

/// What one incarnation has gone through.
#[derive(Clone, Copy, Debug, Default)]
struct Life {
    generation: i64,
    first_ready: Option<i64>,
    last_ready: Option<i64>,
    warned: Option<i64>,
}

struct Court<'a> {
    idle: i64,
    lead: i64,
    /// Of each student.
    asked: BTreeMap<&'a str, Vec<&'a Line>>,
    /// What excuses lateness.
    outages: Vec<(i64, i64)>,
    /// What a warning may not be older than.
    breaks: Vec<(i64, i64)>,
    /// How far the database's clock was off, at some time.
    offs: Vec<i64>,
    strikes: BTreeMap<String, usize>,
    begun: super::Stamp,
    over: super::Stamp,
}

/// Judges a whole run.
pub fn judge(lines: &[Line], events: &[Told]) -> Verdict {
    match Court::read(lines) {
        Ok(court) => court.sit(events),
        Err(problem) => Verdict { violations: vec![Violation::Unusable(problem)], ..Verdict::default() },
    }
}

impl<'a> Court<'a> {
    fn read(lines: &'a [Line]) -> Result<Self, String> {
        let (Some(Line::Begun { at: begun, idle_timeout, warning_lead }), Some(Line::Over { at: over })) =
            (lines.first(), lines.last())
        else {
            return Err("it has no beginning or no end".into());
        };
        let drift = (over.wall - begun.wall) - (over.at - begun.at);
        if drift.abs() > DRIFT {
            return Err(format!("the machine's own clock was set by {drift} µs"));
        }
        let mut court = Self {
            idle: *idle_timeout,
            lead: *warning_lead,
            asked: BTreeMap::new(),
            outages: vec![],
            breaks: vec![],
            offs: vec![0],
            strikes: BTreeMap::new(),
            begun: *begun,
            over: *over,
        };
        // One that is set to what it was is not set.
        let mut offs = BTreeMap::new();
        for line in lines {
            match line {
                Line::Begun { .. } | Line::Over { .. } => {}
                Line::Asked { student, .. } => court.asked.entry(student).or_default().push(line),
                Line::Down { what, from, to } => {
                    *court.strikes.entry(format!("{} killed", kind_of(what))).or_default() += 1;
                    court.outages.push((from.at, to.at + AFTER_AN_OUTAGE));
                    if what == DATABASE && to.at - from.at > NOTICED {
                        court.breaks.push((from.at, to.at));
                    }
                }
                Line::Set { clock, at, off_by } => {
                    let before = offs.insert(clock, *off_by).unwrap_or(0);
                    if before == *off_by {
                        continue;
                    }
                    let way = if *off_by > before { "forward" } else { "back" };
                    let kind = format!("{}'s clock set {way}", kind_of(clock));
                    *court.strikes.entry(kind).or_default() += 1;
                    court.outages.push((at.at, at.at + AFTER_AN_OUTAGE));
                    if clock == DATABASE {
                        court.breaks.push((at.at, at.at));
                        court.offs.push(*off_by);
                    }
                }
            }
        }
        court.offs.sort_unstable();
        court.offs.dedup();
        court.outages.sort_unstable();
        Ok(court)
    }

    /// When an event was, by the log's own clock: of all settings of the database's clock only one lies within the test.
    fn time_of(&self, told: &Told) -> Option<i64> {
        let within = |off: &i64| {
            let at = told.time - off * SECOND - self.begun.wall + self.begun.at;
            (self.begun.at - DRIFT..=self.over.at + DRIFT).contains(&at).then_some(at)
        };
        let mut all = self.offs.iter().filter_map(within);
        all.next().filter(|_| all.next().is_none())
    }

    /// How much of a time outages take away.
    fn excused(&self, from: i64, to: i64) -> i64 {
        let (mut sum, mut reached) = (0, from);
        for (start, end) in &self.outages {
            let (start, end) = ((*start).max(reached), (*end).min(to));
            sum += (end - start).max(0);
            reached = reached.max(end);
        }
        sum
    }

    fn sit(&self, events: &[Told]) -> Verdict {
        let strikes = self.strikes.clone();
        let mut verdict = Verdict { acked: self.acked(), strikes, ..Verdict::default() };
        let mut by_student: BTreeMap<&str, Vec<&Told>> = BTreeMap::new();
        for told in events {
            by_student.entry(&told.student).or_default().push(told);
        }
        for student in self.asked.keys().filter(|student| !by_student.contains_key(*student)) {
            let problem = format!("no events of {student}");
            verdict.violations.push(Violation::Unusable(problem));
        }
        for (student, told) in by_student {
            self.follow(student, &told, &mut verdict);
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

    fn acked(&self) -> usize {
        let all = self.asked.values().flatten();
        all.filter(|line| matches!(line, Line::Asked { answer: Answer::Acked, .. })).count()
    }

    /// Follows one student's desk through its events.
    fn follow(&self, student: &str, events: &[&Told], verdict: &mut Verdict) {
        let (mut life, mut last) = (Life::default(), "");
        let owned = || student.to_owned();
        for told in events {
            let Some(at) = self.time_of(told) else {
                verdict.violations.push(Violation::Untimed { student: owned(), kind: told.kind.clone() });
                continue;
            };
            if told.generation != life.generation {
                life = Life { generation: told.generation, ..Life::default() };
            }
            match (told.kind.as_str(), told.reason.as_str()) {
                ("ready", _) => {
                    life.first_ready = life.first_ready.or(Some(at));
                    life.last_ready = Some(at);
                }
                ("warning", _) => life.warned = Some(at),
                ("warning_withdrawn", _) => life.warned = None,
                ("stopping", "IDLE") => self.idle_stop(student, life, at, verdict),
                ("stopping", "USER") => {}
                ("stopping" | "failed" | "stop_refused" | "moved" | "restarting", why) => {
                    let what = format!("{} {why}", told.kind).trim_end().to_owned();
                    verdict.violations.push(Violation::Unasked { student: owned(), what });
                }
                _ => {}
            }
            last = &told.kind;
        }
        if last != "stopped" {
            verdict.violations.push(Violation::Stuck { student: owned(), last: last.to_owned() });
        }
    }

    fn idle_stop(&self, student: &str, life: Life, at: i64, verdict: &mut Verdict) {
        let owned = || student.to_owned();
        let (mut earliest, mut latest) = (i64::MIN, life.last_ready.unwrap_or(at) + self.idle);
        for line in self.asked.get(student).into_iter().flatten() {
            let Line::Asked { generation, asked, sent, answered, answer, .. } = line else { continue };
            if *generation != life.generation || matches!(answer, Answer::Refused(_)) {
                continue;
            }
            let (from, to) = match asked {
                Asked::Input { age, .. } => (sent.at - age + self.idle, answered.at - age + self.idle),
                Asked::Extension { by } => (sent.at + by, answered.at + by),
                Asked::Job { by } => {
                    let by = *by.max(&self.idle);
                    (sent.at + by, answered.at + by)
                }
            };
            if *answer == Answer::Acked {
                earliest = earliest.max(from);
            }
            if sent.at <= at {
                latest = latest.max(to);
            }
        }
        let due = earliest.max(life.first_ready.unwrap_or(at) + self.idle);
        if at < due {
            verdict.violations.push(Violation::Early { student: owned(), at, due });
        }
        let lead = life.warned.map(|warned| at - warned);
        if lead.is_none_or(|lead| lead < self.lead) {
            verdict.violations.push(Violation::ShortLead { student: owned(), at, lead });
        }
        let stale = |(from, to): &(i64, i64)| {
            life.warned.is_some_and(|warned| warned < *from) && at > *to + UNDER_WAY
        };
        if self.breaks.iter().any(stale) {
            verdict.violations.push(Violation::StaleLead { student: owned(), at });
        }
        let excused = self.excused(latest - self.idle, at);
        let late = if excused == 0 { &mut verdict.unexcused } else { &mut verdict.excused };
        late.push((at - latest - excused).max(0));
    }
}

#[cfg(test)]
mod tests;
