//! The database's clock is set while students wait, work and declare jobs: on a Postgres whose clock the test sets, timed by the
//! test's own.

use std::time::{Duration, Instant};

use carrel_common::id::NodeId;
use carrel_common::model::{ActivityReport, Observed, Signal, StopReason};
use control_plane::app::{App, LastReading};
use control_plane::domain::policy::Policy;
use control_plane::domain::workspace::State;
use control_plane::store::Beat;
use integration_tests::own_postgres::OwnPostgres;

use crate::rig::{Rig, beat, call, id};

/// As far as real time and a look each few milliseconds go.
const NEARLY: Duration = Duration::from_millis(30);

async fn rig(idle_timeout: Duration, warning_lead: Duration) -> (Rig, OwnPostgres, NodeId) {
    let postgres = OwnPostgres::with_own_clock().await;
    let change = |settings: &mut control_plane::app::Settings| {
        let idle = &mut settings.defaults.idle;
        (idle.idle_timeout, idle.warning_lead) = (idle_timeout, warning_lead);
    };
    let rig = Rig::on(&postgres.url(), change).await;
    let node = rig.node(4).await;
    (rig, postgres, node)
}

/// What was seen of one desk, since its last input, by the test's clock.
struct Waited {
    /// From the last warning that stood.
    lead: Duration,
    stopped: Duration,
}

