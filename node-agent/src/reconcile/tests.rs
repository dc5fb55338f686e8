use carrel_common::id::{Generation, NodeId, PlacementId};
use carrel_common::model::{Resources, StopReason, WorkspaceSpec};

use super::*;

mod laws;
mod leases;
mod refusing;
mod under_way;

fn uid(n: u128) -> WorkspaceUid {
    WorkspaceUid(format!("00000000-0000-0000-0000-{n:012}").parse().expect("a UUID"))
}

fn spec(path: &str) -> WorkspaceSpec {
    WorkspaceSpec {
        image: "carrel/workspace:dev".into(),
        resources: Resources { cpu_millicores: 1000, memory_bytes: 1 << 30, pids: 512 },
        probe_port: 8080,
        probe_path: path.into(),
    }
}

fn pair(incarnation: i64, generation: i64) -> Pair {
    Pair { incarnation, generation: Generation(generation) }
}

fn item(workspace: u128, generation: i64, run: bool) -> DesiredItem {
    let run = if run {
        Run::Running { start_timeout: Duration::from_secs(120) }
    } else {
        Run::Stopped { reason: StopReason::User, grace: Duration::from_secs(10), purge_files: false }
    };
    DesiredItem {
        workspace: uid(workspace),
        student: format!("s{workspace}").parse().expect("valid"),
        generation: Generation(generation),
        incarnation: 1,
        placement: PlacementId(uid(7).0),
        spec: spec("/healthz"),
        run,
        traceparent: String::new(),
        idle_basis_age: None,
    }
}

fn found(workspace: u128, generation: i64, phase: Phase) -> Found {
    Found {
        container: Container {
            container_id: format!("c{workspace}g{generation}"),
            workspace: uid(workspace),
            student: format!("s{workspace}").parse().expect("valid"),
            generation: Generation(generation),
            incarnation: 1,
            node: NodeId(uid(9).0),
            running: phase == Phase::Running,
            placement: None,
            spec: None,
        },
        spec_digest: spec("/healthz").digest(),
        phase,
    }
}

fn id(workspace: u128, generation: i64) -> String {
    format!("c{workspace}g{generation}")
}

/// All that `diff` looks at, as values that a test can change.
#[derive(Debug, Clone)]
struct World {
    now: Duration,
    items: Vec<DesiredItem>,
    incarnation: i64,
    lease: Standing,
    over: BTreeSet<String>,
    fresh: bool,
    containers: Vec<Found>,
    seen_before: bool,
    in_flight: BTreeMap<WorkspaceUid, InFlight>,
    memory: BTreeMap<WorkspaceUid, Memory>,
    verdicts: BTreeMap<String, Verdict>,
}

impl World {
    fn new(items: Vec<DesiredItem>, containers: Vec<Found>) -> Self {
        Self {
            now: Duration::from_secs(100),
            items,
            incarnation: 1,
            lease: Standing::Leased,
            over: BTreeSet::new(),
            fresh: true,
            containers,
            seen_before: true,
            in_flight: BTreeMap::new(),
            memory: BTreeMap::new(),
            verdicts: BTreeMap::new(),
        }
    }

    fn remember(mut self, workspace: u128, generation: i64, settled: Settled) -> Self {
        let memory = Memory { pair: pair(1, generation), at: Duration::from_secs(1), settled };
        self.memory.insert(uid(workspace), memory);
        self
    }

    fn diff(&self) -> Decisions {
        let pair = DesiredPair { incarnation: self.incarnation, generation: 1 };
        let set = DesiredSet::new(pair, self.items.clone());
        let listing = Listing { taken_at: self.now, containers: self.containers.clone() };
        let seen: BTreeSet<String> = self
            .containers
            .iter()
            .filter(|_| self.seen_before)
            .map(|found| found.container.container_id.clone())
            .collect();
        diff(&View {
            now: self.now,
            set: &set,
            lease: self.lease,
            over: &self.over,
            session_fresh: self.fresh,
            listing: &listing,
            seen_before: &seen,
            in_flight: &self.in_flight,
            memory: &self.memory,
            verdicts: &self.verdicts,
        })
    }

