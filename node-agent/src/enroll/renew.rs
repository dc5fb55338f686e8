//! Keeps the node's certificate fresh. A session that stands is not disturbed; the next one uses the new certificate.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use carrel_common::clock::Clock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

use super::renewal::{pause, renewal_at};
use super::{EnrollError, Identity, Proof, request};
use crate::metrics::Metrics;

/// The time of day is looked at this often at least: a host that slept must not go by a sleep that stood still.
const LOOK: Duration = Duration::from_secs(30);

/// What renewing needs.
#[derive(Debug)]
pub struct Renewing {
    /// Where the newest identity is put.
    pub identity: watch::Sender<Arc<Identity>>,
    /// The control plane's replicas.
    pub endpoints: Vec<Endpoint>,
    /// Where the certificate is kept.
    pub state_dir: PathBuf,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// When the certificate ends is shown there.
    pub metrics: Metrics,
}

impl Renewing {
    /// Renews the certificate, each time it is due, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut attempt: usize = 0;
        let mut failures = 0;
        let mut due = None;
        while !stop.is_cancelled() {
            let identity = Arc::clone(&self.identity.borrow());
            let Proof::Certificate(own) = &identity.proof else {
                // An identity without one needs nothing.
                return stop.cancelled().await;
            };
            self.metrics.certificate_expires(own.validity.until);
            let at = *due.get_or_insert_with(|| renewal_at(own.validity, rand::random()));
            let wait = Duration::try_from(at - self.clock.now()).unwrap_or(Duration::ZERO);
            if !wait.is_zero() {
                stop.run_until_cancelled(tokio::time::sleep(wait.min(LOOK))).await;
                continue;
            }
            let endpoint = &self.endpoints[attempt % self.endpoints.len()];
            attempt += 1;
            let renewed = request::renew(endpoint, &identity, own, &self.state_dir);
            match stop.run_until_cancelled(renewed).await {
                None => return,
                Some(Ok(renewed)) => {
                    let until = renewed.validity().map(|validity| validity.until);
                    tracing::info!(node.id = %renewed.node, until = ?until.map(|at| at.to_string()), "certificate renewed");
                    self.identity.send_replace(Arc::new(renewed));
                    (due, failures) = (None, 0);
                }
                Some(Err(error)) => {
                    let pause = pause(failures, own.validity.life(), rand::random());
                    failures = failures.saturating_add(1);
                    self.tell(&identity, &error, endpoint, pause);
                    stop.run_until_cancelled(tokio::time::sleep(pause)).await;
                }
            }
        }
    }

    fn tell(&self, identity: &Identity, error: &EnrollError, endpoint: &Endpoint, pause: Duration) {
        let (node, endpoint) = (identity.node, endpoint.uri());
        if identity.has_ended(self.clock.now()) {
            // The session says what to do.
            tracing::debug!(node.id = %node, %endpoint, ?pause, "the certificate has ended: {error}");
        } else {
            tracing::warn!(node.id = %node, %endpoint, ?pause, "the certificate is not renewed yet: {error}");
        }
    }
}
