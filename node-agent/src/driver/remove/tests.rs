//! Removals against the fake engine.

use carrel_common::model::Observed;

use crate::driver::tests::{Bench, desk, stopped};

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
