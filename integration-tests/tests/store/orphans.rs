use carrel_common::id::{Generation, NodeId, PlacementId, WorkspaceUid};
use carrel_common::model::{Container, Verdict};
use control_plane::app::{AppError, Orphan, Resolution};
use control_plane::domain::workspace::State;

use crate::rig::{Rig, call, id};

fn container(name: &str, workspace: WorkspaceUid, student: &str, generation: i64, node: NodeId) -> Container {
    Container {
        container_id: name.into(),
        workspace,
        student: id(student),
        generation: Generation(generation),
        incarnation: 1,
        node,
        running: true,
        placement: Some(PlacementId::new()),
    }
}

async fn judge(rig: &Rig, node: NodeId, containers: &[Container]) -> Vec<(Verdict, &'static str)> {
    let judged = rig.app.judge_report(node, containers).await.unwrap();
    judged.into_iter().map(|judged| (judged.verdict, judged.reason)).collect()
}

async fn listed(rig: &Rig) -> Vec<(String, String)> {
    let (orphans, _) = rig.app.orphans(None, None, 50).await.unwrap();
    orphans.into_iter().map(|orphan| (orphan.container.container_id, orphan.reason)).collect()
}

async fn resolve(
    rig: &Rig,
    which: (NodeId, &str),
    resolution: Resolution,
    only: bool,
) -> control_plane::app::Result<Orphan> {
    rig.app.resolve_orphan(&call("ResolveOrphan"), which, resolution, "looked at it", only).await
}

#[tokio::test]
async fn what_is_held_waits_for_an_operator_and_is_forgotten_with_the_container() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let ada = rig.running(node, "ada").await;
    let beyond = container("c1", ada.uid, "ada", 9, node);
    for _ in 0..2 {
        assert_eq!(
            judge(&rig, node, std::slice::from_ref(&beyond)).await,
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
    let version = rig.app.store.desired_generation(node).await.unwrap();
    resolve(&rig, (node, "c1"), Resolution::Stop, false).await.unwrap();
    assert!(rig.app.store.desired_generation(node).await.unwrap() > version, "the node is told at once");
    assert_eq!(rig.app.resolved_orphans(node).await.unwrap().len(), 1);
    let again = resolve(&rig, (node, "c1"), Resolution::Stop, false).await;
    assert!(matches!(again, Err(AppError::OrphanNotFound { .. })), "{again:?}");
    assert_eq!(listed(&rig).await, []);

    assert_eq!(judge(&rig, node, &[beyond]).await, [(Verdict::StopByOrder, "OPERATOR")]);
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
    let over = container("c1", ada.uid, "ada", 1, node);
    assert_eq!(judge(&rig, node, std::slice::from_ref(&over)).await, [(Verdict::Stop, "PLACEMENT_RELEASED")]);
    assert_eq!(listed(&rig).await, [], "it is being stopped");
    judge(&rig, node, &[over]).await;
    assert_eq!(listed(&rig).await, [("c1".into(), "STOP_WITHHELD".into())]);
    resolve(&rig, (node, "c1"), Resolution::Stop, false).await.unwrap();
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
    assert_eq!(
        judge(&rig, node, std::slice::from_ref(&moved)).await,
        [(Verdict::Hold, "MADE_BY_ANOTHER_NODE")]
    );
    resolve(&rig, (node, "c1"), Resolution::Adopt, false).await.unwrap();
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
