//! The API: thin handlers that parse, call `app`, and render.
//!
//! `parse` turns requests into values and names the field that is wrong; `convert` turns values into messages; `status`
//! is the only place that chooses a code.

mod agent_service;
mod convert;
mod event_service;
mod health;
mod node_convert;
mod node_service;
mod parse;
mod policy_convert;
mod policy_service;
mod status;
mod watch;
mod workspace_service;

pub use agent_service::Agents;
pub use event_service::Events;
pub use health::HealthTeller;
pub use node_service::Nodes;
pub use policy_service::Policies;
pub use watch::Following;
pub use workspace_service::Workspaces;

pub(crate) use status::{bad_field, to_status};
