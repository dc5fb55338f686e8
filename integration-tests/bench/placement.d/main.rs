//! The benchmark behind `integration-tests/bench/placement`; see there, and `docs/benchmarks.md` for figures.
//!
//! Ten thousand that wait and a thousand nodes: first the decision alone, in memory; then the same on Postgres, from the reading
//! of the line to the last commit. Also what one start costs beside all of these.
#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "it measures, and a failure ends it")]

#[path = "../../tests/store/rig.rs"]
#[allow(dead_code, reason = "the tests of the store use all of it")]
mod rig;

use std::time::{Duration, Instant, SystemTime};

use carrel_common::id::{NodeId, WorkspaceUid};
use carrel_common::model::Resources;
use control_plane::domain::placement::{Candidate, Fleet, Held, Service, Strategy, Waiting, in_line, plan};
use integration_tests::settings;

use crate::rig::Rig;

const GIB: i64 = 1 << 30;
/// The promise: ten thousand on a thousand nodes.
const PROMISED: Duration = Duration::from_secs(1);
const COURSES: usize = 40;
const ZONES: usize = 3;
const IMAGES: usize = 4;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.unwrap().block_on(run());
}

async fn run() {
    let waiting = usize::try_from(settings::number("CARREL_BENCH_WAITING", 10_000)).unwrap();
    let nodes = usize::try_from(settings::number("CARREL_BENCH_NODES", 1_000)).unwrap();
    println!("{waiting} that wait, {nodes} nodes\n\n| | placed | time |\n|---|---|---|");
    let mut met = true;
    for (what, room) in [("in memory, room for all", waiting), ("in memory, room for half", waiting / 2)] {
        let (placed, took) = pure(waiting, nodes, room);
        println!("| {what} | {placed} | {} ms |", took.as_millis());
        assert_eq!(placed, room / nodes * nodes);
        met &= took <= PROMISED;
    }
    stored(waiting, nodes).await;
    println!("\nin memory at most {PROMISED:?}: {}", if met { "met" } else { "MISSED" });
    std::process::exit(i32::from(!met));
}

fn uuid(n: usize) -> uuid::Uuid {
    uuid::Uuid::from_u128(n as u128)
}

/// The best of five: a machine with other work going on is not what is measured.
fn pure(waiting: usize, nodes: usize, room: usize) -> (usize, Duration) {
    let need = Resources { cpu_millicores: 1000, memory_bytes: GIB, pids: 512 };
    let each = i64::try_from(room / nodes).unwrap();
    let image = |n: usize| format!("desk:{}", n % IMAGES);
    let candidate = |n: usize| Candidate {
        node: NodeId(uuid(n)),
        service: Service::Ready,
        zone: format!("zone-{}", n % ZONES),
        capacity: Resources { cpu_millicores: 1_000_000, memory_bytes: each * GIB, pids: 0 },
        processors: 64_000,
        allocated: Resources { cpu_millicores: 0, memory_bytes: 0, pids: 0 },
        count: 0,
        most: 250,
        starting: 0,
        failures: 0,
        images: (0..IMAGES - 1).map(|i| image(n + i)).collect(),
    };
    let all: Vec<_> = (0..nodes).map(candidate).collect();
    let now = SystemTime::now().into();
    let waits = |n: usize| Waiting {
        uid: WorkspaceUid(uuid(n)),
        course: Some(format!("course-{}", n % COURSES).parse().unwrap()),
        since: now,
        need,
        image: image(n),
        avoid: vec![],
    };
    let line: Vec<_> = (0..waiting).map(waits).collect();
    let once = || {
        let mut line = line.clone();
        let begun = Instant::now();
        in_line(&mut line, &Held::new());
        let mut fleet = Fleet::new(Strategy::Spread, all.clone(), []);
        let turns = plan(&line, &mut fleet, now);
        let took = begun.elapsed();
        (turns.iter().filter(|turn| turn.outcome.is_ok()).count(), took)
    };
    (0..5).map(|_| once()).min_by_key(|(_, took)| *took).unwrap()
}

/// The same through the use case, on a durable Postgres.
async fn stored(waiting: usize, nodes: usize) {
    let rig = Rig::with(|settings| settings.stays.pending = Duration::from_secs(3600)).await;
    let gib = i64::try_from(waiting.div_ceil(nodes)).unwrap() + 2;
    rig.node(gib).await;
    rig.start("seed").await.unwrap();
    // Copies of one node and of one workspace, as the use cases made them.
    for statement in [
        // A zone of its own would get as many of each course as the others.
        "UPDATE nodes SET facts = facts || '{\"zone\": \"zone-1\"}'".to_owned(),
        format!(
            "INSERT INTO nodes SELECT (jsonb_populate_record(n, jsonb_build_object('id', gen_random_uuid(), 'facts',
                    n.facts || jsonb_build_object('zone', 'zone-' || i % {ZONES}, 'machine_id', 'machine-' || i)))).*
             FROM nodes n, generate_series(2, {nodes}) i"
        ),
        "UPDATE placements SET released_at = now()".to_owned(),
        "UPDATE workspaces SET state = 'PENDING', stage = '\"QUEUED\"', node_id = NULL".to_owned(),
        format!(
            "INSERT INTO workspaces SELECT (jsonb_populate_record(w, jsonb_build_object('id', gen_random_uuid(),
                    'student_id', 'student-' || i, 'course_id', 'course-' || i % {COURSES}))).*
             FROM workspaces w, generate_series(2, {waiting}) i"
        ),
        "INSERT INTO workspace_activity (workspace_id, closed) SELECT id, false FROM workspaces WHERE student_id <> 'seed'"
            .to_owned(),
        "ANALYZE".to_owned(),
    ] {
        rig.database.execute(&statement).await;
    }
    let begun = Instant::now();
    let placed = rig.app.place_waiting().await.unwrap();
    println!("| on Postgres, one pass | {placed} | {} ms |", begun.elapsed().as_millis());
    let most = rig.database.text("SELECT max(n)::text FROM (SELECT count(*) AS n FROM placements WHERE released_at IS NULL GROUP BY node_id) AS s").await;
    let most: usize = most.parse().unwrap();
    assert_eq!(placed, waiting);
    assert!(most <= waiting.div_ceil(nodes) + 1, "{most} on one node");
    let begun = Instant::now();
    const STARTS: u32 = 20;
    for n in 0..STARTS {
        rig.start(&format!("late-{n}")).await.unwrap();
    }
    println!("| on Postgres, one start beside them | 1 | {} ms |", (begun.elapsed() / STARTS).as_millis());
    rig.end().await;
}
