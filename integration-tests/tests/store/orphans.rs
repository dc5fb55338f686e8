use carrel_common::id::{Generation, NodeId, PlacementId, WorkspaceUid};
use carrel_common::model::{Container, StatusReason, Verdict};
use control_plane::app::{AppError, Resolution, Resolved};
use control_plane::domain::workspace::State;

use crate::rig::{Rig, call, id};

pub(crate) fn container(
    name: &str,
    workspace: WorkspaceUid,
    student: &str,
    generation: i64,
    node: NodeId,
) -> Container {
    Container {
        container_id: name.into(),
        workspace,
        student: id(student),
        generation: Generation(generation),
        incarnation: 1,
        node,
        running: true,
        placement: Some(PlacementId::new()),
        spec: None,
    }
}

pub(crate) async fn judge(rig: &Rig, node: NodeId, containers: &[Container]) -> Vec<(Verdict, &'static str)> {
    let judged = rig.judge_report(node, containers, &[]).await;
    judged.into_iter().map(|judged| (judged.verdict, judged.reason)).collect()
}

pub(crate) async fn listed(rig: &Rig) -> Vec<(String, String)> {
    let (orphans, _) = rig.app.orphans(None, None, 50).await.unwrap();
    orphans.into_iter().map(|orphan| (orphan.container.container_id, orphan.reason)).collect()
}

pub(crate) async fn resolve(
    rig: &Rig,
    which: (NodeId, &str),
    resolution: Resolution,
    only: bool,
) -> control_plane::app::Result<Resolved> {
    rig.app.resolve_orphan(&call("ResolveOrphan"), which, resolution, "looked at it", only).await
}

#[tokio::test]
async fn what_is_held_waits_for_an_operator_and_is_forgotten_with_the_container() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let ada = rig.running(node, "ada").await;
    let twin = container("c1", ada.uid, "ada", ada.generation.0, node);
    for _ in 0..2 {
        assert_eq!(
            judge(&rig, node, std::slice::from_ref(&twin)).await,
            [(Verdict::Hold, "ANOTHER_IS_PLACED")]
        );
    }
    assert_eq!(listed(&rig).await, [("c1".into(), "ANOTHER_IS_PLACED".into())]);
    let told = "SELECT count(*)::text FROM events WHERE kind = 'orphan.held'";
    assert_eq!(rig.database.text(told).await, "1", "told once, however often it is reported");

    let refused = resolve(&rig, (node, "c1"), Resolution::Adopt, false).await;
    assert!(matches!(refused, Err(AppError::OrphanCannotBeAdopted { .. })), "{refused:?}");
    resolve(&rig, (node, "c1"), Resolution::Stop, true).await.unwrap();
    assert_eq!(listed(&rig).await.len(), 1, "it was only asked");
    let version = rig.app.store.orders_state(node).await.unwrap().unwrap().pair;
    resolve(&rig, (node, "c1"), Resolution::Stop, false).await.unwrap();
    assert!(
        rig.app.store.orders_state(node).await.unwrap().unwrap().pair > version,
        "the node is told at once"
    );
    assert_eq!(rig.app.resolved_orphans(node).await.unwrap().len(), 1);
    let again = resolve(&rig, (node, "c1"), Resolution::Stop, false).await;
    assert!(matches!(again, Err(AppError::OrphanNotFound { .. })), "{again:?}");
    assert_eq!(listed(&rig).await, []);

    assert_eq!(judge(&rig, node, &[twin]).await, [(Verdict::StopByOrder, "OPERATOR")]);
    judge(&rig, node, &[]).await;
    assert_eq!(rig.database.text("SELECT count(*)::text FROM orphans").await, "0");
    assert_eq!(rig.get("ada").await, ada, "the desk did not notice");
    rig.end().await;
}

