//! Carrel's agent on a Docker host: runs one code-server container a student, as the control plane decides.
//!
//! ```text
//!   control plane ◄──stream──► session ──desired set──► driver ──tasks──► runtime ──► Docker
//!                                 ▲                       │  │
//!                                 │                 reconcile└──────────► storage ──► <base>/<student>
//!                                 ├────── reports ◄───────┘
//!                                 └───── activity ◄─── /run/carrel in the containers
//! ```
//!
//! The session takes the complete desired set; the driver holds it against a listing of our containers (`reconcile::diff`, pure)
//! and gives each workspace at most one task; tasks report what they see; the session tells it until it is acked. The agent keeps
//! no database: labels of containers are its memory, so it can be killed at any moment and adopts what runs.
//!
//! Beside them `fence` looks after the lease under which the host may run workspaces, once more in a process of its own.
//!
//! Who may use whom: `run` and `commands` → all; `session` → `driver`'s links, `reports`, `logs`, `fence`; `driver` → `reconcile`,
//! `runtime`, `storage`, `reports`, `logs`, `fence`; `reconcile` and `storage::check` are pure. `bollard` is named below
//! `runtime/docker` only; `tonic::Status` and `carrel_proto` in `session/` and `enroll/` only.
//!
//! Two rules over everything: an agent that stops, stops no container; and nothing is removed without an order, the knowledge
//! that it was superseded, or the control plane's word.

pub mod activity;
pub mod commands;
pub mod config;
pub mod deadlines;
pub mod driver;
pub mod enroll;
pub mod facts;
pub mod fence;
pub mod kernel;
pub mod logs;
pub mod metrics;
pub mod reconcile;
pub mod reports;
pub mod run;
pub mod runtime;
pub mod session;
pub mod storage;
pub mod witness;
