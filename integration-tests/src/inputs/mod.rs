//! What a test keeps of its own while students work and things break: which input was acked when, what was down from when
//! to when, how far which clock was set.
//!
//! One JSON object a line, written before anything else is done with an answer. [`judge`] reads it beside the event log and
//! says what the product did wrong; nothing that the product says of itself but its events is believed.

mod judge;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

pub use judge::{Told, Verdict, Violation, judge, lateness_at};

/// A moment by both clocks of the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Microseconds since the log was begun, by the monotonic clock.
    pub at: i64,
    /// Microseconds since 1970, by the machine's clock, which the test leaves as it is.
    pub wall: i64,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Asked {
    /// Activity that was seen so many microseconds ago.
    Input {
        /// By its name in the API.
        signal: String,
        /// How long before it was sent.
        age: i64,
    },
    /// Nothing: the file of the desk was touched by which its editor says that there was input. It is acked at once.
    Touch,
    /// No idle stop for so many microseconds.
    Extension {
        /// From when it is recorded.
        by: i64,
    },
    /// A job that needs the desk for so many microseconds, and is activity itself.
    Job {
        /// From when it is recorded.
        by: i64,
    },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is recorded.
    Acked,
    /// It is not, with the reason.
    Refused(String),
    /// It may be: the answer did not come.
    Unknown(String),
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
pub enum Line {
    /// The first.
    Begun {
        /// When.
        at: Stamp,
        /// The idle timeout in force, in microseconds.
        idle_timeout: i64,
        /// The warning lead in force, in microseconds.
        warning_lead: i64,
        /// How long a node may be silent, in microseconds.
        unreachable_after: i64,
        /// The nodes of the agents, each by what the log calls its agent.
        nodes: BTreeMap<String, String>,
    },
    /// A student did something.
    Asked {
        /// Who.
        student: String,
        /// In which incarnation.
        generation: i64,
        /// What.
        asked: Asked,
        /// When it was sent.
        sent: Stamp,
        /// When the answer was there, or given up.
        answered: Stamp,
        /// The answer.
        answer: Answer,
    },
    /// Something was dead.
    Down {
        /// What.
        what: String,
        /// From the kill.
        from: Stamp,
        /// Until it served again, or, of an agent, was started again.
        to: Stamp,
    },
    /// A clock was set.
    Set {
        /// Whose.
        clock: String,
        /// When.
        at: Stamp,
        /// By how many seconds it is off from then on.
        off_by: i64,
    },
    /// The last.
    Over {
        /// When.
        at: Stamp,
    },
}

/// The name of the clock that events are stamped by.
pub const DATABASE: &str = "database";

/// A log that is being written.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    begun: Instant,
    file: Mutex<File>,
}

impl Log {
    /// Begins one.
    pub fn begin(
        path: &Path,
        idle_timeout: i64,
        warning_lead: i64,
        unreachable_after: i64,
        nodes: BTreeMap<String, String>,
    ) -> Self {
        let file = Mutex::new(File::create(path).expect("the log can be made"));
        let log = Self { path: path.to_owned(), begun: Instant::now(), file };
        log.write(&Line::Begun { at: log.stamp(), idle_timeout, warning_lead, unreachable_after, nodes });
        log
    }

    /// Now.
    pub fn stamp(&self) -> Stamp {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let micros = |span: std::time::Duration| i64::try_from(span.as_micros()).expect("not that long");
        Stamp { at: micros(self.begun.elapsed()), wall: micros(wall) }
    }

    /// Writes a line.
    pub fn write(&self, line: &Line) {
        let text = serde_json::to_string(line).expect("a line is JSON");
        writeln!(self.file.lock().expect("nobody panics with it"), "{text}").expect("the log can be written");
    }

    /// What was written, as the file has it.
    pub fn read(&self) -> Vec<Line> {
        let text = std::fs::read_to_string(&self.path).expect("the log can be read");
        text.lines().map(|line| serde_json::from_str(line).expect("a line of a log")).collect()
    }
}
