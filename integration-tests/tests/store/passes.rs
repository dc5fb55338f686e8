//! A pass over a long line: many places in few transactions, each row as if it had been placed alone.

use std::collections::BTreeMap;

use carrel_common::model::StatusReason;
use control_plane::domain::event::{Actor, Entry};
use control_plane::domain::workspace::{Event, State, Workspace};
use control_plane::store::{Change, StoreError};

use crate::rig::Rig;

const PLACED: &str = "SELECT count(*)::text FROM placements WHERE released_at IS NULL";

/// Students of one course who wait as `like` does, `s2` to `s<last>`, in this order.
async fn wait_like(rig: &Rig, like: &str, last: usize) {
    for copies in [
        format!(
            "INSERT INTO workspaces SELECT (jsonb_populate_record(w, jsonb_build_object('id', gen_random_uuid(), 'student_id', 's' || i,
                    'started_at', w.started_at + make_interval(secs => i)))).*
             FROM workspaces w, generate_series(2, {last}) i WHERE student_id = '{like}'"
        ),
        "INSERT INTO workspace_activity (workspace_id, closed) SELECT id, false FROM workspaces ON CONFLICT DO NOTHING".into(),
    ] {
        rig.database.execute(&copies).await;
    }
}

#[tokio::test]
async fn each_node_is_locked_once_and_told_once_and_takes_who_came_first() {
    const EACH: usize = 200;
    let rig = Rig::new().await;
    let full = rig.node(1).await;
    rig.running(full, "ada").await;
    assert_eq!(rig.start("s1").await.unwrap().state, State::Pending);
    wait_like(&rig, "s1", 3 * EACH + 20).await;
    let room = i64::try_from(EACH).unwrap();
    for _ in 0..3 {
        rig.node(room).await;
    }
    let generations = async || {
        let text = "SELECT string_agg(desired_generation::text, ' ' ORDER BY id) FROM nodes";
        rig.database.text(text).await
    };
    assert_eq!(generations().await, "1 0 0 0");
    assert_eq!(rig.app.place_waiting().await.unwrap(), 3 * EACH);
    assert_eq!(generations().await, "1 1 1 1", "an agent hears of all that it gets at once");
    let transactions = "SELECT string_agg(n::text, ' ' ORDER BY n) FROM
        (SELECT count(*) AS n FROM workspaces WHERE state = 'STARTING' GROUP BY xmin) t";
    assert_eq!(rig.database.text(transactions).await, "200 400", "five hundred at most");
    let last = "SELECT max(substr(student_id, 2)::int)::text FROM workspaces WHERE state = 'STARTING'";
    assert_eq!(rig.database.text(last).await, "600");
    rig.end().await;
}

#[tokio::test]
async fn the_row_of_one_who_was_placed_or_told_is_as_the_step_made_it() {
    let rig = Rig::new().await;
    let node = rig.node(1).await;
    rig.running(node, "ada").await;
    for student in ["bob", "cyd"] {
        rig.start(student).await.unwrap();
    }
    // As of a start that was tried elsewhere before, and of a desk with a past. In a turn nothing of it changes but what the statement
    // for many writes.
    let past = format!(
        r#"UPDATE workspaces SET last_node_id = gen_random_uuid(), image_digest = 'sha256:0', status_reason = NULL, status_message = 'old',
           attempts = '{{"since": "2026-01-01T00:00:00Z", "failed_on": ["{}"]}}' WHERE state = 'PENDING'"#,
        uuid::Uuid::nil()
    );
    rig.database.execute(&past).await;
    let stepped = |before: &Workspace, event, after: &Workspace| {
        let (next, _) = before.apply(event, after.updated_at).unwrap();
        Workspace { version: before.version + 1, updated_at: after.updated_at, ..next }
    };
    let [bob, cyd] = [rig.get("bob").await, rig.get("cyd").await];
    assert_eq!(rig.app.place_waiting().await.unwrap(), 0);
    for before in [bob, cyd] {
        let after = rig.app.get(&before.student).await.unwrap().workspace;
        assert!(
            after.updated_at > before.updated_at && after.status_message.contains("memory"),
            "{after:#?}"
        );
        assert_eq!(after.status_reason, Some(StatusReason::NoCapacity));
        let told = Event::Wait { reason: after.status_reason, message: after.status_message.clone() };
        assert_eq!(stepped(&before, told, &after), after);
    }
    rig.stop("ada").await;
    rig.obey(node).await;
    let bob = rig.get("bob").await;
    assert_eq!(rig.app.place_waiting().await.unwrap(), 1);
    let after = rig.get("bob").await;
    assert_eq!(after.node, Some(node));
    assert_eq!(stepped(&bob, Event::Place { node }, &after), after);
    let placement = "SELECT (p.spec = w.spec AND p.generation = w.generation AND p.cpu_millicores = 1000
                             AND p.memory_bytes = 1 << 30)::text
                     FROM placements p JOIN workspaces w ON w.id = p.workspace_id WHERE student_id = 'bob'";
    assert_eq!(rig.database.text(placement).await, "true");
    rig.end().await;
}