#[tokio::test]
async fn a_stop_that_the_node_holds_back_waits_for_an_operator() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let ada = rig.running(node, "ada").await;
    rig.stop("ada").await;
    rig.obey(node).await;
    let over = [container("c1", ada.uid, "ada", 1, node)];
    let told = async || {
        let told = "SELECT coalesce(string_agg(kind || ' ' || reason, ', ' ORDER BY id), '') FROM events WHERE kind LIKE 'orphan.%'";
        rig.database.text(told).await
    };
    assert_eq!(judge(&rig, node, &over).await, [(Verdict::Stop, "PLACEMENT_RELEASED")]);
    assert_eq!(judge(&rig, node, &over).await, [(Verdict::Stop, "PLACEMENT_RELEASED")], "it takes its time");
    assert_eq!((listed(&rig).await, told().await), (vec![], String::new()), "it is being stopped");
    for _ in 0..2 {
        rig.judge_report(node, &over, &["c1".into()]).await;
        assert_eq!(listed(&rig).await, [("c1".into(), "STOP_WITHHELD".into())]);
        assert_eq!(told().await, "orphan.held STOP_WITHHELD");
    }
    // It is held back no longer, as others of them are gone; and then once more.
    judge(&rig, node, &over).await;
    assert_eq!(listed(&rig).await, []);
    rig.judge_report(node, &over, &["c1".into()]).await;
    resolve(&rig, (node, "c1"), Resolution::Stop, false).await.unwrap();
    assert_eq!(judge(&rig, node, &over).await, [(Verdict::StopByOrder, "OPERATOR")]);
    judge(&rig, node, &[]).await;
    let expected = "orphan.held STOP_WITHHELD, orphan.held STOP_WITHHELD, orphan.resolved OPERATOR, orphan.stopped OPERATOR";
    assert_eq!(told().await, expected);
    let told = "SELECT reason || ' ' || actor FROM events WHERE kind = 'orphan.resolved'";
    assert_eq!(rig.database.text(told).await, "OPERATOR operator");
    rig.end().await;
}

#[tokio::test]
async fn an_operator_may_adopt_what_another_node_has_made() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let uid = WorkspaceUid::new();
    let moved = container("c1", uid, "eve", 7, NodeId::new());
    assert_eq!(judge(&rig, node, std::slice::from_ref(&moved)).await, [(Verdict::Hold, "NOT_OF_THIS_NODE")]);
    let would = resolve(&rig, (node, "c1"), Resolution::Adopt, true).await.unwrap();
    let desk = would.workspace.clone().unwrap();
    let seen = (desk.uid, desk.generation, desk.state, desk.node);
    assert_eq!(seen, (uid, Generation(7), State::Starting, Some(node)), "what would be");
    assert_eq!(listed(&rig).await.len(), 1, "it was only asked");
    assert!(matches!(rig.app.get(&id("eve")).await, Err(AppError::WorkspaceNotFound(_))));
    assert_eq!(
        rig.database.text("SELECT count(*)::text FROM events WHERE kind = 'orphan.resolved'").await,
        "0"
    );
    let done = resolve(&rig, (node, "c1"), Resolution::Adopt, false).await.unwrap();
    assert_eq!((&done.orphan, done.workspace.unwrap().uid), (&would.orphan, uid));
    assert_eq!(listed(&rig).await, []);
    rig.obey(node).await;
    let eve = rig.get("eve").await;
    assert_eq!((eve.uid, eve.generation, eve.state), (uid, Generation(7), State::Running));
    rig.end().await;
}

