//! Students who work as they like, over a fleet whose parts are killed and whose clocks are set, judged afterwards from
//! what the test itself wrote down and the event log: nobody was stopped early, or without the whole lead of a warning, or
//! late, and nobody is stuck.
//!
//! Strikes come in storms with a calm after each that is longer than what a strike excuses: else everybody who is stopped has
//! an excuse, and nothing is known of lateness. A run in which less than a third had none, or a kind of strike was missing,
//! fails.
//!
//! Half of them work in the editor: of their input only the agent knows, which sees it by a file's time.
//!
//! The small one has fixed strikes. `full::two_hundred_desks…` draws them: `CARREL_RANDOM_DESKS`, `CARREL_RANDOM_SECONDS`,
//! and `CARREL_SEED` for a former run again.

mod strikes;
mod students;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use carrel_proto::v1 as pb;
use integration_tests::chance::Chance;
use integration_tests::inputs::{Line, Log, Told, Verdict, judge, lateness_at};
use integration_tests::rig::{Rig, Shape};

use self::strikes::{Deck, EACH_KIND, Strike};
use self::students::Student;

/// How a run is to be.
struct Run {
    name: &'static str,
    hosts: u8,
    desks: u64,
    timing: Timing,
    /// All students have begun by then.
    begun_by: Duration,
    /// No student begins anything new after this.
    length: Duration,
    /// Each so long after the one before has ended.
    strikes: Vec<(Duration, Strike)>,
}

/// The product's times, compressed.
#[derive(Clone, Copy, Debug)]
struct Timing {
    idle: Duration,
    /// Below the 10 s that an outage excuses beside its own length: a lead begins anew after it.
    lead: Duration,
    /// Between an agent's heartbeats: as dense as the machine bears beside the desks.
    heartbeat: Duration,
    /// How long students are away, at most.
    away: Duration,
    /// How long they work at a stretch, at most.
    work: Duration,
}

/// At least: on a busy machine a node is silent for some seconds without any strike, and each such silence excuses stops.
const UNREACHABLE_AFTER: Duration = Duration::from_secs(6);

fn micros(span: Duration) -> i64 {
    span.as_micros().try_into().unwrap()
}

impl Run {
    fn file(&self, what: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{what}.jsonl", self.name))
    }

    fn unreachable_after(&self) -> Duration {
        UNREACHABLE_AFTER.max(self.timing.heartbeat * 4)
    }

    async fn go(self, mut chance: Chance) {
        let flag = |span: Duration| format!("{}ms", span.as_millis());
        let shape = Shape::new(self.hosts, 2)
            .own_clocks()
            .flag("idle-timeout", &flag(self.timing.idle))
            .flag("warning-lead", &flag(self.timing.lead))
            .flag("heartbeat-interval", &flag(self.timing.heartbeat))
            .flag("unreachable-after", &flag(self.unreachable_after()))
            // Beyond any outage here.
            .flag("fence-after", "10m")
            // Starts that come at once wait for each other on a machine of two cores.
            .flag("longest-starting", "2m")
            .flag("longest-stopping", "1m");
        let mut rig = Rig::start(shape).await;
        let mut nodes = BTreeMap::new();
        for host in 0..rig.hosts().len() {
            nodes.insert(strikes::agent(host), rig.node_of(host).await);
        }
        let [idle, lead] = [self.timing.idle, self.timing.lead].map(micros);
        let log = Log::begin(&self.file("inputs"), idle, lead, micros(self.unreachable_after()), nodes);
        let log = Arc::new(log);
        let over = Arc::new(AtomicBool::new(false));
        let addresses: Vec<_> = rig.replicas().iter().map(|replica| replica.address()).collect();
        let state_dirs: Vec<_> = rig.hosts().iter().map(|host| host.state_dir()).collect();
        let students = (0..self.desks).map(|n| {
            let name = format!("s{n}");
            // Every other one works in the editor, which only the agent sees.
            let editor = if n % 2 == 0 { state_dirs.clone() } else { vec![] };
            let (log, over) = (log.clone(), over.clone());
            let student = Student::new(name, &addresses, editor, self.timing, log, over, &mut chance);
            tokio::spawn(student.live(chance.millis(0..self.begun_by.as_millis().try_into().unwrap())))
        });
        let students: Vec<_> = students.collect();

        let begun = Instant::now();
        for (after, strike) in &self.strikes {
            tokio::time::sleep(*after).await;
            strike.carry_out(&mut rig, &log).await;
            assert!(students.iter().all(|student| !student.is_finished()), "a student could not go on");
        }
        tokio::time::sleep(self.length.saturating_sub(begun.elapsed())).await;
        over.store(true, Ordering::Relaxed);
        for student in students {
            student.await.expect("a student could go on to the end");
        }
        self.until_all_are_stopped(&rig).await;
        log.write(&Line::Over { at: log.stamp() });

        let mut events = rig.client().list_events(pb::EventFilter::default()).await;
        // They are told by transaction, of which the one that waited for the other may be the older.
        events.sort_by_key(|event| event.position);
        let told: Vec<_> = events.iter().filter_map(told).collect();
        self.keep(&events);
        let verdict = judge(&log.read(), &told);
        self.report(&verdict);
        assert_eq!(verdict.violations, [], "see {}", self.file("inputs").display());
        self.assert_it_could_judge(&verdict);
        assert_eq!(rig.containers().await, [], "nothing is left over");
        assert_eq!(rig.database().behind().await, "", "the store has lost nothing");
    }

