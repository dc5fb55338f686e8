use super::super::{Answer, Asked, DATABASE, Stamp};
use super::*;

/// When the machine's clock says the tests began.
const WALL: i64 = 1_800_000_000 * SECOND;

fn stamp(seconds: i64) -> Stamp {
    Stamp { at: seconds * SECOND, wall: WALL + seconds * SECOND }
}

fn begun() -> Line {
    let (idle_timeout, warning_lead, unreachable_after) = (20 * SECOND, 6 * SECOND, 8 * SECOND);
    let nodes =
        [("agent 0", "nodes/0"), ("agent 1", "nodes/1")].map(|(agent, node)| (agent.into(), node.into()));
    Line::Begun { at: stamp(0), idle_timeout, warning_lead, unreachable_after, nodes: nodes.into() }
}

fn over(at: i64) -> Line {
    Line::Over { at: stamp(at) }
}

fn input(sent: i64, answered: i64, answer: Answer) -> Line {
    let asked = Asked::Input { signal: "LMS_INPUT".into(), age: 0 };
    let (sent, answered) = (stamp(sent), stamp(answered));
    Line::Asked { student: "ada".into(), generation: 1, asked, sent, answered, answer }
}

fn refused(at: i64) -> Line {
    input(at, at, Answer::Refused("WORKSPACE_NOT_RUNNING".into()))
}

fn asked(at: i64, asked: Asked) -> Line {
    let (sent, answered, answer) = (stamp(at), stamp(at), Answer::Acked);
    Line::Asked { student: "ada".into(), generation: 1, asked, sent, answered, answer }
}

fn touched(at: i64) -> Line {
    asked(at, Asked::Touch)
}

fn acked(at: i64) -> Line {
    input(at, at, Answer::Acked)
}

fn down(what: &str, from: i64, to: i64) -> Line {
    Line::Down { what: what.into(), from: stamp(from), to: stamp(to) }
}

fn told(kind: &str, reason: &str, at: i64) -> Told {
    let version = if kind.starts_with("warning") { 7 } else { 0 };
    let (student, kind, reason, node) = ("ada".into(), kind.into(), reason.into(), "nodes/0".into());
    Told { student, kind, reason, generation: 1, node, version, time: WALL + at * SECOND }
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
        [moved_on(30, 24), early(30, 51)],
        "acked behind the stop's back"
    );
    assert_eq!(violations(vec![], &life(14, 20)), [early(20, 21)], "not before it was ready so long");
    let extended = asked(5, Asked::Extension { by: 60 * SECOND });
    assert_eq!(violations(vec![extended], &life(24, 30)), [early(30, 65)]);
    assert_eq!(
        violations(vec![acked(10), input(25, 27, Answer::Unknown("gone".into()))], &life(24, 30)),
        [],
        "it may not have been recorded"
    );
}

fn moved_on(at: i64, warned: i64) -> Violation {
    Violation::MovedOn { student: ada(), at: at * SECOND, warned: warned * SECOND }
}

#[test]
fn a_stop_by_a_warning_that_was_given_before_the_deadline_moved_is_none_however_old_it_is() {
    // From 24 to 45 there were three leads.
    assert_eq!(violations(vec![acked(10), acked(25)], &life(24, 45)), [moved_on(45, 24)]);
    let job = |by: i64| asked(25, Asked::Job { by: by * SECOND });
    assert_eq!(violations(vec![acked(10), job(1)], &life(24, 45)), [moved_on(45, 24)]);
    let extension = |by: i64| asked(25, Asked::Extension { by: by * SECOND });
    assert_eq!(violations(vec![acked(10), extension(10)], &life(24, 35)), [moved_on(35, 24)]);
    assert_eq!(violations(vec![acked(10), extension(4)], &life(24, 30)), [], "it moved nothing");
    assert_eq!(violations(vec![acked(10), touched(25)], &life(24, 45)), [moved_on(45, 24)]);
    let mut anew = life(24, 45);
    anew.splice(3..3, [told("warning_withdrawn", "IDLE", 25), told("warning", "IDLE", 39)]);
    assert_eq!(violations(vec![acked(10), acked(25)], &anew), []);
}

#[test]
fn a_warning_ends_by_a_withdrawal_that_names_its_deadline() {
    let wrong = |at: i64| [Violation::Withdrawal { student: ada(), at: at * SECOND }];
    let mut twice = life(24, 45);
    twice.insert(3, told("warning", "IDLE", 39));
    assert_eq!(violations(vec![acked(10), acked(25)], &twice), wrong(39));
    let mut another = life(24, 45);
    another.splice(3..3, [told("warning_withdrawn", "IDLE", 25), told("warning", "IDLE", 39)]);
    another[3].version = 8;
    assert_eq!(violations(vec![acked(10), acked(25)], &another), wrong(25));
    let mut none = life(24, 30);
    none.insert(2, told("warning_withdrawn", "IDLE", 20));
    assert_eq!(violations(vec![acked(10)], &none), wrong(20));
}

#[test]
fn only_one_whose_desk_was_stopped_is_refused() {
    let wrong = |at: i64| [Violation::Refused { student: ada(), at: at * SECOND }];
    assert_eq!(violations(vec![acked(10), refused(25)], &life(24, 30)), wrong(25));
    assert_eq!(violations(vec![acked(10), refused(30), refused(31)], &life(24, 30)), []);
    let mut pressed = life(24, 26);
    pressed[3].reason = "USER".into();
    assert_eq!(violations(vec![acked(10), refused(27)], &pressed), []);
    let kept = kept_then_stopped();
    assert_eq!(violations(vec![acked(10), touched(29), refused(30)], &kept), []);
    assert_eq!(violations(vec![acked(10), touched(29), refused(33)], &kept), wrong(33));
}

