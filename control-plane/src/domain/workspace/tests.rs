//! The state machine: its whole table as a snapshot, and the laws that hold in every history.

use carrel_common::id::{CourseId, Generation, NodeId, WorkspaceUid};
use carrel_common::model::{Resources, Stage, StatusReason, StopReason, WorkspaceSpec};
use proptest::prelude::*;
use time::OffsetDateTime;
use time::macros::datetime;

use super::{Desired, Event, Report, State, Warning, Workspace};

const T0: OffsetDateTime = datetime!(2026-03-02 10:00:00 UTC);

fn spec() -> WorkspaceSpec {
    WorkspaceSpec {
        image: "carrel/tiny:test".into(),
        resources: Resources { cpu_millicores: 1000, memory_bytes: 1 << 30, pids: 512 },
        probe_port: 8080,
        probe_path: "/healthz".into(),
    }
}

fn node() -> NodeId {
    NodeId(uuid::Uuid::nil())
}

fn new() -> Workspace {
    Workspace::new(WorkspaceUid(uuid::Uuid::nil()), "ada".parse().expect("valid"), Generation(0), spec(), T0)
}

fn start() -> Event {
    Event::Start { course: None, spec: spec(), traceparent: String::new() }
}

fn stop() -> Event {
    Event::Stop {
        reason: StopReason::User,
        force: false,
        message: "Stopped on request.".into(),
        evidence: None,
    }
}

fn idle_stop() -> Event {
    Event::Stop { reason: StopReason::Idle, force: false, message: String::new(), evidence: None }
}

fn refused_stop() -> Event {
    Event::Report(Report::RefusedStop {
        endpoint: "127.0.0.1:1".into(),
        image_digest: "sha256:1".into(),
        spec: spec(),
    })
}

fn running() -> Report {
    Report::Running { endpoint: "127.0.0.1:1".into(), image_digest: "sha256:1".into() }
}

fn failed() -> Report {
    Report::Failed { reason: StatusReason::CrashLoop, exit_code: Some(3), message: "It crashed.".into() }
}

fn gone() -> Report {
    Report::Gone { purge: Ok(false), exit_code: None }
}

fn not_purged() -> Event {
    Event::Report(Report::Gone { purge: Err("The trash is a link".into()), exit_code: None })
}

fn events() -> Vec<(&'static str, Event)> {
    vec![
        ("Start", start()),
        ("Stop", stop()),
        ("Restart", Event::Restart { spec: spec(), traceparent: String::new() }),
        ("Move", Event::Move { message: "Moved.".into(), evidence: None, spec: spec() }),
        ("Delete", Event::Delete { purge_files: false }),
        ("Delete and purge", Event::Delete { purge_files: true }),
        ("Place", Event::Place { node: node() }),
        (
            "TryElsewhere",
            Event::TryElsewhere { reason: StatusReason::RuntimeError, message: "Docker refused.".into() },
        ),
        ("Wait", Event::Wait { reason: Some(StatusReason::NoCapacity), message: "Full.".into() }),
        ("Starting", Event::Report(Report::Starting { stage: Stage::Probing, pull_percent: 0 })),
        ("Running", Event::Report(running())),
        ("RefusedStop", refused_stop()),
        (
            "Restarting",
            Event::Report(Report::Restarting { exit_code: Some(1), message: "It crashed.".into() }),
        ),
        ("Failed", Event::Report(failed())),
        (
            "Fenced",
            Event::Report(Report::Fenced { latest: Generation(6), message: "Another is later.".into() }),
        ),
        ("Gone", Event::Report(gone())),
        ("Gone, not purged", not_purged()),
        ("NodeSilent", Event::NodeSilent),
        ("Lost, in use", Event::NodeLost { in_use: true }),
        ("Lost, idle", Event::NodeLost { in_use: false }),
        ("Overdue", Event::Overdue),
    ]
}

fn after(events: impl IntoIterator<Item = Event>) -> Workspace {
    events.into_iter().fold(new(), |workspace, event| match workspace.apply(event, T0) {
        Ok((next, _)) => next,
        Err(error) => panic!("{error}"),
    })
}

