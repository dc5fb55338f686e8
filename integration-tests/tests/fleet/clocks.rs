//! The row about clocks.

use std::time::Duration;

use carrel_proto::v1 as pb;
use carrel_proto::v1::workspace::State;
use integration_tests::chance::Chance;
use integration_tests::rig::{Rig, Shape};

use crate::assert_undisturbed;

const HOUR: i64 = 3600;

mod full {
    use super::*;

    /// Breaks the agent's session, and has each replica begin anew and greet it: certificates are made and looked at by the clocks as
    /// they are now.
    async fn meet_anew(rig: &mut Rig) {
        for replica in [0, 1] {
            let sessions = rig.sessions_of(0).await;
            rig.replica(0).kill();
            rig.replica(1).kill();
            rig.replica(replica).start().await;
            rig.wait_for_agent(0, sessions).await;
        }
        rig.replica(0).start().await;
    }

    #[tokio::test]
    async fn row_22_clocks_that_are_set_by_an_hour_end_no_lease_and_stop_nobody() {
        let mut chance = Chance::of("row 22");
        // An hour would be enough for both; a minute of test is not.
        let shape = Shape::new(1, 2).writers().own_clocks().flag("idle-timeout", "10m");
        let mut rig = Rig::start(shape.flag("warning-lead", "1m")).await;
        let client = rig.client();
        for student in ["ada", "bob"] {
            client.start_and_wait(student).await;
        }
        let before = [rig.desk("ada").await, rig.desk("bob").await];
        for (name, clock) in rig.clocks() {
            // The LMS tells ages, never times of day; its clock is nowhere.
            for step in [HOUR, -HOUR, 0] {
                clock.set(step);
                tokio::time::sleep(Duration::from_secs(3) + chance.millis(0..1500)).await;
                for student in ["ada", "bob"] {
                    let desk = rig.client().get(student).await;
                    assert_eq!((desk.state(), desk.generation), (State::Running, 1), "{name} by {step} s");
                }
                meet_anew(&mut rig).await;
                for student in ["ada", "bob"] {
                    let desk = rig.client().wait_for(student, State::Running).await;
                    assert_eq!(desk.generation, 1, "{name} by {step} s, met anew");
                }
            }
            rig.client().start_and_wait("eve").await;
            rig.client().stop_and_wait("eve").await;
        }
        let client = rig.client();
        for kind in ["workspace.warning", "node.fenced", "workspace.moved"] {
            let filter = pb::EventFilter { types: vec![kind.into()], ..Default::default() };
            assert_eq!(client.list_events(filter).await, [], "{kind}");
        }
        assert_eq!([rig.desk("ada").await, rig.desk("bob").await], before);
        assert_undisturbed(&rig, &["ada", "bob"]);
    }
}
