//! Tells from what the writers of a desk wrote whether there were ever two at once.
//!
//! The image `carrel/tiny:writer` appends a line to one file every 20 ms, with one `write`, and syncs it. So the order of
//! lines is the order of writes, whoever made them, on whatever host; and a writer that was fenced must never come back.
//! PURE: a text in, a verdict out.

use std::fmt;
use std::time::Duration;

/// The file in the project directory.
pub const FILE: &str = "writes.log";

/// What a desk is fenced by: incarnation of the store, then generation.
pub type Pair = (i64, i64);

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// What the container was told it is.
    pub pair: Pair,
    /// Names one run of the program: container and start.
    pub writer: String,
    /// From 0, one by one, in each run.
    pub counter: u64,
    /// When, by the machine's clock, in nanoseconds since 1970.
    pub clock_nanos: u64,
}

/// What must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A line that no writer writes.
    Garbled {
        /// Its number, from 1.
        line: usize,
        /// As it stands.
        text: String,
    },
    /// A pair wrote after a higher one had written: the old desk outlived the new one's start.
    Lower {
        /// The line's number, from 1.
        line: usize,
        /// Who wrote it.
        pair: Pair,
        /// Who had written before.
        after: Pair,
    },
    /// A run wrote after another of its pair had: both ran.
    Returned {
        /// The line's number, from 1.
        line: usize,
        /// Which run.
        writer: String,
    },
    /// A run left lines out: something that was written and synced is lost.
    Skipped {
        /// The line's number, from 1.
        line: usize,
        /// The counter that should have come.
        expected: u64,
        /// The one that did.
        found: u64,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Garbled { line, text } => write!(f, "line {line} is garbled: {text:?}"),
            Self::Lower { line, pair, after } => write!(f, "line {line}: {pair:?} wrote after {after:?}"),
            Self::Returned { line, writer } => {
                write!(f, "line {line}: {writer} wrote after another of its pair")
            }
            Self::Skipped { line, expected, found } => {
                write!(f, "line {line}: counter {found}, not {expected}: writes are lost")
            }
        }
    }
}

/// One run of the program, from its first line to its last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Its pair.
    pub pair: Pair,
    /// Its name.
    pub writer: String,
    /// Lines it wrote.
    pub lines: u64,
    /// Clock of the first.
    pub first_nanos: u64,
    /// Clock of the last.
    pub last_nanos: u64,
    /// Longest time between two of them.
    pub longest_pause: Duration,
}

/// Who wrote, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// In the order in which they wrote.
    pub runs: Vec<Run>,
}

impl History {
    /// The pairs that wrote, in order, each once for each run.
    pub fn pairs(&self) -> Vec<Pair> {
        self.runs.iter().map(|run| run.pair).collect()
    }

    /// All lines.
    pub fn lines(&self) -> u64 {
        self.runs.iter().map(|run| run.lines).sum()
    }

    /// Time between the last line of one run and the first of the next.
    pub fn handovers(&self) -> Vec<Duration> {
        self.runs.windows(2).map(|two| between(two[0].last_nanos, two[1].first_nanos)).collect()
    }
}

fn between(from: u64, to: u64) -> Duration {
    Duration::from_nanos(to.saturating_sub(from))
}

/// Reads one line: `<incarnation> <generation> <writer> <counter> <clock>`.
fn parse(text: &str) -> Option<Line> {
    let mut fields = text.split(' ');
    let line = Line {
        pair: (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?),
        writer: fields.next().filter(|writer| !writer.is_empty())?.to_owned(),
        counter: fields.next()?.parse().ok()?,
        clock_nanos: fields.next()?.parse().ok()?,
    };
    fields.next().is_none().then_some(line)
}