/// One workspace of each kind of situation.
fn situations() -> Vec<(&'static str, Workspace)> {
    let placed = || [start(), Event::Place { node: node() }];
    let up = || placed().into_iter().chain([Event::Report(running())]);
    vec![
        ("STOPPED", new()),
        ("PENDING", after([start()])),
        ("PENDING, earlier container on its way out", after(up().chain([Event::Report(failed()), start()]))),
        ("STARTING", after(placed())),
        ("RUNNING", after(up())),
        ("STOPPING", after(up().chain([stop()]))),
        ("STOPPING for idleness", after(up().chain([idle_stop()]))),
        ("FAILED, the idle stop took too long", after(up().chain([idle_stop(), Event::Overdue]))),
        ("STOPPING, start pressed", after(up().chain([stop(), start()]))),
        ("FAILED, container still there", after(up().chain([Event::Report(failed())]))),
        ("FAILED", after(up().chain([Event::Report(failed()), Event::Report(gone())]))),
        (
            "FAILED, its files could not be moved",
            after(up().chain([Event::Delete { purge_files: true }, not_purged()])),
        ),
        ("UNREACHABLE", after(up().chain([Event::NodeSilent]))),
        ("UNREACHABLE, on its way", after(placed().into_iter().chain([Event::NodeSilent]))),
    ]
}

fn told(w: &Workspace) -> String {
    let desired = if w.desired == Desired::Running { " wants to run" } else { "" };
    let reason = w.status_reason.map(|r| format!(" {r:?}")).unwrap_or_default();
    let node = if w.node.is_some() { " on a node" } else { "" };
    let deleted = if w.deleted_at.is_some() { " deleted" } else { "" };
    format!("{}{reason} g{}{node}{desired}{deleted}", w.state.as_str(), w.generation)
}

