//! Examples of what is and is not given up, and the law that nothing is while it may still run.

use proptest::prelude::*;

use super::*;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

const TERMS: LeaseTerms = LeaseTerms {
    fence_after: Duration::from_secs(600),
    stop_budget: Duration::from_secs(30),
    margin: Duration::from_secs(60),
    replace_after: Duration::from_secs(690),
};

fn node(n: u128) -> NodeId {
    NodeId(uuid::Uuid::from_u128(n))
}

fn renewals(count: i64) -> Renewals {
    Renewals { boot_epoch: 1, session_epoch: 1, count }
}

fn silent(n: u128) -> Seen {
    Seen {
        node: node(n),
        state: NodeState::Unreachable,
        renewals: renewals(7),
        promised: Some(TERMS.promised()),
    }
}

fn ready(n: u128) -> Seen {
    Seen { state: NodeState::Ready, ..silent(n) }
}

/// Looks each 5 s until `to` and at it; what the last look found.
fn watch(watcher: &mut Watcher, from: u64, to: u64, timeline: &str, nodes: &[Seen]) -> Findings {
    let mut found = Findings::default();
    for at in (from..to).step_by(5).chain([to]) {
        found = watcher.take(seconds(at), timeline, nodes);
    }
    found
}

fn due(nodes: &[Seen]) -> Findings {
    Findings { due: nodes.iter().map(|seen| (seen.node, seen.renewals)).collect(), held: vec![] }
}

#[test]
fn a_node_is_given_up_once_it_was_seen_to_stand_still_for_long_enough() {
    let mut watcher = Watcher::new(TERMS);
    assert_eq!(watch(&mut watcher, 1000, 1689, "1", &[silent(1), ready(2)]), Findings::default());
    assert_eq!(watch(&mut watcher, 1690, 1690, "1", &[silent(1), ready(2)]), due(&[silent(1)]));
}

#[test]
fn what_the_replica_did_not_see_counts_as_nothing() {
    for (gap, given_up) in [(14, true), (15, true), (16, false)] {
        let mut watcher = Watcher::new(TERMS);
        watch(&mut watcher, 0, 600, "1", &[silent(1)]);
        assert_eq!(
            watch(&mut watcher, 600 + gap, 700, "1", &[silent(1)]) == due(&[silent(1)]),
            given_up,
            "{gap} s away"
        );
    }
}

#[test]
fn another_timeline_of_the_database_begins_the_watch_anew() {
    let mut watcher = Watcher::new(TERMS);
    watch(&mut watcher, 0, 600, "1", &[silent(1)]);
    assert_eq!(watch(&mut watcher, 605, 1294, "2", &[silent(1)]), Findings::default());
    assert_eq!(watch(&mut watcher, 1295, 1295, "2", &[silent(1)]), due(&[silent(1)]));
}

#[test]
fn any_change_of_the_counter_begins_the_watch_anew_also_a_step_back() {
    let changes = [
        Renewals { count: 8, ..renewals(7) },
        Renewals { count: 6, ..renewals(7) },
        Renewals { session_epoch: 2, ..renewals(7) },
        Renewals { boot_epoch: 2, ..renewals(7) },
    ];
    for renewals in changes {
        let mut watcher = Watcher::new(TERMS);
        watch(&mut watcher, 0, 685, "1", &[silent(1)]);
        let changed = Seen { renewals, ..silent(1) };
        assert_eq!(watch(&mut watcher, 690, 1379, "1", &[changed]), Findings::default(), "{renewals:?}");
        assert_eq!(watch(&mut watcher, 1380, 1380, "1", &[changed]), due(&[changed]));
    }
}

#[test]
fn what_the_agent_was_told_counts_and_one_that_was_told_nothing_is_left_alone() {
    let mut watcher = Watcher::new(TERMS);
    let long = Seen { promised: Some(seconds(3000)), ..silent(1) };
    let never = Seen { promised: None, ..silent(2) };
    assert_eq!(watch(&mut watcher, 0, 3059, "1", &[long, never]), Findings::default());
    assert_eq!(watch(&mut watcher, 3060, 3060, "1", &[long, never]), due(&[long]));
}

#[test]
fn a_node_that_falls_silent_before_its_first_heartbeat_is_given_up_like_any_other() {
    let greeted = Seen { renewals: renewals(0), ..silent(1) };
    let mut watcher = Watcher::new(TERMS);
    assert_eq!(watch(&mut watcher, 0, 690, "1", &[greeted]), due(&[greeted]));
}

