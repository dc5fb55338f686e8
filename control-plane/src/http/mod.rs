//! HTTP beside gRPC on the same port: health for load balancers, metrics for Prometheus.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use carrel_common::telemetry::Telemetry;

use crate::app::{Readiness, SharedReadiness, SharedState};

#[derive(Clone)]
struct Shared {
    readiness: SharedReadiness,
    state: SharedState,
    telemetry: Telemetry,
}

/// `/healthz`, `/readyz`, `/metrics`.
pub fn routes(readiness: SharedReadiness, state: SharedState, telemetry: Telemetry) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Shared { readiness, state, telemetry })
}

async fn readyz(State(shared): State<Shared>) -> impl IntoResponse {
    let problem = match shared.readiness.get() {
        Readiness::Serving => None,
        Readiness::DatabaseAway => Some("the database cannot be reached\n"),
        Readiness::Stopping => Some("this replica is shutting down\n"),
    };
    if let Some(problem) = problem {
        return (StatusCode::SERVICE_UNAVAILABLE, problem.to_owned());
    }
    // Callers read and heartbeat as always, so it takes calls; what it does not do is told here, too.
    let behind = shared.state.get().behind.map(|behind| {
        format!(
            "the store is behind: {}; nothing is started, stopped or replaced until `control-plane declare-restored`\n",
            behind.evidence
        )
    });
    (StatusCode::OK, format!("ready\n{}", behind.unwrap_or_default()))
}

async fn metrics(State(shared): State<Shared>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], shared.telemetry.metrics_text())
}
