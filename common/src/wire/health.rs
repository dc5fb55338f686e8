//! How a part of a node is.

use carrel_proto::v1 as pb;

use super::{WireError, duration, span_of};
use crate::model::{Health, Latency};

impl From<Health> for pb::ComponentHealth {
    fn from(h: Health) -> Self {
        let healthy = h.problem.is_none();
        let (reason, message) = h.problem.unwrap_or_default();
        Self {
            healthy,
            reason,
            message,
            age: Some(duration(h.age)),
            latency_p50: h.latency.map(|latency| duration(latency.p50)),
            latency_p99: h.latency.map(|latency| duration(latency.p99)),
        }
    }
}

impl TryFrom<pb::ComponentHealth> for Health {
    type Error = WireError;
    fn try_from(m: pb::ComponentHealth) -> Result<Self, WireError> {
        let age = m.age.map(|age| span_of("health.age", &age)).transpose()?.unwrap_or_default();
        let span =
            |field, span: Option<prost_types::Duration>| span.map(|span| span_of(field, &span)).transpose();
        let p50 = span("health.latency_p50", m.latency_p50)?;
        let p99 = span("health.latency_p99", m.latency_p99)?;
        let latency = p50.zip(p99).map(|(p50, p99)| Latency { p50, p99 });
        Ok(Self { problem: (!m.healthy).then_some((m.reason, m.message)), age, latency })
    }
}
