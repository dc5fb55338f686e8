//! What is done to the fleet meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use integration_tests::chance::Chance;
use integration_tests::inputs::{DATABASE, Line, Log, Stamp};
use integration_tests::rig::Rig;

/// Further apart than a run is long, so that the judge can tell by an event's time which of them was in force; and a step
/// from one end to the other no longer than the hour that an idle clock stands still at most.
const STEPS: [i64; 3] = [-1750, 0, 1750];

/// One strike.
#[derive(Clone, Copy, Debug)]
pub(super) enum Strike {
    /// Killed, and started again after this long.
    Replica(usize, Duration),
    /// The same of a host's agent.
    Agent(usize, Duration),
    /// The same of the database.
    Postgres(Duration),
    /// A replica's clock is off by so many seconds from then on.
    ReplicaClock(usize, i64),
    /// The same of a host's agent.
    AgentClock(usize, i64),
    /// The same of the database.
    DatabaseClock(i64),
}

/// What the log has to tell of after every run.
pub(super) const EACH_KIND: [&str; 7] = [
    "replica killed",
    "agent killed",
    "database killed",
    "replica's clock set",
    "agent's clock set",
    "database's clock set forward",
    "database's clock set back",
];

/// What the log calls a host's agent.
pub(super) fn agent(host: usize) -> String {
    format!("agent {host}")
}

/// Strikes are drawn from it like cards, so that each kind comes as often as any other; and no clock is set to what it shows.
#[derive(Debug)]
pub(super) struct Deck {
    replicas: usize,
    hosts: usize,
    left: Vec<usize>,
    /// How far each clock is off, by kind and index.
    offs: BTreeMap<(usize, usize), i64>,
}

impl Deck {
    /// For a fleet of this size.
    pub(super) fn new(replicas: usize, hosts: usize) -> Self {
        Self { replicas, hosts, left: vec![], offs: BTreeMap::new() }
    }

    /// The next one.
    pub(super) fn draw(&mut self, chance: &mut Chance) -> Strike {
        if self.left.is_empty() {
            self.left = (0..7).collect();
        }
        let kind = self.left.swap_remove(chance.below(self.left.len()));
        let dead_for = chance.millis(0..5000);
        let (replica, host) = (chance.below(self.replicas), chance.below(self.hosts));
        match kind {
            0 => Strike::Replica(replica, dead_for),
            1 => Strike::Agent(host, dead_for),
            2 => Strike::Postgres(dead_for),
            3 => Strike::ReplicaClock(replica, self.another_time(chance, (kind, replica))),
            4 => Strike::AgentClock(host, self.another_time(chance, (kind, host))),
            // Silent for so long that the clock of its desks stands still.
            5 => Strike::Agent(host, chance.millis(14_000..18_000)),
            _ => Strike::DatabaseClock(self.another_time(chance, (kind, 0))),
        }
    }

    fn another_time(&mut self, chance: &mut Chance, clock: (usize, usize)) -> i64 {
        let off_by = self.offs.entry(clock).or_default();
        let others: Vec<_> = STEPS.into_iter().filter(|step| step != off_by).collect();
        *off_by = chance.one_of(&others);
        *off_by
    }
}

impl Strike {
    /// How long it lasts at least.
    pub(super) fn dead_for(&self) -> Duration {
        match self {
            Self::Replica(_, dead_for) | Self::Agent(_, dead_for) | Self::Postgres(dead_for) => *dead_for,
            Self::ReplicaClock(..) | Self::AgentClock(..) | Self::DatabaseClock(_) => Duration::ZERO,
        }
    }

    /// Does it, writes it down, and returns when the fleet is whole again.
    pub(super) async fn carry_out(&self, rig: &mut Rig, log: &Log) {
        eprintln!(
            "{:>6.1} s: {self:?}",
            Duration::from_micros(log.stamp().at.try_into().unwrap()).as_secs_f64()
        );
        let from = log.stamp();
        let down = |what: String, from: Stamp| log.write(&Line::Down { what, from, to: log.stamp() });
        let set = |clock: String, off_by: i64| log.write(&Line::Set { clock, at: log.stamp(), off_by });
        match *self {
            Self::Replica(index, dead_for) => {
                rig.replica(index).kill();
                tokio::time::sleep(dead_for).await;
                rig.replica(index).start().await;
                down(format!("replica {index}"), from);
            }
            Self::Agent(host, dead_for) => {
                let before = rig.sessions_of(host).await;
                rig.host(host).kill_agent();
                tokio::time::sleep(dead_for).await;
                rig.host(host).spawn_agent();
                down(agent(host), from);
                rig.wait_for_agent(host, before).await;
            }
            Self::Postgres(dead_for) => {
                rig.postgres().kill();
                tokio::time::sleep(dead_for).await;
                rig.postgres().start_again().await;
                down(DATABASE.into(), from);
            }
            Self::ReplicaClock(index, off_by) => {
                rig.replica(index).clock().set(off_by);
                set(format!("replica {index}"), off_by);
            }
            Self::AgentClock(host, off_by) => {
                rig.host(host).clock().set(off_by);
                set(agent(host), off_by);
            }
            Self::DatabaseClock(off_by) => {
                rig.postgres().clock().set(off_by);
                set(DATABASE.into(), off_by);
            }
        }
    }
}
