use std::time::Duration;

use carrel_common::id::{NodeId, RequestId, WorkspaceUid};
use carrel_common::model::{DesiredPair, Observed, Signal, StopReason, Verdict};
use control_plane::app::{AppError, Call, DrainOrder, Greeting, Resolution, Settings};
use control_plane::domain::node::Standing;
use control_plane::domain::policy::{Policy, QuietWindow, Scope};
use control_plane::domain::workspace::{Desired, State, Workspace};
use time::OffsetDateTime;

use crate::orphans::{container, held, judge, resolve};
use crate::restored::{containers, declare, event, forget, greeting};
use crate::rig::{Rig, beat, call, id};

const LEAD: Duration = Duration::from_millis(200);
const IDLE_MOMENT: Duration = Duration::from_millis(400);
const HOUR: Duration = Duration::from_secs(3600);

/// A short lead and a short idle moment, so that a drain takes no longer than a test.
fn quick(settings: &mut Settings) {
    settings.defaults.idle.warning_lead = LEAD;
    settings.drain_idle_moment = IDLE_MOMENT;
}

fn within(within: Duration) -> DrainOrder {
    DrainOrder { within, force: false, reason: "new kernel".into(), validate_only: false }
}

async fn drain(rig: &Rig, node: NodeId, order: &DrainOrder) -> control_plane::app::Result<Vec<String>> {
    let drained = rig.app.drain(&call("DrainNode"), node, order).await?;
    Ok(drained.students.iter().map(ToString::to_string).collect())
}

async fn types(rig: &Rig, student: &str) {
    let input = beat(student, Signal::LmsInput, Duration::ZERO);
    rig.app.record(vec![input]).await.unwrap().remove(0).unwrap();
}

/// One look of the loop that warns and stops.
async fn look(rig: &Rig, student: &str) -> Workspace {
    let uid = rig.get(student).await.uid;
    rig.app.check_idle(uid).await.unwrap();
    rig.get(student).await
}

async fn standing(rig: &Rig, node: NodeId) -> Standing {
    rig.app.node(node).await.unwrap().node.standing()
}

async fn set_exam(rig: &Rig, student: &str, (start, end): (OffsetDateTime, OffsetDateTime)) {
    let exam = QuietWindow { start, end, student_extra: std::collections::BTreeMap::new() };
    let policy = Policy { quiet_windows: vec![exam], ..Policy::default() };
    rig.app.set_policy(&call("SetPolicy"), &Scope::Student(id(student)), "", &policy).await.unwrap();
}

#[tokio::test]
async fn a_drained_desk_moves_at_its_idle_moment_and_the_node_is_then_empty() {
    let rig = Rig::with(quick).await;
    let old = rig.node(4).await;
    let before = rig.running(old, "ada").await;
    let new = rig.node(4).await;
    let started = tokio::time::Instant::now();
    assert_eq!(drain(&rig, old, &within(HOUR)).await.unwrap(), ["ada"]);
    assert_eq!(standing(&rig, old).await, Standing::Draining);
    let warned = look(&rig, "ada").await;
    assert_eq!(warned.warning.as_ref().map(|warning| warning.reason), Some(StopReason::Drain));

    // While somebody types it stays, however often it is looked at; the warning stands all the while.
    while started.elapsed() < LEAD + IDLE_MOMENT * 2 {
        types(&rig, "ada").await;
        assert_eq!(look(&rig, "ada").await, warned);
        tokio::time::sleep(IDLE_MOMENT / 4).await;
    }
    tokio::time::sleep(IDLE_MOMENT).await;
    let leaving = look(&rig, "ada").await;
    assert_eq!((leaving.state, leaving.desired), (State::Stopping, Desired::Running));
    assert_eq!(leaving.stop.map(|stop| stop.reason), Some(StopReason::Drain));
    assert_eq!(rig.app.see_to_drains().await.unwrap(), 0, "its container is not proven gone yet");
    rig.obey(old).await;
    assert_eq!(rig.app.see_to_drains().await.unwrap(), 1);
    assert_eq!(standing(&rig, old).await, Standing::Drained);

    rig.app.place_waiting().await.unwrap();
    rig.obey(new).await;
    let moved = rig.get("ada").await;
    assert_eq!((moved.state, moved.node), (State::Running, Some(new)));
    assert_eq!(moved.generation, before.generation.next());
    let told = "SELECT string_agg(kind, ' ' ORDER BY id) FROM events WHERE kind IN ('node.draining', 'node.drained', \
                'workspace.warning', 'workspace.moved', 'workspace.warning_withdrawn')";
    assert_eq!(rig.database.text(told).await, "node.draining workspace.warning workspace.moved node.drained");
    rig.end().await;
}

