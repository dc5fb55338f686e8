use std::time::Duration;

use carrel_common::id::CourseId;
use carrel_common::model::{ActivityReport, Observed, Signal, Stage, StopReason};
use control_plane::app::{AppError, Extent};
use control_plane::domain::idle::Clock;
use control_plane::domain::policy::{Policy, QuietWindow, Scope};
use control_plane::domain::pulse::Pulse;
use control_plane::domain::workspace::State;
use control_plane::store::Beat;
use time::OffsetDateTime;

use crate::rig::{Rig, beat, call, id};

const TIMEOUT: Duration = Duration::from_millis(300);
const LEAD: Duration = Duration::from_millis(100);

fn scope(text: &str) -> Scope {
    text.parse().unwrap()
}

fn timeout(seconds: u64) -> Policy {
    Policy { idle_timeout: Some(Duration::from_secs(seconds)), ..Policy::default() }
}

async fn deadline(rig: &Rig, student: &str) -> OffsetDateTime {
    let idle = rig.app.get(&id(student)).await.unwrap().idle.unwrap();
    let Clock::Running(times) = idle.clock else { panic!("the clock does not run: {idle:?}") };
    times.deadline_at
}

/// Another replica sets the site's policy.
async fn set_elsewhere(rig: &Rig) {
    let longer = r#"{"idle_timeout": {"secs": 900, "nanos": 0}, "quiet_windows": []}"#;
    let set = format!(
        "WITH p AS (INSERT INTO policies (scope, policy) VALUES ('site', '{longer}')
                    ON CONFLICT (scope) DO UPDATE SET policy = excluded.policy RETURNING 1)
         UPDATE cluster SET rules_version = rules_version + 1 RETURNING 'set'"
    );
    rig.database.text(&set).await;
}

#[tokio::test]
async fn a_changed_policy_moves_running_workspaces() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let course: CourseId = "cs101".parse().unwrap();
    rig.app.start(&call("StartWorkspace"), &id("ada"), Some(&course)).await.unwrap();
    rig.obey(node).await;
    let ready_at = rig.get("ada").await.ready_at.unwrap();
    assert_eq!(deadline(&rig, "ada").await, ready_at + Duration::from_secs(900));
    rig.app.set_policy(&call("SetPolicy"), &scope("course-cs101"), "", &timeout(7200)).await.unwrap();
    assert_eq!(deadline(&rig, "ada").await, ready_at + Duration::from_secs(7200));
    rig.app.set_policy(&call("SetPolicy"), &scope("student-Ada"), "", &timeout(3600)).await.unwrap();
    assert_eq!(deadline(&rig, "ada").await, ready_at + Duration::from_secs(3600));
    rig.app.delete_policy(&call("DeletePolicy"), &scope("student-ada"), "").await.unwrap();
    assert_eq!(deadline(&rig, "ada").await, ready_at + Duration::from_secs(7200));
    // A shorter one than the time that has passed: never closer than the warning lead.
    let short = Policy { warning_lead: Some(Duration::from_millis(500)), ..timeout(1) };
    tokio::time::sleep(Duration::from_millis(1100)).await;
    rig.app.set_policy(&call("SetPolicy"), &scope("course-cs101"), "", &short).await.unwrap();
    assert!(deadline(&rig, "ada").await >= rig.app.store.now().await.unwrap() + Duration::from_millis(400));
    rig.end().await;
}

#[tokio::test]
async fn a_decision_is_made_by_the_newest_policy_whoever_set_it() {
    let rig = Rig::with_idle(TIMEOUT, LEAD).await;
    let node = rig.node(4).await;
    let uid = rig.running(node, "ada").await.uid;
    tokio::time::sleep(Duration::from_millis(250)).await;
    rig.app.check_idle(uid).await.unwrap();
    assert!(rig.get("ada").await.warning.is_some());
    // Another replica sets it: this one has not read it yet, and must not stop by what it knows.
    set_elsewhere(&rig).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    rig.app.check_idle(uid).await.unwrap();
    let workspace = rig.get("ada").await;
    assert_eq!((workspace.state, workspace.warning), (State::Running, None));
    rig.end().await;
}

