//! What counts, what holds a stop back, and what has to be known before one is decided.

use std::time::Duration;

use carrel_common::id::{CourseId, Generation};
use carrel_common::model::Signal;
use control_plane::app::{AppError, Extended, Extent, Recorded};
use control_plane::domain::idle::Clock;
use control_plane::domain::policy::{Policy, Scope, SignalRule};
use control_plane::domain::workspace::{State, Workspace};
use control_plane::store::Beat;
use time::OffsetDateTime;

use crate::rig::{Rig, beat, call, id};

const TIMEOUT: Duration = Duration::from_millis(300);
const LEAD: Duration = Duration::from_millis(100);

fn scope(text: &str) -> Scope {
    text.parse().unwrap()
}

fn deadline(recorded: &Recorded) -> OffsetDateTime {
    let Clock::Running(times) = recorded.idle.clock else { panic!("the clock does not run: {recorded:?}") };
    times.deadline_at
}

/// A control plane in which workspaces are idle within a moment.
async fn quick() -> Rig {
    Rig::with_idle(TIMEOUT, LEAD).await
}

async fn record(rig: &Rig, beat: Beat) -> Recorded {
    rig.app.record(vec![beat]).await.unwrap().remove(0).unwrap()
}

fn job(student: &str, minutes: u64) -> Beat {
    let keep_awake = Duration::from_secs(minutes * 60);
    Beat { keep_awake, ..beat(student, Signal::Job, Duration::ZERO) }
}

fn ignoring(signal: Signal) -> Policy {
    let rule = SignalRule { counts: false, reason: "the LMS page is open all day".into() };
    Policy { signal_rules: [(signal, rule)].into(), ..Policy::default() }
}

#[tokio::test]
async fn of_another_generation_nothing_is_recorded() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    rig.stop("ada").await;
    rig.obey(node).await;
    let second = rig.running(node, "ada").await;
    assert_eq!(second.generation, Generation(2));
    let of = |generation, signal| Beat {
        generation: Some(Generation(generation)),
        keep_awake: Duration::from_secs(60),
        ..beat("ada", signal, Duration::ZERO)
    };
    let told = rig
        .app
        .record(vec![
            of(1, Signal::EditorInput),
            of(2, Signal::LmsInput),
            of(1, Signal::Job),
            of(3, Signal::KeepWorking),
        ])
        .await
        .unwrap();
    for (n, answer) in told.iter().enumerate() {
        match answer {
            Ok(recorded) => assert_eq!((n, recorded.idle.last.unwrap().1), (1, Signal::LmsInput)),
            Err(AppError::GenerationOver { present }) => assert_eq!(*present, Generation(2)),
            other => panic!("{other:?}"),
        }
    }
    let seen = rig.app.explain_idle(&id("ada")).await.unwrap().activity;
    assert_eq!((seen.seen.editor_input, seen.seen.job, seen.awake.until), (None, None, None));
    assert!(seen.seen.lms_input.is_some());
    rig.end().await;
}

#[tokio::test]
async fn a_new_generation_begins_without_the_activity_of_the_one_before() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    record(&rig, beat("ada", Signal::EditorInput, Duration::ZERO)).await;
    record(&rig, job("ada", 40)).await;
    rig.app.restart(&call("RestartWorkspace"), &id("ada")).await.unwrap();
    rig.obey(node).await;
    rig.app.place_waiting().await.unwrap();
    rig.obey(node).await;
    let told = rig.app.explain_idle(&id("ada")).await.unwrap();
    assert_eq!((told.workspace.state, told.workspace.generation), (State::Running, Generation(2)));
    assert_eq!((told.activity.seen, told.activity.awake), Default::default());
    rig.end().await;
}

