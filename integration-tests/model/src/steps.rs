//! What can happen, in any order.

use std::cmp::Ordering;

use stateright::{Model, Property};

use crate::rules::{FENCE_AFTER, Mutant, STOP_BUDGET, replace_after};
use crate::state::{Agent, Claim, Finding, Host, Message, Start, State, Store};

/// Host 0 suffers; host 1 is steady: it is heard at once, and its lease always holds.
pub(crate) const BROKEN: usize = 0;
const STEADY: usize = 1;

/// The model, and how large it is.
#[derive(Clone, Debug)]
pub(crate) struct Fleet {
    pub(crate) mutant: Option<Mutant>,
    /// Ticks.
    horizon: u8,
    /// Faults at most.
    faults: u8,
    /// Placements at most.
    placements: u8,
    /// Its agent may freeze, die, or be restarted; else only the link may be cut.
    breaks: bool,
    /// The student may press Stop, and Start again.
    stops: bool,
    /// The store may be restored from its last copy, once.
    goes_back: bool,
    /// The steady host does what it has to before anything else happens: a start there cannot come earlier.
    eager: bool,
}

impl Fleet {
    /// Hosts that break, and a store that does not.
    pub(crate) fn of_broken_hosts() -> Self {
        Self {
            mutant: None,
            horizon: 5,
            faults: 1,
            placements: 2,
            breaks: true,
            stops: false,
            goes_back: false,
            eager: true,
        }
    }

    /// A store that is restored from an old copy, and one more fault; within one tick, so that no lease ends.
    pub(crate) fn of_a_restored_store() -> Self {
        Self {
            mutant: None,
            horizon: 0,
            faults: 3,
            placements: 3,
            breaks: true,
            stops: false,
            goes_back: true,
            eager: false,
        }
    }

    /// The same over the end of a lease.
    pub(crate) fn of_a_long_restore() -> Self {
        Self {
            horizon: 4,
            faults: 1,
            placements: 2,
            breaks: false,
            eager: true,
            ..Self::of_a_restored_store()
        }
    }

    /// Starts and stops while one thing breaks.
    pub(crate) fn of_stops() -> Self {
        Self {
            mutant: None,
            horizon: 1,
            faults: 1,
            placements: 2,
            breaks: true,
            stops: true,
            goes_back: false,
            eager: true,
        }
    }

    /// The same, with one demand left out.
    pub(crate) fn without(self, mutant: Mutant) -> Self {
        Self { mutant: Some(mutant), ..self }
    }

    pub(crate) fn has(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }
}

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    Tick,
    PressStart,
    PressStop,
    Place(usize),
    Fence,
    Declare,
    Hello(usize),
    Judge(usize),
    SendHeartbeat,
    SendOrder(usize),
    Deliver(Message),
    Check(usize),
    Write(usize),
    Refused(usize),
    ReadBack(usize),
    Launch(usize),
    Obey(usize),
    TellGone(usize),
    LookAtShare(usize),
    LeaseEnds,
    SessionEnds,
    Cut,
    Heal,
    Freeze,
    Wake,
    Die,
    Restart,
    Clone,
    AckOnly,
    GoBack,
}

impl Store {
    /// Places the student.
    pub(crate) fn put(&mut self, host: usize, claim: Claim) {
        self.placed = Some((host, claim));
        self.placed_on[host] = true;
        self.newest = self.newest.max(claim.pair());
        self.settled = true;
        self.version[host] += 1;
    }

    /// What a container is that no order names, by what the store knows.
    pub(crate) fn find(&self, claim: Claim) -> Finding {
        let later = if claim.incarnation < self.incarnation { Finding::Forgotten } else { Finding::Unclear };
        if claim.incarnation > self.incarnation {
            return later;
        }
        if let Some((_, placed)) = self.placed {
            return match claim.pair().cmp(&placed.pair()) {
                Ordering::Less => Finding::Over,
                Ordering::Equal => Finding::Unclear,
                Ordering::Greater => later,
            };
        }
        if claim.pair() <= self.newest || claim.generation < self.generation { Finding::Over } else { later }
    }
}

impl State {
    pub(crate) fn lease_holds(&self, host: usize) -> bool {
        host == STEADY || self.now < self.hosts[BROKEN].lease_from + FENCE_AFTER
    }

    pub(crate) fn connected(&self, host: usize) -> bool {
        self.hosts[host].session == Some(self.store.session[host])
    }

    /// What the share says to a claim.
    pub(crate) fn share_says(&self, claim: Claim) -> Word {
        match self.share {
            Some(found) if found == claim => Word::Ours,
            Some(found) if found.pair() >= claim.pair() => Word::Fenced,
            Some(_) | None => Word::Write,
        }
    }

    /// What the desired set of a host says.
    pub(crate) fn order_of(&self, host: usize) -> Option<(Claim, bool)> {
        let (node, claim) = self.store.placed.filter(|(node, _)| *node == host)?;
        debug_assert_eq!(node, host);
        Some((claim, self.store.wanted && claim.generation == self.store.generation))
    }