#[tokio::test]
async fn whoever_reads_a_newer_policy_first_has_every_deadline_looked_at() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let ada = rig.running(node, "ada").await;
    let swept = async || {
        let rung = rig.app.nudge.sweep.notified();
        tokio::time::timeout(Duration::from_millis(50), rung).await.is_ok()
    };
    rig.app.pulse().await.unwrap();
    swept().await;
    for reader in ["a sign of life", "a question", "a decision", "a report"] {
        set_elsewhere(&rig).await;
        assert!(!swept().await, "nobody has read it yet");
        match reader {
            "a sign of life" => drop(rig.app.pulse().await.unwrap()),
            "a question" => drop(rig.app.explain_idle(&id("ada")).await.unwrap()),
            "a decision" => drop(rig.app.check_idle(ada.uid).await.unwrap()),
            _ => {
                let (workspace, generation) = (ada.uid, ada.generation);
                let (signal, age) = (Signal::EditorInput, Duration::ZERO);
                let report = ActivityReport { workspace, generation, signal, age };
                rig.app.record_seen(node, &[report]).await.unwrap();
            }
        }
        assert!(swept().await, "{reader}");
        rig.app.pulse().await.unwrap();
        assert!(!swept().await, "once is enough");
    }
    rig.end().await;
}

#[tokio::test]
async fn the_version_of_a_change_that_a_failover_lost_is_not_given_to_another() {
    let rig = Rig::new().await;
    let version = || rig.app.rules.get().book.version;
    let ada = id("ada");
    let timeout_of_ada = async || {
        let (effective, _) = rig.app.effective(None, Some(&ada)).await.unwrap();
        effective.values.idle_timeout.unwrap()
    };
    let (before, pauses) = (version(), rig.app.rules.get().pauses.len());
    rig.app.set_policy(&call("SetPolicy"), &scope("site"), "", &timeout(600)).await.unwrap();
    let lost = version();
    assert_eq!(timeout_of_ada().await, Duration::from_secs(600));
    // A standby that lacks the change took over, after longer than signs of life may stay away.
    let stand_by = format!(
        "DELETE FROM policies;
         UPDATE cluster SET rules_version = {before}, alive_at = alive_at - interval '10 s'"
    );
    rig.database.execute(&stand_by).await;
    rig.app.pulse().await.unwrap();
    assert_eq!(timeout_of_ada().await, Duration::from_secs(900), "what is lost holds no more");
    assert!(rig.app.rules.get().pauses.len() > pauses, "nor is the failover idleness");
    assert!(version() > lost, "{lost} was another's");
    rig.end().await;
}

#[tokio::test]
async fn resources_and_image_apply_at_the_next_start() {
    let rig = Rig::new().await;
    let node = rig.node(8).await;
    let before = rig.running(node, "ada").await;
    let big = Policy { image: Some("carrel/big:1".into()), memory_bytes: Some(2 << 30), ..Policy::default() };
    rig.app.set_policy(&call("SetPolicy"), &scope("site"), "", &big).await.unwrap();
    assert_eq!(rig.get("ada").await.spec, before.spec);
    rig.stop("ada").await;
    rig.obey(node).await;
    let after = rig.running(node, "ada").await;
    assert_eq!((after.spec.image.as_str(), after.spec.resources.memory_bytes), ("carrel/big:1", 2 << 30));
    rig.end().await;
}

#[tokio::test]
async fn a_stale_etag_and_a_contradiction_change_nothing() {
    let rig = Rig::new().await;
    let kept = rig.app.set_policy(&call("SetPolicy"), &scope("site"), "", &timeout(600)).await.unwrap();
    let etag = control_plane::app::policy_etag(&kept);
    rig.app.set_policy(&call("SetPolicy"), &scope("site"), &etag, &timeout(700)).await.unwrap();
    let stale = rig.app.set_policy(&call("SetPolicy"), &scope("site"), &etag, &timeout(800)).await;
    assert!(matches!(stale, Err(AppError::StaleEtag { .. })), "{stale:?}");
    let short = rig.app.set_policy(&call("SetPolicy"), &scope("course-x"), "", &timeout(60)).await;
    assert!(
        matches!(short, Err(AppError::PolicyContradiction { field: "policy.idle_timeout", .. })),
        "{short:?}"
    );
    assert_eq!(rig.app.policies("", 10).await.unwrap().0.len(), 1);
    let none = rig.app.delete_policy(&call("DeletePolicy"), &scope("course-x"), "").await;
    assert!(matches!(none, Err(AppError::PolicyNotFound(_))), "{none:?}");
    rig.end().await;
}

