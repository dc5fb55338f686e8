//! The decisions, as pure functions: values in, value out, `now` an argument; no async, no IO.
//!
//! `workspace` is the life of a workspace, `activity` what is known of its use, `idle` when one is stopped for want of it,
//! `pulse` what a sign of life says of the clock and of what was missed, `drain` when one leaves a node that is being emptied,
//! `policy` whose times and limits hold, `placement` which node takes one,
//! `reconcile` what a node is told to run, `orphan` what becomes of containers that nobody ordered, `node` whether a node is heard
//! of, `lease` when it is given up, `admission` whether an agent is the node it says, `behind` whether the store has gone back in
//! time.
//! Everything around this folder only carries.

pub mod activity;
pub mod admission;
pub mod behind;
pub mod drain;
pub mod event;
pub mod idle;
pub mod join;
pub mod lease;
pub mod node;
pub mod orphan;
pub mod placement;
pub mod policy;
pub mod pulse;
pub mod reconcile;
pub mod workspace;
