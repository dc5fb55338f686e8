//! Whether this replica takes calls, as load balancers are told.

use tokio::sync::watch;

/// Whether a replica takes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// It does.
    Serving,
    /// It could answer none of them.
    DatabaseAway,
    /// It was told to stop, and takes no more.
    Stopping,
}

/// What is known of it, and who says so.
#[derive(Debug, Clone)]
pub struct SharedReadiness(watch::Sender<Readiness>);

impl Default for SharedReadiness {
    fn default() -> Self {
        Self(watch::Sender::new(Readiness::Serving))
    }
}

impl SharedReadiness {
    /// As it is now.
    pub fn get(&self) -> Readiness {
        *self.0.borrow()
    }

    /// Hears of changes.
    pub fn subscribe(&self) -> watch::Receiver<Readiness> {
        self.0.subscribe()
    }

    /// The database was reached, or not.
    pub fn database(&self, reached: bool) {
        self.put(if reached { Readiness::Serving } else { Readiness::DatabaseAway });
    }

    /// From here on it takes no calls, whatever becomes of the database.
    pub fn stop(&self) {
        self.put(Readiness::Stopping);
    }

    fn put(&self, next: Readiness) {
        self.0.send_if_modified(|known| {
            let news = *known != next && *known != Readiness::Stopping;
            if news {
                *known = next;
            }
            news
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_told_to_stop_does_not_serve_again_when_the_database_does() {
        let readiness = SharedReadiness::default();
        readiness.database(false);
        assert_eq!(readiness.get(), Readiness::DatabaseAway);
        readiness.database(true);
        assert_eq!(readiness.get(), Readiness::Serving);
        readiness.stop();
        readiness.database(true);
        assert_eq!(readiness.get(), Readiness::Stopping);
    }
}