#[test]
fn the_whole_table() {
    let mut table = String::new();
    for (situation, workspace) in situations() {
        table.push_str(&format!("{situation} ({})\n", told(&workspace)));
        for (name, event) in events() {
            let outcome = match workspace.apply(event, T0) {
                Err(error) => format!("illegal: {error}"),
                Ok((next, _)) if next == workspace => "-".into(),
                Ok((next, log)) => {
                    let kinds: Vec<_> = log.iter().map(|entry| entry.kind).collect();
                    format!("{} [{}]", told(&next), kinds.join(", "))
                }
            };
            table.push_str(&format!("    {name:<17} {outcome}\n"));
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn start_pressed_during_an_idle_stop_ends_in_running() {
    let mut w = after([start(), Event::Place { node: node() }, Event::Report(running())]);
    for event in
        [idle_stop(), start(), Event::Report(gone()), Event::Place { node: node() }, Event::Report(running())]
    {
        w = w.apply(event, T0).expect("legal").0;
    }
    assert_eq!((w.state, w.generation, w.reconciling()), (State::Running, Generation(2), false));
}

#[test]
fn a_start_that_names_no_course_leaves_it_in_the_one_before() {
    let of = |course: &str| Some(course.parse::<CourseId>().expect("valid"));
    let named = |course| Event::Start { course, spec: spec(), traceparent: String::new() };
    let before = [vec![], vec![stop()], vec![stop(), Event::Report(gone())]];
    for events in before {
        let up = [named(of("cs101")), Event::Place { node: node() }, Event::Report(running())];
        let w = after(up.into_iter().chain(events));
        let course_after = |event| w.apply(event, T0).expect("legal").0.course;
        assert_eq!([start(), named(of("cs102"))].map(course_after), [of("cs101"), of("cs102")], "{w:?}");
    }
}

#[test]
fn a_workspace_that_is_moved_runs_again_as_a_new_generation() {
    let mut w = after([start(), Event::Place { node: node() }, Event::Report(running())]);
    let moved = Event::Move { message: "Moved.".into(), evidence: None, spec: spec() };
    let other = NodeId(uuid::Uuid::max());
    for event in [moved, Event::Report(gone()), Event::Place { node: other }, Event::Report(running())] {
        w = w.apply(event, T0).expect("legal").0;
    }
    assert_eq!((w.state, w.generation, w.node), (State::Running, Generation(2), Some(other)));
}

#[test]
fn an_idle_stop_that_the_node_refuses_leaves_the_same_generation_running() {
    let up = || [start(), Event::Place { node: node() }, Event::Report(running())];
    let before = after(up());
    for pressed in [None, Some(start()), Some(Event::Overdue)] {
        let stopping = after(up().into_iter().chain([idle_stop()]).chain(pressed));
        assert!(stopping.is_refusable());
        let (kept, log) = stopping.apply(refused_stop(), T0).expect("legal");
        assert_eq!(kept, before, "as if it had not been decided");
        assert_eq!(log.iter().map(|entry| entry.kind).collect::<Vec<_>>(), ["workspace.stop_refused"]);
    }
}

/// What the first words can be of a node that was silent, or whose host began anew, about what ran there.
fn first_words() -> [Report; 3] {
    let starting = Report::Starting { stage: Stage::Queued, pull_percent: 0 };
    [running(), starting, Report::Restarting { exit_code: Some(255), message: String::new() }]
}

#[test]
fn a_warning_that_nobody_could_see_for_the_nodes_silence_is_withdrawn_whatever_it_says_first() {
    let mut warned = after([start(), Event::Place { node: node() }, Event::Report(running())]);
    let warning = Warning {
        at: T0,
        nominal_deadline: T0,
        version: 1,
        reason: StopReason::MaxLifetime,
        lead: std::time::Duration::from_secs(120),
        drain_terms: None,
    };
    warned.warning = Some(warning.clone());
    let (silent, _) = warned.apply(Event::NodeSilent, T0).expect("legal");
    for word in first_words() {
        let (next, log) = silent.apply(Event::Report(word.clone()), T0).expect("legal");
        assert_eq!(next.warning, None, "{word:?}");
        assert!(log.iter().any(|entry| entry.kind == "workspace.warning_withdrawn"), "{log:?}");
        let (stands, _) = warned.apply(Event::Report(word), T0).expect("legal");
        assert_eq!(stands.warning.as_ref(), Some(&warning), "its program alone had ended");
    }
}

#[test]
fn what_somebody_wants_is_not_refused() {
    let up = || [start(), Event::Place { node: node() }, Event::Report(running())];
    let restart = Event::Restart { spec: spec(), traceparent: String::new() };
    let forced =
        Event::Stop { reason: StopReason::Idle, force: true, message: String::new(), evidence: None };
    for wanted in [stop(), restart, Event::Delete { purge_files: false }, forced] {
        let stopping = after(up().into_iter().chain([idle_stop(), wanted.clone()]));
        let (next, _) = stopping.apply(refused_stop(), T0).expect("legal");
        assert_eq!((next.state, stopping.is_refusable()), (State::Stopping, false), "{wanted:?}");
    }
}

#[test]
fn a_stop_that_takes_too_long_is_told_and_ends_when_the_container_is_gone() {
    let w = after([start(), Event::Place { node: node() }, Event::Report(running()), stop(), Event::Overdue]);
    assert_eq!((w.state, w.status_reason), (State::Failed, Some(StatusReason::StopTimeout)));
    let (w, _) = w.apply(Event::Report(gone()), T0).expect("legal");
    assert_eq!((w.state, w.node), (State::Stopped, None));
}

#[test]
fn what_waited_for_a_held_container_in_vain_says_so_and_not_that_there_was_no_place() {
    let wait = |reason| Event::Wait { reason: Some(reason), message: "Waits.".into() };
    let w = after([start(), wait(StatusReason::ContainerHeld), Event::Overdue]);
    assert_eq!((w.state, w.status_reason), (State::Failed, Some(StatusReason::ContainerHeld)));
    assert!(w.status_message.contains("ResolveOrphan"), "{}", w.status_message);
    // It was resolved meanwhile, and then there was no place.
    let w =
        after([start(), wait(StatusReason::ContainerHeld), wait(StatusReason::NoCapacity), Event::Overdue]);
    assert_eq!((w.state, w.status_reason), (State::Failed, Some(StatusReason::QueueTimeout)));
}

#[test]
fn a_start_that_is_tried_elsewhere_keeps_its_place_in_the_line_and_knows_where_it_failed() {
    let failed_at = T0 + time::Duration::seconds(3);
    let w = after([start(), Event::Place { node: node() }]);
    let again = Event::TryElsewhere { reason: StatusReason::RuntimeError, message: String::new() };
    let (w, _) = w.apply(again, failed_at).expect("legal");
    assert_eq!((w.state, w.generation, w.node), (State::Pending, Generation(2), Some(node())));
    assert_eq!((w.started_at, w.state_since), (Some(T0), failed_at));
    assert_eq!(w.attempts, Some(super::Attempts { since: T0, failed_on: vec![node()] }));
    let mut w = w;
    for event in [gone(), Report::Gone { purge: Ok(false), exit_code: None }] {
        w = w.apply(Event::Report(event), failed_at).expect("legal").0;
    }
    let (w, _) = w.apply(Event::Place { node: node() }, failed_at).expect("legal");
    let (w, _) = w.apply(Event::Report(running()), failed_at).expect("legal");
    assert_eq!((w.state, w.attempts), (State::Running, None));
}

#[test]
fn the_longest_stay_of_a_start_begins_after_its_turn_and_after_the_pull() {
    let at = |seconds| T0 + time::Duration::seconds(seconds);
    let mut w = after([start(), Event::Place { node: node() }]);
    for (seconds, stage, since) in [
        (1, Stage::Creating, 0),
        (2, Stage::Queued, 0),
        (50, Stage::Creating, 50),
        (51, Stage::Pulling, 50),
        (90, Stage::Pulling, 50),
        (300, Stage::Creating, 300),
        (301, Stage::Probing, 300),
    ] {
        let report = Report::Starting { stage, pull_percent: 40 };
        w = w.apply(Event::Report(report), at(seconds)).expect("legal").0;
        assert_eq!((w.state, w.stage, w.state_since), (State::Starting, Some(stage), at(since)), "{seconds}");
    }
}

#[test]
fn a_workspace_whose_node_is_lost_starts_anew_when_it_is_in_use_and_stops_when_not() {
    let up = [start(), Event::Place { node: node() }, Event::Report(running())];
    for silent in [false, true] {
        let up = up.iter().cloned().chain(silent.then_some(Event::NodeSilent));
        let w = after(up);
        let (moved, _) = w.apply(Event::NodeLost { in_use: true }, T0).expect("legal");
        assert_eq!((moved.state, moved.generation, moved.node), (State::Pending, Generation(2), None));
        assert_eq!(moved.status_reason, None, "nothing is left to wait for but a place");
        let (stopped, _) = w.apply(Event::NodeLost { in_use: false }, T0).expect("legal");
        let reason = stopped.stop.map(|stop| stop.reason);
        assert_eq!((stopped.state, stopped.node, reason), (State::Stopped, None, Some(StopReason::NodeLost)));
        assert_eq!(stopped.desired, Desired::Stopped);
    }
}

#[test]
fn a_purge_whose_node_is_lost_is_placed_on_another() {
    let w = after([
        start(),
        Event::Place { node: node() },
        Event::Report(running()),
        Event::Delete { purge_files: true },
    ]);
    let (w, _) = w.apply(Event::NodeLost { in_use: true }, T0).expect("legal");
    assert!(w.deleted_at.is_none() && w.node.is_none() && w.generation == Generation(1));
    let (w, _) = w.apply(Event::Place { node: node() }, T0).expect("legal");
    let (w, _) =
        w.apply(Event::Report(Report::Gone { purge: Ok(true), exit_code: None }), T0).expect("legal");
    assert!(w.deleted_at.is_some());
}

#[test]
fn a_purge_that_crossed_the_report_is_placed_again() {
    let w = after([start(), Event::Place { node: node() }, stop(), Event::Delete { purge_files: true }]);
    let (w, _) = w.apply(Event::Report(gone()), T0).expect("legal");
    assert!(w.deleted_at.is_none() && w.node.is_none());
    let (w, _) = w.apply(Event::Place { node: node() }, T0).expect("legal");
    let (w, _) =
        w.apply(Event::Report(Report::Gone { purge: Ok(true), exit_code: None }), T0).expect("legal");
    assert!(w.deleted_at.is_some());
}

#[test]
fn files_that_cannot_be_moved_are_tried_after_longer_and_longer_pauses() {
    let up = [start(), Event::Place { node: node() }, Event::Report(running())];
    let mut w = after(up.into_iter().chain([Event::Delete { purge_files: true }]));
    let mut pauses = vec![];
    for _ in 0..7 {
        w = w.apply(not_purged(), T0).expect("legal").0;
        assert!(w.status_message.ends_with("The trash is a link"), "{}", w.status_message);
        let deletion = w.deletion.expect("it is under way");
        let retry_at = deletion.retry_at.expect("after a pause");
        assert_eq!([T0, retry_at].map(|now| deletion.rests(now)), [true, false]);
        assert!(!deletion.rests(T0 - time::Duration::DAY), "the clock was set back");
        pauses.push((retry_at - T0).whole_seconds());
        w = w.apply(Event::Place { node: node() }, T0).expect("legal").0;
    }
    assert_eq!(pauses, [30, 60, 120, 240, 480, 480, 480]);
    let stay = Event::Delete { purge_files: false };
    let (w, _) = w.apply(stay.clone(), T0).expect("legal");
    assert!(w.deletion.is_some_and(|deletion| deletion.purge_files), "a node is moving them");
    let (w, _) = w.apply(not_purged(), T0).expect("legal");
    assert!(w.apply(stay, T0).expect("legal").0.deleted_at.is_some());
}

#[test]
fn a_start_that_the_share_refuses_begins_again_above_what_it_knows_once_its_host_has_let_go() {
    let fenced = Report::Fenced { latest: Generation(6), message: "Another is later.".into() };
    let w = after([start(), Event::Place { node: node() }, Event::Report(fenced)]);
    let seen = (w.state, w.status_reason, w.generation, w.node.is_some());
    assert_eq!(seen, (State::Pending, Some(StatusReason::PreviousStopping), Generation(7), true));
    let w = [Event::Report(gone()), Event::Place { node: node() }, Event::Report(running())]
        .into_iter()
        .fold(w, |w, event| w.apply(event, T0).expect("legal").0);
    assert_eq!((w.state, w.generation), (State::Running, Generation(7)));
}

fn history() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(0..events().len(), 0..60)
}

proptest! {
    /// Whatever happens in whatever order: generations only rise, a step never loses a placement without proof, and
    /// every moving state can still be left.
    #[test]
    fn laws_of_every_history(history in history()) {
        let mut w = new();
        for index in history {
            let (name, event) = events().swap_remove(index);
            let Ok((next, log)) = w.apply(event, T0) else { continue };
            prop_assert!(next.generation >= w.generation);
            let above = if name == "Fenced" { w.generation.max(Generation(6)) } else { w.generation };
            prop_assert!(next.generation.0 - above.0 <= 1);
            if w.node.is_some() && next.node.is_none() {
                let proof = ["Gone", "Gone, not purged", "Lost, in use", "Lost, idle"].contains(&name);
                prop_assert!(proof, "{} released a placement without proof", name);
            }
            if next.state != w.state {
                prop_assert!(!log.is_empty(), "{} changed the state and told nobody", name);
            }
            if next.state.wants_container() {
                prop_assert!(next.node.is_some(), "runs nowhere");
                prop_assert_eq!(next.desired, Desired::Running);
            }
            if next.state == State::Stopped && next.deletion.is_none() {
                prop_assert_eq!(next.node, None);
            }
            if matches!(next.state, State::Pending | State::Starting | State::Stopping) {
                let (escaped, _) = next.apply(Event::Overdue, T0).expect("every moving state has an escape");
                prop_assert_ne!((escaped.state, escaped.generation), (next.state, next.generation));
            }
            w = next;
            if w.deleted_at.is_some() {
                break;
            }
        }
        // And whatever state it is in, a start and an obliging node bring it up.
        if w.deletion.is_none() {
            let up = [start(), Event::Report(gone()), Event::Place { node: node() }, Event::Report(running())];
            for event in up {
                if let Ok((next, _)) = w.apply(event, T0) {
                    w = next;
                }
            }
            let failed_on_the_way = w.state == State::Failed;
            prop_assert!(w.state == State::Running || failed_on_the_way, "ended {}", told(&w));
        }
    }
}
