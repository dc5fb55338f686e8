//! gRPC health: says of every service whether this replica takes calls.

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::HealthReporter;

use crate::app::Readiness;

/// What it speaks of; the empty name is the server.
const SERVICES: [&str; 5] = [
    "",
    "carrel.v1.WorkspaceService",
    "carrel.v1.EventService",
    "carrel.v1.PolicyService",
    "carrel.v1.NodeService",
];

/// Tells those who watch, once for each change.
#[derive(Debug)]
pub struct HealthTeller {
    reporter: HealthReporter,
    told: ServingStatus,
}

impl HealthTeller {
    /// One that has told of every service that it serves, before there is a caller to hear that a service is unknown; and
    /// the service that callers watch.
    pub async fn new() -> (Self, HealthServer<impl Health>) {
        let (reporter, service) = tonic_health::server::health_reporter();
        let mut teller = Self { reporter, told: ServingStatus::Unknown };
        teller.tell(ServingStatus::Serving).await;
        (teller, service)
    }

    /// Follows `readiness` until `stop`.
    pub async fn run(mut self, mut readiness: watch::Receiver<Readiness>, stop: CancellationToken) {
        loop {
            let status = match *readiness.borrow_and_update() {
                Readiness::Serving => ServingStatus::Serving,
                Readiness::DatabaseAway | Readiness::Stopping => ServingStatus::NotServing,
            };
            self.tell(status).await;
            tokio::select! {
                // Cancel-safe: the newest value is read again.
                changed = readiness.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
        }
    }

    async fn tell(&mut self, status: ServingStatus) {
        if status == self.told {
            return;
        }
        for service in SERVICES {
            self.reporter.set_service_status(service, status).await;
        }
        self.told = status;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::task::JoinSet;
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;

    use super::*;
    use crate::app::SharedReadiness;

    #[tokio::test]
    async fn who_watches_hears_of_each_change_once() {
        let (teller, service) = HealthTeller::new().await;
        let mut client = HealthClient::new(service);
        let mut watches = Vec::new();
        for service in SERVICES {
            let request = HealthCheckRequest { service: service.into() };
            let mut watch = client.watch(request).await.unwrap().into_inner();
            assert_eq!(watch.message().await.unwrap().unwrap().status, ServingStatus::Serving as i32);
            watches.push(watch);
        }
        let readiness = SharedReadiness::default();
        let stop = CancellationToken::new();
        let mut running = JoinSet::new();
        running.spawn(teller.run(readiness.subscribe(), stop.clone()));
        let mut heard = async || {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let mut all = Vec::new();
            for watch in &mut watches {
                let mut one = Vec::new();
                while let Ok(said) = tokio::time::timeout(Duration::from_millis(20), watch.message()).await {
                    one.push(said.unwrap().unwrap().status);
                }
                all.push(one);
            }
            all
        };
        assert_eq!(heard().await, vec![Vec::<i32>::new(); SERVICES.len()], "it served before");
        readiness.database(false);
        assert_eq!(heard().await, vec![vec![ServingStatus::NotServing as i32]; SERVICES.len()]);
        readiness.stop();
        assert_eq!(heard().await, vec![Vec::<i32>::new(); SERVICES.len()], "it did not serve before either");
        stop.cancel();
        running.join_all().await;
    }
}
