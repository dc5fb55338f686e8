//! The sweep that looks for idle workspaces, and that it costs no more with more stopped ones.

use std::time::{Duration, Instant};

use carrel_proto::v1::workspace::State;
use control_plane::domain::activity::BySignal;
use control_plane::store::{Store, SweepLimits};

use crate::desks::Desks;
use crate::figures::median;

const TIMES: usize = 20;
/// The target of the sweep over all that run, in milliseconds.
const TARGET: f64 = 100.0;
/// So many times as many stopped ones cost a sweep no more than figures of one sweep differ by.
const GROWTH: f64 = 1.25;

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
    // That there are any may change the plan; how many there are must not matter.
    let (fewer, more) = (desks.running, desks.running * 4);
    desks.fill(desks.running + 1, desks.running + fewer, State::Stopped).await;
    let beside_fewer = milliseconds(&store).await;
    desks.fill(desks.running + fewer + 1, desks.running + more, State::Stopped).await;
    let beside_more = milliseconds(&store).await;
    store.close().await;
    let met = alone.max(beside_fewer).max(beside_more) <= TARGET && beside_more <= beside_fewer * GROWTH;
    println!("\nA sweep over {} running workspaces, median of {TIMES}: {alone:.0} ms;", desks.running);
    println!(
        "with {fewer} stopped ones beside them {beside_fewer:.0} ms, with {more} {beside_more:.0} ms (target: at most {TARGET:.0}, \
         and no more with more of them): {}",
        if met { "met" } else { "MISSED" }
    );
    met
}
