//! Keeps the node's certificate fresh. A session that stands is not disturbed; the next one uses the new certificate.
//!
//! A certificate counts from when it is here, and not only once it is kept: students may have filled the disk, and the host must not be cut off for that.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use carrel_common::clock::Clock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

use super::renewal::{pause, renewal_at};
use super::{EnrollError, Identity, Proof, files, request};
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
        let mut kept = Arc::clone(&self.identity.borrow());
        while !stop.is_cancelled() {
            let identity = Arc::clone(&self.identity.borrow());
            let Proof::Certificate(own) = &identity.proof else {
                // An identity without one needs nothing.
                return stop.cancelled().await;
            };
            self.metrics.certificate_expires(own.validity.until);
            if !Arc::ptr_eq(&kept, &identity) && self.keep(&identity).await {
                kept = Arc::clone(&identity);
            }
            let at = *due.get_or_insert_with(|| renewal_at(own.validity, rand::random()));
            let wait = Duration::try_from(at - self.clock.now()).unwrap_or(Duration::ZERO);
            if !wait.is_zero() {
                stop.run_until_cancelled(tokio::time::sleep(wait.min(LOOK))).await;
                continue;
            }
            let endpoint = &self.endpoints[attempt % self.endpoints.len()];
            attempt += 1;
            let renewed = request::renew(endpoint, &identity, own);
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

    /// Whether it is in the state directory now.
    async fn keep(&self, identity: &Arc<Identity>) -> bool {
        let (dir, newest) = (self.state_dir.clone(), Arc::clone(identity));
        match request::blocking(move || files::save(&dir, &newest)).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(
                    node.id = %identity.node,
                    "the renewed certificate is in use, and not kept yet, so a restart of the agent would go back to the one before: {error}"
                );
                false
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

#[cfg(test)]
mod tests {
    use std::fs;

    use carrel_common::certificate::NodeUri;
    use carrel_common::clock::ManualClock;
    use carrel_common::id::{ClusterId, NodeId};
    use rcgen::{CertificateParams, KeyPair, SanType};
    use time::OffsetDateTime;

    use super::super::Secret;
    use super::*;

    /// An identity that counts for a day from then on.
    fn certified(key: &KeyPair, uri: NodeUri, from: OffsetDateTime) -> Identity {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.to_string().try_into().expect("ASCII"))];
        (params.not_before, params.not_after) = (from, from + time::Duration::days(1));
        let pem = params.self_signed(key).expect("signed").pem();
        Identity::certified(Secret(key.serialize_pem()), pem.clone(), pem).expect("a node's")
    }

    #[tokio::test(start_paused = true)]
    async fn a_certificate_that_the_disk_refuses_is_kept_as_soon_as_it_takes_it() {
        let (dir, now) = (tempfile::tempdir().expect("tempdir"), OffsetDateTime::UNIX_EPOCH);
        let key = files::key(dir.path()).expect("made");
        let uri = NodeUri { cluster: ClusterId::new(), node: NodeId::new() };
        let first = certified(&key, uri, now);
        let renewed = certified(&key, uri, now + time::Duration::hours(1));
        files::save(dir.path(), &first).expect("saved");
        let identity = watch::Sender::new(Arc::new(first.clone()));
        let renewing = Renewing {
            identity: identity.clone(),
            endpoints: vec![Endpoint::from_static("https://127.0.0.1:9")],
            state_dir: dir.path().to_owned(),
            clock: Arc::new(ManualClock::new(now)),
            metrics: Metrics::new(),
        };
        // The new file cannot be made.
        let in_the_way = dir.path().join("node.pem.new");
        fs::create_dir(&in_the_way).expect("made");
        let on_disk = || files::load_certified(dir.path()).expect("readable").expect("there");
        let stop = CancellationToken::new();
        let meanwhile = async {
            tokio::time::sleep(LOOK / 2).await;
            identity.send_replace(Arc::new(renewed.clone()));
            tokio::time::sleep(LOOK * 3).await;
            assert_eq!(on_disk().validity(), first.validity(), "it is refused");
            fs::remove_dir(&in_the_way).expect("removed");
            tokio::time::sleep(LOOK * 2).await;
            assert_eq!(on_disk(), renewed);
            stop.cancel();
        };
        tokio::join!(renewing.run(stop.clone()), meanwhile);
    }
}
