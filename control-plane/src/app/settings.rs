//! Times, limits and defaults that the use cases work with.

use std::time::Duration;

use crate::domain::lease::LeaseTerms;
use crate::domain::placement::Strategy;
use crate::domain::policy::Defaults;
use crate::domain::reconcile::OrderTimes;
use crate::domain::workspace::Stays;
use crate::store::CandidateLimits;

/// Times, limits and defaults; the same on every replica.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Plaintext on loopback: nodes may enrol, the editor's address is given out.
    pub dev: bool,
    /// What stands under every policy: times, resources, image.
    pub defaults: Defaults,
    /// The longest stays in states that move.
    pub stays: Stays,
    /// Times that go into orders.
    pub orders: OrderTimes,
    /// Whether the emptiest node is preferred, or the fullest.
    pub placement: Strategy,
    /// How much more than it has a node may promise.
    pub limits: CandidateLimits,
    /// Between an agent's heartbeats.
    pub heartbeat_interval: Duration,
    /// A node is silent after this long.
    pub unreachable_after: Duration,
    /// Life of a node's certificate.
    pub node_certificate_ttl: Duration,
    /// A workspace leaves a node that is being emptied when it had no input for this long.
    pub drain_idle_moment: Duration,
    /// How long nodes may run without an ack, and how long they are waited for.
    pub lease: LeaseTerms,
    /// Events are kept this long.
    pub events_kept: Duration,
}

impl Settings {
    /// A node that was not heard of for longer may have seen what it could tell nobody: one heartbeat may be late, two are not.
    pub(super) fn told_within(&self) -> Duration {
        self.heartbeat_interval * 2
    }
}