    fn actions(&self) -> Vec<Action> {
        self.diff().actions
    }

    /// Does what was decided, as the driver would, and finds out what it led to.
    fn carry_out(&mut self, actions: Vec<Action>) {
        self.now += Duration::from_secs(1);
        for action in actions {
            let workspace = action.workspace();
            let (pair, settled) = match action {
                Action::Bring { item, from } => {
                    if from == From::Nothing {
                        let mut made = found(1, item.generation.0, Phase::Running);
                        made.container.workspace = item.workspace;
                        made.container.incarnation = item.incarnation;
                        made.container.container_id = format!("new-{}-{}", item.workspace, item.pair());
                        self.containers.push(made);
                    }
                    let same = |found: &&mut Found| {
                        found.container.workspace == item.workspace
                            && found.container.pair() == item.pair()
                            && match &from {
                                From::Nothing => true,
                                From::Created(id) | From::Running(id) | From::Exited(id) => {
                                    found.container.container_id == *id
                                }
                            }
                    };
                    let container = self.containers.iter_mut().find(same).expect("there");
                    container.phase = Phase::Running;
                    container.container.running = true;
                    let container_id = container.container.container_id.clone();
                    (item.pair(), Settled::Running { container_id })
                }
                Action::Stop { item } => {
                    let beyond = self.containers.iter().any(|found| {
                        found.container.workspace == workspace && found.container.pair() > item.pair()
                    });
                    if beyond {
                        let not_before = self.now + Duration::from_secs(1_000_000);
                        (item.pair(), Settled::Retry { not_before })
                    } else {
                        self.containers.retain(|found| found.container.workspace != workspace);
                        (item.pair(), Settled::Gone)
                    }
                }
                Action::Clear { containers, cause, .. } => {
                    self.containers.retain(|found| !containers.contains(&found.container));
                    let newest = containers.iter().map(Container::pair).max();
                    match cause {
                        Cause::Fenced => (newest.unwrap_or(pair(0, 0)), Settled::Gone),
                        Cause::Superseded | Cause::Orphan => {
                            (pair(0, 0), Settled::Retry { not_before: self.now })
                        }
                    }
                }
                Action::Fence { .. } => panic!("the share's word is no part of an order"),
                Action::Cancel { .. } => continue,
            };
            self.memory.insert(workspace, Memory { pair, at: self.now, settled });
        }
        self.now += Duration::from_secs(1);
    }
}

fn bring(item: DesiredItem, from: From) -> Action {
    Action::Bring { item, from }
}

fn clear(workspace: u128, cause: Cause, containers: Vec<Found>) -> Action {
    let containers = containers.into_iter().map(|found| found.container).collect();
    Action::Clear { workspace: uid(workspace), cause, containers }
}

#[test]
fn starts_what_is_wanted_and_not_there() {
    let world = World::new(vec![item(1, 1, true)], vec![]);
    assert_eq!(world.actions(), [bring(item(1, 1, true), From::Nothing)]);
}

#[test]
fn adopts_what_runs_and_is_wanted() {
    let world = World::new(vec![item(1, 1, true)], vec![found(1, 1, Phase::Running)]);
    assert_eq!(world.actions(), [bring(item(1, 1, true), From::Running(id(1, 1)))]);
}

#[test]
fn leaves_alone_what_runs_as_wanted() {
    let running = Settled::Running { container_id: id(1, 1) };
    let world = World::new(vec![item(1, 1, true)], vec![found(1, 1, Phase::Running)]).remember(1, 1, running);
    assert_eq!(world.diff(), Decisions::default());
}

#[test]
fn starts_what_has_ended_and_goes_on_with_what_was_only_made() {
    for (phase, from) in [(Phase::Exited, From::Exited(id(1, 1))), (Phase::Created, From::Created(id(1, 1)))]
    {
        let world = World::new(vec![item(1, 1, true)], vec![found(1, 1, phase)]);
        assert_eq!(world.actions(), [bring(item(1, 1, true), from)]);
    }
}

