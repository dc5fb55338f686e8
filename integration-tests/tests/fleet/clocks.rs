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

    #[tokio::test]
    async fn row_22_clocks_that_are_set_by_an_hour_end_no_lease_and_stop_nobody() {
        let mut chance = Chance::of("row 22");
        // An hour would be enough for both; a minute of test is not.
        let shape = Shape::new(1, 2).writers().own_clocks().flag("idle-timeout", "10m");
        let rig = Rig::start(shape.flag("warning-lead", "1m")).await;
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
                    let desk = client.get(student).await;
                    assert_eq!((desk.state(), desk.generation), (State::Running, 1), "{name} by {step} s");
                }
            }
            client.start_and_wait("eve").await;
            client.stop_and_wait("eve").await;
        }
        for kind in ["workspace.warning", "node.fenced", "workspace.moved"] {
            let filter = pb::EventFilter { types: vec![kind.into()], ..Default::default() };
            assert_eq!(client.list_events(filter).await, [], "{kind}");
        }
        assert_eq!([rig.desk("ada").await, rig.desk("bob").await], before);
        assert_undisturbed(&rig, &["ada", "bob"]);
    }
}
