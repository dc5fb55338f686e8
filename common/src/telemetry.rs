//! Logs, traces and metrics, set up the same way in both binaries.
//!
//! Logs go to stderr. Traces go to an OTLP collector when one is configured. Metrics are OpenTelemetry instruments of
//! the global meter provider, shown as Prometheus text. The trace context crosses the wire as a W3C `traceparent`.

use std::collections::HashMap;
use std::fmt;
use std::io::IsTerminal as _;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use axum::http::Request;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{Aggregation, Instrument, InstrumentKind, SdkMeterProvider, Stream};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use thiserror::Error;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// Bounds of every histogram in seconds: from one Docker call of 1 ms to a start that takes the longest stay, 120 s.
const SECONDS: [f64; 20] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 5.0, 10.0, 20.0, 30.0,
    60.0, 120.0,
];

/// What `init` needs to know.
#[derive(Clone, Debug)]
pub struct TelemetryConfig {
    /// Name of the binary, as the traces' `service.name`.
    pub service: &'static str,
    /// How a log line looks.
    pub log_format: LogFormat,
    /// Which log lines and spans there are, in the form of `RUST_LOG`: `info,carrel_common=debug`.
    pub log_filter: String,
    /// Where spans are sent by OTLP over gRPC, such as `http://127.0.0.1:4317`; none: nowhere.
    pub otlp_endpoint: Option<String>,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for programs.
    Json,
}

impl FromStr for LogFormat {
    type Err = UnknownLogFormat;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(UnknownLogFormat),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// The text is no log format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("must be text or json")]
pub struct UnknownLogFormat;

/// Why telemetry could not be set up.
#[derive(Debug, Error)]
pub enum TelemetryError {
    /// The log filter cannot be parsed.
    #[error("the log filter {filter:?} cannot be parsed")]
    Filter {
        /// The filter as given.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The OTLP exporter cannot be built.
    #[error("the OTLP exporter to {endpoint:?} cannot be built")]
    Exporter {
        /// The endpoint as given.
        endpoint: String,
        /// What is wrong with it.
        source: opentelemetry_otlp::ExporterBuildError,
    },
    /// The Prometheus exporter cannot be built.
    #[error("the Prometheus exporter cannot be built")]
    Metrics(#[source] opentelemetry_sdk::error::OTelSdkError),
}

/// What has been set up; cheap to clone, so that a route can hold it.
#[derive(Clone, Debug)]
pub struct Telemetry {
    registry: prometheus::Registry,
    meters: SdkMeterProvider,
    tracer: Option<SdkTracerProvider>,
}

/// Logs, meters and tracer are global: the first `init` of a process sets them, later ones get the same.
static INSTALLED: Mutex<Option<Telemetry>> = Mutex::new(None);

/// Sets up logs, traces and metrics for this process. Call it inside the tokio runtime.
///
/// A second call (tests run both binaries' parts in one process) changes nothing and gives what the first one set up.
pub fn init(config: TelemetryConfig) -> Result<Telemetry, TelemetryError> {
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(telemetry) = &*installed {
        return Ok(telemetry.clone());
    }
    let filter = EnvFilter::builder()
        .parse(&config.log_filter)
        .map_err(|source| TelemetryError::Filter { filter: config.log_filter.clone(), source })?;
    let resource = Resource::builder()
        .with_service_name(config.service)
        .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();

    let registry = prometheus::Registry::new();
    let reader = opentelemetry_prometheus::exporter()
        .with_registry(registry.clone())
        .scope_info_enabled(false)
        .build()
        .map_err(TelemetryError::Metrics)?;
    let meters = SdkMeterProvider::builder()
        .with_reader(reader)
        .with_resource(resource.clone())
        .with_view(bounds_of_seconds)
        .build();
    opentelemetry::global::set_meter_provider(meters.clone());
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());

    let tracer = config.otlp_endpoint.map(|endpoint| tracer(endpoint, resource)).transpose()?;
    let traces = tracer
        .as_ref()
        .map(|provider| tracing_opentelemetry::layer().with_tracer(provider.tracer(config.service)));
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let logs = match config.log_format {
        LogFormat::Text => logs.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => logs.json().flatten_event(true).boxed(),
    };
    // Fails only when the process has a subscriber already, which a test may have set; that one then stays.
    let _ = tracing_subscriber::registry().with(filter).with(traces).with(logs).try_init();

    let telemetry = Telemetry { registry, meters, tracer };
    *installed = Some(telemetry.clone());
    Ok(telemetry)
}

fn tracer(endpoint: String, resource: Resource) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(&endpoint)
        .build()
        .map_err(|source| TelemetryError::Exporter { endpoint, source })?;
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

/// The view of every histogram of seconds, said by its unit or its name.
fn bounds_of_seconds(instrument: &Instrument) -> Option<Stream> {
    let in_seconds = instrument.unit() == "s" || instrument.name().ends_with("_seconds");
    if instrument.kind() != InstrumentKind::Histogram || !in_seconds {
        return None;
    }
    let buckets =
        Aggregation::ExplicitBucketHistogram { boundaries: SECONDS.to_vec(), record_min_max: false };
    Stream::builder().with_aggregation(buckets).build().ok()
}

impl Telemetry {
    /// All metrics, in the Prometheus text format.
    pub fn metrics_text(&self) -> String {
        let mut text = String::new();
        if let Err(error) = prometheus::TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            tracing::warn!(%error, "metrics cannot be written as text");
        }
        text
    }

