//! Carrel's control plane: decides which workspace runs where, and keeps all state in Postgres.
//!
//! ```text
//!  callers ── grpc, http ──┐                       ┌── domain (pure decisions)
//!  agents ─── sessions ────┼──► app (use cases) ───┤
//!  the clock ── tasks ─────┘                       └── store (Postgres, one transaction a use case)
//! ```
//!
//! `authority` signs the nodes' certificates; `app` decides for whom.
//!
//! `grpc`, `http`, `tasks` and `sessions` call `app`; `app` asks `domain` what to do and `store` to do it; `domain`
//! knows nobody. `run` builds and wires everything; `commands` are the subcommands of the binary.

pub mod app;
pub mod authority;
pub mod commands;
pub mod config;
pub mod domain;
pub mod grpc;
pub mod http;
pub mod metrics;
pub mod run;
pub mod sessions;
pub mod store;
pub mod tasks;