    fn report(&self, verdict: &Verdict) {
        let late = |stops: &[i64]| {
            let [median, p99, most] = [50, 99, 100]
                .map(|percent| Duration::from_micros(lateness_at(percent, stops).try_into().unwrap()));
            format!("late by {median:.1?} (median), {p99:.1?} (p99), {most:.1?} (at most)")
        };
        let strikes: Vec<_> = verdict.strikes.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        eprintln!("{}: {} desks; {}", self.name, self.desks, strikes.join(", "));
        eprintln!(
            "{} inputs, extensions and jobs acked; {} violations",
            verdict.acked,
            verdict.violations.len()
        );
        let (unexcused, excused) = (&verdict.unexcused, &verdict.excused);
        eprintln!("{} idle stops without any outage: {}", unexcused.len(), late(unexcused));
        eprintln!("{} with one: {} beyond what it excuses", excused.len(), late(excused));
    }

    /// That nothing was found says something only of a run in which much could have been.
    fn assert_it_could_judge(&self, verdict: &Verdict) {
        let (unexcused, excused) = (verdict.unexcused.len(), verdict.excused.len());
        assert!((unexcused + excused) as u64 >= self.desks, "hardly anybody was stopped for idleness");
        assert!(unexcused * 3 >= unexcused + excused, "there was an excuse for all but {unexcused}");
        assert!(excused > 0, "nobody was stopped about an outage");
        for kind in EACH_KIND {
            assert!(verdict.strikes.keys().any(|struck| struck.starts_with(kind)), "{kind}: never");
        }
    }

    /// Nobody works any more, and all that was broken is whole: a timeout later everybody is stopped. Who is not, the judge
    /// finds.
    async fn until_all_are_stopped(&self, rig: &Rig) {
        let start = Instant::now();
        let open = "SELECT count(*)::text FROM workspaces WHERE state <> 'STOPPED'";
        while rig.database().text(open).await != "0" {
            if start.elapsed() > self.timing.idle + self.timing.lead + Duration::from_secs(60) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// The event log beside the inputs, for whoever has to find out.
    fn keep(&self, events: &[pb::Event]) {
        let lines: String = events.iter().map(|event| format!("{event:?}\n")).collect();
        std::fs::write(self.file("events"), lines).unwrap();
    }
}

/// What the judge needs of an event; `None` when it is not about a workspace.
fn told(event: &pb::Event) -> Option<Told> {
    let time = event.time.unwrap();
    let number = |name: &str| match event.data.as_ref()?.fields.get(name)?.kind.as_ref()? {
        #[expect(clippy::cast_possible_truncation, reason = "generations and versions are whole and small")]
        prost_types::value::Kind::NumberValue(number) => Some(*number as i64),
        _ => None,
    };
    Some(Told {
        student: event.workspace.strip_prefix("workspaces/")?.to_owned(),
        kind: event.r#type.strip_prefix("workspace.")?.to_owned(),
        reason: event.reason.clone(),
        generation: number("generation")?,
        node: event.node.clone(),
        version: number("deadline_version").unwrap_or_default(),
        time: time.seconds * 1_000_000 + i64::from(time.nanos) / 1000,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_who_works_is_stopped_whatever_is_killed_and_set() {
    let chance = Chance::of("random");
    let second = Duration::from_secs(1);
    let strikes = vec![
        (second * 8, Strike::Replica(0, second)),
        (second, Strike::AgentClock(0, -1750)),
        (second, Strike::Agent(0, second * 12)),
        (second * 2, Strike::ReplicaClock(1, 1750)),
        (second, Strike::Postgres(second)),
        (second * 3, Strike::DatabaseClock(1750)),
        (second * 4, Strike::DatabaseClock(-1750)),
    ];
    let timing = Timing {
        idle: second * 9,
        lead: second * 3,
        heartbeat: second / 2,
        away: second * 3,
        work: second * 12,
    };
    let (begun_by, length) = (second * 6, second * 70);
    Run { name: "random", hosts: 1, desks: 20, timing, begun_by, length, strikes }.go(chance).await;
}

/// What `integration-tests/run` leaves out.
mod full {
    use integration_tests::settings;

    use super::*;

    /// In one storm: three of them are all kinds.
    const STORM: usize = 3;

    /// Storms until nothing more fits, each after a calm. Whoever begins to wait 10 s after a storm and is stopped before the
    /// next, 20 s later, has no excuse: some half of all.
    fn storms(chance: &mut Chance, length: Duration, deck: &mut Deck) -> Vec<(Duration, Strike)> {
        let (mut strikes, mut planned) = (vec![], Duration::ZERO);
        loop {
            for n in 0..STORM {
                let after = if n == 0 { 60_000..90_000 } else { 1000..6000 };
                let (after, strike) = (chance.millis(after), deck.draw(chance));
                planned += after + strike.dead_for();
                strikes.push((after, strike));
            }
            if planned > length {
                strikes.truncate(strikes.len() - STORM);
                return strikes;
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn two_hundred_desks_through_random_kills_and_steps_of_clocks() {
        let mut chance = Chance::of("random-full");
        let second = Duration::from_secs(1);
        let desks = settings::number("CARREL_RANDOM_DESKS", 200);
        let length = Duration::from_secs(settings::number("CARREL_RANDOM_SECONDS", 900));
        // Docker starts about two containers a second on two cores.
        let begun_by = second * u32::try_from(desks).unwrap();
        let timing = Timing {
            idle: second * 20,
            lead: second * 6,
            heartbeat: second * 2,
            away: second * 120,
            work: second * 180,
        };
        let strikes = storms(&mut chance, length, &mut Deck::new(2, 2));
        Run { name: "random-full", hosts: 2, desks, timing, begun_by, length, strikes }.go(chance).await;
    }
}
