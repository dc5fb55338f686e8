use carrel_common::id::{Generation, WorkspaceUid};

use super::*;
use crate::domain::activity::Activity;
use crate::domain::idle::Look;
use crate::domain::workspace::{State, Workspace};

const fn minutes(n: u64) -> Duration {
    Duration::from_secs(n * 60)
}

fn book(policies: &[(&str, Policy)]) -> PolicyBook {
    let defaults = Defaults {
        idle: IdlePolicy {
            idle_timeout: minutes(15),
            warning_lead: minutes(2),
            max_lifetime: Duration::ZERO,
            extension_budget: minutes(60),
            keep_awake_budget: minutes(120),
            counts: BySignal::of(|_| true),
            ack_within: Duration::ZERO,
            quiet: vec![],
            drain: None,
        },
        spec: WorkspaceSpec {
            image: "default".into(),
            resources: Resources { cpu_millicores: 1000, memory_bytes: 1 << 30, pids: 512 },
            probe_port: 8080,
            probe_path: "/healthz".into(),
        },
    };
    let policies = policies.iter().map(|(name, p)| (name.parse().expect("a scope"), p.clone())).collect();
    PolicyBook { version: 1, defaults, policies }
}

fn timeout(n: u64) -> Policy {
    Policy { idle_timeout: Some(minutes(n)), ..Policy::default() }
}

#[test]
fn each_field_is_inherited_singly_and_says_where_it_comes_from() {
    let image = Policy { image: Some("big".into()), ..Policy::default() };
    let book = book(&[("site", timeout(20)), ("course-cs101", image), ("student-ada", timeout(40))]);
    let (course, ada) = ("cs101".parse().expect("valid"), "Ada".parse().expect("valid"));
    let effective = book.effective(Some(&course), Some(&ada));
    assert_eq!(effective.values.idle_timeout, Some(minutes(40)));
    assert_eq!(effective.values.image.as_deref(), Some("big"));
    let origin = |field| effective.origins.get(field).map(String::as_str);
    assert_eq!(
        [origin("idle_timeout"), origin("image"), origin("warning_lead"), origin("quiet_windows")],
        [Some("policies/student-ada"), Some("policies/course-cs101"), Some("default"), None]
    );
    let bob = "bob".parse().expect("valid");
    assert_eq!(book.times(Some(&course), &bob).idle_timeout, minutes(20));
    assert_eq!(book.spec(Some(&course), &bob).image, "big");
}

#[test]
fn the_images_of_all_policies_are_known_and_the_default_while_anybody_may_get_it() {
    let of = |image: &str| Policy { image: Some(image.into()), ..Policy::default() };
    assert_eq!(
        book(&[("course-a", of("big:1")), ("student-ada", of("big:1"))]).images(),
        ["big:1", "default:latest"]
    );
    assert_eq!(book(&[("site", of("ours")), ("course-a", of("big:1"))]).images(), ["big:1", "ours:latest"]);
}

#[test]
fn a_change_that_contradicts_another_scope_is_found() {
    let lead = |n| Policy { warning_lead: Some(minutes(n)), ..Policy::default() };
    let found = |policies: &[(&str, Policy)]| match book(policies).check() {
        Err(Contradiction::Times { whose, .. }) => whose,
        other => format!("{other:?}"),
    };
    assert_eq!(book(&[("site", lead(5)), ("course-a", timeout(6))]).check(), Ok(()));
    assert_eq!(found(&[("site", lead(5)), ("course-a", timeout(5))]), "course a", "5 is not longer than 5");
    assert_eq!(found(&[("course-a", lead(10)), ("student-ada", timeout(10))]), "student ada of course a");
    assert_eq!(found(&[("site", lead(15))]), "the site");
}

#[test]
fn the_policies_of_a_university_are_checked_in_a_moment() {
    let course = |n: u64| (format!("course-c{n}"), timeout(20 + n / 2));
    let student = |n: u64| (format!("student-s{n}"), Policy { image: Some("desk".into()), ..timeout(30) });
    let policies: Vec<_> = (0..500).map(course).chain((0..10_000).map(student)).collect();
    let policies: Vec<_> = policies.iter().map(|(name, policy)| (name.as_str(), policy.clone())).collect();
    let book = book(&policies);
    let (told, checked) = std::sync::mpsc::channel();
    std::thread::spawn(move || told.send(book.check()));
    let checked = checked.recv_timeout(Duration::from_secs(3));
    assert_eq!(checked, Ok(Ok(())), "nobody gives a sign of life meanwhile");
}

