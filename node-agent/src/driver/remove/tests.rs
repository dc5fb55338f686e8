//! Removals against the fake engine.

use std::sync::Arc;
use std::time::Duration;

use carrel_common::model::Observed;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::driver::tests::{Bench, desk, stopped, touch};
use crate::fence::Terms;
use crate::metrics::Metrics;

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_container_that_docker_cannot_look_at_is_removed_all_the_same() {
    let mut bench = Bench::new();
    let ada = desk("ada", "test");
    bench.want(vec![ada.clone()]);
    bench.running(&ada).await;
    bench.engine.spoil("ada");
    bench.want(vec![stopped(&ada)]);
    let gone = bench.until(&ada, |state| matches!(state, Observed::Gone { .. })).await;
    assert_eq!((gone.exit_code, bench.engine.ids()), (None, vec![]), "how it ended nobody could see");
}

#[tokio::test]
async fn a_log_that_does_not_end_holds_up_no_stop_and_what_was_read_of_it_is_kept() {
    let mut bench = Bench::new();
    let ada = desk("ada", "test");
    bench.want(vec![ada.clone()]);
    bench.running(&ada).await;
    bench.engine.never_end_a_log();
    bench.want(vec![stopped(&ada)]);
    bench.until(&ada, |state| matches!(state, Observed::Gone { .. })).await;
    let kept = bench.host.saved_logs.newest(ada.workspace).expect("readable");
    assert_eq!(kept, Some((ada.generation, b"tiny: generation 1\n".to_vec())));
}

#[tokio::test]
async fn the_directory_of_a_desk_that_the_lease_ended_stays_until_nobody_orders_it() {
    let mut bench = Bench::new();
    let ada = desk("ada", "test");
    bench.want(vec![ada.clone()]);
    bench.running(&ada).await;
    let (host, mut watches) = (Arc::clone(&bench.host), JoinSet::new());
    let now = host.clock.monotonic();
    watches.spawn(Arc::clone(&host.desks).watch(move || now, CancellationToken::new()));
    watches.spawn(Arc::clone(&host.lease).keep(Metrics::new(), CancellationToken::new()));
    let dir = touch(&bench, &ada);
    tokio::time::timeout(PATIENCE, host.desks.news()).await.expect("seen");
    let at_once = Terms { fence_after: Duration::ZERO, stop_budget: Duration::ZERO };
    host.lease.renew(host.lease.now(), at_once).expect("it held");
    bench.until(&ada, |state| *state == Observed::Fenced).await;
    let untold = host.desks.since(0).0;
    assert_eq!((untold.len(), dir.exists()), (1, true), "the control plane has yet to hear of it");
    bench.want(vec![]);
    let gone = async {
        while dir.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("it goes");
    assert_eq!(host.desks.since(0).0, []);
}
