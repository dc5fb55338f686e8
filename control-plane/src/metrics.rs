//! What the control plane counts; the names are documented in the README.

use carrel_common::model::{StopReason, Verdict};
use opentelemetry::metrics::{Counter, Histogram};
use opentelemetry::{KeyValue, global};

/// The instruments.
#[derive(Debug, Clone)]
pub struct Metrics {
    starts: Histogram<f64>,
    stops: Counter<u64>,
    heartbeats: Counter<u64>,
    lateness: Histogram<f64>,
    orphans: Counter<u64>,
    sessions: Counter<u64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let meter = global::meter("carrel");
        Self {
            starts: meter
                .f64_histogram("carrel_start_seconds")
                .with_description("Seconds from StartWorkspace to the end of a phase of the start.")
                .build(),
            stops: meter
                .u64_counter("carrel_stops")
                .with_description("Workspaces that came to rest, by the reason of the stop.")
                .build(),
            heartbeats: meter
                .u64_counter("carrel_heartbeats")
                .with_description("Reports of activity, by what became of them.")
                .build(),
            lateness: meter
                .f64_histogram("carrel_idle_stop_lateness_seconds")
                .with_description("Seconds from a workspace's deadline to the decision to stop it.")
                .build(),
            orphans: meter
                .u64_counter("carrel_orphans")
                .with_description("Containers that no order named, by verdict.")
                .build(),
            sessions: meter
                .u64_counter("carrel_agent_sessions")
                .with_description("Sessions of node agents that were accepted; beyond the first, reconnects.")
                .build(),
        }
    }
}

impl Metrics {
    /// A phase of a start ended.
    pub fn start_phase(&self, phase: &'static str, seconds: f64) {
        self.starts.record(seconds, &[KeyValue::new("phase", phase)]);
    }
    /// A workspace came to rest.
    pub fn stopped(&self, reason: StopReason) {
        let name =
            serde_json::to_value(reason).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
        self.stops.add(1, &[KeyValue::new("reason", name)]);
    }
    /// A report of activity was answered.
    pub fn heartbeat(&self, result: &'static str) {
        self.heartbeats.add(1, &[KeyValue::new("result", result)]);
    }
    /// An idle stop was decided.
    pub fn idle_stop_lateness(&self, seconds: f64) {
        self.lateness.record(seconds, &[]);
    }
    /// An orphan was judged.
    pub fn orphan(&self, verdict: Verdict) {
        let name = match verdict {
            Verdict::Stop | Verdict::StopByOrder => "stop",
            Verdict::Adopt => "adopt",
            Verdict::Hold => "hold",
        };
        self.orphans.add(1, &[KeyValue::new("verdict", name)]);
    }
    /// A session was accepted.
    pub fn session_accepted(&self) {
        self.sessions.add(1, &[]);
    }
}
