//! What came out, and whether it meets the target.

use std::time::Duration;

/// The times of both ways.
#[derive(Debug, Default)]
pub struct Figures {
    /// By the bare Docker API.
    pub bare: Vec<Duration>,
    /// Through Carrel.
    pub carrel: Vec<Duration>,
}

/// The value that `share` of all do not exceed.
fn quantile(times: &[Duration], share: f64) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let at = (share * (sorted.len() - 1) as f64).round() as usize;
    sorted[at]
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// In milliseconds; what is long in seconds.
pub fn shown(time: Duration) -> String {
    if time < Duration::from_secs(10) {
        format!("{:.0} ms", millis(time))
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

impl Figures {
    /// Prints a table; whether p50 is at most `ratio` times bare Docker's, or at most `allowance` above it.
    pub fn print(&self, what: &str, ratio: f64, allowance: Option<Duration>) -> bool {
        println!("\n{what}\n\n| | n | p10 | p50 | p90 | max |\n|---|---|---|---|---|---|");
        for (name, times) in [("bare Docker", &self.bare), ("Carrel", &self.carrel)] {
            let cell = |share| shown(quantile(times, share));
            println!(
                "| {name} | {} | {} | {} | {} | {} |",
                times.len(),
                cell(0.1),
                cell(0.5),
                cell(0.9),
                cell(1.0)
            );
        }
        let (bare, carrel) = (millis(quantile(&self.bare, 0.5)), millis(quantile(&self.carrel, 0.5)));
        let met =
            carrel <= bare * ratio || allowance.is_some_and(|allowance| carrel - bare <= millis(allowance));
        let or = allowance.map(|allowance| format!(", or at most {:.0} ms above", millis(allowance)));
        println!(
            "\np50: {:.3} times bare Docker, {:+.0} ms (target: at most {ratio:.2} times{}): {}",
            carrel / bare,
            carrel - bare,
            or.unwrap_or_default(),
            if met { "met" } else { "MISSED" }
        );
        met
    }
}