#[test]
fn extra_time_is_for_the_named_student_alone() {
    let at = |h| time::macros::datetime!(2026-03-02 00:00 UTC) + time::Duration::hours(h);
    let window = QuietWindow {
        start: at(9),
        end: at(11),
        student_extra: BTreeMap::from([("ada".to_owned(), minutes(30))]),
    };
    let exam = Policy { quiet_windows: vec![window], ..Policy::default() };
    let book = book(&[("course-x", exam)]);
    let (course, ada, bob) =
        ("x".parse().expect("valid"), "ADA".parse().expect("valid"), "bob".parse().expect("valid"));
    assert_eq!(book.times(Some(&course), &ada).quiet, [(at(9), at(11) + minutes(30))]);
    assert_eq!(book.times(Some(&course), &bob).quiet, [(at(9), at(11))]);
}

#[test]
fn scopes_come_back_as_they_went() {
    for text in ["site", "course-CS-101", "student-ada@x"] {
        assert_eq!(text.parse::<Scope>().map(|s| s.to_string()).as_deref(), Ok(text));
    }
    for bad in ["", "sites", "course-", "student-../x"] {
        assert!(bad.parse::<Scope>().is_err(), "{bad}");
    }
}

fn rule(signal: Signal, counts: bool) -> Policy {
    let rule = SignalRule { counts, reason: format!("says the {counts} test") };
    Policy { signal_rules: [(signal, rule)].into(), ..Policy::default() }
}

#[test]
fn each_signal_is_inherited_singly() {
    let book = book(&[
        ("site", rule(Signal::LmsInput, false)),
        ("course-x", rule(Signal::Job, false)),
        ("student-ada", rule(Signal::LmsInput, true)),
    ]);
    let (course, ada, bob) =
        ("x".parse().expect("valid"), "ada".parse().expect("valid"), "bob".parse().expect("valid"));
    let all = BySignal::of(|_| true);
    assert_eq!(book.times(Some(&course), &ada).counts, BySignal { job: false, ..all });
    assert_eq!(book.times(Some(&course), &bob).counts, BySignal { job: false, lms_input: false, ..all });
    assert_eq!(book.count_for_all(), BySignal { job: false, lms_input: false, ..all });
    let told = book.effective(Some(&course), Some(&ada));
    let origins: Vec<_> =
        told.origins.iter().filter(|(field, _)| field.starts_with("signal_rules")).collect();
    assert_eq!(
        origins.iter().map(|(field, origin)| (**field, origin.as_str())).collect::<Vec<_>>(),
        [
            ("signal_rules.EDITOR_INPUT", "default"),
            ("signal_rules.JOB", "policies/course-x"),
            ("signal_rules.KEEP_WORKING", "default"),
            ("signal_rules.LMS_INPUT", "policies/student-ada"),
        ]
    );
    assert_eq!(told.values.signal_rules.len(), Signal::ALL.len());
    assert!(told.values.signal_rules[&Signal::LmsInput].counts);
}

#[test]
fn the_probe_is_inherited_whole_and_goes_into_the_spec() {
    let probe = Probe { port: 3000, path: "/ready".into() };
    let book = book(&[("course-x", Policy { probe: Some(probe.clone()), ..Policy::default() })]);
    let (course, ada) = ("x".parse().expect("valid"), "ada".parse().expect("valid"));
    let spec = book.spec(Some(&course), &ada);
    assert_eq!((spec.probe_port, spec.probe_path.as_str()), (3000, "/ready"));
    assert_eq!(book.effective(Some(&course), None).values.probe, Some(probe));
    assert_eq!(book.spec(None, &ada).probe_port, 8080);
}

