//! When a certificate is renewed. PURE.

use std::time::Duration;

use carrel_common::certificate::Validity;
use time::OffsetDateTime;

/// The part of its life after which a certificate is renewed: late enough to be worth it, and early enough that a control
/// plane that is down for hours cuts nobody off. Spread, so that hosts enrolled together do not all come at once.
const FROM: f64 = 0.5;
const TO: f64 = 0.8;

/// Between attempts, at first and at most.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// A short life (in tests) has shorter pauses: so many attempts fit into it whatever happens.
const PART_OF_LIFE: u32 = 20;

/// When to renew; `random` is in 0..1.
pub(super) fn renewal_at(validity: Validity, random: f64) -> OffsetDateTime {
    validity.from + validity.life().mul_f64(FROM + (TO - FROM) * random)
}

/// How long to wait after so many failed attempts; `random` is in 0..1.
pub(super) fn pause(failures: u32, life: Duration, random: f64) -> Duration {
    let longest = FIRST.saturating_mul(1 << failures.min(16)).min(LONGEST).min(life / PART_OF_LIFE);
    longest.mul_f64(0.5 + random / 2.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    const FROM_TIME: OffsetDateTime = datetime!(2026-11-24 12:00:00 UTC);

    proptest! {
        #[test]
        fn renews_at_50_to_80_percent_of_the_life(seconds in 1_u64..10_000_000, random in 0.0..1.0_f64) {
            let life = Duration::from_secs(seconds);
            let validity = Validity { from: FROM_TIME, until: FROM_TIME + life };
            let after = renewal_at(validity, random) - FROM_TIME;
            prop_assert!(after >= life.mul_f64(0.5) && after <= life.mul_f64(0.8), "{after}");
        }

        #[test]
        fn many_attempts_fit_between_the_latest_renewal_and_the_end(
            seconds in 5_u64..10_000_000,
            failures in 0_u32..100,
            random in 0.0..1.0_f64,
        ) {
            let life = Duration::from_secs(seconds);
            let pause = pause(failures, life, random);
            prop_assert!(pause <= LONGEST && pause * 4 <= life.mul_f64(0.2) + Duration::from_micros(1), "{pause:?}");
        }
    }
}
