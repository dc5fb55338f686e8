use carrel_common::id::RequestId;
use control_plane::app::AppError;
use control_plane::domain::event::{Actor, Entry, Subject};
use control_plane::store::{EventQuery, Replay};

use crate::rig::Rig;

#[tokio::test]
async fn an_event_that_commits_late_is_not_missed() {
    let rig = Rig::new().await;
    let store = &rig.app.store;
    let stand = rig.app.stand(None).await.unwrap();
    // The first writes and lingers; the second, with a higher id, commits before it.
    let mut slow = store.begin().await.unwrap();
    slow.append(Subject::default(), Entry::new("test.slow", Actor::Caller)).await.unwrap();
    let mut quick = store.begin().await.unwrap();
    quick.append(Subject::default(), Entry::new("test.quick", Actor::Caller)).await.unwrap();
    quick.commit().await.unwrap();
    let kinds = |events: Vec<control_plane::store::StoredEvent>| {
        events.into_iter().map(|e| e.kind).collect::<Vec<_>>()
    };
    let seen = rig.app.events_after(&EventQuery::default(), stand).await.unwrap();
    assert_eq!(kinds(seen), Vec::<String>::new(), "a reader must not pass what may still commit");
    slow.commit().await.unwrap();
    let seen = until_two(&rig, &EventQuery::default(), stand).await;
    assert_eq!(kinds(seen), ["test.slow", "test.quick"]);
    rig.end().await;
}

#[tokio::test]
async fn what_happened_first_to_a_workspace_is_read_first_whoever_reserved_a_request_id_before() {
    let rig = Rig::new().await;
    rig.node(4).await;
    let ada = rig.start("ada").await.unwrap();
    let (store, stand) = (&rig.app.store, rig.app.stand(None).await.unwrap());
    let about = || Subject { workspace: Some((ada.uid, ada.student.clone())), node: None };
    let mut called_first = store.begin().await.unwrap();
    let reserved = called_first.reserve::<()>("StopWorkspace", RequestId::new(), "x").await.unwrap();
    assert_eq!(reserved, Replay::New);
    let mut locked_first = store.begin().await.unwrap();
    locked_first.lock(ada.uid).await.unwrap().unwrap();
    locked_first.append(about(), Entry::new("test.one", Actor::Caller)).await.unwrap();
    locked_first.commit().await.unwrap();
    called_first.lock(ada.uid).await.unwrap().unwrap();
    called_first.append(about(), Entry::new("test.two", Actor::Caller)).await.unwrap();
    called_first.commit().await.unwrap();
    let ours = EventQuery { kinds: vec!["test.one".into(), "test.two".into()], ..EventQuery::default() };
    let seen = until_two(&rig, &ours, stand).await;
    assert_eq!(seen.into_iter().map(|event| event.kind).collect::<Vec<_>>(), ours.kinds);
    rig.end().await;
}

/// Other tests' transactions in the same Postgres hold readers back for moments.
async fn until_two(
    rig: &Rig,
    asked: &EventQuery,
    stand: control_plane::store::Position,
) -> Vec<control_plane::store::StoredEvent> {
    for _ in 0..200 {
        let seen = rig.app.events_after(asked, stand).await.unwrap();
        if seen.len() >= 2 {
            return seen;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    panic!("the events did not become visible");
}

#[tokio::test]
async fn a_reader_that_stands_before_what_was_dropped_is_told() {
    let rig = Rig::with(|settings| settings.events_kept = std::time::Duration::ZERO).await;
    let incarnation = rig.app.state.incarnation();
    let stand = rig.app.stand(None).await.unwrap();
    rig.node(4).await;
    rig.app.store.drop_old(rig.app.settings.events_kept).await.unwrap();
    let late = rig.app.stand(Some((incarnation, stand))).await;
    assert!(matches!(late, Err(AppError::ResumeTokenTooOld)), "{late:?}");
    let other = rig.app.stand(Some((incarnation + 1, stand))).await;
    assert!(matches!(other, Err(AppError::ResumeTokenTooOld)), "{other:?}");
    rig.end().await;
}