    pub(crate) fn pair_of_set(&self, host: usize) -> (u8, u8) {
        (self.store.incarnation, self.store.version[host])
    }

    /// Keeps the copy that a restore would bring back.
    pub(crate) fn keep_copy(&mut self) {
        self.old = Some(Box::new(self.store.clone()));
    }

    pub(crate) fn end_container(&mut self, host: usize, told: bool) {
        let ended = self.hosts[host].container.take();
        self.hosts[host].start = Start::Idle;
        if told {
            self.hosts[host].gone = ended;
        }
    }

    pub(crate) fn kill_for(&mut self, host: usize) {
        self.killed_without_reason |=
            self.hosts[host].container.is_some() && self.hosts[host].container == self.truly_wanted;
        self.end_container(host, false);
    }

    pub(crate) fn release(&mut self, host: usize, claim: Claim) {
        if self.store.placed == Some((host, claim)) {
            self.keep_copy();
            self.store.placed = None;
            self.store.version[host] += 1;
        }
    }

    /// Whether, after a restore was declared, the student can run nowhere unseen: it was placed or found since, or every host has told what
    /// it runs, or was silent for so long that its lease is over.
    pub(crate) fn all_heard(&self, mutant: Option<Mutant>) -> bool {
        let Some(declared_at) = self.declared_at else { return true };
        let silent = self.now >= declared_at.max(self.still_since) + replace_after(mutant);
        let broken = self.store.heard[BROKEN] || silent;
        let all = broken && self.store.heard[STEADY];
        self.store.settled || all || mutant == Some(Mutant::PlacedBeforeHeard)
    }
}

/// What the share says to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// It is the last one started.
    Ours,
    /// Nothing, or of an earlier one: it says its own again.
    Write,
    /// Of a later one, or of another one of the same pair: it gives way.
    Fenced,
}

impl Model for Fleet {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let host = Host {
            agent: Agent::Up,
            linked: true,
            session: Some(1),
            lease_from: 0,
            accepted: (0, 0),
            order: None,
            start: Start::Idle,
            container: None,
            gone: None,
            acked_gone: None,
        };
        let store = Store {
            incarnation: 1,
            generation: 0,
            newest: (0, 0),
            placed_on: [false; 2],
            wanted: true,
            placed: None,
            version: [0; 2],
            session: [1; 2],
            behind: false,
            heard: [true; 2],
            settled: false,
            held: [None; 2],
        };
        vec![State {
            now: 0,
            store,
            old: None,
            still_since: 0,
            hosts: [host.clone(), host],
            share: None,
            under_way: std::collections::BTreeSet::new(),
            went_back: false,
            declared_at: None,
            sessions: 1,
            faults: 0,
            starts: 1,
            placements: 0,
            truly_wanted: None,
            killed_without_reason: false,
            lost_report: false,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        self.of_a_host(state, STEADY, steps);
        if self.eager && !steps.is_empty() {
            return;
        }
        self.of_a_host(state, BROKEN, steps);
        self.of_the_store(state, steps);
        self.of_the_network(state, steps);
        self.faults(state, steps);
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        let mut next = state.clone();
        self.take(&mut next, step);
        if let Some(claim) = next.hosts[BROKEN].acked_gone
            && next.store.placed == Some((BROKEN, claim))
            && !next.went_back
        {
            next.lost_report = true;
        }
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("single writer", |_, state: &State| {
                state.hosts.iter().filter(|host| host.container.is_some()).count() < 2
            }),
            Property::always("no acked report lost", |_, state: &State| !state.lost_report),
            Property::always("nothing killed without a reason", |_, state: &State| {
                !state.killed_without_reason
            }),
            // That there is something to be kept: without these a model in which nothing ever runs would pass.
            Property::sometimes("it runs on the broken host", |_, state: &State| {
                state.hosts[BROKEN].container.is_some()
            }),
            Property::sometimes("it runs on the steady host", |_, state: &State| {
                state.hosts[STEADY].container.is_some()
            }),
        ]
    }
}

impl Fleet {
    fn of_the_store(&self, state: &State, steps: &mut Vec<Step>) {
        let store = &state.store;
        if state.now < self.horizon && self.time_may_pass(state) {
            steps.push(Step::Tick);
        }
        if !store.wanted && state.starts < 2 {
            steps.push(Step::PressStart);
        }
        if self.stops && store.wanted && store.placed.is_some() && state.starts < 2 {
            steps.push(Step::PressStop);
        }
        let may_place = store.wanted && !store.behind && state.placements < self.placements;
        for host in [BROKEN, STEADY] {
            let held = (0..2)
                .any(|host| store.held[host].is_some() && store.held[host] == state.hosts[host].container);
            let free = store.placed.is_none() && state.all_heard(self.mutant) && !held;
            let silent =
                state.still_since < state.now && store.placed.is_some_and(|(node, _)| node == BROKEN);
            let early = self.has(Mutant::PlaceBeforeRelease) && host == STEADY && silent;
            if may_place && state.connected(host) && (free || early) {
                steps.push(Step::Place(host));
            }
        }
        let stands_still = state.now - state.still_since >= replace_after(self.mutant);
        let has_something =
            store.held[BROKEN].is_some() || store.placed.is_some_and(|(node, _)| node == BROKEN);
        if stands_still && !store.behind && has_something {
            steps.push(Step::Fence);
        }
        if store.behind {
            steps.push(Step::Declare);
        }
    }

