//! The agent's numbers, as instruments of the global meter. The names here are what `/metrics` shows and what operators rely on.
//!
//! | name at `/metrics` | labels | what |
//! |---|---|---|
//! | `carrel_agent_docker_call_seconds` | `verb`, `outcome` (`ok`, `refused`, `unknown`) | time of one Docker call |
//! | `carrel_agent_start_seconds` | `phase` (`queue`, `storage`, `create`, `fence`, `pull`, `start`, `probe`, `total`) | time a start spent in it |
//! | `carrel_agent_starts_total` | `outcome` (`running`, or the reason of the failure) | starts that ended |
//! | `carrel_agent_pulls_total` | `outcome` (`pulled`, `refused`, `unknown`) | pulls of an image that ended |
//! | `carrel_agent_stops_total` | `kind` (`ordered`, `superseded`, `orphan`, `fenced`) | containers removed |
//! | `carrel_agent_restarts_total` | `counted` | restarts after a program ended |
//! | `carrel_agent_orphans_total` | `verdict` | verdicts received on orphans |
//! | `carrel_agent_stops_refused_total` | – | idle stops not carried out: there was activity since |
//! | `carrel_agent_stops_withheld_total` | – | orphan stops that the breaker held back |
//! | `carrel_agent_fenced_total` | `when` (`start`, `running`) | containers not started, or stopped, as the share knows a later one |
//! | `carrel_agent_share_stuck` | – | touches of the share that have not come back |
//! | `carrel_agent_held_containers` | – | containers left alone: of a higher pair, or made of another spec |
//! | `carrel_agent_sessions_total` | `outcome` (how the session or the attempt ended) | session attempts; all but the first are reconnects |
//! | `carrel_agent_refused_sets_total` | – | desired sets refused for their pair or digest |
//! | `carrel_agent_docker_outages_total` | – | times Docker was lost |
//! | `carrel_agent_certificate_expiry_timestamp_seconds` | – | when the node's certificate ends, in seconds since 1970 |
//! | `carrel_agent_lease_left_seconds` | – | how long the lease holds without another ack |
//! | `carrel_agent_fence_process` | – | 1 while a fence process watches the lease |

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram};

use crate::runtime::RuntimeError;

/// All instruments. Cheap to clone. Make it after telemetry is set up, else it counts nowhere.
#[derive(Debug, Clone)]
pub struct Metrics {
    docker_call: Histogram<f64>,
    start: Histogram<f64>,
    starts: Counter<u64>,
    pulls: Counter<u64>,
    stops: Counter<u64>,
    restarts: Counter<u64>,
    orphans: Counter<u64>,
    refused_stops: Counter<u64>,
    withheld: Counter<u64>,
    fenced: Counter<u64>,
    stuck: Gauge<u64>,
    held: Gauge<u64>,
    sessions: Counter<u64>,
    refused: Counter<u64>,
    outages: Counter<u64>,
    certificate: Gauge<i64>,
    lease_left: Gauge<f64>,
    fence_process: Gauge<u64>,
}

impl Metrics {
    /// Instruments of the global meter.
    #[expect(clippy::new_without_default, reason = "a default that reaches for a global would surprise")]
    pub fn new() -> Self {
        let meter = opentelemetry::global::meter("carrel");
        let seconds = |name: &'static str, what: &'static str| {
            meter.f64_histogram(name).with_unit("s").with_description(what).build()
        };
        let counter =
            |name: &'static str, what: &'static str| meter.u64_counter(name).with_description(what).build();
        Self {
            docker_call: seconds("carrel_agent_docker_call", "Time of one Docker call"),
            start: seconds("carrel_agent_start", "Time a start spent in a phase"),
            starts: counter("carrel_agent_starts", "Starts that ended, by outcome"),
            pulls: counter("carrel_agent_pulls", "Pulls of an image that ended, by outcome"),
            stops: counter("carrel_agent_stops", "Containers removed"),
            restarts: counter("carrel_agent_restarts", "Restarts after a program ended"),
            orphans: counter("carrel_agent_orphans", "Verdicts received on orphans"),
            refused_stops: counter(
                "carrel_agent_stops_refused",
                "Idle stops not carried out: there was activity since",
            ),
            withheld: counter("carrel_agent_stops_withheld", "Orphan stops that the breaker held back"),
            fenced: counter("carrel_agent_fenced", "Containers that gave way to a later one on the share"),
            stuck: meter
                .u64_gauge("carrel_agent_share_stuck")
                .with_description("Touches of the share that have not come back")
                .build(),
            held: meter
                .u64_gauge("carrel_agent_held_containers")
                .with_description("Containers left alone: of a higher pair, or made of another spec")
                .build(),
            sessions: counter("carrel_agent_sessions", "Session attempts, by how they ended"),
            refused: counter("carrel_agent_refused_sets", "Desired sets refused for their pair or digest"),
            outages: counter("carrel_agent_docker_outages", "Times Docker was lost"),
            certificate: meter
                .i64_gauge("carrel_agent_certificate_expiry_timestamp")
                .with_unit("s")
                .with_description("When the node's certificate ends, since 1970")
                .build(),
            lease_left: meter
                .f64_gauge("carrel_agent_lease_left")
                .with_unit("s")
                .with_description("How long the lease holds without another ack")
                .build(),
            fence_process: meter
                .u64_gauge("carrel_agent_fence_process")
                .with_description("1 while a fence process watches the lease")
                .build(),
        }
    }