    /// Sends what has not been sent. Errors are only logged: at this point nothing else can be done.
    pub async fn shutdown(self) {
        // The providers block until they are done, which an async worker must not.
        let flushed = tokio::task::spawn_blocking(move || {
            if let Some(Err(error)) = self.tracer.map(|tracer| tracer.shutdown()) {
                tracing::debug!(%error, "the last spans were not sent");
            }
            if let Err(error) = self.meters.shutdown() {
                tracing::debug!(%error, "the meters did not shut down");
            }
        });
        if let Err(error) = flushed.await {
            tracing::debug!(%error, "telemetry did not shut down");
        }
    }
}

/// W3C `traceparent` of the current span; empty when there is none or traces go nowhere.
pub fn current_traceparent() -> String {
    let context = tracing::Span::current().context();
    let mut headers = HashMap::new();
    TraceContextPropagator::new().inject_context(&context, &mut headers);
    headers.remove("traceparent").unwrap_or_default()
}

/// Makes `span` a child of a span elsewhere. An empty or malformed `traceparent` is ignored.
///
/// Works only before the span has been entered or its context asked for.
pub fn set_parent(span: &tracing::Span, traceparent: &str) {
    if traceparent.is_empty() {
        return;
    }
    let headers = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
    let context = TraceContextPropagator::new().extract(&headers);
    if context.span().span_context().is_valid() {
        // Fails when no trace layer is installed, which is a choice of the operator's.
        let _ = span.set_parent(context);
    }
}

/// The span of one gRPC request, a child of the caller's; for `TraceLayer::make_span_with`.
///
/// Health checks, reflection and the agents' sessions (as long as the process) are at debug level.
pub fn make_grpc_span<B>(request: &Request<B>) -> tracing::Span {
    let path = request.uri().path().trim_start_matches('/');
    let (service, method) = path.split_once('/').unwrap_or((path, ""));
    let quiet = service.starts_with("grpc.") || method == "Session";
    let span = if quiet {
        tracing::debug_span!(
            "grpc",
            otel.name = path,
            otel.kind = "server",
            rpc.system = "grpc",
            rpc.service = service,
            rpc.method = method
        )
    } else {
        tracing::info_span!(
            "grpc",
            otel.name = path,
            otel.kind = "server",
            rpc.system = "grpc",
            rpc.service = service,
            rpc.method = method
        )
    };
    if let Some(parent) = request.headers().get("traceparent").and_then(|value| value.to_str().ok()) {
        set_parent(&span, parent);
    }
    span
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> TelemetryConfig {
        TelemetryConfig {
            service: "test",
            log_format: LogFormat::Text,
            log_filter: "info".into(),
            // Nobody listens there: spans are made and lost.
            otlp_endpoint: Some("http://127.0.0.1:9".into()),
        }
    }

    #[tokio::test]
    async fn a_second_init_gives_the_metrics_of_the_first() {
        let first = init(config()).expect("first");
        let second = init(config()).expect("second");
        let meter = opentelemetry::global::meter("test");
        meter.f64_histogram("test_span").with_unit("s").build().record(0.0015, &[]);
        meter.f64_histogram("test_other_seconds").build().record(0.0015, &[]);
        for telemetry in [first, second] {
            let text = telemetry.metrics_text();
            assert!(text.contains("test_span_seconds_bucket{le=\"0.002\""), "{text}");
            assert!(text.contains("test_other_seconds_bucket{le=\"0.002\""), "{text}");
        }
    }

    #[tokio::test]
    async fn a_traceparent_crosses_from_span_to_span() {
        init(config()).expect("init");
        let caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let request = Request::builder()
            .uri("/carrel.v1.WorkspaceService/StartWorkspace")
            .header("traceparent", caller)
            .body(())
            .expect("request");
        let passed_on = make_grpc_span(&request).in_scope(current_traceparent);
        assert_eq!(passed_on[..36], caller[..36], "same trace");
        assert_ne!(passed_on, caller, "another span");
    }

    #[tokio::test]
    async fn a_bad_traceparent_is_ignored() {
        init(config()).expect("init");
        for bad in ["", "00-zz-1-01", "nonsense"] {
            let span = tracing::info_span!("request");
            set_parent(&span, bad);
            assert_eq!(span.in_scope(current_traceparent).len(), 55, "a trace of its own");
        }
    }

    #[test]
    fn a_log_format_comes_back_as_it_went() {
        for format in [LogFormat::Text, LogFormat::Json] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert_eq!("xml".parse::<LogFormat>(), Err(UnknownLogFormat));
    }
}