/// Whether there was one writer at a time.
///
/// # Errors
/// The first [`Violation`].
pub fn check(text: &str) -> Result<History, Violation> {
    let mut runs: Vec<Run> = Vec::new();
    for (number, text) in (1..).zip(text.lines()) {
        let garbled = || Violation::Garbled { line: number, text: text.to_owned() };
        let line = parse(text).ok_or_else(garbled)?;
        if let Some(run) = runs.last_mut().filter(|run| run.writer == line.writer && run.pair == line.pair) {
            if line.counter != run.lines {
                return Err(Violation::Skipped { line: number, expected: run.lines, found: line.counter });
            }
            run.lines += 1;
            run.longest_pause = run.longest_pause.max(between(run.last_nanos, line.clock_nanos));
            run.last_nanos = line.clock_nanos;
            continue;
        }
        if let Some(last) = runs.last().filter(|last| line.pair < last.pair) {
            return Err(Violation::Lower { line: number, pair: line.pair, after: last.pair });
        }
        if runs.iter().any(|run| run.writer == line.writer) {
            return Err(Violation::Returned { line: number, writer: line.writer });
        }
        if line.counter != 0 {
            return Err(Violation::Skipped { line: number, expected: 0, found: line.counter });
        }
        runs.push(Run {
            pair: line.pair,
            writer: line.writer,
            lines: 1,
            first_nanos: line.clock_nanos,
            last_nanos: line.clock_nanos,
            longest_pause: Duration::ZERO,
        });
    }
    Ok(History { runs })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Lines of runs, one after the other, 20 ms apart; each run is (incarnation, generation, writer, lines).
    fn serial(runs: &[(i64, i64, &str, u64)]) -> Vec<String> {
        let mut clock = 0;
        let mut lines = Vec::new();
        for (incarnation, generation, writer, count) in runs {
            for counter in 0..*count {
                clock += 20_000_000;
                lines.push(format!("{incarnation} {generation} {writer} {counter} {clock}"));
            }
        }
        lines
    }

    fn verdict(lines: &[String]) -> Result<History, Violation> {
        check(&lines.join("\n"))
    }

    #[test]
    fn runs_one_after_the_other_are_right() {
        let history =
            verdict(&serial(&[(1, 1, "a", 3), (1, 2, "b", 2), (1, 2, "c", 1), (2, 1, "d", 1)])).unwrap();
        assert_eq!(history.pairs(), [(1, 1), (1, 2), (1, 2), (2, 1)]);
        assert_eq!((history.lines(), history.runs[0].lines), (7, 3));
        assert_eq!(history.handovers(), [Duration::from_millis(20); 3]);
        assert_eq!(check(""), Ok(History::default()));
    }

    #[test]
    fn a_pause_within_a_run_is_told() {
        let history = check("1 1 a 0 100\n1 1 a 1 200\n1 1 a 2 2000000200\n1 1 a 3 2000000300").unwrap();
        assert_eq!(history.runs[0].longest_pause, Duration::from_secs(2));
    }

    #[test]
    fn a_lower_generation_after_a_higher_one_is_caught() {
        let mut lines = serial(&[(1, 1, "a", 3), (1, 2, "b", 2)]);
        lines.push("1 1 a 3 999".into());
        assert_eq!(verdict(&lines), Err(Violation::Lower { line: 6, pair: (1, 1), after: (1, 2) }));
    }

    #[test]
    fn the_incarnation_comes_first() {
        let lines = serial(&[(2, 1, "a", 1), (1, 7, "b", 1)]);
        assert_eq!(verdict(&lines), Err(Violation::Lower { line: 2, pair: (1, 7), after: (2, 1) }));
    }

    #[test]
    fn two_writers_of_one_generation_are_caught() {
        let mut lines = serial(&[(1, 1, "a", 2), (1, 1, "b", 1)]);
        lines.push("1 1 a 2 999".into());
        assert_eq!(verdict(&lines), Err(Violation::Returned { line: 4, writer: "a".into() }));
    }

    #[test]
    fn a_line_that_is_lost_is_caught() {
        let mut lines = serial(&[(1, 1, "a", 3)]);
        lines.remove(1);
        assert_eq!(verdict(&lines), Err(Violation::Skipped { line: 2, expected: 1, found: 2 }));
        let lost_beginning = &serial(&[(1, 1, "a", 3)])[1..];
        assert_eq!(verdict(lost_beginning), Err(Violation::Skipped { line: 1, expected: 0, found: 1 }));
    }

    #[test]
    fn a_line_that_nobody_wrote_is_caught() {
        for text in ["1 1 a 0", "1 1 a 0 1 2", "1 x a 0 1", "1 1  0 1", "\0\0\0"] {
            assert_eq!(check(text), Err(Violation::Garbled { line: 1, text: text.into() }), "{text:?}");
        }
    }

    proptest! {
        /// Two runs merged in any order are right exactly when they did not overlap and the lower pair came first.
        #[test]
        fn any_overlap_is_caught(order in prop::collection::vec(any::<bool>(), 2..40), generations in (1_i64..4, 1_i64..4)) {
            let mut counters = [0_u64; 2];
            let lines: Vec<_> = order
                .iter()
                .map(|second| {
                    let (who, generation) = if *second { (1, generations.1) } else { (0, generations.0) };
                    counters[who] += 1;
                    format!("1 {generation} w{who} {} 1", counters[who] - 1)
                })
                .collect();
            let changes = order.windows(2).filter(|two| two[0] != two[1]).count();
            let (first, last) = if order[0] { (generations.1, generations.0) } else { generations };
            let is_right = changes == 0 || (changes == 1 && first <= last);
            prop_assert_eq!(verdict(&lines).is_ok(), is_right, "{:?}", lines);
        }

        /// A right file in which one thing is made wrong is refused.
        #[test]
        fn one_wrong_thing_is_caught(counts in prop::collection::vec(2_u64..6, 2..5), at in any::<prop::sample::Index>(), how in 0..4) {
            let names = ["a", "b", "c", "d"];
            let runs: Vec<_> = (1_i64..).zip(&counts).map(|(g, n)| (1, g, names[usize::try_from(g - 1).unwrap()], *n)).collect();
            let mut lines = serial(&runs);
            let at = at.index(lines.len() - 1);
            match how {
                // One that is lost, unless it is the last of its run, which nobody can miss.
                0 => {
                    let next_is_same_run = lines[at].split(' ').nth(2) == lines[at + 1].split(' ').nth(2);
                    prop_assume!(next_is_same_run);
                    lines.remove(at);
                }
                // Twice, swapped with the next, half of it.
                1 => lines.insert(at, lines[at].clone()),
                2 => lines.swap(at, at + 1),
                _ => lines[at].truncate(3),
            }
            prop_assert!(verdict(&lines).is_err(), "{:?}", lines);
        }
    }
}
