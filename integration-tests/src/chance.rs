//! Moments that differ from run to run, and can be had again.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::settings;

/// Draws moments and victims. `CARREL_SEED` gives those of a former run again; `CARREL_MOMENT`, a percentage, puts every moment
/// there in the time that it is drawn from: 0 the earliest, 100 the latest.
#[derive(Debug)]
pub struct Chance {
    rng: StdRng,
    moment: Option<u64>,
}

impl Chance {
    /// For one test; prints its seed.
    pub fn of(test: &str) -> Self {
        let seed = settings::number("CARREL_SEED", rand::random_range(0..1_000_000));
        let moment = settings::optional("CARREL_MOMENT").map(|_| settings::number("CARREL_MOMENT", 0));
        assert!(moment.is_none_or(|percent| percent <= 100), "CARREL_MOMENT is a percentage");
        eprintln!("{test}: CARREL_SEED={seed}");
        Self { rng: StdRng::seed_from_u64(seed), moment }
    }

    /// A time between these, in milliseconds.
    pub fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        // Drawn in any case, so that the victims of a seed stay the same.
        let drawn = self.rng.random_range(range.clone());
        let given = self.moment.map(|percent| range.start + (range.end - range.start) * percent / 100);
        Duration::from_millis(given.unwrap_or(drawn))
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