#[tokio::test]
async fn what_does_not_count_is_kept_with_its_time_and_moves_no_deadline() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let course: CourseId = "cs101".parse().unwrap();
    rig.app.start(&call("StartWorkspace"), &id("ada"), Some(&course)).await.unwrap();
    rig.obey(node).await;
    rig.app
        .set_policy(&call("SetPolicy"), &scope("course-cs101"), "", &ignoring(Signal::LmsInput))
        .await
        .unwrap();
    let ready_at = rig.get("ada").await.ready_at.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let ignored = record(&rig, beat("ada", Signal::LmsInput, Duration::ZERO)).await;
    assert_eq!((deadline(&ignored), ignored.idle.last), (ready_at + Duration::from_secs(900), None));
    let told = rig.app.explain_idle(&id("ada")).await.unwrap();
    let at = told.activity.seen.lms_input.expect("it is known");
    let rule = &told.policy.values.signal_rules[&Signal::LmsInput];
    assert_eq!((rule.counts, rule.reason.as_str()), (false, "the LMS page is open all day"));
    assert_eq!(told.policy.origins["signal_rules.LMS_INPUT"], "policies/course-cs101");
    // In the same batch, the signal that counts does.
    let both = ["ada"; 2].map(|student| beat(student, Signal::LmsInput, Duration::ZERO));
    let [lms, editor] = both;
    let editor = Beat { signal: Signal::EditorInput, ..editor };
    let told = rig.app.record(vec![lms, editor]).await.unwrap();
    let last = told[0].as_ref().unwrap().idle.last.unwrap();
    assert_eq!(last.1, Signal::EditorInput);
    // A policy that counts it again needs no new report.
    rig.app.delete_policy(&call("DeletePolicy"), &scope("course-cs101"), "").await.unwrap();
    let idle = rig.app.get(&id("ada")).await.unwrap().idle.unwrap();
    assert!(idle.last.unwrap().0 >= at);
    rig.end().await;
}

#[tokio::test]
async fn a_desk_on_which_only_what_does_not_count_happens_is_found_by_the_sweep() {
    let rig = quick().await;
    let node = rig.node(4).await;
    rig.app
        .set_policy(&call("SetPolicy"), &scope("student-ada"), "", &ignoring(Signal::LmsInput))
        .await
        .unwrap();
    let (ada, bob) = (rig.running(node, "ada").await, rig.running(node, "bob").await);
    tokio::time::sleep(TIMEOUT).await;
    for student in ["ada", "bob"] {
        record(&rig, beat(student, Signal::LmsInput, Duration::ZERO)).await;
    }
    let (due, _) = rig.app.idle_soon(Duration::from_millis(50)).await.unwrap();
    let due: Vec<_> = due.into_iter().map(|(uid, _)| uid).collect();
    assert!(due.contains(&ada.uid) && !due.contains(&bob.uid), "{due:?}");
    rig.end().await;
}

#[tokio::test]
async fn jobs_keep_a_desk_awake_within_the_budget_and_each_is_told_what_it_got() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let before = rig.running(node, "ada").await;
    let row = "SELECT xmin::text || ctid::text FROM workspaces";
    let row_before = rig.database.text(row).await;
    // Two in one batch: the longer counts, and each is told whether it got what it asked for.
    let told = rig.app.record(vec![job("ada", 500), job("ada", 40)]).await.unwrap();
    let (long, short) = (told[0].as_ref().unwrap(), told[1].as_ref().unwrap());
    assert_eq!((long.clamped, short.clamped), (true, false));
    let until = long.idle.awake_until.unwrap();
    assert_eq!(until, long.idle.now + Duration::from_secs(7200));
    assert_eq!((deadline(long), long.idle.last.unwrap().1), (until, Signal::Job));
    let nothing_left = record(&rig, job("ada", 121)).await;
    assert!(nothing_left.clamped && nothing_left.idle.awake_until == Some(until));
    assert_eq!(rig.database.text(row).await, row_before, "an activity write never touches the workspace row");
    assert_eq!(rig.get("ada").await.version, before.version);
    // Not before its end, whatever the sweep thinks of the last input.
    rig.database.text("UPDATE workspaces SET ready_at = ready_at - interval '50 min' RETURNING 'set'").await;
    rig.database
        .text("UPDATE workspace_activity SET job_at = job_at - interval '50 min' RETURNING 'set'")
        .await;
    let (due, _) = rig.app.idle_soon(Duration::from_secs(60)).await.unwrap();
    assert_eq!(due, []);
    rig.end().await;
}