#[tokio::test]
async fn a_drained_desk_in_which_nobody_worked_lately_is_stopped() {
    let rig = Rig::with(|settings| {
        quick(settings);
        settings.defaults.idle.idle_timeout = Duration::from_millis(300);
    })
    .await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    tokio::time::sleep(Duration::from_millis(350)).await;
    let drained = rig.app.drain(&call("DrainNode"), node, &within(HOUR)).await.unwrap();
    assert_eq!((drained.moved, drained.stopped), (vec![], vec![id("ada")]));
    look(&rig, "ada").await;
    tokio::time::sleep(LEAD).await;
    let leaving = look(&rig, "ada").await;
    assert_eq!((leaving.state, leaving.desired), (State::Stopping, Desired::Stopped));
    rig.obey(node).await;
    let stop = rig.get("ada").await.stop.unwrap();
    assert_eq!(stop.reason, StopReason::Drain);
    assert!(stop.message.contains("new kernel"), "{stop:?}");
    rig.end().await;
}

#[tokio::test]
async fn without_room_elsewhere_a_moved_desk_waits() {
    let rig = Rig::with(quick).await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    drain(&rig, node, &within(LEAD)).await.unwrap();
    look(&rig, "ada").await;
    tokio::time::sleep(IDLE_MOMENT).await;
    look(&rig, "ada").await;
    rig.obey(node).await;
    rig.app.place_waiting().await.unwrap();
    assert_eq!(rig.get("ada").await.state, State::Pending);
    // Its host in service again, it goes on there.
    rig.app.uncordon(&call("UncordonNode"), node, "").await.unwrap();
    rig.app.place_waiting().await.unwrap();
    rig.obey(node).await;
    assert_eq!(rig.get("ada").await.state, State::Running);
    rig.end().await;
}

#[tokio::test]
async fn uncordon_ends_a_drain_and_withdraws_its_warnings() {
    let rig = Rig::with(quick).await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    drain(&rig, node, &within(HOUR)).await.unwrap();
    assert!(look(&rig, "ada").await.warning.is_some());
    let back = rig.app.uncordon(&call("UncordonNode"), node, "not today").await.unwrap();
    assert_eq!((back.node.standing(), back.node.drain), (Standing::Ready, None));
    let workspace = look(&rig, "ada").await;
    assert_eq!((workspace.state, workspace.warning), (State::Running, None));
    rig.end().await;
}

#[tokio::test]
async fn a_start_on_a_drained_node_goes_elsewhere_before_there_is_no_time_for_a_warning() {
    let rig = Rig::with(quick).await;
    let old = rig.node(4).await;
    rig.start("ada").await.unwrap();
    let new = rig.node(4).await;
    drain(&rig, old, &within(HOUR)).await.unwrap();
    assert_eq!(rig.app.see_to_drains().await.unwrap(), 0, "there is time");
    assert_eq!(rig.get("ada").await.state, State::Starting);
    // The last word counts.
    drain(&rig, old, &within(LEAD)).await.unwrap();
    assert_eq!(rig.app.see_to_drains().await.unwrap(), 1);
    rig.obey(old).await;
    rig.app.place_waiting().await.unwrap();
    rig.obey(new).await;
    let moved = rig.get("ada").await;
    assert_eq!((moved.state, moved.node), (State::Running, Some(new)));
    rig.end().await;
}

