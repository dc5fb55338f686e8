//! What both binaries of Carrel use. Anything that only one of them needs does not live here.
//!
//! `id`, `image` and `model` are plain values; `wire` turns them into messages and back; `clock` is the only place that reads
//! the time; `join` and `certificate` are how a node comes by its identity and shows it; `telemetry` and `serve` are the
//! set-up both binaries share.

pub mod certificate;
pub mod clock;
pub mod id;
pub mod image;
pub mod join;
pub mod model;
pub mod serve;
pub mod telemetry;
pub mod wire;
