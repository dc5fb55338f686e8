use carrel_common::id::{Generation, NodeId, Pair};
use carrel_common::model::Container;

use super::*;
use crate::runtime::Found;

const NOW: Duration = Duration::from_secs(100);
const LATER: Token = Token { pair: Pair { incarnation: 1, generation: Generation(9) }, placement: None };

fn uid(n: u128) -> WorkspaceUid {
    WorkspaceUid(format!("00000000-0000-0000-0000-{n:012}").parse().expect("a UUID"))
}

fn container(workspace: u128, phase: Phase) -> Found {
    let container = Container {
        container_id: format!("c{workspace}"),
        workspace: uid(workspace),
        student: format!("s{workspace}").parse().expect("valid"),
        generation: Generation(5),
        incarnation: 1,
        node: NodeId(uid(9).0),
        running: phase == Phase::Running,
        placement: None,
        spec: None,
    };
    Found { container, spec_digest: String::new(), phase }
}

#[derive(Default)]
struct World {
    containers: Vec<Found>,
    fenced: BTreeMap<String, Token>,
    in_flight: BTreeMap<WorkspaceUid, InFlight>,
    memory: BTreeMap<WorkspaceUid, Memory>,
}

impl World {
    /// Two that run, of which the first gave way.
    fn new() -> Self {
        Self {
            containers: vec![container(1, Phase::Running), container(2, Phase::Running)],
            fenced: BTreeMap::from([("c1".into(), LATER)]),
            ..Self::default()
        }
    }

    fn settled(mut self, at: Duration, settled: Settled) -> Self {
        self.memory
            .insert(uid(1), Memory { pair: Pair { incarnation: 1, generation: Generation(5) }, at, settled });
        self
    }

    fn fencing(&self) -> Fenced {
        fencing(&Fencing {
            now: NOW,
            listing: &Listing { taken_at: NOW, containers: self.containers.clone() },
            fenced: &self.fenced,
            in_flight: &self.in_flight,
            memory: &self.memory,
        })
    }
}

fn stop() -> Fenced {
    let container = container(1, Phase::Running).container;
    Fenced { actions: vec![Action::Fence { container, later: LATER }], ..Fenced::default() }
}

#[test]
fn what_gave_way_is_stopped_and_nothing_else() {
    assert_eq!(World::new().fencing(), stop());
}

#[test]
fn what_does_not_run_needs_no_stop() {
    for phase in [Phase::Created, Phase::Exited] {
        let world = World { containers: vec![container(1, phase)], ..World::new() };
        assert_eq!(world.fencing(), Fenced::default());
    }
}

#[test]
fn a_start_under_way_is_told_to_end_and_a_removal_is_left_to_it() {
    let mut world = World::new();
    world.in_flight.insert(uid(1), InFlight::Bring(Pair { incarnation: 1, generation: Generation(5) }));
    assert_eq!(world.fencing().actions, [Action::Cancel { workspace: uid(1) }]);
    world.in_flight.insert(uid(1), InFlight::Remove);
    assert_eq!(world.fencing(), Fenced::default());
}

#[test]
fn what_was_stopped_after_the_listing_is_listed_again_first() {
    let world = World::new().settled(NOW, Settled::Failed);
    assert_eq!(world.fencing(), Fenced { relist: true, ..Fenced::default() });
    let earlier = World::new().settled(NOW - Duration::from_secs(1), Settled::Failed);
    assert_eq!(earlier.fencing(), stop());
}

#[test]
fn a_stop_that_did_not_work_is_tried_again_after_its_pause() {
    let retry = |not_before| Settled::Retry { not_before };
    let due = NOW + Duration::from_secs(2);
    let world = World::new().settled(NOW, retry(due));
    assert_eq!(world.fencing(), Fenced { wake_at: Some(due), ..Fenced::default() });
    let world = World::new().settled(NOW - Duration::from_secs(3), retry(NOW - Duration::from_secs(1)));
    assert_eq!(world.fencing(), stop());
}
