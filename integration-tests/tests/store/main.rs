//! The use cases and the store on a real Postgres, a database a test: what races decide, what the log promises.
//!
//! `CARREL_RACE_ROUNDS` makes the races longer.
#![expect(clippy::unwrap_used, reason = "also in what the tests share, a panic is a failed test")]
#![expect(clippy::disallowed_methods, reason = "tests read the real time and spawn freely")]

mod alarms;
mod awaited;
mod bans;
mod broken;
mod clock;
mod copies;
mod drains;
mod enrolment;
mod events;
mod explaining;
mod failing;
mod fenced;
mod fencing;
mod heartbeats;
mod idleness;
mod late;
mod line;
mod lost;
mod made_up;
mod migrations;
mod nodes;
mod orphans;
mod passes;
mod placing;
mod policies;
mod purges;
mod races;
mod read_only;
mod refusing;
mod reports;
mod requests;
mod restored;
mod rig;
mod spoiled;
mod strangers;
mod together;
mod watching;
