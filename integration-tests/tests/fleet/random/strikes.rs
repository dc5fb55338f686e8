//! What is done to the fleet meanwhile.

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

impl Strike {
    /// Any of them.
    pub(super) fn draw(chance: &mut Chance, replicas: usize, hosts: usize) -> Self {
        let dead_for = chance.millis(0..5000);
        let off_by = chance.one_of(&STEPS);
        match chance.below(6) {
            0 => Self::Replica(chance.below(replicas), dead_for),
            1 => Self::Agent(chance.below(hosts), dead_for),
            2 => Self::Postgres(dead_for),
            3 => Self::ReplicaClock(chance.below(replicas), off_by),
            4 => Self::AgentClock(chance.below(hosts), off_by),
            _ => Self::DatabaseClock(off_by),
        }
    }

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
                down(format!("agent {host}"), from);
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
                set(format!("agent {host}"), off_by);
            }
            Self::DatabaseClock(off_by) => {
                rig.postgres().clock().set(off_by);
                set(DATABASE.into(), off_by);
            }
        }
    }
}
