//! Rates of two ways that took turns.

use integration_tests::settings;

/// Rounds of each way.
pub(crate) fn rounds() -> u64 {
    settings::number("CARREL_BENCH_ROUNDS", 5)
}

/// How long a round is.
pub(crate) fn round() -> std::time::Duration {
    std::time::Duration::from_secs(settings::number("CARREL_BENCH_SECONDS", 4))
}

/// The middle one.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Prints both and their ratio; whether it is at least `target`.
pub(crate) fn compare(
    what: &str,
    unit: &str,
    [(theirs, below), (ours, carrel)]: [(&str, &[f64]); 2],
    target: f64,
) -> bool {
    println!("\n{what}\n\n| {unit} | rounds | least | median | most |\n|---|---|---|---|---|");
    for (name, figures) in [(theirs, below), (ours, carrel)] {
        let (least, most) =
            figures.iter().fold((f64::MAX, 0.0_f64), |(low, high), f| (low.min(*f), high.max(*f)));
        println!("| {name} | {} | {least:.0} | {:.0} | {most:.0} |", figures.len(), median(figures));
    }
    let ratio = median(carrel) / median(below);
    let met = ratio >= target;
    println!(
        "\n{ratio:.2} times {theirs} (target: at least {target:.2}): {}",
        if met { "met" } else { "MISSED" }
    );
    met
}
