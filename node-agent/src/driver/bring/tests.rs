//! What keeps a start from being made.

use std::sync::Arc;

use carrel_common::id::Generation;
use carrel_common::model::{DesiredPair, DesiredSet};

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
