//! The row about emptying a host.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use carrel_proto::v1::node::State as NodeState;
use carrel_proto::v1::workspace::State;
use carrel_proto::v1::{self as pb};
use integration_tests::callers::Callers;
use integration_tests::chance::Chance;
use integration_tests::client::millis;
use integration_tests::rig::{Rig, Shape};

use crate::{BUSY, until};

const LEAD: i64 = 2_000;
const IDLE_MOMENT: i64 = 4_000;
const WITHIN: i64 = 20;
/// Of a machine that is slow.
const SLACK: i64 = 5_000;

async fn node(callers: &Callers, name: &str) -> pb::Node {
    let get = |client: integration_tests::client::Client| {
        let request = pb::GetNodeRequest { name: name.to_owned() };
        async move { client.nodes.clone().get_node(request).await }
    };
    callers.call("GetNode", get).await.unwrap().into_inner().node.unwrap()
}

/// Types until it is told to stop; on a desk that moves it is refused for a while.
async fn types(callers: Callers, student: String, over: Arc<AtomicBool>) {
    while !over.load(Ordering::Relaxed) {
        callers.heartbeat(&student).await.ok();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_21_a_host_is_emptied_in_peace_and_by_the_deadline_though_a_replica_is_killed() {
    let mut chance = Chance::of("row 21");
    let shape = Shape::new(2, 2).writers().flag("idle-timeout", "1h").flag("warning-lead", "2s");
    let mut rig = Rig::start(shape.flag("drain-idle-moment", "4s")).await;
    let callers = rig.callers();
    for n in 0..6 {
        callers.start(&format!("s{n}")).await;
    }
    let mut there = Vec::new();
    let victim = callers.wait_for("s0", State::Running).await.node;
    for n in 0..6 {
        let student = format!("s{n}");
        if callers.wait_for(&student, State::Running).await.node == victim {
            there.push(student);
        }
    }
    assert!(there.len() > 1, "desks are spread: {there:?}");
    let busy = there[0].clone();
    let over = Arc::new(AtomicBool::new(false));
    let typing = tokio::spawn(types(callers.clone(), busy.clone(), over.clone()));

    let drain = pb::DrainNodeRequest {
        name: victim.clone(),
        within: Some(prost_types::Duration { seconds: WITHIN, nanos: 0 }),
        reason: "new kernel".into(),
        ..Default::default()
    };
    let asked = rig.replica(0).client().nodes.drain_node(drain).await.unwrap().into_inner();
    assert_eq!(asked.workspaces.len(), there.len());
    let deadline = millis(asked.node.unwrap().drain.unwrap().deadline_time);
    // Nothing depends on the replica that was asked, or on any other.
    tokio::time::sleep(chance.millis(0..6000)).await;
    let killed = chance.below(2);
    rig.replica(killed).kill();
    let late = callers.start("late").await;
    assert_ne!(late.node, victim, "no new placement");
    until("drained", Duration::from_secs(60), async || {
        node(&callers, &victim).await.state() == NodeState::Drained
    })
    .await;
    over.store(true, Ordering::Relaxed);
    typing.await.unwrap();

    let client = rig.replica(1 - killed).client();
    for student in &there {
        let moved = callers.wait_for(student, State::Running).await;
        assert!(moved.node != victim && moved.generation == 2, "{moved:?}");
        let events = client.events_of(student).await;
        let told = |kind: &str| {
            let event = events.iter().find(|event| event.r#type == kind);
            let event = event.unwrap_or_else(|| panic!("no {kind} of {student}: {events:#?}"));
            assert!(event.reason == "DRAIN", "{event:?}");
            millis(event.time)
        };
        let (warned, left) = (told("workspace.warning"), told("workspace.stopping"));
        assert!(warned <= deadline - WITHIN * 1000 + SLACK, "{student} is warned at once");
        assert!(left >= warned + LEAD, "{student} has the whole lead");
        assert!(left <= deadline + SLACK, "{student} leaves by the deadline");
        if *student == busy {
            assert!(left >= deadline, "{student} was typing");
        } else {
            assert!(left <= deadline - WITHIN * 1000 + IDLE_MOMENT + 2 * SLACK, "{student} was idle");
        }
        // One after the other wrote, never both.
        let history = rig.share().writes(student);
        assert_eq!(history.pairs(), [(1, 1), (1, 2)]);
    }
    for n in 0..6 {
        let student = format!("s{n}");
        if !there.contains(&student) {
            let history = rig.share().writes(&student);
            assert!(
                history.runs.len() == 1 && history.runs[0].longest_pause < BUSY,
                "{student}: {history:#?}"
            );
        }
    }
}