/// One input, then nothing; the clock is set so many milliseconds after it, to so many seconds. Until it is stopped.
async fn wait_out(idle: Duration, lead: Duration, steps: &[(u64, i64)]) -> Waited {
    let (rig, postgres, node) = rig(idle, lead).await;
    let uid = rig.running(node, "ada").await.uid;
    rig.app.record(vec![beat("ada", Signal::EditorInput, Duration::ZERO)]).await.unwrap().remove(0).unwrap();
    // After the ack: by the test's clock it was before.
    let start = Instant::now();
    let (mut steps, mut warned) = (steps.iter().peekable(), None);
    let waited = loop {
        if let Some((_, step)) = steps.next_if(|(after, _)| start.elapsed() >= Duration::from_millis(*after))
        {
            postgres.clock().set(*step);
        }
        rig.heartbeat(node).await;
        let looked = Instant::now();
        rig.app.check_idle(uid).await.unwrap();
        let desk = rig.get("ada").await;
        match (&desk.warning, warned) {
            (Some(warning), Some((known, _))) if warning.at == known => {}
            (Some(warning), _) => warned = Some((warning.at, looked)),
            (None, _) if desk.state == State::Running => warned = None,
            (None, _) => {}
        }
        if desk.state == State::Stopping {
            let (_, warned) = warned.expect("it was warned");
            break Waited { lead: warned.elapsed(), stopped: start.elapsed() };
        }
        assert!(start.elapsed() < idle + Duration::from_secs(15), "it is never stopped");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    rig.end().await;
    waited
}

#[tokio::test]
async fn a_step_forward_that_is_shorter_than_an_outage_takes_nothing_of_a_timeout_or_a_lead() {
    let (idle, lead) = (Duration::from_secs(4), Duration::from_millis(1500));
    // While nobody is warned, and in the middle of the lead.
    for set_after in [1200, 3200] {
        let waited = wait_out(idle, lead, &[(set_after, 2)]).await;
        assert!(waited.stopped + NEARLY >= idle, "{:?}: stopped early", waited.stopped);
        assert!(waited.lead + NEARLY >= lead, "{:?} is not the whole lead", waited.lead);
        assert!(waited.stopped < idle + Duration::from_secs(5), "{:?}: late", waited.stopped);
    }
}

#[tokio::test]
async fn a_stop_after_a_step_forward_of_hours_is_in_time_and_no_node_refuses_it_for_what_is_known() {
    let (idle, lead) = (Duration::from_secs(4), Duration::from_secs(1));
    let (rig, postgres, node) = rig(idle, lead).await;
    let uid = rig.running(node, "ada").await.uid;
    let before = Instant::now();
    rig.app.record(vec![beat("ada", Signal::EditorInput, Duration::ZERO)]).await.unwrap().remove(0).unwrap();
    let start = Instant::now();
    postgres.clock().set(10_000);
    while rig.get("ada").await.state != State::Stopping {
        assert!(start.elapsed() < idle + Duration::from_secs(5), "it is late");
        rig.heartbeat(node).await;
        rig.app.check_idle(uid).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(start.elapsed() + NEARLY >= idle, "{:?}: stopped early", start.elapsed());
    let age = rig.desired_set(node).await.items.remove(0).idle_basis_age.unwrap();
    let input = before.elapsed();
    assert!((idle..=input).contains(&age), "{age:?}, and the input was {input:?} ago");
    rig.end().await;
}

#[tokio::test]
async fn what_a_node_tells_again_after_steps_forward_is_no_newer_than_it_was() {
    let (rig, postgres, node) = rig(Duration::from_secs(3), Duration::from_secs(1)).await;
    let ada = rig.running(node, "ada").await;
    rig.app.pulse().await.unwrap();
    let told = async |began: Instant| {
        let (workspace, generation, age) = (ada.uid, ada.generation, began.elapsed());
        let report = ActivityReport { workspace, generation, signal: Signal::EditorInput, age };
        rig.app.record_seen(node, &[report]).await.unwrap();
        rig.app.explain_idle(&id("ada")).await.unwrap().activity.seen.editor_input.unwrap()
    };
    let input = Instant::now();
    let first = told(input).await;
    // Well before the steps: what is not surely older than one is taken for newer.
    tokio::time::sleep(Duration::from_millis(300)).await;
    for step in [4000, 10_000] {
        rig.app.pulse().await.unwrap();
        postgres.clock().set(step);
        let again = told(input).await;
        assert!(again - first < Duration::from_millis(200), "{first} became {again}");
        let new = told(Instant::now()).await;
        assert!(new - first > Duration::from_secs(step.unsigned_abs()), "{new} is by the clock as it is");
        rig.database.execute(&format!("UPDATE workspace_activity SET editor_input_at = '{first}'")).await;
    }
    // Nor is what it refuses a stop for.
    loop {
        rig.heartbeat(node).await;
        rig.app.check_idle(ada.uid).await.unwrap();
        if rig.get("ada").await.state == State::Stopping {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    postgres.clock().set(20_000);
    let refused = Observed::RefusedStop { endpoint: "127.0.0.1:1".into(), seen_ago: input.elapsed() };
    rig.report(node, ada.uid, ada.generation, refused).await;
    assert_eq!(rig.get("ada").await.state, State::Running);
    let kept = rig.app.explain_idle(&id("ada")).await.unwrap().activity.seen.editor_input.unwrap();
    assert!(kept - first < Duration::from_millis(200), "{first} became {kept}");
    rig.end().await;
}

#[tokio::test]
async fn of_a_step_forward_is_left_what_is_not_taken_back() {
    let (rig, postgres, _) = rig(Duration::from_secs(900), Duration::from_secs(120)).await;
    for step in [1750, 1000, 0] {
        postgres.clock().set(step);
        rig.app.pulse().await.unwrap();
        let steps = "SELECT coalesce(sum(set_forward_seconds), 0)::int::text FROM pauses";
        let steps: i64 = rig.database.text(steps).await.parse().unwrap();
        assert!((step - 2..=step + 3).contains(&steps), "set to {step}: {steps} s are kept");
        let longer = "SELECT count(*)::text FROM pauses
                      WHERE set_forward_seconds > extract(epoch FROM to_at - from_at) + 0.001";
        assert_eq!(rig.database.text(longer).await, "0", "set to {step}");
        // Sooner it could be another pause that lies in the future.
        tokio::time::sleep(Duration::from_secs(4)).await;
    }
    rig.end().await;
}

#[tokio::test]
async fn jobs_and_extensions_have_all_of_their_time_after_a_step_of_hours() {
    let (rig, postgres, node) = rig(Duration::from_secs(900), Duration::from_secs(120)).await;
    rig.running(node, "ada").await;
    let span = Duration::from_secs(600);
    let extent = control_plane::app::Extent::By(span);
    rig.app.extend(&call("ExtendWorkspace"), &id("ada"), extent, "").await.unwrap();
    let job = Beat { keep_awake: span, ..beat("ada", Signal::Job, Duration::ZERO) };
    rig.app.record(vec![job]).await.unwrap().remove(0).unwrap();
    postgres.clock().set(10_000);
    rig.app.pulse().await.unwrap();
    let now = rig.app.store.now().await.unwrap();
    let desk = rig.app.explain_idle(&id("ada")).await.unwrap();
    for until in [desk.workspace.extended_until.unwrap(), desk.activity.awake.until.unwrap()] {
        let left = (until - now).as_seconds_f64();
        assert!((590.0..=602.0).contains(&left), "{left} s are left");
    }
    rig.end().await;
}

#[tokio::test]
async fn who_waits_when_the_clock_is_set_back_is_stopped_about_when_he_would_have_been() {
    let (idle, lead) = (Duration::from_secs(6), Duration::from_secs(1));
    let waited = wait_out(idle, lead, &[(4500, -1750)]).await;
    assert!(waited.stopped + NEARLY >= idle, "{:?}: stopped early", waited.stopped);
    assert!(waited.stopped < idle + Duration::from_secs(3), "{:?}: waited anew", waited.stopped);
}

#[tokio::test]
async fn a_step_back_that_is_longer_than_the_one_forward_before_it_makes_nothing_earlier() {
    let (idle, lead) = (Duration::from_secs(10), Duration::from_secs(1));
    for back in [-1750, 0] {
        let waited = wait_out(idle, lead, &[(300, 1750), (4500, back)]).await;
        assert!(waited.stopped + NEARLY >= idle, "to {back}, {:?}: stopped early", waited.stopped);
        assert!(waited.stopped < idle + Duration::from_secs(5), "to {back}, {:?}: late", waited.stopped);
    }
}

#[tokio::test]
async fn a_step_back_below_what_is_noticed_makes_nothing_earlier() {
    let (idle, lead) = (Duration::from_secs(4), Duration::from_secs(1));
    let waited = wait_out(idle, lead, &[(1500, -2)]).await;
    assert!(waited.stopped + NEARLY >= idle && waited.lead + NEARLY >= lead);
    assert!(waited.stopped < idle + Duration::from_secs(5), "{:?}: late", waited.stopped);
}

#[tokio::test]
async fn a_job_that_is_declared_at_the_moment_of_a_step_gets_what_it_is_told_and_takes_nothing_of_another() {
    let (rig, postgres, node) = rig(Duration::from_secs(900), Duration::from_secs(120)).await;
    let declare = async |student: &str, minutes: u64| {
        let keep_awake = Duration::from_secs(minutes * 60);
        let job = Beat { keep_awake, ..beat(student, Signal::Job, Duration::ZERO) };
        assert!(!rig.app.record(vec![job]).await.unwrap().remove(0).unwrap().clamped);
    };
    let left = async |student: &str| {
        let until = rig.app.explain_idle(&id(student)).await.unwrap().activity.awake.until.unwrap();
        let left = until - rig.app.store.now().await.unwrap();
        (left.as_seconds_f64() / 60.0).round()
    };
    for student in ["ada", "bob"] {
        rig.running(node, student).await;
        declare(student, 20).await;
    }
    for step in [-1750, 0] {
        postgres.clock().set(step);
        // At once, before anybody gives a sign of life.
        declare("ada", 40).await;
        declare("bob", 5).await;
        rig.app.pulse().await.unwrap();
        assert_eq!((left("ada").await, left("bob").await), (40.0, 20.0), "set to {step}");
    }
    rig.end().await;
}

#[tokio::test]
async fn input_and_extensions_at_the_moment_of_a_step_count() {
    let (rig, postgres, node) = rig(Duration::from_secs(60), Duration::from_secs(5)).await;
    rig.running(node, "ada").await;
    rig.running(node, "bob").await;
    let age = Duration::from_secs(50);
    for step in [-1750, 0] {
        for student in ["ada", "bob"] {
            rig.app.record(vec![beat(student, Signal::LmsInput, age)]).await.unwrap().remove(0).unwrap();
        }
        postgres.clock().set(step);
        rig.app.record(vec![beat("ada", Signal::LmsInput, Duration::ZERO)]).await.unwrap().remove(0).unwrap();
        let extent = control_plane::app::Extent::By(Duration::from_secs(600));
        rig.app.extend(&call("ExtendWorkspace"), &id("bob"), extent, "").await.unwrap();
        rig.app.pulse().await.unwrap();
        let now = rig.app.store.now().await.unwrap();
        let seen = rig.app.explain_idle(&id("ada")).await.unwrap().activity.seen.lms_input.unwrap();
        assert!((now - seen).as_seconds_f64() < 5.0, "set to {step}: {seen} at {now}");
        let extended = rig.get("bob").await.extended_until.unwrap() - now;
        assert!((595.0..=605.0).contains(&extended.as_seconds_f64()), "set to {step}: {extended}");
    }
    rig.end().await;
}

#[tokio::test]
async fn a_step_forward_makes_no_node_silent() {
    let (rig, postgres, node) = rig(Duration::from_secs(900), Duration::from_secs(120)).await;
    rig.running(node, "ada").await;
    for step in [1750, 0] {
        postgres.clock().set(step);
        for _ in 0..2 {
            rig.app.give_up_node(node).await.unwrap();
            assert_eq!(rig.get("ada").await.state, State::Running, "set to {step}");
            rig.app.pulse().await.unwrap();
        }
    }
    rig.end().await;
}

#[tokio::test]
async fn a_host_that_is_emptied_within_an_hour_has_that_hour_whatever_the_clock_is_set_to() {
    let (rig, postgres, node) = rig(Duration::from_secs(900), Duration::from_secs(120)).await;
    rig.running(node, "ada").await;
    let within = Duration::from_secs(3600);
    let order = control_plane::app::DrainOrder {
        within,
        force: false,
        reason: "new kernel".into(),
        validate_only: false,
    };
    rig.app.drain(&call("DrainNode"), node, &order).await.unwrap();
    // Each replica sees the step for itself, and one of them accounts for it.
    let other = App { last_reading: LastReading::default(), ..rig.replica() };
    for step in [1750, -1750, 0] {
        for replica in [&rig.app, &other] {
            replica.pulse().await.unwrap();
        }
        postgres.clock().set(step);
        for replica in [&rig.app, &other] {
            replica.pulse().await.unwrap();
        }
        let left = "SELECT extract(epoch FROM drain_deadline_at - clock_timestamp())::int::text FROM nodes";
        let left: i64 = rig.database.text(left).await.parse().unwrap();
        assert!((3590..=3600).contains(&left), "set to {step}: {left} s are left");
    }
    rig.end().await;
}

#[tokio::test]
async fn a_desk_with_a_longest_lifetime_has_all_of_it_whatever_the_clock_is_set_to() {
    let day = Duration::from_secs(24 * 3600);
    let (rig, postgres, node) = rig(day, Duration::from_secs(120)).await;
    let policy = Policy { max_lifetime: Some(Duration::from_secs(8 * 3600)), ..Policy::default() };
    rig.app.set_policy(&call("SetPolicy"), &"site".parse().unwrap(), "", &policy).await.unwrap();
    rig.running(node, "ada").await;
    for step in [1750, -1750, 0] {
        rig.app.pulse().await.unwrap();
        postgres.clock().set(step);
        rig.app.pulse().await.unwrap();
        let idle = rig.app.get(&id("ada")).await.unwrap().idle.unwrap();
        let times = idle.clock.running().unwrap();
        assert_eq!(times.reason, StopReason::MaxLifetime);
        let left = (times.deadline_at - idle.now).whole_seconds();
        assert!((28_790..=28_801).contains(&left), "set to {step}: {left} s are left");
    }
    rig.end().await;
}
