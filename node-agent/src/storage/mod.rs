//! The students' files: whether the base can take them, whose the share is, a student's directory, and who may write it.
//!
//! `check` and `fence_file` decide (pure). `marker`, `layout` and `fences` read and write the share without ever following a link
//! out of the base; `errand` is what they are asked to do, in a process of its own that `prober` starts and, when the share
//! hangs, abandons. `probe` is what the rest of the agent sees, `latency` how long its looks took. A base that is missing is never made, and nothing is made below
//! one without our mark: on a host where the share is not mounted that would be the root disk.

pub mod check;
pub mod errand;
pub mod fence_file;
pub mod fences;
mod latency;
pub mod layout;
pub mod marker;
pub mod probe;
pub mod prober;