#[tokio::test]
async fn a_job_that_does_not_count_is_told_that_it_got_nothing() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    rig.app.set_policy(&call("SetPolicy"), &scope("site"), "", &ignoring(Signal::Job)).await.unwrap();
    let told = record(&rig, job("ada", 40)).await;
    assert_eq!((told.clamped, told.idle.awake_until, told.idle.last), (true, None, None));
    rig.end().await;
}

#[tokio::test]
async fn an_extension_ends_with_the_longest_lifetime_and_says_so() {
    let rig = Rig::with(|settings| settings.defaults.idle.max_lifetime = Duration::from_secs(1800)).await;
    let node = rig.node(4).await;
    let ready_at = rig.running(node, "ada").await.ready_at.unwrap();
    let extent = Extent::By(Duration::from_secs(3000));
    let Extended { idle, until, clamped } =
        rig.app.extend(&call("ExtendWorkspace"), &id("ada"), extent, "").await.unwrap();
    assert_eq!((until, clamped), (ready_at + Duration::from_secs(1800), true));
    assert_eq!(idle.extendable_until, until);
    rig.end().await;
}

#[tokio::test]
async fn a_shorter_extension_shortens_nothing_and_a_past_one_is_refused() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    let extend = async |extent| rig.app.extend(&call("ExtendWorkspace"), &id("ada"), extent, "").await;
    let long = extend(Extent::By(Duration::from_secs(3000))).await.unwrap();
    let short = extend(Extent::By(Duration::from_secs(60))).await.unwrap();
    assert_eq!((short.until, short.clamped), (long.until, false));
    assert_eq!(short.idle.version, long.idle.version, "nothing has moved");
    let past = extend(Extent::Until(short.idle.now - Duration::from_secs(1))).await;
    assert!(matches!(past, Err(AppError::ExtensionPast { .. })), "{past:?}");
    rig.end().await;
}

#[tokio::test]
async fn the_evidence_of_a_stop_tells_of_its_policies_also_after_they_changed_and_it_runs_again() {
    let rig = quick().await;
    let node = rig.node(4).await;
    let policy = Policy { idle_timeout: Some(TIMEOUT * 2), ..ignoring(Signal::EditorInput) };
    let set = rig.app.set_policy(&call("SetPolicy"), &scope("student-ada"), "", &policy).await;
    set.unwrap();
    let version = rig.app.rules.get().book.version;
    rig.running(node, "ada").await;
    let seen_at = record(&rig, beat("ada", Signal::LmsInput, Duration::ZERO)).await.idle.last.unwrap().0;
    let uid = rig.get("ada").await.uid;
    while rig.get("ada").await.state == State::Running {
        rig.app.check_idle(uid).await.unwrap();
        tokio::time::sleep(LEAD / 10).await;
    }
    rig.obey(node).await;
    let stopped = rig.get("ada").await.stop.unwrap().evidence.unwrap();
    rig.app.delete_policy(&call("DeletePolicy"), &scope("student-ada"), "").await.unwrap();
    rig.running(node, "ada").await;
    let told = rig.app.explain_idle(&id("ada")).await.unwrap();
    assert_eq!(told.workspace.state, State::Running);
    assert_eq!(told.workspace.stop.and_then(|stop| stop.evidence), Some(stopped.clone()));
    let grounds = stopped.grounds;
    assert_eq!(stopped.idle_timeout, TIMEOUT * 2);
    assert_eq!(
        (grounds.policy_version, grounds.idle_timeout_origin.as_str()),
        (version, "policies/student-ada")
    );
    let of = |signal| grounds.signals.iter().find(|seen| seen.signal == signal).unwrap();
    assert_eq!((of(Signal::LmsInput).last_at, of(Signal::LmsInput).counts), (Some(seen_at), true));
    assert_eq!((of(Signal::EditorInput).last_at, of(Signal::EditorInput).counts), (None, false));
    assert_eq!(of(Signal::EditorInput).why, "the LMS page is open all day");
    rig.end().await;
}

