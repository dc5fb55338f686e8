//! Time. The only file that reads it.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

/// Where time comes from.
pub trait Clock: std::fmt::Debug + Send + Sync + 'static {
    /// Time of day, UTC; can step.
    fn now(&self) -> OffsetDateTime;
    /// Time since an arbitrary moment; never steps.
    fn monotonic(&self) -> Duration;
    /// Time since the host was started, the time it slept included; never steps, and is the same for every process of the host.
    fn boot(&self) -> Duration;
}

/// The machine's clock.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time begins now.
    #[expect(clippy::disallowed_methods, reason = "the only file that reads time")]
    #[expect(clippy::new_without_default, reason = "a default that reads the time would surprise")]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the only file that reads time")]
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }
    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
    fn boot(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::try_from(time).unwrap_or_default()
    }
}

/// A clock that moves when a test says so.
#[derive(Debug)]
pub struct ManualClock {
    state: Mutex<(OffsetDateTime, Duration)>,
}

impl ManualClock {
    /// A clock that shows `now`.
    pub fn new(now: OffsetDateTime) -> Self {
        Self { state: Mutex::new((now, Duration::ZERO)) }
    }
    /// Moves all times on.
    pub fn advance(&self, by: Duration) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.0 += by;
        state.1 += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> OffsetDateTime {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner).0
    }
    fn monotonic(&self) -> Duration {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner).1
    }
    /// The host was started when the clock was made.
    fn boot(&self) -> Duration {
        self.monotonic()
    }
}