    /// What has to be done by now is done: the fence has had its budget.
    fn time_may_pass(&self, state: &State) -> bool {
        let host = &state.hosts[BROKEN];
        let over = state.now >= host.lease_from + FENCE_AFTER + STOP_BUDGET;
        !(over && host.container.is_some() && self.somebody_fences(host))
    }

    fn somebody_fences(&self, host: &Host) -> bool {
        host.agent == Agent::Up || !self.has(Mutant::NoFenceProcess)
    }

    fn of_a_host(&self, state: &State, index: usize, steps: &mut Vec<Step>) {
        let host = &state.hosts[index];
        let lease_holds = state.lease_holds(index);
        if index == BROKEN && host.container.is_some() && !lease_holds && self.somebody_fences(host) {
            steps.push(Step::LeaseEnds);
        }
        if host.agent != Agent::Up {
            return;
        }
        // An agent whose lease is over finishes the fence before it says Hello.
        if host.session.is_none() && host.linked && (lease_holds || host.container.is_none()) {
            steps.push(Step::Hello(index));
        }
        if state.connected(index) && !state.store.behind {
            if host.accepted != state.pair_of_set(index) || host.order != state.order_of(index) {
                steps.push(Step::SendOrder(index));
            }
            if host.container.is_some_and(|claim| state.store.placed != Some((index, claim))) {
                steps.push(Step::Judge(index));
            }
        }
        if host.gone.is_some() && host.session.is_some() {
            steps.push(Step::TellGone(index));
        }
        if host.container.is_some_and(|claim| state.share_says(claim) != Word::Ours) {
            steps.push(Step::LookAtShare(index));
        }
        // However late: it is under way.
        if let Start::Checked(_) = host.start {
            steps.push(Step::Write(index));
        }
        let Some((claim, run)) = host.order else { return };
        let stands = host.session.is_some() || self.has(Mutant::LaunchedCutOff);
        let over = host.gone == Some(claim) || host.acked_gone == Some(claim);
        match host.start {
            Start::Idle if run && host.container.is_none() && !over && lease_holds => {
                let taken = state.share_says(claim) != Word::Fenced || self.has(Mutant::LowerPairAccepted);
                steps.push(if taken { Step::Check(index) } else { Step::Refused(index) });
            }
            Start::Written(_) => steps.push(Step::ReadBack(index)),
            Start::ReadBack(claim) if lease_holds && stands && host.order == Some((claim, true)) => {
                steps.push(Step::Launch(index));
            }
            Start::Idle | Start::Checked(_) | Start::ReadBack(_) => {}
        }
        let superseded = host.container.is_some_and(|found| found.pair() < claim.pair());
        if superseded || (!run && !over) {
            steps.push(Step::Obey(index));
        }
    }

    fn of_the_network(&self, state: &State, steps: &mut Vec<Step>) {
        let host = &state.hosts[BROKEN];
        // Where no lease ends, heartbeats change nothing.
        if self.horizon > FENCE_AFTER && host.agent == Agent::Up && host.linked && host.session.is_some() {
            steps.push(Step::SendHeartbeat);
        }
        for message in &state.under_way {
            let takes = match message {
                Message::Heartbeat { .. } | Message::Gone { .. } => true,
                Message::HeartbeatAck { .. } | Message::Order { .. } | Message::GoneAck { .. } => {
                    host.agent == Agent::Up && host.session.is_some()
                }
            };
            if takes {
                steps.push(Step::Deliver(*message));
            }
            if self.has(Mutant::AckBeforeCommit) && matches!(message, Message::Gone { .. }) {
                steps.push(Step::AckOnly);
            }
        }
        if host.session.is_some() && (!host.linked || !state.connected(BROKEN)) {
            steps.push(Step::SessionEnds);
        }
        if !host.linked {
            steps.push(Step::Heal);
        }
    }

    fn faults(&self, state: &State, steps: &mut Vec<Step>) {
        let host = &state.hosts[BROKEN];
        if host.agent == Agent::Frozen {
            steps.push(Step::Wake);
        }
        if state.faults >= self.faults {
            return;
        }
        if host.linked {
            steps.push(Step::Cut);
        }
        if self.breaks && host.agent == Agent::Up {
            steps.extend([Step::Freeze, Step::Die, Step::Restart]);
            if self.has(Mutant::CloneAccepted) {
                steps.push(Step::Clone);
            }
        }
        if self.goes_back && state.old.is_some() && !state.went_back {
            steps.push(Step::GoBack);
        }
    }
}