#[tokio::test]
async fn an_exam_holds_stops_back_and_gives_extra_time_to_the_named() {
    let rig = Rig::with_idle(TIMEOUT, LEAD).await;
    let node = rig.node(4).await;
    let now = rig.app.store.now().await.unwrap();
    let (start, end) = (now - Duration::from_secs(60), now + Duration::from_secs(60));
    let student_extra = [("ada".to_owned(), Duration::from_secs(30))].into();
    let exam = Policy { quiet_windows: vec![QuietWindow { start, end, student_extra }], ..Policy::default() };
    rig.app.set_policy(&call("SetPolicy"), &scope("site"), "", &exam).await.unwrap();
    for (student, extra) in [("ada", 30), ("bob", 0)] {
        let uid = rig.running(node, student).await.uid;
        tokio::time::sleep(Duration::from_millis(500)).await;
        rig.app.check_idle(uid).await.unwrap();
        let view = rig.app.get(&id(student)).await.unwrap();
        assert_eq!(view.workspace.warning, None);
        let Some(Clock::Quiet(times)) = view.idle.map(|idle| idle.clock) else { panic!("not quiet") };
        assert!(
            (times.warning_at - end - Duration::from_secs(extra)).abs() < time::Duration::milliseconds(1)
        );
    }
    rig.end().await;
}

#[tokio::test]
async fn a_lifetime_ends_with_a_warning_whatever_is_typed() {
    let rig = Rig::with(|settings| {
        let idle = &mut settings.defaults.idle;
        idle.warning_lead = Duration::from_millis(200);
        idle.max_lifetime = Duration::from_millis(500);
    })
    .await;
    let node = rig.node(4).await;
    let uid = rig.running(node, "ada").await.uid;
    while rig.get("ada").await.state == State::Running {
        let beat = beat("ada", Signal::EditorInput, Duration::ZERO);
        rig.app.record(vec![beat]).await.unwrap();
        rig.app.check_idle(uid).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let stop = rig.get("ada").await.stop.unwrap();
    let evidence = stop.evidence.unwrap();
    assert_eq!(stop.reason, StopReason::MaxLifetime);
    assert!(evidence.decided_at - evidence.warned_at >= time::Duration::milliseconds(200));
    rig.end().await;
}

#[tokio::test]
async fn a_time_without_signs_of_life_is_a_pause_and_a_step_back_brings_times_to_the_present() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    rig.database
        .execute("UPDATE workspaces SET ready_at = ready_at - interval '11 min', version = version + 1")
        .await;
    let before = deadline(&rig, "ada").await;
    let tolerance = Duration::from_secs(3);
    rig.database.text("UPDATE cluster SET alive_at = alive_at - interval '10 min' RETURNING 'set'").await;
    let (missed, _) = rig.app.store.take_pulse(tolerance, None).await.unwrap();
    assert!(
        matches!(missed, Pulse::Missed { silence, .. } if silence > Duration::from_secs(590)),
        "{missed:?}"
    );
    rig.app.refresh_rules().await.unwrap();
    let moved = (deadline(&rig, "ada").await - before).as_seconds_f64();
    assert!((600.0..605.0).contains(&moved), "what was not observed counts as idleness: moved by {moved} s");

    rig.database
        .text("UPDATE workspace_activity SET lms_input_at = now() + interval '1 hour' RETURNING 'set'")
        .await;
    rig.database.text("UPDATE cluster SET alive_at = now() + interval '1 hour' RETURNING 'set'").await;
    let (back, _) = rig.app.store.take_pulse(tolerance, None).await.unwrap();
    assert!(matches!(back, Pulse::SetBack(_)), "{back:?}");
    let future = "SELECT count(*)::text FROM workspace_activity WHERE lms_input_at > clock_timestamp()";
    assert_eq!(rig.database.text(future).await, "0");
    rig.end().await;
}