#[tokio::test]
async fn a_desk_that_starts_again_on_a_drained_node_leaves_only_with_its_whole_lead() {
    let rig = Rig::with(|settings| {
        quick(settings);
        settings.drain_idle_moment = Duration::ZERO;
    })
    .await;
    let node = rig.node(4).await;
    let ada = rig.running(node, "ada").await;
    drain(&rig, node, &within(LEAD)).await.unwrap();
    let warned_at = look(&rig, "ada").await.warning.unwrap().at;
    rig.report(node, ada.uid, ada.generation, Observed::Restarting).await;
    tokio::time::sleep(LEAD).await;
    assert_eq!(rig.app.see_to_drains().await.unwrap(), 0, "somebody may work there");
    assert_eq!(rig.get("ada").await.state, State::Starting);
    let ready = Observed::Running { endpoint: "127.0.0.1:1".into() };
    rig.report(node, ada.uid, ada.generation, ready).await;
    let stop = look(&rig, "ada").await.stop.unwrap();
    let evidence = stop.evidence.unwrap();
    assert_eq!((stop.reason, evidence.warned_at), (StopReason::Drain, warned_at));
    assert!(evidence.decided_at >= warned_at + LEAD);
    rig.end().await;
}

#[tokio::test]
async fn a_drain_that_cannot_warn_or_ends_in_an_exam_is_refused_and_nothing_has_changed() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let before = rig.running(node, "ada").await;
    let now = rig.app.store.now().await.unwrap();
    set_exam(&rig, "ada", (now + HOUR / 2, now + HOUR * 2)).await;

    let short = drain(&rig, node, &within(Duration::from_secs(119))).await;
    assert!(
        matches!(short, Err(AppError::DrainTooShort { longest_lead }) if longest_lead.as_secs() == 120),
        "{short:?}"
    );
    let in_exam = drain(&rig, node, &within(HOUR)).await;
    assert!(
        matches!(&in_exam, Err(AppError::DrainInQuietWindow { students }) if students[..] == [id("ada")]),
        "{in_exam:?}"
    );
    let only = DrainOrder { validate_only: true, force: true, ..within(HOUR) };
    let would = rig.app.drain(&call("DrainNode"), node, &only).await.unwrap();
    assert_eq!((would.students, would.moved, would.stopped), (vec![id("ada")], vec![id("ada")], vec![]));
    assert_eq!(would.node.node.standing(), Standing::Draining, "it says what would be");
    assert_eq!(standing(&rig, node).await, Standing::Ready);
    assert_eq!(rig.get("ada").await, before);

    let forced = DrainOrder { force: true, ..within(HOUR) };
    let once = Call { request_id: Some(RequestId::new()), ..call("DrainNode") };
    let first = rig.app.drain(&once, node, &forced).await.unwrap();
    assert_eq!(rig.app.drain(&once, node, &forced).await.unwrap(), first, "the first answer again");
    assert_eq!(standing(&rig, node).await, Standing::Draining);
    rig.end().await;
}

#[tokio::test]
async fn an_exam_that_is_set_after_a_drain_is_broken_only_by_one_that_was_forced() {
    for force in [false, true] {
        let rig = Rig::new().await;
        let node = rig.node(4).await;
        rig.running(node, "ada").await;
        drain(&rig, node, &DrainOrder { force, ..within(HOUR) }).await.unwrap();
        let drained_by = rig.app.node(node).await.unwrap().node.drain.unwrap().deadline_at;
        let exam = (drained_by - HOUR, drained_by + HOUR);
        set_exam(&rig, "ada", exam).await;
        let told = rig.app.get(&id("ada")).await.unwrap().idle.unwrap().clock.times().unwrap();
        let leaves_at = if force { drained_by } else { exam.1 };
        assert_eq!((told.reason, told.deadline_at), (StopReason::Drain, leaves_at), "forced: {force}");
        rig.end().await;
    }
}

