//! The harness of the end-to-end tests: Carrel as its users run it, with both binaries as processes of their own.
//!
//! `cluster` starts, kills and freezes them over a database and a base path of their own; `client` talks to them as an
//! LMS would; `docker` looks at what really runs; `own_docker` and `own_postgres` are servers that a test may kill,
//! `relay` a way to the latter that it may cut,
//! `gated_share` a file server that it may hang, `registry` an image registry that it may slow down; `rig` is a fleet of
//! hosts on this machine, `writes` the check that a file never had two writers at once, and `inputs` what a test keeps of
//! what students did, with its judge; `collector` keeps the spans they send; `machine` a whole Debian with systemd; `printed` reads the commands of our documents; `bench` is what
//! the benchmarks share.
//! Everything made is removed again
//! when its value is dropped, also when a test panics. A harness that cannot do its work panics and says why: there is
//! nobody to return an error to.
#![expect(
    clippy::disallowed_methods,
    reason = "a harness reads the real time, its environment, and spawns freely"
)]

pub mod bench;
pub mod callers;
pub mod chance;
pub mod client;
pub mod cluster;
pub mod collector;
pub mod database;
pub mod docker;
mod dockerd;
pub mod gated_share;
pub mod http;
pub mod inputs;
mod leftovers;
pub mod machine;
pub mod own_clock;
pub mod own_docker;
pub mod own_postgres;
pub mod pki;
pub mod printed;
pub mod process;
pub mod registry;
pub mod relay;
pub mod rig;
pub mod settings;
pub mod writes;

/// Removes what tests of this machine that were killed left behind. What belongs to one that runs stays.
pub async fn clear_up() {
    rig::clear_up();
    own_docker::clear_up();
    machine::clear_up();
    own_postgres::clear_up();
    cluster::clear_up().await;
}