#[tokio::test]
async fn extensions_and_jobs_move_with_the_databases_clock_and_what_was_never_seen_stays_so() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    let extent = Extent::By(Duration::from_secs(600));
    rig.app.extend(&call("ExtendWorkspace"), &id("ada"), extent, "").await.unwrap();
    let job = Beat { keep_awake: Duration::from_secs(900), ..beat("ada", Signal::Job, Duration::ZERO) };
    rig.app.record(vec![job]).await.unwrap().remove(0).unwrap();
    let spans = async || {
        let desk = rig.app.explain_idle(&id("ada")).await.unwrap();
        [desk.workspace.extended_until.unwrap(), desk.activity.awake.until.unwrap()]
    };
    let stepped = async |set: &str, by: f64| {
        let before = spans().await;
        rig.database.text(&format!("UPDATE cluster SET alive_at = {set} RETURNING 'set'")).await;
        rig.app.store.take_pulse(Duration::from_secs(3), None).await.unwrap();
        for (before, after) in before.into_iter().zip(spans().await) {
            let moved = (after - before).as_seconds_f64();
            assert!((by - 5.0..by + 5.0).contains(&moved), "by {moved} s, not {by}");
        }
    };
    stepped("now() - interval '10 min'", 600.0).await;
    let future = "UPDATE workspace_activity SET keep_working_at = now() + interval '5 min' RETURNING 'set'";
    rig.database.text(future).await;
    stepped("now() + interval '10 min'", -600.0).await;
    let seen = rig.app.explain_idle(&id("ada")).await.unwrap().activity.seen;
    assert!(seen.keep_working.unwrap() <= rig.app.store.now().await.unwrap());
    assert_eq!((seen.lms_input, seen.editor_input), (None, None));
    rig.end().await;
}

#[tokio::test]
async fn a_start_is_not_too_long_because_the_databases_clock_was_set() {
    let rig = Rig::new().await;
    rig.node(4).await;
    let ada = rig.start("ada").await.unwrap();
    rig.database
        .text(
            "WITH set AS (UPDATE cluster SET alive_at = alive_at - interval '1 hour')
             UPDATE workspaces SET state_since = state_since - interval '1 hour', version = version + 1 RETURNING 'set'",
        )
        .await;
    for _ in 0..2 {
        rig.app.end_overdue(ada.uid).await.unwrap();
        assert_eq!(rig.get("ada").await.state, State::Starting);
        rig.app.pulse().await.unwrap();
    }
    // But it may be too long by itself.
    rig.database
        .text("UPDATE workspaces SET state_since = state_since - interval '1 hour', version = version + 1 RETURNING 'set'")
        .await;
    rig.app.end_overdue(ada.uid).await.unwrap();
    assert_eq!(rig.get("ada").await.state, State::Failed);
    rig.end().await;
}

#[tokio::test]
async fn nothing_is_decided_while_no_replica_gives_signs_of_life() {
    let rig = Rig::with_idle(TIMEOUT, LEAD).await;
    let node = rig.node(4).await;
    let uid = rig.running(node, "ada").await.uid;
    tokio::time::sleep(Duration::from_millis(400)).await;
    rig.database.text("UPDATE cluster SET alive_at = alive_at - interval '1 min' RETURNING 'set'").await;
    rig.app.check_idle(uid).await.unwrap();
    assert_eq!(rig.get("ada").await.warning, None);
    rig.end().await;
}