#[tokio::test]
async fn an_empty_node_is_drained_at_once() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    assert_eq!(drain(&rig, node, &within(Duration::ZERO)).await.unwrap(), Vec::<String>::new());
    assert_eq!(standing(&rig, node).await, Standing::Drained);
    rig.end().await;
}

/// What follows on DRAINED is a reboot.
#[tokio::test]
async fn a_node_is_not_drained_while_a_container_that_was_left_alone_may_write_there() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    held(&rig, node).await;
    assert_eq!(drain(&rig, node, &within(HOUR)).await.unwrap(), Vec::<String>::new());
    assert_eq!(rig.app.see_to_drains().await.unwrap(), 0);
    assert_eq!(standing(&rig, node).await, Standing::Draining);
    judge(&rig, node, &[]).await;
    assert_eq!(rig.app.see_to_drains().await.unwrap(), 1);
    assert_eq!(standing(&rig, node).await, Standing::Drained);
    rig.end().await;
}

#[tokio::test]
async fn a_drained_node_on_which_a_desk_is_adopted_is_drained_once_more_when_that_has_left() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let found = container("c1", WorkspaceUid::new(), "eve", 7, NodeId::new());
    assert_eq!(judge(&rig, node, &[found]).await, [(Verdict::Hold, "NOT_OF_THIS_NODE")]);
    drain(&rig, node, &within(HOUR)).await.unwrap();
    assert_eq!(standing(&rig, node).await, Standing::Drained, "it keeps nobody waiting");
    resolve(&rig, (node, "c1"), Resolution::Adopt, false).await.unwrap();
    assert_eq!(standing(&rig, node).await, Standing::Draining);
    assert_eq!(rig.app.see_to_drains().await.unwrap(), 0);
    rig.obey(node).await;
    rig.stop("eve").await;
    rig.obey(node).await;
    assert_eq!(rig.app.see_to_drains().await.unwrap(), 1);
    assert_eq!((standing(&rig, node).await, event(&rig, "node.drained").await), (Standing::Drained, 2));
    rig.end().await;
}

#[tokio::test]
async fn a_store_that_has_forgotten_who_works_on_a_node_neither_calls_it_drained_nor_removes_it() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let found = forget(&rig, async || {
        rig.running(node, "ada").await;
        containers(&rig, node).await
    })
    .await;
    let accepted = Some(DesiredPair { incarnation: 1, generation: 99 });
    rig.hello(node, &Greeting { accepted, ..greeting(&rig, node, found.clone()).await }).await;
    let behind = drain(&rig, node, &within(HOUR)).await;
    assert!(matches!(behind, Err(AppError::StoreBehind { .. })), "{behind:?}");

    declare(&rig, true).await;
    drain(&rig, node, &within(HOUR)).await.unwrap();
    assert_eq!(rig.app.see_to_drains().await.unwrap(), 0);
    assert_eq!(standing(&rig, node).await, Standing::Draining, "it has yet to tell");
    let removed = rig.app.remove_node(&call("RemoveNode"), node, "sold", false).await;
    assert!(matches!(removed, Err(AppError::InventoryAwaited(_))), "{removed:?}");
    let banned = rig.app.ban_node(&call("RemoveNode"), node, "sold", true).await.unwrap();
    assert_eq!(banned.node.standing(), Standing::Unreachable, "its lease would still run");

    rig.hello(node, &greeting(&rig, node, found).await).await;
    assert_eq!(rig.get("ada").await.node, Some(node));
    assert_eq!(rig.app.see_to_drains().await.unwrap(), 0);
    rig.obey(node).await;
    rig.stop("ada").await;
    rig.obey(node).await;
    assert_eq!(rig.app.see_to_drains().await.unwrap(), 1);
    assert_eq!(standing(&rig, node).await, Standing::Drained);
    rig.end().await;
}
