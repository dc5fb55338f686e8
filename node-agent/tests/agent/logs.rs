//! Logs.

use std::time::{Duration, SystemTime};

use carrel_proto::v1 as pb;
use carrel_proto::v1::session_response::Message as Down;

use crate::rig::{Rig, desk, later, stopped};

fn ask(rig: &Rig, request: i64, workspace: carrel_common::id::WorkspaceUid, lines: i32, follow: bool) {
    rig.control_plane.send(Down::LogRequest(pb::LogRequest {
        request,
        workspace_uid: workspace.to_string(),
        lines,
        follow,
    }));
}

/// All text of a request, its generation, and the error it ended with.
async fn told(rig: &Rig, request: i64) -> (String, i64, String) {
    rig.control_plane
        .hear("the end of the log", |heard| {
            let pieces: Vec<_> = heard.pieces.iter().filter(|piece| piece.request == request).collect();
            let last = pieces.last().filter(|piece| piece.end)?;
            let text = pieces.iter().map(|piece| piece.text.as_str()).collect();
            Some((text, last.generation, last.error.clone()))
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn tells_the_log_of_what_runs_and_later_of_the_incarnation_before() {
    let rig = Rig::start().await;
    let ada = desk("ada", "test");
    rig.control_plane.want(vec![ada.clone()]);
    rig.running(&ada).await;
    ask(&rig, 1, ada.workspace, 100, false);
    let (text, generation, error) = told(&rig, 1).await;
    assert!(text.contains("tiny: test, generation 1"), "{text:?}");
    assert_eq!((generation, error.as_str()), (1, ""));
    rig.control_plane.want(vec![stopped(&ada)]);
    rig.gone(&ada).await;
    ask(&rig, 2, ada.workspace, 100, false);
    let (text, generation, error) = told(&rig, 2).await;
    assert!(text.contains("tiny: test, generation 1"), "{text:?}");
    assert_eq!((generation, error.as_str()), (1, ""));
    let next = later(&ada, 1);
    rig.control_plane.want(vec![next.clone()]);
    rig.running(&next).await;
    ask(&rig, 3, ada.workspace, 100, false);
    assert_eq!(told(&rig, 3).await.1, 2);
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::disallowed_methods, reason = "by the host's clock a log is old")]
async fn forgets_logs_that_are_older_than_a_week() {
    let mut rig = Rig::stopped(|_| {}).await;
    let saved = |days: u64| {
        let dir = rig.dir.path().join("state/logs").join(carrel_common::id::WorkspaceUid::new().to_string());
        std::fs::create_dir_all(&dir).expect("made");
        let log = std::fs::File::create(dir.join("g1.log")).expect("made");
        let then = SystemTime::now() - Duration::from_secs(days * 24 * 3600);
        log.set_modified(then).expect("set");
        dir
    };
    let (old, young) = (saved(8), saved(6));
    rig.start_agent().await;
    for _ in 0..100 {
        if !old.exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!old.exists() && young.join("g1.log").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn says_when_there_is_no_log() {
    let rig = Rig::start().await;
    let nobody = desk("nobody", "test");
    ask(&rig, 7, nobody.workspace, 100, false);
    assert_eq!(told(&rig, 7).await, (String::new(), 0, "this node has no log of this workspace".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn follows_a_log_until_the_container_ends() {
    let rig = Rig::start().await;
    let ada = desk("ada", "test");
    rig.control_plane.want(vec![ada.clone()]);
    rig.running(&ada).await;
    ask(&rig, 1, ada.workspace, 10, true);
    rig.control_plane.hear("a piece", |heard| (!heard.pieces.is_empty()).then_some(())).await;
    assert!(rig.control_plane.heard(|heard| heard.pieces.iter().all(|piece| !piece.end)));
    rig.control_plane.want(vec![stopped(&ada)]);
    let (text, ..) = told(&rig, 1).await;
    assert!(text.contains("tiny: test"), "{text:?}");
}