#[tokio::test]
async fn a_silent_nodes_workspace_goes_on_from_where_it_was() {
    let rig = Rig::with(|settings| settings.unreachable_after = Duration::ZERO).await;
    let node = rig.node(4).await;
    let (ada, bob) = (rig.running(node, "ada").await, rig.running(node, "bob").await);
    let before = [deadline(&rig, "ada").await, deadline(&rig, "bob").await];
    rig.app.give_up_node(node).await.unwrap();
    assert_eq!(rig.get("ada").await.state, State::Unreachable);
    tokio::time::sleep(Duration::from_millis(500)).await;
    // Of Bob's the host itself had begun anew.
    for stage in [Stage::Queued, Stage::Starting, Stage::Probing] {
        rig.report(node, bob.uid, bob.generation, Observed::Starting(stage)).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    for desk in [ada, bob] {
        let running = Observed::Running { endpoint: "127.0.0.1:1".into() };
        rig.report(node, desk.uid, desk.generation, running).await;
    }
    for (student, before) in ["ada", "bob"].into_iter().zip(before) {
        let moved = deadline(&rig, student).await - before;
        assert!((1.35..5.0).contains(&moved.as_seconds_f64()), "{student}: {moved}");
    }
    rig.end().await;
}

#[tokio::test]
async fn a_program_that_ends_by_itself_moves_no_deadline_that_was_warned_of() {
    let rig = Rig::with(|settings| settings.defaults.idle.warning_lead = Duration::from_secs(900)).await;
    let node = rig.node(4).await;
    let ada = rig.running(node, "ada").await;
    let (ready, restarting) = (Observed::Running { endpoint: "127.0.0.1:1".into() }, Observed::Restarting);
    rig.app.check_idle(ada.uid).await.unwrap();
    let warned = rig.get("ada").await.warning.expect("a warning is due at once");
    for _ in 0..2 {
        rig.report(node, ada.uid, ada.generation, restarting.clone()).await;
        let idle = rig.app.get(&id("ada")).await.unwrap().idle.unwrap();
        assert!(idle.warned && idle.clock.running().is_some(), "{idle:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
        rig.report(node, ada.uid, ada.generation, ready.clone()).await;
        rig.app.check_idle(ada.uid).await.unwrap();
        assert_eq!(rig.get("ada").await.warning.as_ref(), Some(&warned));
    }
    rig.end().await;
}

#[tokio::test]
async fn an_explanation_tells_signals_origins_and_what_comes_next() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    let beat = beat("ada", Signal::EditorInput, Duration::from_secs(4));
    rig.app.record(vec![beat]).await.unwrap();
    rig.app.set_policy(&call("SetPolicy"), &scope("student-ada"), "", &timeout(600)).await.unwrap();
    let told = rig.app.explain_idle(&id("ada")).await.unwrap();
    let seen: Vec<_> =
        Signal::ALL.into_iter().filter(|signal| told.activity.seen.get(*signal).is_some()).collect();
    assert_eq!(seen, [Signal::EditorInput]);
    assert_eq!(told.policy.origins.get("idle_timeout").map(String::as_str), Some("policies/student-ada"));
    assert!(matches!(told.idle.clock, Clock::Running(_)) && !told.idle.warned);
    rig.end().await;
}

#[tokio::test]
async fn a_pause_of_months_ago_still_moves_a_deadline_that_is_as_far_away() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    let day = 24 * 3600;
    rig.app.set_policy(&call("SetPolicy"), &scope("site"), "", &timeout(300 * day)).await.unwrap();
    rig.database
        .execute("UPDATE workspaces SET ready_at = ready_at - interval '250 days', version = version + 1")
        .await;
    let before = deadline(&rig, "ada").await;
    let pause = |from: u64, to: u64| {
        format!(
            "INSERT INTO pauses (from_at, to_at) VALUES (now() - interval '{from} minutes', now() - interval '{to} minutes')"
        )
    };
    rig.database.execute(&pause(200 * 24 * 60, 200 * 24 * 60 - 40)).await;
    rig.database.execute(&pause(800 * 24 * 60, 800 * 24 * 60 - 40)).await;
    rig.database.execute("UPDATE cluster SET rules_version = rules_version + 1").await;
    rig.app.store.drop_old(Duration::from_secs(3600)).await.unwrap();
    rig.app.refresh_rules().await.unwrap();
    assert_eq!((deadline(&rig, "ada").await - before).whole_minutes(), 40);
    let old = "SELECT count(*)::text FROM pauses WHERE to_at < now() - interval '1 day'";
    assert_eq!(rig.database.text(old).await, "1", "the other is too old for any deadline");
    rig.end().await;
}
