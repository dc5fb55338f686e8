//! The end-to-end tests: what a user of Carrel sees, with both binaries as processes over real Postgres and Docker.
//!
//! Run them with `integration-tests/run`. Each test has a cluster of its own. The slow ones run longer when asked to:
//! `CARREL_RACE_ROUNDS`, `CARREL_CHAOS_ROUNDS`, `CARREL_CHAOS_SEED`.
#![expect(clippy::unwrap_used, reason = "also in what the tests share, a panic is a failed test")]
#![expect(clippy::disallowed_methods, reason = "tests read the real time and spawn freely")]

mod activity;
mod agent;
mod chaos;
mod clients;
mod editor;
mod errors;
mod identity;
mod idle;
mod images;
mod install;
mod knocking;
mod layers;
mod leases;
mod life;
mod nodes;
mod outages;
mod races;
mod reach;
mod readme;
mod share_fails;
mod storage;
mod systemd;
mod telemetry;
mod watch;