#[test]
fn many_silent_nodes_at_once_are_our_own_fault_until_fewer_are() {
    for (silent, of, outage) in [
        (2, 2, false),
        (3, 3, true),
        (3, 9, true),
        (3, 10, false),
        (4, 13, true),
        (30, 100, false),
        (31, 100, true),
    ] {
        assert_eq!(is_outage(silent, of), outage, "{silent} of {of}");
    }
    let mut watcher = Watcher::new(TERMS);
    let all = [silent(1), silent(2), silent(3), ready(4)];
    let held = Findings { due: vec![], held: vec![node(1), node(2), node(3)] };
    assert_eq!(watch(&mut watcher, 0, 5000, "1", &all), held);
    let fewer = [silent(1), silent(2), ready(3), ready(4)];
    assert_eq!(watch(&mut watcher, 5005, 5005, "1", &fewer), due(&[silent(1), silent(2)]));
}

#[test]
fn nodes_that_were_given_up_or_never_heard_of_make_no_outage() {
    let mut watcher = Watcher::new(TERMS);
    let fenced = |n| Seen { state: NodeState::Fenced, ..silent(n) };
    let never = |n| Seen { renewals: renewals(0), promised: None, ..silent(n) };
    let nodes = [fenced(1), fenced(2), fenced(3), never(4), never(5), never(6), silent(7), ready(8)];
    assert_eq!(watch(&mut watcher, 0, 690, "1", &nodes), due(&[silent(7)]));
}

/// One thing that happens, after so many milliseconds.
#[derive(Debug, Clone)]
enum Happening {
    /// The agent sends a heartbeat, which is committed so much later, and whose ack comes another so much later, if at all.
    Beat { commits_in: u64, acked_in: Option<u64> },
    /// The replica looks.
    Look,
}

fn happening() -> impl Strategy<Value = (u64, Happening)> {
    let beat = (0..40_000_u64, proptest::option::of(0..40_000_u64))
        .prop_map(|(commits_in, acked_in)| Happening::Beat { commits_in, acked_in });
    prop_oneof![
        (0..400_000_u64, beat),
        // Mostly as often as it should, now and then after a pause.
        (0..14_000_u64, Just(Happening::Look)),
        (0..14_000_u64, Just(Happening::Look)),
        (0..30_000_u64, Just(Happening::Look)),
    ]
}

proptest! {
    /// Whatever is delayed or lost between agent, database and replica: a node is given up only when everything on it has ended, by
    /// a clock that is as much as the margin slower.
    #[test]
    fn nothing_is_given_up_while_it_may_still_run(
        history in proptest::collection::vec(happening(), 1..400),
        terms in (1..60_u64, 1..20_u64, 1..20_u64, 0..50_u64).prop_map(|(f, s, m, more)| LeaseTerms {
            fence_after: seconds(f), stop_budget: seconds(s), margin: seconds(m), replace_after: seconds(f + s + m + more),
        }),
    ) {
        let mut now = 0_u64;
        let mut watcher = Watcher::new(terms);
        // (committed at, sent at, acked at)
        let mut beats: Vec<(u64, u64, Option<u64>)> = Vec::new();
        for (passes, what) in history {
            now += passes;
            match what {
                Happening::Beat { commits_in, acked_in } => {
                    let committed = now + commits_in;
                    // A session's heartbeats are committed in the order they were sent.
                    if beats.last().is_none_or(|(last, ..)| *last <= committed) {
                        beats.push((committed, now, acked_in.map(|after| committed + after)));
                    }
                }
                Happening::Look => {
                    let count = beats.iter().filter(|(committed, ..)| *committed <= now).count();
                    let renewals = renewals(i64::try_from(count).expect("few"));
                    let seen = Seen { renewals, promised: Some(terms.promised()), ..silent(1) };
                    if watcher.take(Duration::from_millis(now), "1", &[seen]).due.is_empty() {
                        continue;
                    }
                    // What the agent counts from: the sending of the last heartbeat whose ack it has, or will have.
                    let counted_from = beats.iter().take(count).filter(|(.., acked)| acked.is_some()).map(|(_, sent, _)| *sent).max();
                    if let Some(sent) = counted_from {
                        let ended = Duration::from_millis(sent) + terms.promised();
                        prop_assert!(ended + terms.margin <= Duration::from_millis(now), "ends at {ended:?}, given up at {now} ms");
                    }
                    // And never before its time, whatever the agent counts from.
                    let last = beats.iter().take(count).map(|(committed, ..)| *committed).max().unwrap_or(0);
                    prop_assert!(Duration::from_millis(now - last) >= terms.replace_after);
                }
            }
        }
    }
}
