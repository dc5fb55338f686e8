//! What an agent does with what it finds.

use carrel_common::model::{DesiredItem, Observed, WorkspaceSpec};
use carrel_proto::v1::orphan_verdict::Verdict;

use crate::control_plane::Heard;
use crate::rig::{Rig, desk, docker, image, later, stopped};

async fn adopted_after(rig: &mut Rig, item: &DesiredItem) -> (Vec<String>, Vec<String>) {
    let before = rig.containers();
    let seen = rig.control_plane.heard(|heard| heard.observations.len());
    rig.start_agent().await;
    let about = |o: &&carrel_common::model::Observation| o.workspace == item.workspace;
    rig.control_plane
        .hear("RUNNING again", |heard| {
            heard.observations[seen..]
                .iter()
                .filter(about)
                .any(|o| matches!(o.state, Observed::Running { .. }))
                .then_some(())
        })
        .await;
    (before, rig.containers())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_and_restarted_adopts_the_same_container() {
    let mut rig = Rig::start().await;
    let ada = desk("ada", "test");
    rig.control_plane.want(vec![ada.clone()]);
    rig.running(&ada).await;
    let started = docker(&["inspect", "--format", "{{.State.StartedAt}}", &rig.containers()[0]]);
    rig.kill_agent();
    let (before, after) = adopted_after(&mut rig, &ada).await;
    assert_eq!(before, after);
    assert_eq!(docker(&["inspect", "--format", "{{.State.StartedAt}}", &after[0]]), started);
    let inventory = rig.control_plane.heard(|heard| heard.hellos.last().expect("hello").inventory.clone());
    assert_eq!(inventory.iter().map(|c| c.container_id.clone()).collect::<Vec<_>>(), after);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_launched_just_before_a_session_ended_is_in_the_next_hello() {
    let rig = Rig::start().await;
    let mut desks = vec![];
    for student in ["ada", "bob", "cyd"] {
        desks.push(desk(student, "test"));
        rig.control_plane.want(desks.clone());
        rig.running(&desks[desks.len() - 1]).await;
        let before = rig.control_plane.heard(|heard| heard.hellos.len());
        rig.control_plane.hang_up();
        let told = |heard: &Heard| heard.hellos.get(before).map(|hello| hello.inventory.len());
        assert_eq!(rig.control_plane.hear("another Hello", told).await, desks.len(), "{student} runs");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_stops_stops_no_container() {
    let mut rig = Rig::start().await;
    let ada = desk("ada", "test");
    rig.control_plane.want(vec![ada.clone()]);
    rig.running(&ada).await;
    rig.stop_agent().await;
    let id = &rig.containers()[0];
    assert_eq!(docker(&["inspect", "--format", "{{.State.Running}}", id]), "true");
    let (before, after) = adopted_after(&mut rig, &ada).await;
    assert_eq!(before, after);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_ended_while_no_agent_ran_is_started_again() {
    let mut rig = Rig::start().await;
    let ada = desk("ada", "test");
    rig.control_plane.want(vec![ada.clone()]);
    rig.running(&ada).await;
    rig.kill_agent();
    docker(&["kill", &rig.containers()[0]]);
    let (before, after) = adopted_after(&mut rig, &ada).await;
    assert_eq!(before, after);
    assert_eq!(docker(&["inspect", "--format", "{{.State.Running}}", &after[0]]), "true");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_generation_is_removed_before_the_wanted_one_starts() {
    let mut rig = Rig::stopped(|_| {}).await;
    let old = desk("ada", "test");
    let id = rig.plant(&old);
    let new = later(&old, 3);
    rig.control_plane.want(vec![new.clone()]);
    rig.start_agent().await;
    rig.running(&new).await;
    assert!(!rig.containers().contains(&id), "the old one is gone");
    rig.gone(&old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_generation_of_an_earlier_incarnation_of_the_store_is_replaced() {
    let mut rig = Rig::stopped(|_| {}).await;
    let old = desk("ada", "test");
    let id = rig.plant(&old);
    let new = DesiredItem { incarnation: 2, ..old.clone() };
    rig.control_plane.want(vec![new.clone()]);
    rig.start_agent().await;
    rig.running(&new).await;
    assert!(!rig.containers().contains(&id), "the old one is gone");
    let gone = rig.gone(&old).await;
    assert_eq!(gone.pair(), old.pair(), "and only of it that is told");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_higher_generation_than_known_is_held_and_reported() {
    let mut rig = Rig::stopped(|_| {}).await;
    let ada = desk("ada", "test");
    let id = rig.plant(&later(&ada, 5));
    rig.control_plane.want(vec![ada.clone()]);
    rig.start_agent().await;
    let reported = |heard: &Heard| {
        heard.orphans.iter().flat_map(|report| &report.containers).any(|c| c.container_id == id).then_some(())
    };
    rig.control_plane.hear("a report on it", reported).await;
    rig.control_plane.want(vec![stopped(&ada)]);
    rig.control_plane.hear("two reports on it", |heard| (heard.heartbeats.len() > 4).then_some(())).await;
    assert_eq!(rig.containers(), [id]);
    let told = rig.control_plane.heard(|heard| heard.observations.len());
    assert_eq!(told, 0, "neither started nor gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_container_is_left_alone_until_the_control_plane_says_stop() {
    let mut rig = Rig::stopped(|_| {}).await;
    let orphan = desk("ada", "test");
    let id = rig.plant(&orphan);
    rig.start_agent().await;
    let reports = |n: usize| {
        move |heard: &Heard| {
            let told = heard.orphans.iter().filter(|report| !report.containers.is_empty());
            (told.count() >= n).then_some(())
        }
    };
    rig.control_plane.hear("a report", reports(1)).await;
    assert_eq!(rig.containers(), std::slice::from_ref(&id), "held");
    rig.control_plane.answer_orphans(Some(Verdict::Stop));
    rig.control_plane.hang_up();
    rig.control_plane.hear("another report", reports(2)).await;
    let none =
        |heard: &Heard| heard.orphans.last().is_some_and(|last| last.containers.is_empty()).then_some(());
    rig.control_plane.hear("that it is gone", none).await;
    assert_eq!(rig.containers(), Vec::<String>::new(), "told until then");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_stops_without_an_order_at_once_do_not_happen() {
    let mut rig = Rig::stopped(|_| {}).await;
    rig.control_plane.answer_orphans(Some(Verdict::Stop));
    let mut ids: Vec<String> = (0..4).map(|n| rig.plant(&desk(&format!("s{n}"), "test"))).collect();
    rig.start_agent().await;
    let told = |heard: &Heard| {
        heard.orphans.last().map(|last| last.withheld.clone()).filter(|told| !told.is_empty())
    };
    let withheld = rig.control_plane.hear("which stops are held back", told).await;
    ids.sort();
    assert_eq!(withheld, ids);
    rig.control_plane.hear("how many", |heard| (heard.withheld.last() == Some(&4)).then_some(())).await;
    let beats = rig.control_plane.heard(|heard| heard.heartbeats.len());
    rig.control_plane.hear("time pass", |heard| (heard.heartbeats.len() > beats + 6).then_some(())).await;
    assert_eq!(rig.containers().len(), ids.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_others_are_never_touched() {
    let other = Rig::stopped(|_| {}).await;
    let foreign = other.plant(&desk("ada", "test"));
    let plain = docker(&["run", "-d", "--network", "none", &image("test")]);
    let mut rig = Rig::stopped(|_| {}).await;
    rig.control_plane.answer_orphans(Some(Verdict::Stop));
    rig.start_agent().await;
    let ada = desk("ada", "test");
    rig.control_plane.want(vec![ada.clone()]);
    rig.running(&ada).await;
    assert!(rig.control_plane.heard(|heard| heard.orphans.iter().all(|report| report.containers.is_empty())));
    for id in [&foreign, &plain] {
        assert_eq!(docker(&["inspect", "--format", "{{.State.Running}}", id]), "true");
    }
    docker(&["rm", "-f", &plain]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_made_of_another_spec_is_reported_and_left_alone() {
    let mut rig = Rig::stopped(|_| {}).await;
    let ada = desk("ada", "test");
    let id = rig.plant(&ada);
    let mut other = ada.clone();
    other.spec = WorkspaceSpec { probe_path: "/other".into(), ..other.spec };
    rig.control_plane.want(vec![other.clone()]);
    rig.start_agent().await;
    let told = |heard: &Heard| heard.orphans.iter().any(|report| !report.containers.is_empty()).then_some(());
    rig.control_plane.hear("a report on it", told).await;
    assert_eq!(rig.containers(), std::slice::from_ref(&id));
    rig.control_plane.want(vec![stopped(&other)]);
    rig.gone(&other).await;
    assert_eq!(rig.containers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_without_an_order_is_removed_before_the_first_set_of_the_session() {
    let mut rig = Rig::stopped(|_| {}).await;
    rig.control_plane.send_sets(false);
    rig.control_plane.answer_orphans(Some(Verdict::Stop));
    let id = rig.plant(&desk("ada", "test"));
    rig.start_agent().await;
    rig.control_plane.hear("time pass", |heard| (heard.heartbeats.len() > 8).then_some(())).await;
    assert_eq!(rig.containers(), [id]);
    assert_eq!(rig.control_plane.heard(|heard| heard.orphans.len()), 0);
}
