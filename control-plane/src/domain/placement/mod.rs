//! Which node takes a workspace, who is next in line, and what becomes of a start that fails: pure and deterministic.
//!
//! `fleet` chooses a node: the best `Score` (`ranking`) among those that fit, whose fields in their order are the policy.
//! `line` is the queue: fair between courses, first come first served within one. `failing` says when a start is tried on
//! another node, and when a node takes itself out. `outlook` tells those who wait when they may be ready.

mod failing;
mod fleet;
mod line;
mod no_place;
mod outlook;
mod ranking;

pub use self::failing::{FAILURES_COUNT_FOR, Record, Tries, cordons_itself, could_be_the_nodes_fault};
pub use self::fleet::{Ask, Candidate, Fleet, Service, Strategy};
pub use self::line::{Held, OVERTAKEN_FOR, Turn, Waiting, in_line, plan};
pub use self::no_place::{HeldContainer, Lack, NoPlace, OutOfService};
pub use self::outlook::{Outlook, RELEASES_COUNT_FOR};
