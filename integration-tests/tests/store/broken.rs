//! A bug: what panics does not leave a replica behind that looks well.

use std::process::Command;
use std::time::Duration;

use carrel_common::model::Signal;
use control_plane::app::{App, AppError, Heartbeats};
use control_plane::domain::policy::{Policy, QuietWindow};
use integration_tests::process::Process;
use integration_tests::settings;
use time::macros::datetime;
use tokio_util::sync::CancellationToken;

use crate::rig::{Rig, beat, call};

const WITHIN: Duration = Duration::from_secs(30);

/// Whoever looks at ada's deadline panics: her exam ends when no time can tell, and no door would let it in.
async fn broken() -> Rig {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    let end = datetime!(9999-12-31 23:59:59 UTC);
    let student_extra = [("ada".to_owned(), Duration::from_secs(3600))].into();
    let window = QuietWindow { start: end - time::Duration::HOUR, end, student_extra };
    let policy = Policy { quiet_windows: vec![window], ..Policy::default() };
    rig.app.set_policy(&call("SetPolicy"), &"site".parse().unwrap(), "", &policy).await.unwrap();
    rig.database.execute("UPDATE workspaces SET ready_at = ready_at - interval '1 hour'").await;
    rig
}

#[tokio::test]
async fn a_replica_ends_with_a_loop_that_panics() {
    let rig = broken().await;
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(settings::binary("control-plane"));
    command.args(["serve", "--dev", "--database-url", &rig.database.url()]).args([
        "--listen",
        "127.0.0.1:0",
        "--agent-listen",
        "127.0.0.1:0",
    ]);
    let mut replica = Process::spawn("control-plane", &mut command, &dir.path().join("log"));
    let status = replica.wait(WITHIN).await;
    let log = replica.log_tail(100);
    assert!(!status.success() && log.contains("a loop or server broke"), "{status}: {log}");
    rig.end().await;
}

#[tokio::test]
async fn what_panics_over_one_batch_is_the_writers() {
    let rig = broken().await;
    let (heartbeats, inbox) = Heartbeats::new();
    let app = App { heartbeats, ..rig.app.clone() };
    let writer = app.clone();
    let written = tokio::spawn(async move { writer.write_heartbeats(inbox, CancellationToken::new()).await });
    let told = app.record(vec![beat("ada", Signal::LmsInput, Duration::ZERO)]).await;
    assert!(matches!(told, Err(AppError::ShuttingDown)), "{told:?}");
    let ended = tokio::time::timeout(WITHIN, written).await.expect("the writer ends");
    assert!(ended.is_err_and(|error| error.is_panic()));
    rig.end().await;
}
