use super::super::Stamp;
use super::*;

/// When the machine's clock says the tests began.
const WALL: i64 = 1_800_000_000 * SECOND;

fn stamp(seconds: i64) -> Stamp {
    Stamp { at: seconds * SECOND, wall: WALL + seconds * SECOND }
}

fn begun() -> Line {
    Line::Begun { at: stamp(0), idle_timeout: 20 * SECOND, warning_lead: 6 * SECOND }
}

fn over(at: i64) -> Line {
    Line::Over { at: stamp(at) }
}

fn input(sent: i64, answered: i64, answer: Answer) -> Line {
    let asked = Asked::Input { signal: "LMS_INPUT".into(), age: 0 };
    let (sent, answered) = (stamp(sent), stamp(answered));
    Line::Asked { student: "ada".into(), generation: 1, asked, sent, answered, answer }
}

fn acked(at: i64) -> Line {
    input(at, at, Answer::Acked)
}

fn down(what: &str, from: i64, to: i64) -> Line {
    Line::Down { what: what.into(), from: stamp(from), to: stamp(to) }
}

fn told(kind: &str, reason: &str, at: i64) -> Told {
    let (student, kind, reason) = ("ada".into(), kind.into(), reason.into());
    Told { student, kind, reason, generation: 1, time: WALL + at * SECOND }
}

/// A desk that is ready at 1, warned, and stopped.
fn life(warned: i64, stopped: i64) -> Vec<Told> {
    vec![
        told("requested", "", 0),
        told("ready", "", 1),
        told("warning", "IDLE", warned),
        told("stopping", "IDLE", stopped),
        told("stopped", "IDLE", stopped),
    ]
}

fn lines(middle: Vec<Line>) -> Vec<Line> {
    [vec![begun()], middle, vec![over(200)]].concat()
}

fn violations(middle: Vec<Line>, events: &[Told]) -> Vec<Violation> {
    judge(&lines(middle), events).violations
}

fn ada() -> String {
    "ada".into()
}

#[test]
fn a_stop_at_its_time_after_its_warning_is_right() {
    let verdict = judge(&lines(vec![acked(5), acked(10)]), &life(24, 30));
    assert_eq!(verdict, Verdict { unexcused: vec![0], acked: 2, ..Verdict::default() });
}

#[test]
fn a_stop_before_acked_input_and_the_timeout_is_early() {
    let early = |at, due| Violation::Early { student: ada(), at: at * SECOND, due: due * SECOND };
    assert_eq!(violations(vec![acked(10)], &life(23, 29)), [early(29, 30)]);
    assert_eq!(
        violations(vec![acked(10), acked(31)], &life(24, 30)),
        [early(30, 51)],
        "acked behind the stop's back"
    );
    assert_eq!(violations(vec![], &life(14, 20)), [early(20, 21)], "not before it was ready so long");
    let asked = Asked::Extension { by: 60 * SECOND };
    let extended = Line::Asked {
        student: ada(),
        generation: 1,
        asked,
        sent: stamp(5),
        answered: stamp(6),
        answer: Answer::Acked,
    };
    assert_eq!(violations(vec![extended], &life(24, 30)), [early(30, 65)]);
    let refused = input(25, 25, Answer::Refused("WORKSPACE_NOT_RUNNING".into()));
    assert_eq!(violations(vec![acked(10), refused], &life(24, 30)), []);
    assert_eq!(
        violations(vec![acked(10), input(25, 27, Answer::Unknown("gone".into()))], &life(24, 30)),
        [],
        "it may not have been recorded"
    );
}

#[test]
fn input_of_another_generation_does_not_count() {
    let mut second = acked(29);
    if let Line::Asked { generation, .. } = &mut second {
        *generation = 2;
    }
    assert_eq!(violations(vec![acked(10), second], &life(24, 30)), []);
}

#[test]
fn a_stop_needs_a_warning_that_stood_for_the_whole_lead() {
    let short = |lead: Option<i64>| {
        let lead = lead.map(|lead| lead * SECOND);
        Violation::ShortLead { student: ada(), at: 30 * SECOND, lead }
    };
    assert_eq!(violations(vec![acked(10)], &life(25, 30)), [short(Some(5))]);
    let mut withdrawn = life(24, 30);
    withdrawn.insert(3, told("warning_withdrawn", "", 25));
    assert_eq!(violations(vec![acked(10)], &withdrawn), [short(None)]);
    let mut unwarned = life(24, 30);
    unwarned.remove(2);
    assert_eq!(violations(vec![acked(10)], &unwarned), [short(None)]);
}

#[test]
fn a_lead_begins_anew_after_an_outage_of_the_database_and_a_step_of_its_clock() {
    let stale = |at: i64| vec![Violation::StaleLead { student: ada(), at: at * SECOND }];
    assert_eq!(violations(vec![acked(10), down("database", 25, 30)], &life(24, 40)), stale(40));
    assert_eq!(violations(vec![acked(10), down("replica 0", 25, 30)], &life(24, 40)), []);
    let set = Line::Set { clock: DATABASE.into(), at: stamp(25), off_by: 3600 };
    let again = Line::Set { clock: DATABASE.into(), at: stamp(25), off_by: 0 };
    assert_eq!(violations(vec![acked(10), again], &life(24, 30)), [], "it was not set");
    let mut events = life(24, 32);
    for event in &mut events[3..] {
        event.time += 3600 * SECOND;
    }
    assert_eq!(violations(vec![acked(10), set.clone()], &events), stale(32));
    let mut under_way = life(24, 30);
    for event in &mut under_way[3..] {
        event.time += 3600 * SECOND + SECOND / 5;
    }
    let set = Line::Set { clock: DATABASE.into(), at: stamp(30), off_by: 3600 };
    assert_eq!(violations(vec![acked(10), set], &under_way), [], "decided before, told after");
}