    /// A Docker call ended.
    pub fn docker_call(&self, verb: &'static str, took: Duration, error: Option<&RuntimeError>) {
        let outcome = match error {
            None => "ok",
            Some(error) if error.result_unknown() => "unknown",
            Some(_) => "refused",
        };
        self.docker_call
            .record(took.as_secs_f64(), &[KeyValue::new("verb", verb), KeyValue::new("outcome", outcome)]);
    }

    /// A start left a phase.
    pub fn start_phase(&self, phase: &'static str, took: Duration) {
        self.start.record(took.as_secs_f64(), &[KeyValue::new("phase", phase)]);
    }

    /// A start ended.
    pub fn started(&self, outcome: &'static str) {
        self.starts.add(1, &[KeyValue::new("outcome", outcome)]);
    }

    /// A pull of an image ended.
    pub fn pulled(&self, outcome: &'static str) {
        self.pulls.add(1, &[KeyValue::new("outcome", outcome)]);
    }

    /// A container was removed.
    pub fn stopped(&self, kind: &'static str) {
        self.stops.add(1, &[KeyValue::new("kind", kind)]);
    }

    /// An idle stop was not carried out.
    pub fn refused_stop(&self) {
        self.refused_stops.add(1, &[]);
    }

    /// A program is restarted; `counted` says whether it costs budget.
    pub fn restarted(&self, counted: bool) {
        self.restarts.add(1, &[KeyValue::new("counted", counted)]);
    }

    /// A verdict on an orphan came.
    pub fn orphan(&self, verdict: &'static str) {
        self.orphans.add(1, &[KeyValue::new("verdict", verdict)]);
    }

    /// The breaker held back so many stops.
    pub fn withheld(&self, stops: usize) {
        self.withheld.add(u64::try_from(stops).unwrap_or(u64::MAX), &[]);
    }

    /// A container gave way to a later one; `when` it was to start, or while it ran.
    pub fn fenced(&self, when: &'static str) {
        self.fenced.add(1, &[KeyValue::new("when", when)]);
    }

    /// So many touches of the share have not come back.
    pub fn stuck(&self, touches: usize) {
        self.stuck.record(u64::try_from(touches).unwrap_or(u64::MAX), &[]);
    }

    /// So many containers are left alone.
    pub fn held(&self, containers: usize) {
        self.held.record(u64::try_from(containers).unwrap_or(u64::MAX), &[]);
    }

    /// A session, or the attempt at one, ended.
    pub fn session(&self, outcome: &'static str) {
        self.sessions.add(1, &[KeyValue::new("outcome", outcome)]);
    }

    /// A desired set was refused.
    pub fn refused_set(&self) {
        self.refused.add(1, &[]);
    }

    /// The node's certificate ends then.
    pub fn certificate_expires(&self, at: time::OffsetDateTime) {
        self.certificate.record(at.unix_timestamp(), &[]);
    }

    /// Docker was lost.
    pub fn outage(&self) {
        self.outages.add(1, &[]);
    }

    /// How long the lease holds, and whether a fence process watches it.
    pub fn lease(&self, left: Duration, watched: bool) {
        self.lease_left.record(left.as_secs_f64(), &[]);
        self.fence_process.record(u64::from(watched), &[]);
    }
}
