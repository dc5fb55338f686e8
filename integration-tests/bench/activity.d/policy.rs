//! A policy change for 10,000 running workspaces whose warning is out: every deadline has moved, every warning is withdrawn.

use std::time::{Duration, Instant};

use carrel_proto::v1 as pb;

use crate::desks::Desks;

const WORKSPACES: i64 = 10_000;
const COURSE: &str = "bench-exam";
/// The target.
const WITHIN: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(60);

async fn set_timeout(desks: &Desks, seconds: i64) {
    let policy = pb::Policy {
        name: format!("policies/course-{COURSE}"),
        idle_timeout: Some(prost_types::Duration { seconds, nanos: 0 }),
        ..Default::default()
    };
    desks
        .policies()
        .set_policy(pb::SetPolicyRequest { policy: Some(policy), ..Default::default() })
        .await
        .expect("SetPolicy");
}

async fn warned(desks: &Desks) -> i64 {
    let query =
        "SELECT count(*)::text FROM workspaces WHERE course_id = $$bench-exam$$ AND warning IS NOT NULL";
    desks.text(query).await.parse().expect("a number")
}

/// Until so many are warned. What is waited for is counted in the log, by its index: the count of the workspaces themselves
/// reads all there are, which would be most of what is measured.
async fn until(desks: &Desks, wanted: i64, kind: &str, since: &str) -> Duration {
    let begun = Instant::now();
    let told = format!(
        "SELECT count(*)::text FROM events WHERE at >= $${since}$$::timestamptz AND kind = $${kind}$$"
    );
    while desks.text(&told).await.parse::<i64>().expect("a number") < WORKSPACES {
        assert!(
            begun.elapsed() < PATIENCE,
            "{} of {WORKSPACES} are warned, not {wanted}",
            warned(desks).await
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let took = begun.elapsed();
    assert_eq!(warned(desks).await, wanted);
    took
}

/// The deadline that each of them shows.
async fn deadlines(desks: &Desks) -> Vec<i64> {
    let (mut client, mut page_token, mut found) = (desks.workspaces(), String::new(), Vec::new());
    loop {
        let filter = pb::WorkspaceFilter { course_id: COURSE.into(), ..Default::default() };
        let request = pb::ListWorkspacesRequest { page_size: 500, page_token, filter: Some(filter) };
        let page = client.list_workspaces(request).await.expect("ListWorkspaces").into_inner();
        let shown = page
            .workspaces
            .iter()
            .map(|w| w.idle.as_ref().and_then(|idle| idle.deadline_time).map_or(0, |at| at.seconds));
        found.extend(shown);
        if page.next_page_token.is_empty() {
            return found;
        }
        page_token = page.next_page_token;
    }
}

pub(crate) async fn measure(desks: &Desks) -> bool {
    sqlx::query("UPDATE workspaces SET course_id = $1 WHERE id IN (SELECT id FROM workspaces WHERE state = 'RUNNING' LIMIT $2)")
        .bind(COURSE)
        .bind(WORKSPACES)
        .execute(&desks.pool)
        .await
        .expect("a course");
    sqlx::query(
        "UPDATE workspace_activity a SET lms_input_at = now(), version = a.version + 1 FROM workspaces w
         WHERE w.id = a.workspace_id AND w.course_id = $1",
    )
    .bind(COURSE)
    .execute(&desks.pool)
    .await
    .expect("activity");
    // All of them are warned now, and have two minutes left.
    let since = desks.text("SELECT clock_timestamp()::text").await;
    set_timeout(desks, 121).await;
    let warning = until(desks, WORKSPACES, "workspace.warning", &since).await;
    let before = deadlines(desks).await;
    let begun = Instant::now();
    set_timeout(desks, 7200).await;
    let withdrawn = until(desks, 0, "workspace.warning_withdrawn", &since).await;
    let moved = deadlines(desks).await;
    let took = begun.elapsed();
    assert_eq!((before.len(), moved.len()), (moved.len(), usize::try_from(WORKSPACES).expect("a count")));
    let latest = before.iter().max().copied().unwrap_or_default();
    assert!(moved.iter().all(|at| *at > latest + 6000), "a deadline has not moved");
    let met = took <= WITHIN;
    println!(
        "\nA policy change for {WORKSPACES} running workspaces that are warned (warned within {warning:.1?}):"
    );
    println!(
        "every warning withdrawn after {withdrawn:.1?}, every deadline read back after {took:.1?} (target: at most {WITHIN:?}): {}",
        if met { "met" } else { "MISSED" }
    );
    met
}
