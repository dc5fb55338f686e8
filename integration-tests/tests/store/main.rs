//! The use cases and the store on a real Postgres, a database a test: what races decide, what the log promises.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod events;
mod heartbeats;
mod migrations;
mod placing;
mod requests;
mod rig;
