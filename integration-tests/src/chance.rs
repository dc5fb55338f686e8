//! Moments that differ from run to run, and can be had again.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::settings;

/// Draws moments and victims. `CARREL_SEED` gives those of a former run again.
#[derive(Debug)]
pub struct Chance {
    rng: StdRng,
}

impl Chance {
    /// For one test; prints its seed.
    pub fn of(test: &str) -> Self {
        let seed = settings::number("CARREL_SEED", rand::random_range(0..1_000_000));
        eprintln!("{test}: CARREL_SEED={seed}");
        Self { rng: StdRng::seed_from_u64(seed) }
    }

    /// A time between these, in milliseconds.
    pub fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.random_range(range))
    }

    /// A number below this.
    pub fn below(&mut self, end: usize) -> usize {
        self.rng.random_range(0..end)
    }

    /// One of these.
    pub fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        *all.choose(&mut self.rng).expect("there is one")
    }

    /// Heads or tails.
    pub fn coin(&mut self) -> bool {
        self.rng.random()
    }
}