#[test]
fn a_failed_generation_is_left_alone_and_the_next_one_is_started() {
    let world =
        World::new(vec![item(1, 1, true)], vec![found(1, 1, Phase::Exited)]).remember(1, 1, Settled::Failed);
    assert_eq!(world.actions(), []);
    let world = World::new(vec![item(1, 2, true)], vec![]).remember(1, 1, Settled::Failed);
    assert_eq!(world.actions(), [bring(item(1, 2, true), From::Nothing)]);
}

#[test]
fn a_generation_that_is_gone_never_starts_again() {
    let world = World::new(vec![item(1, 1, true)], vec![]).remember(1, 1, Settled::Gone);
    assert_eq!(world.diff(), Decisions::default());
}

#[test]
fn an_order_to_stop_needs_no_second_listing_and_no_session() {
    for containers in [vec![], vec![found(1, 1, Phase::Running)], vec![found(1, 1, Phase::Exited)]] {
        let mut world = World::new(vec![item(1, 1, false)], containers);
        (world.seen_before, world.fresh) = (false, false);
        assert_eq!(world.actions(), [Action::Stop { item: item(1, 1, false) }]);
    }
}

#[test]
fn a_container_that_appears_after_gone_is_stopped_too() {
    let ghost = found(1, 1, Phase::Running);
    let world = World::new(vec![item(1, 1, false)], vec![ghost]).remember(1, 1, Settled::Gone);
    assert_eq!(world.actions(), [Action::Stop { item: item(1, 1, false) }]);
}

#[test]
fn a_lower_generation_is_removed_before_the_wanted_one_is_started() {
    let old = found(1, 1, Phase::Running);
    let world = World::new(vec![item(1, 2, true)], vec![old.clone()]);
    assert_eq!(world.actions(), [clear(1, Cause::Superseded, vec![old])]);
}

#[test]
fn of_two_of_one_workspace_the_higher_is_kept() {
    let (old, new) = (found(1, 1, Phase::Running), found(1, 2, Phase::Running));
    let running = Settled::Running { container_id: id(1, 2) };
    let world = World::new(vec![item(1, 2, true)], vec![old.clone(), new]).remember(1, 2, running);
    assert_eq!(world.actions(), [clear(1, Cause::Superseded, vec![old])]);
}

#[test]
fn nothing_superseded_is_removed_before_two_listings_agree_in_a_session_with_a_set() {
    let mut world = World::new(vec![item(1, 2, true)], vec![found(1, 1, Phase::Running)]);
    world.seen_before = false;
    assert_eq!(world.diff(), Decisions { relist: true, ..Decisions::default() });
    (world.seen_before, world.fresh) = (true, false);
    assert_eq!(world.diff(), Decisions::default());
}

#[test]
fn a_higher_generation_than_known_is_held_and_reported_whatever_is_wanted() {
    for run in [true, false] {
        let higher = found(1, 5, Phase::Running);
        let world = World::new(vec![item(1, 2, run)], vec![found(1, 2, Phase::Running), higher.clone()])
            .remember(1, 2, Settled::Gone);
        let expected = Decisions { orphans: vec![higher.container], held: 1, ..Decisions::default() };
        assert_eq!(world.diff(), expected);
    }
}

/// As it would be in the other incarnation of the store.
fn of_incarnation(incarnation: i64, mut found: Found) -> Found {
    found.container.incarnation = incarnation;
    found
}

#[test]
fn a_container_of_a_later_incarnation_of_the_store_is_held_whatever_its_generation() {
    for generation in [1, 2, 3] {
        let later = of_incarnation(2, found(1, generation, Phase::Running));
        for run in [true, false] {
            let world = World::new(vec![item(1, 2, run)], vec![later.clone()]);
            let expected =
                Decisions { orphans: vec![later.container.clone()], held: 1, ..Decisions::default() };
            assert_eq!(world.diff(), expected);
        }
    }
}