#[test]
fn a_nearer_scope_names_only_images_that_every_farther_one_allows() {
    let image = |name: &str| Policy { image: Some(name.into()), ..Policy::default() };
    let allow = |list: &[&str]| Policy {
        allowed_images: list.iter().map(|image| (*image).to_owned()).collect(),
        ..Policy::default()
    };
    let site: Scope = "site".parse().expect("a scope");
    let field = |policies: &[(&str, Policy)], changed: &Scope| match book(policies).check() {
        Ok(()) => "fine",
        Err(contradiction) => contradiction.field(changed),
    };
    let lists = allow(&["school/*", "other:1"]);
    for (name, expected) in
        [("school/cs:2", "fine"), ("docker.io/other:1", "fine"), ("other:2", "policy.image")]
    {
        for scope in ["course-a", "student-ada"] {
            let changed = scope.parse().expect("a scope");
            assert_eq!(field(&[("site", lists.clone()), (scope, image(name))], &changed), expected, "{name}");
        }
    }
    // However either is written.
    for (list, name, expected) in [
        ("docker.io/school/*", "docker.io/school/cs:2", "fine"),
        ("docker.io/school/*", "school/cs:2", "fine"),
        ("index.docker.io/school/*", "docker.io/school/cs", "fine"),
        ("library/*", "debian:12", "fine"),
        ("docker.io/*", "school/cs:2", "fine"),
        ("docker.io/*", "ghcr.io/school/cs:2", "policy.image"),
        ("library/*", "school/cs:2", "policy.image"),
    ] {
        let policies = [("site", allow(&[list])), ("course-a", image(name))];
        assert_eq!(field(&policies, &"course-a".parse().expect("a scope")), expected, "{list}: {name}");
    }
    // What the site itself names is its own affair, and so is what nobody restricts.
    let own = Policy { image: Some("any".into()), ..lists.clone() };
    assert_eq!(field(&[("site", own)], &site), "fine");
    assert_eq!(field(&[("course-a", image("any"))], &site), "fine");
    // A list that comes later is refused while somebody nearer names another image.
    let later = [("site", allow(&["x"])), ("course-a", image("other:2"))];
    assert_eq!(field(&later, &site), "policy.allowed_images");
    // The course's list cannot widen the site's.
    let wider = [("site", allow(&["x"])), ("course-a", allow(&["*"])), ("student-ada", image("y"))];
    assert_eq!(field(&wider, &"student-ada".parse().expect("a scope")), "policy.image");
}

#[test]
fn a_policy_that_was_kept_before_a_field_was_known_is_read() {
    let kept: Policy = serde_json::from_str(r#"{"quiet_windows": []}"#).expect("reads");
    assert_eq!(kept, Policy::default());
}

#[test]
fn a_quiet_window_turns_at_its_start_at_its_end_and_for_those_with_extra_time_later() {
    let at = |minutes: i64| time::OffsetDateTime::UNIX_EPOCH + time::Duration::minutes(minutes);
    let student_extra = [("ada".to_owned(), Duration::from_secs(600))].into();
    let window = QuietWindow { start: at(10), end: at(70), student_extra };
    let exam = Policy { quiet_windows: vec![window], ..Policy::default() };
    let book = book(&[("site", exam)]);
    let turns = |from, to| book.quiet_turns(at(from), at(to));
    assert_eq!([turns(0, 9), turns(9, 10), turns(10, 69)], [false, true, false]);
    assert_eq!([turns(69, 70), turns(70, 79), turns(79, 80), turns(80, 999)], [true, false, true, false]);
    assert!(turns(11, 9), "a clock was set back");
}

#[test]
fn the_farthest_times_that_can_be_set_lead_to_deadlines_that_can_be_told() {
    let end = WINDOWS_END_BEFORE - time::Duration::SECOND;
    let window = QuietWindow {
        start: end - time::Duration::days(7),
        end,
        student_extra: [("ada".into(), Duration::from_secs(24 * 3600))].into(),
    };
    let longest = Some(LONGEST_TIME);
    let policy = Policy {
        idle_timeout: longest,
        warning_lead: longest,
        max_lifetime: longest,
        extension_budget: longest,
        keep_awake_budget: longest,
        quiet_windows: vec![window],
        ..Policy::default()
    };
    let book = book(&[("site", policy)]);
    assert!(book.quiet_turns(end - time::Duration::HOUR, end));
    let ada: StudentId = "ada".parse().expect("valid");
    let (times, spec) = (book.times(None, &ada), book.spec(None, &ada));
    let mut workspace = Workspace::new(WorkspaceUid::new(), ada, Generation(1), spec, end);
    (workspace.state, workspace.ready_at) = (State::Running, Some(end));
    let activity = Activity::default();
    let look = Look {
        policy: &times,
        pauses: &[],
        workspace: &workspace,
        activity: &activity,
        heard: true,
        now: end,
    };
    let told = [look.clock().times().expect("it runs").deadline_at, look.grant(end + LONGEST_TIME).0];
    let written = told.map(|at| at.format(&time::format_description::well_known::Rfc3339).is_ok());
    assert_eq!(written, [true; 2]);
}
