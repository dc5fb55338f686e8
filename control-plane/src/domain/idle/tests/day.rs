//! One day of a course of 500 in virtual time: who is warned and who is stopped when, as a table.

use super::*;

/// A small generator, so that the day is the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: i64) -> i64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        i64::try_from(self.0 >> 33).unwrap_or_default() % below
    }
}

#[derive(Default, Clone, Copy)]
struct Hour {
    started: u32,
    warned: u32,
    withdrawn: u32,
    stopped: u32,
    shortest_idle: Option<i64>,
}

/// The seconds of the day at which a student gives input: a few sittings, each with pauses of thought.
fn inputs(dice: &mut Dice) -> Vec<i64> {
    let mut all = Vec::new();
    for _ in 0..1 + dice.roll(3) {
        let mut at = 8 * 3600 + dice.roll(12 * 3600);
        for _ in 0..20 + dice.roll(100) {
            all.push(at);
            // Mostly seconds, sometimes a coffee, rarely a lunch.
            at += match dice.roll(100) {
                0 => 1200 + dice.roll(2400),
                1..5 => 600 + dice.roll(400),
                _ => 5 + dice.roll(90),
            };
        }
    }
    all.sort_unstable();
    all
}

#[test]
fn a_day_of_a_course_of_five_hundred() {
    let mut dice = Dice(2026);
    let mut hours = [Hour::default(); 30];
    let hour = |seconds: i64| usize::try_from(seconds / 3600).unwrap_or_default();
    for _ in 0..500 {
        let mut desk = Desk::new();
        // Nobody has started it yet.
        desk.workspace.ready_at = None;
        let mut inputs = inputs(&mut dice).into_iter().peekable();
        let mut look_at = None;
        loop {
            let input = inputs.peek().copied();
            let Some(now) = [input, look_at].into_iter().flatten().min() else { break };
            if input == Some(now) {
                inputs.next();
                if desk.workspace.ready_at.is_none() {
                    desk.workspace.ready_at = Some(at(now));
                    desk.activity = Activity::default();
                    hours[hour(now)].started += 1;
                } else {
                    desk.types(now);
                }
            }
            look_at = match desk.decide(now) {
                Verdict::Unobservable | Verdict::Unheard => None,
                Verdict::Active { recheck_at } => Some((recheck_at - T0).whole_seconds()),
                Verdict::Warn { .. } => {
                    hours[hour(now)].warned += 1;
                    Some(now)
                }
                Verdict::Withdraw { .. } => {
                    hours[hour(now)].withdrawn += 1;
                    Some(now)
                }
                Verdict::Stop { evidence, .. } => {
                    let row = &mut hours[hour(now)];
                    row.stopped += 1;
                    let idle = (at(now) - evidence.basis_at).whole_seconds();
                    row.shortest_idle = Some(row.shortest_idle.map_or(idle, |known| known.min(idle)));
                    desk.workspace.ready_at = None;
                    desk.workspace.warning = None;
                    None
                }
            };
        }
    }
    let total = |field: fn(&Hour) -> u32| hours.iter().map(field).sum::<u32>();
    assert_eq!(total(|h| h.started), total(|h| h.stopped), "everything that was started was stopped");
    assert_eq!(total(|h| h.warned), total(|h| h.withdrawn) + total(|h| h.stopped), "a warning ends one way");
    let rows =
        hours.iter().enumerate().filter(|(_, h)| h.started + h.warned + h.stopped > 0).map(|(n, h)| {
            let idle = h.shortest_idle.map_or("-".to_owned(), |idle| format!("{idle} s"));
            format!(
                "{n:02}:00  {:7}  {:6}  {:9}  {:7}  {idle:>13}",
                h.started, h.warned, h.withdrawn, h.stopped
            )
        });
    let table =
        ["hour   started  warned  withdrawn  stopped  shortest idle".to_owned()].into_iter().chain(rows);
    insta::assert_snapshot!(table.collect::<Vec<_>>().join("\n"));
}