#[tokio::test]
async fn orphans_are_listed_in_pages_of_one_node_or_of_all() {
    let rig = Rig::new().await;
    let (a, b) = (rig.node(4).await, rig.node(4).await);
    for (node, names) in [(a, ["c1", "c2"]), (b, ["c1", "c3"])] {
        let found: Vec<_> = names
            .iter()
            .map(|name| container(name, WorkspaceUid::new(), &format!("{name}{node}"), 1, NodeId::new()))
            .collect();
        judge(&rig, node, &found).await;
    }
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let (page, next) = rig.app.orphans(None, after, 3).await.unwrap();
        seen.extend(page.into_iter().map(|orphan| (orphan.node, orphan.container.container_id)));
        if next.is_none() {
            break;
        }
        after = next;
    }
    let mut expected: Vec<_> =
        [(a, "c1"), (a, "c2"), (b, "c1"), (b, "c3")].map(|(node, name)| (node, name.to_owned())).into();
    expected.sort();
    assert_eq!(seen, expected);
    assert_eq!(rig.app.orphans(Some(b), None, 50).await.unwrap().0.len(), 2);
    rig.end().await;
}

/// A container of ada's that nobody accounts for, held on `node`, where she once was; she has no desk that runs.
pub(crate) async fn held(rig: &Rig, node: NodeId) -> Container {
    rig.was_on(node, "ada").await;
    let stray = container("c0ffee", WorkspaceUid::new(), "ada", 7, node);
    let verdict = judge(rig, node, std::slice::from_ref(&stray)).await;
    assert_eq!(verdict, [(Verdict::Hold, "LATER_THAN_THE_STORE")]);
    stray
}

#[tokio::test]
async fn a_student_of_whom_a_container_is_held_is_placed_nowhere_until_it_is_gone() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let stray = held(&rig, node).await;
    let other = rig.node(4).await;
    let ada = rig.start("ada").await.unwrap();
    assert_eq!(
        (ada.state, ada.node, ada.status_reason),
        (State::Pending, None, Some(StatusReason::ContainerHeld))
    );
    assert!(
        ada.status_message.contains(&format!("nodes/{node}")) && ada.status_message.contains("c0ffee"),
        "{}",
        ada.status_message
    );
    assert_eq!(rig.app.place_waiting().await.unwrap(), 0);
    // Nobody waits behind her, and she stands in no line.
    assert_eq!(rig.start("bob").await.unwrap().state, State::Starting);
    let view = rig.app.get(&id("ada")).await.unwrap();
    assert_eq!((view.queue_position, view.ready_at), (0, None));

    let would = resolve(&rig, (node, "c0ffee"), Resolution::Stop, true).await.unwrap();
    assert_eq!(would.workspace.unwrap().status_reason, Some(StatusReason::ContainerHeld), "who waits for it");
    // An operator's word is not yet the proof.
    resolve(&rig, (node, "c0ffee"), Resolution::Stop, false).await.unwrap();
    assert_eq!(rig.app.place_waiting().await.unwrap(), 0);
    assert_eq!(judge(&rig, node, &[stray]).await, [(Verdict::StopByOrder, "OPERATOR")]);
    assert_eq!(rig.app.place_waiting().await.unwrap(), 0);
    judge(&rig, node, &[]).await;
    assert_eq!(rig.app.place_waiting().await.unwrap(), 1);
    rig.obey(node).await;
    rig.obey(other).await;
    assert_eq!(rig.get("ada").await.state, State::Running);
    rig.end().await;
}

#[tokio::test]
async fn a_held_container_that_has_ended_keeps_nobody_waiting() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let stray = held(&rig, node).await;
    assert_eq!(rig.start("ada").await.unwrap().state, State::Pending);
    judge(&rig, node, &[Container { running: false, ..stray }]).await;
    assert_eq!(rig.app.place_waiting().await.unwrap(), 1);
    rig.end().await;
}

#[tokio::test]
async fn a_container_that_is_found_after_the_decision_keeps_its_student_from_being_placed() {
    let rig = Rig::new().await;
    let full = rig.node(1).await;
    rig.running(full, "bob").await;
    rig.start("ada").await.unwrap();
    let node = rig.node(4).await;
    let known = rig.get("ada").await;
    rig.placed_once(node, "ada").await;
    let late = container("c1", known.uid, "ada", known.generation.0, node);
    assert_eq!(judge(&rig, node, &[late]).await, [(Verdict::Hold, "NEVER_PLACED")]);
    assert_eq!(rig.app.place_waiting().await.unwrap(), 0);
    assert_eq!(rig.get("ada").await.status_reason, Some(StatusReason::ContainerHeld));
    judge(&rig, node, &[]).await;
    assert_eq!(rig.app.place_waiting().await.unwrap(), 1);
    rig.end().await;
}

