//! Images that are not on the host: pulled once for all who wait, told while they come, fetched ahead, refused with a reason.

use std::time::{Duration, Instant};

use carrel_proto::v1::progress::Stage;
use carrel_proto::v1::workspace::{State, StatusReason};
use carrel_proto::v1::{self as pb};
use integration_tests::client::{Client, name_of};
use integration_tests::cluster::{Cluster, Options};
use integration_tests::registry::{Door, Registry};
use integration_tests::settings;

async fn set_image(client: &Client, course: &str, image: &str) {
    let policy = pb::Policy {
        name: format!("policies/course-{course}"),
        image: Some(image.into()),
        ..Default::default()
    };
    let request = pb::SetPolicyRequest { policy: Some(policy), ..Default::default() };
    client.policies.clone().set_policy(request).await.expect("SetPolicy");
}

async fn start_for(client: &Client, student: &str, course: &str) {
    let request = pb::StartWorkspaceRequest {
        student_id: student.into(),
        course_id: course.into(),
        ..Default::default()
    };
    client.workspaces.clone().start_workspace(request).await.expect("StartWorkspace");
}

/// So many pulls of this outcome, by the agent's own count.
async fn pulls(cluster: &Cluster, outcome: &str) -> u64 {
    let metrics = cluster.agent_metrics().await;
    let line = metrics.lines().find(|line| {
        line.starts_with("carrel_agent_pulls_total") && line.contains(&format!("outcome=\"{outcome}\""))
    });
    line.and_then(|line| line.rsplit(' ').next()).map_or(0, |count| count.parse().expect("a number"))
}

/// What the node says it has of this registry.
async fn told(cluster: &Cluster, image: &str) -> bool {
    let query = format!("SELECT count(*)::text FROM node_images WHERE '{image}' = ANY (images)");
    cluster.database().text(&query).await == "1"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_pulled_once_for_all_who_wait_and_they_are_told_how_far_it_is() {
    let registry = Registry::start(&settings::docker_host()).await;
    let image = registry.push("far", 3, 4).await;
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    registry.set_door(Door::Shut);
    set_image(&client, "cs101", &image).await;
    for student in ["ada", "bob", "eve"] {
        start_for(&client, student, "cs101").await;
    }
    for student in ["ada", "bob", "eve"] {
        let pulling = |w: &pb::Workspace| w.progress.is_some_and(|p| p.stage() == Stage::Pulling);
        client.wait_until(student, "PULLING", pulling).await;
    }
    let request = pb::WatchWorkspacesRequest { names: vec![name_of("ada")], ..Default::default() };
    let mut watch = client.workspaces.clone().watch_workspaces(request).await.unwrap().into_inner();
    // 4 MiB of each layer, side by side.
    registry.set_door(Door::Narrow(1 << 20));
    let mut percents = Vec::new();
    loop {
        let change = watch.message().await.unwrap().expect("no end").change.expect("a change");
        let Some(ada) = change.workspace else { continue };
        if ada.state() == State::Running {
            break;
        }
        let progress = ada.progress.expect("on its way");
        percents.push(progress.percent);
    }
    percents.dedup();
    let on_the_way = percents.iter().filter(|p| (5..100).contains(*p)).count();
    assert!(percents.is_sorted() && on_the_way > 1, "{percents:?}");
    for student in ["bob", "eve"] {
        client.wait_for(student, State::Running).await;
    }
    assert_eq!(pulls(&cluster, "pulled").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_a_policy_names_is_there_before_anybody_asks_for_it() {
    let registry = Registry::start(&settings::docker_host()).await;
    let image = registry.push("ahead", 1, 1).await;
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    set_image(&client, "cs101", &image).await;
    let begun = Instant::now();
    while !told(&cluster, &image).await {
        assert!(begun.elapsed() < Duration::from_secs(30), "{image} was not fetched");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    registry.set_door(Door::Shut);
    start_for(&client, "ada", "cs101").await;
    client.wait_for("ada", State::Running).await;
    assert_eq!(pulls(&cluster, "pulled").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_that_the_registry_does_not_have_fails_the_start_with_the_registrys_words() {
    let registry = Registry::start(&settings::docker_host()).await;
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    let image = registry.reference("never-pushed");
    set_image(&client, "cs101", &image).await;
    start_for(&client, "ada", "cs101").await;
    let failed = client.wait_for("ada", State::Failed).await;
    assert_eq!(failed.status_reason(), StatusReason::ImageUnavailable, "{failed:?}");
    assert!(failed.status_message.contains(&image), "{failed:?}");
    assert_eq!(failed.generation, 1, "no other node has it: none is asked");
    assert_eq!(cluster.containers().await, []);
}
