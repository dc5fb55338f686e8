//! What keeps a start from being made.

use std::sync::Arc;

use carrel_common::id::Generation;
use carrel_common::model::{DesiredPair, DesiredSet, StatusReason};

use super::*;
use crate::driver::tests::{Bench, desk, stopped};

#[tokio::test]
async fn nothing_is_made_that_the_set_of_the_session_does_not_order() {
    let mut bench = Bench::new();
    bench.engine_is(true).await;
    let ada = desk("ada", "test");
    let later = DesiredItem { generation: Generation(2), ..ada.clone() };
    for (items, fresh) in [
        (vec![], true),
        (vec![desk("bob", "test")], true),
        (vec![later], true),
        (vec![stopped(&ada)], true),
        (vec![ada.clone()], false),
    ] {
        let pair = DesiredPair { incarnation: 1, generation: 1 };
        let set = Some(Arc::new(DesiredSet::new(pair, items.clone())));
        let (_session, accepted) = watch::channel(Accepted { set, fresh, taken_at: Duration::ZERO });
        for from in [From::Nothing, From::Created("made-before".to_owned())] {
            let (item, cancel, so_far) = (ada.clone(), CancellationToken::new(), SoFar::default());
            let (host, accepted) = (&bench.host, accepted.clone());
            let bring = Bring { host, item, cancel, accepted, forgiven: false, so_far };
            assert_eq!(bring.run(from.clone()).await, Outcome::Cancelled, "{from:?} {items:?} {fresh}");
        }
    }
    assert_eq!(["create", "start"].map(|verb| bench.engine.calls(verb)), [0, 0]);
    assert!(!bench.host.storage.base().join(".carrel/fence/ada").exists(), "nor is it told to other hosts");
}

#[tokio::test(start_paused = true)]
async fn a_container_that_runs_without_an_address_is_made_again() {
    let mut bench = Bench::new();
    bench.engine.give_no_address(1);
    let ada = desk("ada", "test");
    bench.want(vec![ada.clone()]);
    bench.running(&ada).await;
    assert_eq!(["create", "start", "stop", "remove"].map(|verb| bench.engine.calls(verb)), [2, 2, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_start_ends_when_no_container_gets_an_address() {
    let mut bench = Bench::new();
    bench.engine.give_no_address(usize::MAX);
    let ada = desk("ada", "test");
    bench.want(vec![ada.clone()]);
    let failed = bench.until(&ada, |state| matches!(state, Observed::Failed(_))).await;
    assert_eq!(failed.state, Observed::Failed(StatusReason::RuntimeError));
    assert_eq!(failed.message, "The workspace could not be started: Docker gave the editor no address");
    assert_eq!(bench.engine.calls("start"), 1 + REFUSAL_PAUSES.len());
}
