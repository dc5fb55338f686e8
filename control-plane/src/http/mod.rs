//! HTTP beside gRPC on the same port: health for load balancers, metrics for Prometheus.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use carrel_common::telemetry::Telemetry;
use tokio::sync::watch;

#[derive(Clone)]
struct Shared {
    ready: watch::Receiver<bool>,
    telemetry: Telemetry,
}

/// `/healthz`, `/readyz`, `/metrics`.
pub fn routes(ready: watch::Receiver<bool>, telemetry: Telemetry) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Shared { ready, telemetry })
}

async fn readyz(State(shared): State<Shared>) -> impl IntoResponse {
    if *shared.ready.borrow() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the database cannot be reached\n")
    }
}

async fn metrics(State(shared): State<Shared>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], shared.telemetry.metrics_text())
}
