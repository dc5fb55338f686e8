//! The verdict, and every order in which agents that obey it can read, write, lag and be late.

use std::collections::BTreeSet;

use carrel_common::id::Generation;
use proptest::prelude::*;

use super::*;

fn token(incarnation: i64, generation: i64, placement: u8) -> Token {
    let placement = format!("{placement:032x}").parse().expect("a UUID");
    Token { pair: Pair { incarnation, generation: Generation(generation) }, placement: Some(placement) }
}

fn any_token() -> impl Strategy<Value = Token> {
    (0..3_i64, 0..4_i64, 0..3_u8).prop_map(|(i, g, p)| token(i, g, p))
}

fn is_fenced(own: &Token, found: &Token) -> bool {
    matches!(verdict(own, Some(found)), Verdict::Fenced(_))
}

proptest! {
    #[test]
    fn of_two_containers_at_least_one_gives_way_and_the_later_never_to_the_earlier(
        a in any_token(), b in any_token()
    ) {
        if a == b {
            prop_assert_eq!(verdict(&a, Some(&b)), Verdict::Ours);
        } else {
            prop_assert!(is_fenced(&a, &b) || is_fenced(&b, &a));
            prop_assert_eq!(is_fenced(&a, &b), a.pair <= b.pair);
        }
    }

    #[test]
    fn what_fenced_it_is_told_and_is_never_earlier(own in any_token(), found in any_token()) {
        if let Verdict::Fenced(later) = verdict(&own, Some(&found)) {
            prop_assert_eq!(later, found);
            prop_assert!(later.pair >= own.pair);
        }
    }
}

#[test]
fn the_incarnation_counts_before_the_generation() {
    assert_eq!(verdict(&token(2, 1, 1), Some(&token(1, 9, 2))), Verdict::Write);
    let fenced = Verdict::Fenced(token(2, 1, 2));
    assert_eq!(verdict(&token(1, 9, 1), Some(&token(2, 1, 2))), fenced);
}

#[test]
fn without_a_file_there_is_nothing_to_give_way_to() {
    assert_eq!(verdict(&token(1, 1, 1), None), Verdict::Write);
}

#[test]
fn a_container_from_before_that_label_is_known_by_its_pair() {
    let (labelled, old) = (token(1, 5, 1), Token { placement: None, ..token(1, 5, 1) });
    assert_eq!(verdict(&old, Some(&labelled)), Verdict::Ours);
    assert_eq!(verdict(&labelled, Some(&old)), Verdict::Write, "from now on with its placement");
    assert!(is_fenced(&old, &token(1, 6, 2)));
}

/// Where an agent is with its container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum At {
    /// About to read, before the start.
    Looking,
    /// About to write, before the start.
    Saying,
    /// The container runs; about to read.
    Running,
    /// The container runs; about to write again.
    Insisting,
    /// Not started, or stopped, for what the file says.
    Fenced,
    /// Not started, as its write did not come back.
    GivenUp,
}

impl At {
    fn runs(self) -> bool {
        matches!(self, Self::Running | Self::Insisting)
    }
}

/// The share, and agents that each have one container of the same student.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct World {
    file: Option<Token>,
    at: Vec<At>,
    /// A write that its agent has given up and that may still arrive.
    late: Vec<bool>,
}

impl World {
    /// One step of agent `i` as the program does it.
    fn step(&self, own: &[Token], i: usize) -> Self {
        let mut next = self.clone();
        let read = || verdict(&own[i], self.file.as_ref());
        next.at[i] = match self.at[i] {
            At::Looking => match read() {
                Verdict::Ours => At::Running,
                Verdict::Write => At::Saying,
                Verdict::Fenced(_) => At::Fenced,
            },
            At::Running => match read() {
                Verdict::Ours => At::Running,
                Verdict::Write => At::Insisting,
                Verdict::Fenced(_) => At::Fenced,
            },
            At::Saying => {
                next.file = Some(own[i]);
                At::Looking
            }
            At::Insisting => {
                next.file = Some(own[i]);
                At::Running
            }
            at @ (At::Fenced | At::GivenUp) => at,
        };
        next
    }

