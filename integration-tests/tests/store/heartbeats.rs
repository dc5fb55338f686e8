use std::time::Duration;

use carrel_common::model::Signal;
use control_plane::app::AppError;
use control_plane::domain::workspace::State;
use control_plane::store::Beat;

use crate::rig::{self, Rig};

fn beat(student: &str, age: u64) -> Beat {
    rig::beat(student, Signal::LmsInput, Duration::from_secs(age))
}

#[tokio::test]
async fn activity_never_goes_back() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    let young = rig.app.record(vec![beat("ada", 1)]).await.unwrap().remove(0).unwrap().idle;
    let old = rig.app.record(vec![beat("ADA", 200)]).await.unwrap().remove(0).unwrap().idle;
    assert_eq!(young.last, old.last);
    assert!(old.version > young.version);
    rig.end().await;
}

#[tokio::test]
async fn a_batch_answers_each_report_in_order() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    rig.start("bob").await.unwrap();
    rig.stop("bob").await;
    rig.obey(node).await;
    let answers =
        rig.app.record(vec![beat("eve", 0), beat("bob", 0), beat("ada", 9), beat("ada", 0)]).await.unwrap();
    assert!(matches!(answers[0], Err(AppError::WorkspaceNotFound(_))));
    assert!(matches!(&answers[1], Err(AppError::NotRunning { stop: Some(_), .. })));
    let (third, fourth) = (answers[2].as_ref().unwrap(), answers[3].as_ref().unwrap());
    assert_eq!(third, fourth, "of several reports of one student the youngest counts, for all");
    rig.end().await;
}

#[tokio::test]
async fn an_activity_write_never_touches_the_workspace_row() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let before = rig.running(node, "ada").await;
    let row = "SELECT xmin::text || ctid::text FROM workspaces";
    let row_before = rig.database.text(row).await;
    rig.app.record(vec![beat("ada", 0)]).await.unwrap().remove(0).unwrap();
    assert_eq!(rig.database.text(row).await, row_before);
    assert_eq!(rig.get("ada").await.version, before.version);
    rig.end().await;
}

/// The race of protocol row 18, in the database: reports against the decision, many times; whatever was acked before
/// the decision was taken into account, and whatever came after it was refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acked_report_wins_over_the_idle_stop() {
    const LEAD: Duration = Duration::from_millis(30);
    const TIMEOUT: Duration = Duration::from_millis(60);
    let rounds = integration_tests::settings::number("CARREL_RACE_ROUNDS", 40);
    let rig = Rig::with(|settings| {
        let idle = &mut settings.defaults.idle;
        (idle.idle_timeout, idle.warning_lead) = (TIMEOUT, LEAD);
    })
    .await;
    let node = rig.node(4).await;
    let (mut stopped, mut withdrawn) = (0_u32, 0_u32);
    for round in 0..rounds {
        let uid = rig.running(node, "ada").await.uid;
        let mut acked = None;
        let mut checks = 0;
        loop {
            checks += 1;
            let reports = round % 3 != 0 && checks % 4 == 0 && checks < 60;
            let report = async {
                match reports {
                    true => rig.app.record(vec![beat("ada", 0)]).await.unwrap().remove(0).ok(),
                    false => None,
                }
            };
            let check = rig.app.check_idle(uid);
            let (reported, checked) = tokio::join!(report, check);
            checked.unwrap();
            acked = reported.and_then(|recorded| recorded.idle.last).map(|(at, _)| at).or(acked);
            let workspace = rig.get("ada").await;
            if workspace.state == State::Running {
                withdrawn += u32::from(workspace.warning.is_none() && reports);
                tokio::time::sleep(Duration::from_millis(7)).await;
                continue;
            }
            let evidence = workspace.stop.and_then(|stop| stop.evidence).expect("an idle stop has evidence");
            if let Some(acked) = acked {
                assert!(evidence.decided_at >= acked + TIMEOUT, "stopped with newer acked activity");
                assert_eq!(evidence.last_active_at, Some(acked), "an acked report is not in the evidence");
            }
            assert!(evidence.decided_at >= evidence.warned_at + LEAD, "stopped without the full lead");
            stopped += 1;
            break;
        }
        let late = rig.app.record(vec![beat("ada", 0)]).await.unwrap().remove(0);
        assert!(matches!(late, Err(AppError::NotRunning { .. })), "acked behind the stop's back");
        rig.obey(node).await;
        assert_eq!(rig.get("ada").await.state, State::Stopped);
    }
    assert!(u64::from(stopped) == rounds && withdrawn > 0, "{stopped} {withdrawn}");
    rig.end().await;
}