#[test]
fn a_placement_of_an_earlier_incarnation_keeps_its_container() {
    let mut world = World::new(vec![item(1, 1, true)], vec![found(1, 1, Phase::Running)]);
    world.incarnation = 2;
    assert_eq!(world.actions(), [bring(item(1, 1, true), From::Running(id(1, 1)))]);
}

#[test]
fn the_same_or_a_higher_generation_of_an_earlier_incarnation_is_superseded() {
    for generation in [1, 2, 9] {
        let earlier = found(1, generation, Phase::Running);
        let wanted = DesiredItem { incarnation: 2, ..item(1, 2, true) };
        let world = World::new(vec![wanted], vec![earlier.clone()]);
        assert_eq!(world.actions(), [clear(1, Cause::Superseded, vec![earlier])]);
    }
}

#[test]
fn what_is_remembered_of_a_generation_does_not_hold_for_a_later_incarnation() {
    let wanted = DesiredItem { incarnation: 2, ..item(1, 1, true) };
    for settled in [Settled::Gone, Settled::Failed] {
        let world = World::new(vec![wanted.clone()], vec![]).remember(1, 1, settled);
        assert_eq!(world.actions(), [bring(wanted.clone(), From::Nothing)]);
    }
}

#[test]
fn a_container_of_another_spec_is_reported_and_not_acted_on() {
    let mut other = found(1, 1, Phase::Exited);
    other.spec_digest = spec("/other").digest();
    let world = World::new(vec![item(1, 1, true)], vec![other.clone()]);
    let expected = Decisions { orphans: vec![other.container], held: 1, ..Decisions::default() };
    assert_eq!(world.diff(), expected);
}

#[test]
fn an_orphan_is_reported_once_two_listings_agree() {
    let orphan = found(1, 1, Phase::Running);
    let mut world = World::new(vec![], vec![orphan.clone()]);
    assert_eq!(world.diff(), Decisions { orphans: vec![orphan.container], ..Decisions::default() });
    world.seen_before = false;
    assert_eq!(world.diff(), Decisions { relist: true, partial: true, ..Decisions::default() });
}

#[test]
fn an_orphan_is_removed_only_when_the_verdict_is_stop() {
    let orphan = found(1, 1, Phase::Running);
    for (verdict, actions) in
        [(Verdict::Hold, vec![]), (Verdict::Stop, vec![clear(1, Cause::Orphan, vec![orphan.clone()])])]
    {
        let mut world = World::new(vec![], vec![orphan.clone()]);
        world.verdicts.insert(id(1, 1), verdict);
        assert_eq!(world.actions(), actions, "{verdict:?}");
    }
}

#[test]
fn a_verdict_of_stop_does_not_hold_once_an_item_names_the_workspace() {
    let mut world = World::new(vec![item(1, 1, true)], vec![found(1, 1, Phase::Running)]);
    world.verdicts.insert(id(1, 1), Verdict::Stop);
    assert_eq!(world.actions(), [bring(item(1, 1, true), From::Running(id(1, 1)))]);
}

#[test]
fn an_operators_stop_removes_what_was_held_and_nothing_that_is_wanted() {
    let wanted = found(1, 1, Phase::Running);
    let beyond = found(1, 2, Phase::Running);
    let mut world = World::new(vec![item(1, 1, true)], vec![wanted.clone(), beyond.clone()]).remember(
        1,
        1,
        Settled::Running { container_id: id(1, 1) },
    );
    assert_eq!(world.actions(), []);
    world.verdicts.insert(id(1, 2), Verdict::Stop);
    assert_eq!(world.actions(), [], "what the control plane concludes does not count here");
    world.verdicts.insert(id(1, 1), Verdict::StopByOrder);
    world.verdicts.insert(id(1, 2), Verdict::StopByOrder);
    assert_eq!(world.actions(), [clear(1, Cause::Orphan, vec![beyond])]);
    world.containers = vec![wanted];
    assert_eq!(world.actions(), []);
}

