//! Signs of life of this replica, and whether anything may be decided or granted by the database's clock as it is.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;

use super::rules::Rules;
use super::{App, Result};
use crate::domain::pulse::{Pulse, Reading};
use crate::store::Standing;

/// Signs of life come each second; this much without one is an outage.
const TOLERANCE: Duration = Duration::from_secs(3);

/// How this replica read the database's clock at its last sign of life.
#[derive(Debug, Clone, Default)]
pub struct LastReading(Arc<Mutex<Option<Reading>>>);

impl LastReading {
    fn get(&self) -> Option<Reading> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, reading: Reading) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Two at once: what was read first is older.
        if last.is_none_or(|last| last.answered < reading.answered) {
            *last = Some(reading);
        }
    }
}

impl App {
    /// A sign of life of this replica, and the rules as they are then; whether they had changed.
    ///
    /// # Errors
    /// The database.
    pub async fn pulse(&self) -> Result<bool> {
        let (pulse, reading) = self.store.take_pulse(TOLERANCE, self.last_reading.get()).await?;
        self.last_reading.put(reading);
        match pulse {
            Pulse::Steady => {}
            Pulse::Missed { silence, set_forward } => {
                tracing::warn!(
                    ?silence,
                    ?set_forward,
                    "nobody's activity could be recorded, or the database's clock was set forward; idle clocks stood still"
                )
            }
            Pulse::SetBack(span) => tracing::warn!(?span, "the database's clock was set back"),
        }
        self.refresh_rules().await
    }

    /// The rules that the store has, with every step of the clock accounted for that this replica can see; the database's time.
    ///
    /// # Errors
    /// The database.
    pub(super) async fn steady_rules(&self) -> Result<(Arc<Rules>, OffsetDateTime)> {
        let mut standing = self.store.standing().await?;
        if !self.is_steady(&standing) {
            self.pulse().await?;
            standing = self.store.standing().await?;
        }
        if standing.version != self.rules.get().book.version {
            self.refresh_rules().await?;
        }
        Ok((self.rules.get(), standing.clock.shown))
    }

    /// Whether somebody gave a sign of life a moment ago, and the database's clock was not set since this replica did.
    pub(super) fn is_steady(&self, standing: &Standing) -> bool {
        let set_forward = self.last_reading.get().map(|last| standing.clock.set_forward_since(&last));
        standing.silence <= TOLERANCE && set_forward.is_some_and(time::Duration::is_zero)
    }
}
