//! What the control plane counts; the names are documented in the README.

use carrel_common::model::{StatusReason, StopReason, Verdict};
use opentelemetry::metrics::{Counter, Gauge, Histogram};
use opentelemetry::{KeyValue, global};
use time::OffsetDateTime;

/// The instruments.
#[derive(Debug, Clone)]
pub struct Metrics {
    starts: Histogram<f64>,
    stops: Counter<u64>,
    heartbeats: Counter<u64>,
    lateness: Histogram<f64>,
    orphans: Counter<u64>,
    sessions: Counter<u64>,
    fences: Counter<u64>,
    nodes: Gauge<u64>,
    held: Gauge<u64>,
    queue: Gauge<u64>,
    queue_wait: Histogram<f64>,
    placements: Counter<u64>,
    start_failures: Counter<u64>,
    cordons: Counter<u64>,
    behind: Gauge<u64>,
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
            fences: meter
                .u64_counter("carrel_fences")
                .with_description("Nodes that were given up, by why.")
                .build(),
            nodes: meter.u64_gauge("carrel_nodes").with_description("Nodes, by state.").build(),
            held: meter
                .u64_gauge("carrel_replacements_held")
                .with_description("Nodes that would be given up, but for so many others that are silent.")
                .build(),
            queue: meter
                .u64_gauge("carrel_queue_length")
                .with_description("Workspaces that wait for a place, as this replica last saw it.")
                .build(),
            queue_wait: meter
                .f64_histogram("carrel_queue_wait_seconds")
                .with_description("Seconds from StartWorkspace to a place on a node.")
                .build(),
            placements: meter
                .u64_counter("carrel_placements")
                .with_description("Attempts to find a place, by what became of them.")
                .build(),
            start_failures: meter
                .u64_counter("carrel_start_failures")
                .with_description("Starts that failed on a node and may have been its fault.")
                .build(),
            cordons: meter
                .u64_counter("carrel_nodes_cordoned")
                .with_description("Nodes that were cordoned since starts kept failing there.")
                .build(),
            behind: meter
                .u64_gauge("carrel_store_behind")
                .with_description(
                    "1 while the database has gone back in time and nobody has declared it restored.",
                )
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
            Verdict::Hold => "hold",
        };
        self.orphans.add(1, &[KeyValue::new("verdict", name)]);
    }
    /// A node was given up.
    pub fn fenced(&self, reason: &'static str) {
        self.fences.add(1, &[KeyValue::new("reason", reason)]);
    }
    /// So many nodes are in this state.
    pub fn nodes(&self, state: &'static str, count: usize) {
        self.nodes.record(u64::try_from(count).unwrap_or(u64::MAX), &[KeyValue::new("state", state)]);
    }
    /// So many nodes would be given up, but for the others that are silent.
    pub fn replacements_held(&self, count: usize) {
        self.held.record(u64::try_from(count).unwrap_or(u64::MAX), &[]);
    }
    /// So many wait for a place.
    pub fn queue_length(&self, waiting: usize) {
        self.queue.record(u64::try_from(waiting).unwrap_or(u64::MAX), &[]);
    }
    /// A workspace that was asked for at `since` got a place.
    pub fn placed(&self, since: Option<OffsetDateTime>, now: OffsetDateTime) {
        self.placements.add(1, &[KeyValue::new("outcome", "placed")]);
        self.queue_wait.record(since.map_or(0.0, |since| (now - since).as_seconds_f64().max(0.0)), &[]);
    }
    /// A start found no place and waits.
    pub fn queued(&self) {
        self.placements.add(1, &[KeyValue::new("outcome", "queued")]);
    }
    /// Places that a pass had chosen were taken by somebody else.
    pub fn lost_race(&self) {
        self.placements.add(1, &[KeyValue::new("outcome", "lost_race")]);
    }
    /// A start failed on a node; `retried`: another is to try it.
    pub fn start_failed(&self, reason: StatusReason, retried: bool) {
        let name =
            serde_json::to_value(reason).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
        self.start_failures.add(1, &[KeyValue::new("reason", name), KeyValue::new("retried", retried)]);
    }
    /// A node was cordoned by Carrel itself.
    pub fn cordoned(&self) {
        self.cordons.add(1, &[]);
    }
    /// Whether the store is behind.
    pub fn store_behind(&self, behind: bool) {
        self.behind.record(u64::from(behind), &[]);
    }
    /// A session was accepted.
    pub fn session_accepted(&self) {
        self.sessions.add(1, &[]);
    }
}
