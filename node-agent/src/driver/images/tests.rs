//! Pulls against the fake engine, whose pulls come through in halves when a test says so.

use carrel_common::model::{DesiredItem, Observed, Stage, StatusReason};

use super::*;
use crate::driver::tests::{Bench, desk};
use crate::runtime::fake::Fake;

const LONG: Duration = Duration::from_secs(3600);

/// A desk of an image that is not here yet.
fn far(student: &str) -> DesiredItem {
    let mut item = desk(student, "test");
    item.spec.image = "registry/desk:test".into();
    item
}

fn is_pulling(state: &Observed) -> bool {
    *state == Observed::Starting(Stage::Pulling)
}

#[tokio::test]
async fn many_starts_wait_for_one_pull_and_tell_how_far_it_is() {
    let mut bench = Bench::new();
    bench.engine_is(true).await;
    let desks: Vec<_> = (0..5).map(|n| far(&format!("s{n}"))).collect();
    bench.want(desks.clone());
    for desk in &desks {
        let told = bench.until_told(desk, is_pulling).await;
        assert_eq!(told.pull_percent, 0);
    }
    bench.engine.let_through(1);
    for desk in &desks {
        assert_eq!(bench.until_told(desk, is_pulling).await.pull_percent, 50);
    }
    bench.engine.let_through(1);
    for desk in &desks {
        bench.until_told(desk, |state| matches!(state, Observed::Running { .. })).await;
    }
    assert_eq!(bench.engine.calls("pull"), 1);
}

#[tokio::test]
async fn a_start_whose_session_ends_meanwhile_waits_for_the_first_set_of_the_next_one() {
    let mut bench = Bench::new();
    bench.engine_is(true).await;
    let ada = far("ada");
    bench.want(vec![ada.clone()]);
    bench.until_told(&ada, is_pulling).await;
    bench.cut_off();
    bench.engine.let_through(2);
    while bench.engine.calls("create") == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(bench.engine.calls("start"), 0, "it may be given to another host at this moment");
    bench.want(vec![ada.clone()]);
    bench.until_told(&ada, |state| matches!(state, Observed::Running { .. })).await;
}

#[tokio::test]
async fn a_start_that_the_next_session_does_not_order_is_not_made_in_it() {
    let mut bench = Bench::new();
    bench.engine_is(true).await;
    let ada = far("ada");
    bench.want(vec![ada.clone()]);
    bench.until_told(&ada, is_pulling).await;
    bench.cut_off();
    let created = bench.engine.calls("create");
    bench.want(vec![]);
    bench.engine.let_through(2);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let calls = ["create", "start"].map(|verb| bench.engine.calls(verb));
    assert_eq!(calls, [created, 0], "its place may be on another host");
}

#[tokio::test]
async fn a_start_that_is_stopped_leaves_its_pull_to_the_others() {
    let mut bench = Bench::new();
    bench.engine_is(true).await;
    let (ada, bob) = (far("ada"), far("bob"));
    bench.want(vec![ada.clone(), bob.clone()]);
    bench.until_told(&ada, is_pulling).await;
    bench.until_told(&bob, is_pulling).await;
    bench.want(vec![crate::driver::tests::stopped(&ada), bob.clone()]);
    bench.until_told(&ada, |state| matches!(state, Observed::Gone { .. })).await;
    bench.engine.let_through(2);
    bench.until_told(&bob, |state| matches!(state, Observed::Running { .. })).await;
    assert_eq!(bench.engine.calls("pull"), 1);
}

#[tokio::test]
async fn an_image_that_nobody_has_fails_the_start_and_is_asked_for_again_by_the_next() {
    let mut bench = Bench::new();
    bench.engine_is(true).await;
    for (n, student) in ["ada", "bob"].into_iter().enumerate() {
        let mut item = far(student);
        item.spec.image = "registry/desk:nonsense".into();
        bench.want(vec![item.clone()]);
        let failed = bench.until_told(&item, |state| matches!(state, Observed::Failed(_))).await;
        assert_eq!(failed.state, Observed::Failed(StatusReason::ImageUnavailable));
        assert_eq!(bench.engine.calls("pull"), n + 1);
    }
}

#[tokio::test]
async fn what_is_ordered_ahead_is_pulled_one_by_one_and_told_as_here() {
    let mut bench = Bench::new();
    bench.engine_is(true).await;
    let (one, two) = ("registry/one:test".to_owned(), "registry/two:test".to_owned());
    bench.host.images.order([two.clone(), "tiny:test".to_owned(), one.clone()]);
    bench.engine.let_through(2);
    let mut here = bench.host.images.here();
    let has = |image: &str| {
        let image = image.to_owned();
        move |here: &Option<References>| here.as_ref().is_some_and(|here| here.contains(&image))
    };
    let first = here.wait_for(has(&one)).await.expect("the host lives").clone();
    assert!(!has(&two)(&first), "one at a time");
    bench.engine.let_through(2);
    here.wait_for(has(&two)).await.expect("the host lives");
    assert_eq!(bench.engine.calls("pull"), 2, "what is here is not pulled");
}

#[tokio::test]
async fn a_start_does_not_wait_for_what_is_ordered_ahead() {
    let mut bench = Bench::new();
    bench.engine_is(true).await;
    bench.host.images.order(["registry/ahead:test".to_owned()]);
    let ada = desk("ada", "test");
    bench.want(vec![ada.clone()]);
    bench.until_told(&ada, |state| matches!(state, Observed::Running { .. })).await;
    assert!(bench.engine.calls("pull") <= 1);
}

/// Beside the bench's own, which has no orders and lists: one of which `image` is ordered ahead, could not be had, and may be tried
/// again from `until` on. Nothing else is due for long.
fn puller(bench: &Bench, image: &str, until: Duration) -> Puller<Fake> {
    Puller {
        host: Arc::clone(&bench.host),
        ordered: References::from([image.to_owned()]),
        tasks: JoinSet::new(),
        under_way: BTreeMap::new(),
        put_off: BTreeMap::from([(image.to_owned(), PutOff { until, pause: AHEAD_AGAIN.0 })]),
        listing: false,
        list_again: false,
        list_at: bench.host.clock.monotonic() + LONG,
    }
}

#[tokio::test]
async fn what_was_put_off_is_waited_for_only_while_it_could_be_tried() {
    let bench = Bench::new();
    let mut here = bench.host.images.here();
    here.wait_for(Option::is_some).await.expect("the host lives");

    let mut loaded_by_hand = puller(&bench, "tiny:test", Duration::ZERO);
    loaded_by_hand.look();
    assert!(loaded_by_hand.next_in() > LONG / 2, "nothing is to be done about what is here");

    let later = bench.host.clock.monotonic() + AHEAD_AGAIN.0;
    let mut missing = puller(&bench, "registry/ahead:test", later);
    missing.look();
    assert!(missing.under_way.is_empty());
    assert!((AHEAD_AGAIN.0 / 2..=AHEAD_AGAIN.0).contains(&missing.next_in()));

    let mut busy = puller(&bench, "registry/ahead:test", Duration::ZERO);
    busy.pull("registry/other:test".to_owned(), Whose::Start);
    busy.look();
    assert!(busy.next_in() > LONG / 2, "the end of the other pull is waited for");
    bench.engine.let_through(2);
    while !busy.under_way.contains_key("registry/ahead:test") {
        let done = busy.tasks.join_next().await.expect("it is tried after the listing").expect("it lives");
        busy.done(done);
        busy.look();
    }
}