#[test]
fn an_operators_stop_of_a_container_made_of_another_spec_makes_room_for_the_right_one() {
    let mut other = found(1, 1, Phase::Running);
    other.spec_digest = spec("/other").digest();
    let mut world = World::new(vec![item(1, 1, true)], vec![other.clone()]);
    world.verdicts.insert(id(1, 1), Verdict::StopByOrder);
    assert_eq!(world.actions(), [clear(1, Cause::Orphan, vec![other])]);
    world.containers = vec![];
    assert_eq!(world.actions(), [bring(item(1, 1, true), From::Nothing)]);
}

#[test]
fn what_the_breaker_holds_back_is_reported_and_goes_by_an_operators_word() {
    let mut world = World::new(vec![], vec![]);
    for n in 0..4 {
        world.containers.push(found(n, 1, Phase::Running));
        world.verdicts.insert(id(n, 1), Verdict::Stop);
    }
    assert_eq!((world.diff().withheld.len(), world.diff().orphans.len()), (4, 4));
    world.verdicts.insert(id(0, 1), Verdict::StopByOrder);
    let decisions = world.diff();
    // One fewer without an order: the rest are few enough.
    assert_eq!((decisions.actions.len(), decisions.withheld.len()), (4, 0));
    assert_eq!(decisions.orphans.len(), 4, "told until they are gone");
}

#[test]
fn more_orphan_stops_than_the_breaker_allows_do_not_happen() {
    for (orphans, others, happen) in
        [(3, 0, true), (4, 0, false), (4, 15, false), (4, 16, true), (6, 24, true)]
    {
        let mut world = World::new(vec![], vec![]);
        for n in 0..orphans {
            world.containers.push(found(n, 1, Phase::Running));
            world.verdicts.insert(id(n, 1), Verdict::Stop);
        }
        for n in orphans..orphans + others {
            world.containers.push(found(n, 1, Phase::Running));
            world.items.push(item(n, 1, true));
            world = world.remember(n, 1, Settled::Running { container_id: id(n, 1) });
        }
        let decisions = world.diff();
        let expected = if happen {
            (usize::try_from(orphans).expect("few"), 0)
        } else {
            (0, usize::try_from(orphans).expect("few"))
        };
        assert_eq!(
            (decisions.actions.len(), decisions.withheld.len()),
            expected,
            "{orphans} of {}",
            orphans + others
        );
    }
}

#[test]
fn a_workspace_that_is_worked_on_gets_nothing_else_to_do() {
    let mut world = World::new(vec![item(1, 1, true)], vec![found(1, 1, Phase::Created)]);
    world.in_flight.insert(uid(1), InFlight::Bring(pair(1, 1)));
    assert_eq!(world.diff(), Decisions::default());
}

#[test]
fn what_was_put_off_is_due_at_its_time() {
    let not_before = Duration::from_secs(200);
    let mut world = World::new(vec![item(1, 1, true)], vec![]).remember(1, 1, Settled::Retry { not_before });
    assert_eq!(world.diff(), Decisions { wake_at: Some(not_before), ..Decisions::default() });
    world.now = not_before;
    assert_eq!(world.actions(), [bring(item(1, 1, true), From::Nothing)]);
}

#[test]
fn a_listing_from_before_the_last_task_ended_is_not_believed() {
    let mut world = World::new(vec![item(1, 1, true)], vec![]);
    let settled = Settled::Running { container_id: id(1, 1) };
    world.memory.insert(uid(1), Memory { pair: pair(1, 1), at: world.now, settled });
    assert_eq!(world.diff(), Decisions::default(), "it runs, and is not in the listing yet");
    world.items = vec![item(1, 2, true)];
    assert_eq!(world.diff(), Decisions { relist: true, ..Decisions::default() });
    world.items = vec![];
    world.containers = vec![found(1, 1, Phase::Running)];
    assert_eq!(world.diff(), Decisions::default(), "no orphan either");
}