    /// What the share's hanging adds: a write is given up, and arrives at any later time.
    fn mishaps(&self, own: &[Token], i: usize) -> Vec<Self> {
        let mut all = Vec::new();
        let given_up = match self.at[i] {
            At::Saying => Some(At::GivenUp),
            At::Insisting => Some(At::Running),
            At::Looking | At::Running | At::Fenced | At::GivenUp => None,
        };
        if let Some(at) = given_up {
            let mut next = self.clone();
            (next.at[i], next.late[i]) = (at, true);
            all.push(next);
        }
        if self.late[i] {
            let mut next = self.clone();
            (next.file, next.late[i]) = (Some(own[i]), false);
            all.push(next);
        }
        all
    }

    fn running(&self) -> Vec<usize> {
        (0..self.at.len()).filter(|i| self.at[*i].runs()).collect()
    }
}

/// Every state that can be reached from a share that holds `file`.
fn reachable(own: &[Token], file: Option<Token>) -> BTreeSet<World> {
    let first = World { file, at: vec![At::Looking; own.len()], late: vec![false; own.len()] };
    let (mut seen, mut open) = (BTreeSet::from([first.clone()]), vec![first]);
    while let Some(world) = open.pop() {
        for i in 0..own.len() {
            let nexts = world.mishaps(own, i).into_iter().chain([world.step(own, i)]);
            for next in nexts {
                if seen.insert(next.clone()) {
                    open.push(next);
                }
            }
        }
    }
    seen
}

/// Whatever can come of one more look by everybody, in any order; a look goes on until it has written what it has to.
fn after_one_look_by_each(own: &[Token], worlds: BTreeSet<World>) -> BTreeSet<World> {
    // With each world, who has still to begin, and who is amid its look.
    let all = (0..own.len()).collect::<BTreeSet<usize>>();
    let mut open: Vec<_> = worlds.into_iter().map(|world| (world, all.clone(), BTreeSet::new())).collect();
    let (mut seen, mut ends) = (open.iter().cloned().collect::<BTreeSet<_>>(), BTreeSet::new());
    while let Some((world, to_begin, amid)) = open.pop() {
        if to_begin.is_empty() && amid.is_empty() {
            ends.insert(world);
            continue;
        }
        for i in to_begin.union(&amid).copied().collect::<Vec<_>>() {
            let next = world.step(own, i);
            let (mut to_begin, mut amid) = (to_begin.clone(), amid.clone());
            to_begin.remove(&i);
            let over = !matches!(next.at[i], At::Looking | At::Saying | At::Insisting);
            if over {
                amid.remove(&i)
            } else {
                amid.insert(i)
            };
            let state = (next, to_begin, amid);
            if seen.insert(state.clone()) {
                open.push(state);
            }
        }
    }
    ends
}

/// How many looks by everybody may pass until only one runs: the first may end a write that was under way, the second says what
/// that write covered, the third reads it.
const LOOKS: usize = 3;

fn no_order_leaves_two_running(own: &[Token], file: Option<Token>) {
    let latest = own.iter().map(|token| token.pair).max();
    let reached = reachable(own, file);
    assert!(reached.iter().any(|world| world.running().len() > 1), "two do run for a while");
    for (i, own_token) in own.iter().enumerate() {
        let alone = own.iter().filter(|other| other.pair == own_token.pair).count() == 1;
        if alone && Some(own_token.pair) == latest {
            assert!(reached.iter().all(|world| world.at[i] != At::Fenced), "the latest gave way");
        }
    }
    let mut worlds: BTreeSet<_> = reached.into_iter().filter(|world| !world.late.contains(&true)).collect();
    for _ in 0..LOOKS {
        worlds = after_one_look_by_each(own, worlds);
    }
    for world in worlds {
        assert!(world.running().len() <= 1, "{own:?} ends with {world:?}");
    }
}

#[test]
fn no_order_of_reads_and_writes_leaves_two_running() {
    let (first, second, twin, latest) = (token(1, 5, 1), token(1, 6, 2), token(1, 6, 3), token(2, 1, 4));
    for file in [None, Some(token(1, 4, 9)), Some(first)] {
        no_order_leaves_two_running(&[first, second], file);
        no_order_leaves_two_running(&[second, twin], file);
        no_order_leaves_two_running(&[second, latest], file);
    }
    no_order_leaves_two_running(&[first, second, twin], None);
}