#[test]
fn lateness_is_what_no_outage_excuses() {
    let late = |middle: Vec<Line>, at| {
        let verdict = judge(&lines([vec![acked(10)], middle].concat()), &life(24, at));
        let all = [verdict.unexcused, verdict.excused].concat();
        (all[0] / SECOND, verdict.violations)
    };
    assert_eq!(late(vec![], 35), (5, vec![]));
    assert_eq!(late(vec![], 37), (7, vec![Violation::Late { excused: false, p99: 7 * SECOND }]));
    // 3 s, and 10 s.
    assert_eq!(late(vec![down("agent", 20, 23)], 43).0, 0);
    assert_eq!(late(vec![down("agent", 20, 23)], 47).0, 4);
    assert_eq!(late(vec![down("agent", 20, 23)], 49).1, [Violation::Late { excused: true, p99: 6 * SECOND }]);
    // Two at once count once.
    assert_eq!(late(vec![down("agent", 20, 23), down("replica 1", 21, 23)], 47).0, 4);
    // One before the last input excuses nothing, nor does one after.
    assert_eq!(late(vec![down("agent", -5, -1), down("agent", 60, 63)], 47).0, 17);
    // An input that may have been recorded may have moved the deadline.
    assert_eq!(late(vec![input(20, 25, Answer::Unknown("gone".into()))], 45).0, 0);
}

#[test]
fn a_stop_whose_whole_wait_was_calm_is_nobodys_excuse_and_each_strike_is_counted() {
    let set = |at, off_by| Line::Set { clock: DATABASE.into(), at: stamp(at), off_by };
    let calm = vec![down("replica 0", -20, -5), acked(10), down("agent 1", 31, 33), down("agent 0", 60, 61)];
    let verdict = judge(
        &lines([calm, vec![set(70, 0), set(71, 3600), set(72, 3600), set(73, 0)]].concat()),
        &life(24, 30),
    );
    assert_eq!((verdict.unexcused, verdict.excused), (vec![0], vec![]));
    let strikes: Vec<_> = verdict.strikes.iter().map(|(kind, count)| (kind.as_str(), *count)).collect();
    let database = ["database's clock set back", "database's clock set forward"];
    assert_eq!(strikes, [("agent killed", 2), (database[0], 1), (database[1], 1), ("replica killed", 1)]);
    let near = judge(&lines(vec![acked(10), down("replica 0", -3, 1)]), &life(24, 30));
    assert_eq!((near.unexcused, near.excused), (vec![], vec![0]), "its 10 s reach into the wait");
}

#[test]
fn a_job_holds_a_stop_back_for_as_long_as_it_asked_and_is_input_itself() {
    let job = |by: i64| Line::Asked {
        student: ada(),
        generation: 1,
        asked: Asked::Job { by: by * SECOND },
        sent: stamp(10),
        answered: stamp(10),
        answer: Answer::Acked,
    };
    assert_eq!(violations(vec![job(3)], &life(24, 30)), []);
    let early = Violation::Early { student: ada(), at: 30 * SECOND, due: 50 * SECOND };
    assert_eq!(violations(vec![job(40)], &life(24, 30)), [early]);
}

#[test]
fn who_is_neither_stopped_nor_asked_for_is_told() {
    let mut stuck = life(24, 30);
    stuck.truncate(4);
    assert_eq!(
        violations(vec![acked(10)], &stuck),
        [Violation::Stuck { student: ada(), last: "stopping".into() }]
    );
    let failed = [told("requested", "", 0), told("failed", "START_TIMEOUT", 30), told("stopped", "", 31)];
    let unasked = Violation::Unasked { student: ada(), what: "failed START_TIMEOUT".into() };
    assert_eq!(violations(vec![], &failed), [unasked]);
}

#[test]
fn an_event_is_timed_by_the_setting_of_the_clock_that_it_fits() {
    let set = |at, off_by| Line::Set { clock: DATABASE.into(), at: stamp(at), off_by };
    let mut events = life(24, 30);
    events[2].time += 3600 * SECOND;
    let verdict = judge(&lines(vec![acked(10), set(12, 3600), set(28, 0)]), &events);
    // The warning stood at 24, before the clock was set right.
    assert_eq!(verdict.violations, [Violation::StaleLead { student: ada(), at: 30 * SECOND }]);
    events[2].time += 3600 * SECOND;
    let untimed = Violation::Untimed { student: ada(), kind: "warning".into() };
    assert!(violations(vec![acked(10), set(12, 3600)], &events).contains(&untimed));
}

#[test]
fn a_log_without_an_end_or_under_a_clock_that_was_set_judges_nothing() {
    let unusable = |lines: &[Line]| {
        let verdict = judge(lines, &life(24, 30));
        assert!(matches!(verdict.violations[..], [Violation::Unusable(_)]), "{verdict:?}");
    };
    unusable(&[begun(), acked(10)]);
    let set = Line::Over { at: Stamp { wall: WALL + 300 * SECOND, ..stamp(200) } };
    unusable(&[begun(), acked(10), set]);
    let verdict = judge(&lines(vec![acked(10)]), &[]);
    assert!(matches!(verdict.violations[..], [Violation::Unusable(_)]), "an empty event log proves nothing");
}