#[tokio::test]
async fn start_on_a_desk_that_is_on_its_way_or_runs_counts_as_keep_working() {
    let rig = Rig::new().await;
    let node = rig.node(1).await;
    rig.start("bob").await.unwrap();
    let seen = async || rig.app.explain_idle(&id("ada")).await.unwrap().activity.seen.keep_working;
    assert_eq!(rig.start("ada").await.unwrap().state, State::Pending);
    assert_eq!(seen().await, None);
    rig.start("ada").await.unwrap();
    let pending = seen().await;
    assert!(pending.is_some());
    rig.stop("bob").await;
    rig.obey(node).await;
    rig.app.place_waiting().await.unwrap();
    assert_eq!(rig.start("ada").await.unwrap().state, State::Starting);
    let starting = seen().await;
    assert!(starting > pending);
    rig.obey(node).await;
    assert_eq!(rig.start("ada").await.unwrap().state, State::Running);
    assert!(seen().await > starting);
    rig.end().await;
}

/// Looks at a desk until it is as wanted.
async fn looked_at(rig: &Rig, student: &str, is_so: impl Fn(&Workspace) -> bool) -> Workspace {
    let uid = rig.get(student).await.uid;
    for _ in 0..500 {
        rig.app.check_idle(uid).await.unwrap();
        let workspace = rig.get(student).await;
        if is_so(&workspace) {
            return workspace;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it never is");
}

#[tokio::test]
async fn a_warning_counts_from_the_ack_of_the_nodes_session() {
    let rig = Rig::with(|settings| {
        let idle = &mut settings.defaults.idle;
        (idle.idle_timeout, idle.warning_lead) = (TIMEOUT, LEAD);
        idle.ack_within = Duration::from_secs(30);
    })
    .await;
    let node = rig.node(4).await;
    let uid = rig.running(node, "ada").await.uid;
    let warned_at = looked_at(&rig, "ada", |w| w.warning.is_some()).await.warning.unwrap().at;
    let (told, _) = rig.app.deadlines_on(node).await.unwrap();
    assert_eq!(told.iter().map(|d| (d.workspace, d.warned_at)).collect::<Vec<_>>(), [(uid, Some(warned_at))]);
    tokio::time::sleep(LEAD * 3).await;
    rig.app.check_idle(uid).await.unwrap();
    assert_eq!(rig.get("ada").await.state, State::Running, "nobody has told that it arrived");
    let row = "SELECT xmin::text || ctid::text FROM workspaces";
    let row_before = rig.database.text(row).await;
    let before = rig.app.explain_idle(&id("ada")).await.unwrap().activity;
    rig.app.ack_warnings(&[(uid, warned_at)]).await.unwrap();
    assert_eq!(rig.database.text(row).await, row_before);
    let activity = rig.app.explain_idle(&id("ada")).await.unwrap().activity;
    assert_eq!(activity.version, before.version + 1, "streams look at the version: the deadline has moved");
    let acked = activity.acked.unwrap();
    rig.app.ack_warnings(&[(uid, warned_at), (uid, warned_at - LEAD)]).await.unwrap();
    let again = rig.app.explain_idle(&id("ada")).await.unwrap().activity;
    assert_eq!(again, activity, "the first counts");
    let stopped = looked_at(&rig, "ada", |w| w.state == State::Stopping).await;
    let evidence = stopped.stop.unwrap().evidence.unwrap();
    assert_eq!(evidence.warning_acked_at, Some(acked.at));
    assert!(evidence.decided_at >= acked.at + LEAD);
    rig.end().await;
}

#[tokio::test]
async fn a_warning_and_its_withdrawal_name_the_same_version_of_the_deadline() {
    let rig = quick().await;
    let node = rig.node(4).await;
    rig.running(node, "ada").await;
    let policy = ignoring(Signal::LmsInput);
    rig.app.set_policy(&call("SetPolicy"), &scope("student-ada"), "", &policy).await.unwrap();
    let warned = looked_at(&rig, "ada", |w| w.warning.is_some()).await;
    rig.app.ack_warnings(&[(warned.uid, warned.warning.unwrap().at)]).await.unwrap();
    let shown = record(&rig, beat("ada", Signal::LmsInput, Duration::ZERO)).await.idle;
    record(&rig, beat("ada", Signal::EditorInput, Duration::ZERO)).await;
    looked_at(&rig, "ada", |w| w.warning.is_none()).await;
    let versions =
        "SELECT string_agg(kind || ' ' || (data->>'deadline_version'), ', ' ORDER BY id) FROM events
                    WHERE kind LIKE 'workspace.warning%'";
    let told = rig.database.text(versions).await;
    let version = told.split_whitespace().nth(1).unwrap().trim_end_matches(',').to_owned();
    assert_eq!(told, format!("workspace.warning {version}, workspace.warning_withdrawn {version}"));
    assert_eq!(
        (shown.warned, shown.warning_version.to_string()),
        (true, version),
        "acked, and reported since"
    );
    assert!(shown.version > shown.warning_version);
    rig.end().await;
}

#[tokio::test]
async fn after_an_outage_and_from_the_end_of_a_session_on_the_node_tells_first_what_it_saw() {
    let rig = quick().await;
    let node = rig.node(4).await;
    let uid = rig.running(node, "ada").await.uid;
    tokio::time::sleep(TIMEOUT).await;
    let undecided = async |why: &str| {
        rig.app.check_idle(uid).await.unwrap();
        assert_eq!(rig.get("ada").await.warning, None, "{why}");
    };
    rig.reconnect(node).await;
    undecided("a session has begun").await;
    rig.heartbeat(node).await;
    rig.database.text("UPDATE cluster SET alive_at = alive_at - interval '1 min' RETURNING 'set'").await;
    rig.app.pulse().await.unwrap();
    tokio::time::sleep(TIMEOUT).await;
    undecided("the database was away").await;
    rig.heartbeat(node).await;
    rig.app.session_broke(node, rig.epoch(node).await).await.unwrap();
    undecided("its session is over, and the next has yet to begin").await;
    rig.reconnect(node).await;
    undecided("the next has begun").await;
    rig.heartbeat(node).await;
    looked_at(&rig, "ada", |w| w.warning.is_some()).await;
    rig.end().await;
}

#[tokio::test]
async fn a_session_that_nobody_could_end_counts_while_heartbeats_come() {
    let rig = quick().await;
    let node = rig.node(4).await;
    let uid = rig.running(node, "ada").await.uid;
    tokio::time::sleep(TIMEOUT).await;
    // Its replica was killed: nothing was noted, and two heartbeats did not come.
    rig.database.execute("UPDATE nodes SET last_heartbeat_at = last_heartbeat_at - interval '20 s'").await;
    rig.app.check_idle(uid).await.unwrap();
    assert_eq!(rig.get("ada").await.warning, None);
    rig.heartbeat(node).await;
    looked_at(&rig, "ada", |w| w.warning.is_some()).await;
    rig.end().await;
}

#[tokio::test]
async fn a_policy_that_another_replica_was_told_moves_the_deadlines_of_this_one() {
    let rig = Rig::new().await;
    let node = rig.node(4).await;
    let ready_at = rig.running(node, "ada").await.ready_at.unwrap();
    let other = rig.replica();
    let hour = Policy { idle_timeout: Some(Duration::from_secs(3600)), ..Policy::default() };
    other.set_policy(&call("SetPolicy"), &scope("site"), "", &hour).await.unwrap();
    // As the loop does each second.
    rig.app.pulse().await.unwrap();
    let idle = rig.app.get(&id("ada")).await.unwrap().idle.unwrap();
    assert_eq!(idle.clock.running().unwrap().deadline_at, ready_at + Duration::from_secs(3600));
    rig.end().await;
}