#[tokio::test]
async fn a_first_start_and_the_judge_of_a_container_of_that_student_never_overlook_each_other() {
    let rig = Rig::new().await;
    let finder = rig.node(100).await;
    let students: Vec<String> = (0..30).map(|round| format!("s{round}")).collect();
    for student in &students {
        // A desk that was deleted since: the next start is the first of another.
        rig.was_on(finder, student).await;
        rig.app.delete(&call("DeleteWorkspace"), &id(student), "", false).await.unwrap();
    }
    for student in &students {
        let stray = container(&format!("c-{student}"), WorkspaceUid::new(), student, 7, finder);
        let (verdicts, started) =
            tokio::join!(judge(&rig, finder, std::slice::from_ref(&stray)), rig.start(student));
        assert_eq!(verdicts, [(Verdict::Hold, "LATER_THAN_THE_STORE")]);
        let (started, now) = (started.unwrap(), rig.get(student).await);
        match started.status_reason {
            // The start was first, and has its place.
            None => assert_eq!(now.state, State::Starting),
            Some(StatusReason::ContainerHeld) => assert_eq!(now.node, None),
            other => panic!("{student}: {other:?}: {now:?}"),
        }
    }
    rig.end().await;
}

#[tokio::test]
async fn a_restart_and_a_purge_wait_for_a_held_container_too() {
    let rig = Rig::new().await;
    let other = rig.node(4).await;
    rig.was_on(other, "ada").await;
    rig.app.cordon(&call("CordonNode"), other, "").await.unwrap();
    let node = rig.node(4).await;
    let ada = rig.running(node, "ada").await;
    let twin = container("c1", ada.uid, "ada", ada.generation.0, other);
    assert_eq!(judge(&rig, other, &[twin]).await, [(Verdict::Hold, "ANOTHER_IS_PLACED")]);
    rig.app.restart(&call("RestartWorkspace"), &id("ada")).await.unwrap();
    rig.obey(node).await;
    assert_eq!(rig.get("ada").await.state, State::Pending);
    rig.stop("ada").await;
    rig.app.delete(&call("DeleteWorkspace"), &id("ada"), "", true).await.unwrap();
    assert_eq!(rig.app.place_waiting().await.unwrap(), 0, "files would be moved from under a writer");
    judge(&rig, other, &[]).await;
    assert_eq!(rig.app.place_waiting().await.unwrap(), 1);
    rig.end().await;
}

#[tokio::test]
async fn what_a_dead_node_held_is_waited_for_no_longer_and_a_living_one_is_not_removed_with_it() {
    let rig = Rig::with(|settings| settings.unreachable_after = std::time::Duration::ZERO).await;
    let node = rig.node(4).await;
    held(&rig, node).await;
    rig.node(4).await;
    rig.start("ada").await.unwrap();
    let refused = rig.app.remove_node(&call("RemoveNode"), node, "old", false).await;
    assert!(matches!(refused, Err(AppError::NodeNotEmpty { remaining: 1, .. })), "{refused:?}");

    rig.app.give_up_node(node).await.unwrap();
    assert_eq!(rig.app.place_waiting().await.unwrap(), 0, "silent is not dead");
    rig.app.confirm_dead(&call("ConfirmNodeDead"), node, "burnt", false).await.unwrap();
    assert_eq!(rig.app.place_waiting().await.unwrap(), 1);
    rig.app.remove_node(&call("RemoveNode"), node, "burnt", false).await.unwrap();
    rig.end().await;
}