/// Stopped at 30, which its node refuses at 31, and at 51.
fn kept_then_stopped() -> Vec<Told> {
    let mut events = life(24, 51);
    let kept = [told("stopping", "IDLE", 30), told("stop_refused", "IDLE", 31), told("warning", "IDLE", 44)];
    events.splice(3..3, kept);
    events
}

#[test]
fn a_touch_that_the_control_plane_cannot_know_of_is_the_nodes_to_refuse_for() {
    let kept = kept_then_stopped();
    let verdict = judge(&lines(vec![acked(10), touched(29)]), &kept);
    assert_eq!((verdict.violations, verdict.unexcused), (vec![], vec![2 * SECOND]));
    let unasked = Violation::Unasked { student: ada(), what: "stop_refused IDLE".into() };
    assert!(violations(vec![acked(10)], &kept).contains(&unasked), "for nothing");
    assert!(violations(vec![touched(10)], &kept).contains(&unasked), "for what it had told");
    let found = violations(vec![acked(10), acked(29), touched(29)], &kept);
    assert!(found.contains(&moved_on(30, 24)), "what was acked it knew of: {found:?}");
    let extended = asked(35, Asked::Extension { by: 10 * SECOND });
    assert_eq!(violations(vec![acked(10), touched(29), extended], &kept), [], "that came behind it");
    let early = |due: i64| Violation::Early { student: ada(), at: 30 * SECOND, due: due * SECOND };
    assert_eq!(violations(vec![acked(10), touched(20)], &life(24, 30)), [early(40)]);
    assert_eq!(violations(vec![acked(10), touched(31)], &life(24, 30)), [], "its node was at it");
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
    withdrawn.insert(3, told("warning_withdrawn", "IDLE", 25));
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
    assert_eq!(
        violations(vec![acked(10), down("agent 0", 25, 38)], &life(24, 50)),
        stale(50),
        "its node was silent"
    );
    assert_eq!(violations(vec![acked(10), down("agent 0", 25, 33)], &life(24, 40)), [], "not for long");
    let anothers = vec![acked(10), down("agent 1", 25, 38), down("replica 0", 25, 30)];
    assert_eq!(violations(anothers, &life(24, 40)), []);
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
fn the_clock_stands_still_while_nobody_can_be_seen() {
    let early = |at, due| [Violation::Early { student: ada(), at: at * SECOND, due: due * SECOND }];
    let stopped = |middle: Line, at| violations(vec![acked(5), middle], &life(at - 6, at));
    // Five seconds, less the one that is between two signs of life.
    assert_eq!(stopped(down("database", 10, 15), 28), early(28, 29));
    assert_eq!(stopped(down("database", 10, 15), 29), []);
    assert_eq!(stopped(down("database", 20, 30), 33), early(33, 34), "also while it would have been due");
    assert_eq!(stopped(down("database", 10, 13), 25), [], "it may not have been noticed");
    assert_eq!(stopped(down("replica 0", 10, 15), 25), []);
    assert_eq!(stopped(down("agent 0", 8, 22), 34), early(34, 35));
    assert_eq!(stopped(down("agent 1", 8, 22), 25), []);
    assert_eq!(
        violations(vec![down("database", 10, 15)], &life(18, 24)),
        early(24, 25),
        "since it was ready, too"
    );
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
    // 3 s, and until 10 s after it.
    assert_eq!(late(vec![down("agent 0", 27, 30)], 43).0, 0);
    assert_eq!(late(vec![down("agent 0", 27, 30)], 47).0, 4);
    assert_eq!(
        late(vec![down("agent 0", 27, 30)], 49).1,
        [Violation::Late { excused: true, p99: 6 * SECOND }]
    );
    // Two at once count once.
    assert_eq!(late(vec![down("agent 0", 27, 30), down("replica 1", 28, 30)], 47).0, 4);
    // Long before the last lead it takes its own length, and the signs of life around it; a replica, of which there are more, nothing.
    assert_eq!(late(vec![down("database", 11, 13)], 36).0, 2);
    assert_eq!(late(vec![down("replica 0", 11, 13)], 36).0, 6);
    // One before the last input, one after the stop, one of another host, and a clock that nothing goes by excuse nothing.
    let other_clocks =
        ["replica 0", "agent 0"].map(|clock| Line::Set { clock: clock.into(), at: stamp(28), off_by: 9 });
    let elsewhere = vec![down("agent 0", -5, -1), down("agent 0", 60, 63), down("agent 1", 27, 30)];
    assert_eq!(late([elsewhere, other_clocks.into()].concat(), 47).0, 17);
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
    let near = judge(&lines(vec![acked(10), down("replica 0", 14, 15)]), &life(24, 30));
    assert_eq!((near.unexcused, near.excused), (vec![], vec![0]), "its 10 s reach into the last lead");
}

#[test]
fn a_job_holds_a_stop_back_for_as_long_as_it_asked_and_is_input_itself() {
    let job = |by: i64| asked(10, Asked::Job { by: by * SECOND });
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
