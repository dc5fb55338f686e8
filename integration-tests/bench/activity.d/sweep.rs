//! The sweep that looks for idle workspaces, and that stopped ones cost it nothing.

use std::time::{Duration, Instant};

use carrel_proto::v1::workspace::State;
use control_plane::domain::activity::BySignal;
use control_plane::store::{Store, SweepLimits};

use crate::desks::Desks;
use crate::figures::median;

const TIMES: usize = 20;
/// The target of the sweep over all that run, in milliseconds.
const TARGET: f64 = 100.0;

async fn milliseconds(store: &Store) -> f64 {
    let mut took = Vec::new();
    for _ in 0..TIMES {
        let limits = SweepLimits {
            counts: BySignal::of(|_| true),
            idle: Duration::from_secs(11 * 60),
            lifetime: None,
            held: Duration::from_secs(180),
            emptied: vec![],
        };
        let begun = Instant::now();
        let (due, _) = store.running_for(limits).await.expect("the sweep");
        assert!(due.is_empty(), "nobody is due");
        took.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    median(&took)
}

pub(crate) async fn measure(desks: &Desks) -> bool {
    let store = Store::open(&desks.database().url(), 2).expect("a store");
    milliseconds(&store).await;
    let alone = milliseconds(&store).await;
    let stopped = desks.running * 4;
    desks.fill(desks.running + 1, desks.running + stopped, State::Stopped).await;
    let beside = milliseconds(&store).await;
    store.close().await;
    let met = alone <= TARGET && beside <= TARGET;
    println!("\nA sweep over {} running workspaces, median of {TIMES}: {alone:.0} ms;", desks.running);
    println!(
        "with {stopped} stopped ones beside them: {beside:.0} ms (target: at most {TARGET:.0}): {}",
        if met { "met" } else { "MISSED" }
    );
    met
}
