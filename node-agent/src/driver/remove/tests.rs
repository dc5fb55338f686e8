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
