//! What several benchmarks stand on; each of them is below `integration-tests/bench/`, and `docs/benchmarks.md` has the figures.
//!
//! `class` starts workspaces through Carrel and `bare` by the Docker API alone, `figures` compares both; `replica` is a control plane over
//! a database of its own, which `fill` fills with workspaces as if agents had brought them up.

pub mod bare;
pub mod class;
pub mod figures;
pub mod fill;
pub mod replica;

use crate::database::Database;

/// The figures are of a Postgres that keeps what it acks.
pub async fn assert_durable(database: &Database) {
    for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
        let value = database.text(&format!("SELECT current_setting('{setting}')")).await;
        assert_eq!(value, "on", "{setting}: the figures are of a durable Postgres");
    }
}