#[tokio::test]
async fn whatever_a_step_changes_is_written_and_only_over_what_was_read() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let uids = [rig.running(node, "ada").await.uid, rig.running(node, "bob").await.uid];
    let changed = |before: &Workspace| {
        let mut after = before.clone();
        after.status_message = "told".into();
        if before.student.as_str() == "bob" {
            (after.image_digest, after.endpoint) = ("sha256:2".into(), None);
        }
        after
    };
    let change = |before: Workspace| Change {
        after: changed(&before),
        before,
        log: vec![Entry::new("workspace.updated", Actor::ControlPlane)],
    };
    let mut work = rig.app.store.begin().await.unwrap();
    let (locked, now) = work.lock_many(&uids).await.unwrap();
    work.save_many(locked.iter().cloned().map(change).collect(), now).await.unwrap();
    work.commit().await.unwrap();
    for before in &locked {
        let after = rig.app.get(&before.student).await.unwrap().workspace;
        let expected = Workspace { version: before.version + 1, updated_at: now, ..changed(before) };
        assert_eq!(after, expected);
    }
    for stale in locked {
        let mut work = rig.app.store.begin().await.unwrap();
        let lost = work.save_many(vec![change(stale)], now).await;
        assert!(matches!(lost, Err(StoreError::Conflict { .. })), "{lost:?}");
    }
    rig.end().await;
}

#[tokio::test]
async fn a_node_that_is_locked_is_seen_as_it_is_among_all() {
    let rig = Rig::new().await;
    let nodes = [rig.node(4).await, rig.node(4).await, rig.node(4).await];
    rig.running(nodes[0], "ada").await;
    for student in ["bob", "cyd", "dora"] {
        rig.start(student).await.unwrap();
    }
    rig.database
        .execute(&format!(
            "INSERT INTO start_failures (node_id, workspace_id, reason) VALUES ('{}', gen_random_uuid(), 'CRASH_LOOP')",
            nodes[1]
        ))
        .await;
    let mut work = rig.app.store.begin().await.unwrap();
    let (images, limits) = (["carrel/tiny:test".to_owned()], rig.app.settings.limits);
    let all = work.candidates(&images, limits).await.unwrap();
    let starting: BTreeMap<_, _> =
        all.iter().map(|seen| (seen.node, (seen.starting, seen.failures))).collect();
    assert_eq!((starting.values().map(|(n, _)| n).sum::<i64>(), starting[&nodes[1]].1), (3, 1));
    assert_eq!(work.lock_candidates(&nodes[..2], &images, limits).await.unwrap(), all[..2]);
    drop(work);
    assert_eq!(rig.database.text(PLACED).await, "4");
    rig.end().await;
}

#[tokio::test]
async fn what_shows_while_a_pass_is_under_way_that_the_store_went_back_is_heeded_by_it() {
    for shown in [
        "UPDATE restoration SET behind_since = now()",
        "UPDATE restoration SET declared_at = now(), awaits = true, awaited_nodes = ARRAY(SELECT id FROM nodes)",
    ] {
        let rig = Rig::new().await;
        let full = rig.node(1).await;
        rig.running(full, "ada").await;
        assert_eq!(rig.start("bob").await.unwrap().state, State::Pending);
        rig.node(4).await;
        let hold = rig.database.hold("SELECT 1 FROM workspaces WHERE student_id = 'bob' FOR UPDATE").await;
        let app = rig.app.clone();
        let pass = tokio::spawn(async move { app.place_waiting().await });
        rig.database.until_waiting(1).await;
        rig.database.execute(shown).await;
        drop(hold);
        assert_eq!(pass.await.unwrap().unwrap(), 0, "{shown}");
        assert_eq!(rig.get("bob").await.state, State::Pending);
        rig.end().await;
    }
}
