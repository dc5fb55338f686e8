//! A daemon that does not answer all that it is asked.

use axum::Router;
use axum::http::{StatusCode, Uri};
use bollard::models::{ContainerSummary, ContainerSummaryStateEnum};
use carrel_common::clock::SystemClock;
use carrel_common::id::NodeId;
use tokio::task::JoinSet;

use super::*;
use crate::runtime::contract::plan;

/// It lists these containers as ended, and tells of each what its id says.
fn daemon(scope: Scope, ids: &[String]) -> Router {
    let labels = labels::of_plan(&plan(scope, "test", std::path::Path::new("/nowhere")));
    let listed = ids.iter().map(|id| ContainerSummary {
        id: Some(id.clone()),
        labels: Some(labels.clone()),
        state: Some(ContainerSummaryStateEnum::EXITED),
        ..ContainerSummary::default()
    });
    let listed = serde_json::to_string(&listed.collect::<Vec<_>>()).expect("JSON");
    Router::new().fallback(move |uri: Uri| {
        let listed = listed.clone();
        async move {
            let refused = |status, problem: &str| (status, format!(r#"{{"message":"{problem}"}}"#));
            match uri.path().rsplit('/').nth(1) {
                Some("containers") => (StatusCode::OK, listed),
                Some("fine") => (StatusCode::OK, "{}".to_owned()),
                Some("forgotten") => refused(StatusCode::NOT_FOUND, "No such container: forgotten"),
                Some("spoilt") => refused(StatusCode::INTERNAL_SERVER_ERROR, "its layer is lost"),
                _ => std::future::pending().await,
            }
        }
    })
}

#[tokio::test]
async fn a_listing_leaves_out_only_what_docker_does_not_know_and_waits_for_none_that_hangs() {
    let scope = Scope { cluster: ClusterId::new(), node: NodeId::new() };
    let mut there: Vec<String> = (10..30).map(|n| format!("hangs{n}")).collect();
    there.extend(["fine", "spoilt"].map(str::to_owned));
    there.sort();
    let listed = [&there[..], &["forgotten".to_owned()]].concat();
    let dir = tempfile::tempdir().expect("tempdir");
    let socket = dir.path().join("docker.sock");
    let listener = tokio::net::UnixListener::bind(&socket).expect("bind");
    let (daemon, mut serving) = (daemon(scope, &listed), JoinSet::new());
    serving.spawn(async move { axum::serve(listener, daemon).await });
    let host = format!("unix://{}", socket.display());
    let patient = Duration::from_secs(600);
    let docker = Docker::new(host, patient, Arc::new(SystemClock::new()), Metrics::new());
    // One after the other those that hang would take twice as long.
    let found = tokio::time::timeout(FORGOTTEN_WITHIN * 10, docker.list(scope.cluster, None)).await;
    let found = found.expect("in time").expect("listed");
    assert_eq!(found.into_iter().map(|found| found.container.container_id).collect::<Vec<_>>(), there);
}
