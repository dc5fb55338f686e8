//! What can happen, in any order.

use stateright::{Model, Property};

use crate::rules::{FENCE_AFTER, Mutant, STOP_BUDGET, replace_after};
use crate::state::{Agent, Claim, Host, Message, Start, State, Store};

/// Host 0 suffers; host 1 is steady: it is heard at once, and its lease always holds.
const BROKEN: usize = 0;
const STEADY: usize = 1;

/// The model, and how large it is.
#[derive(Clone, Debug)]
pub(crate) struct Fleet {
    mutant: Option<Mutant>,
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

    fn has(&self, mutant: Mutant) -> bool {
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

impl State {
    fn lease_holds(&self, host: usize) -> bool {
        host == STEADY || self.now < self.hosts[BROKEN].lease_from + FENCE_AFTER
    }

    fn connected(&self, host: usize) -> bool {
        self.hosts[host].session == Some(self.store.session[host])
    }

    /// What the desired set of a host says.
    fn order_of(&self, host: usize) -> Option<(Claim, bool)> {
        let (node, claim) = self.store.placed.filter(|(node, _)| *node == host)?;
        debug_assert_eq!(node, host);
        Some((claim, self.store.wanted && claim.generation == self.store.generation))
    }

    fn pair_of_set(&self, host: usize) -> (u8, u8) {
        (self.store.incarnation, self.store.version[host])
    }

    /// Keeps the copy that a restore would bring back.
    fn keep_copy(&mut self) {
        self.old = Some(Box::new(self.store.clone()));
    }

    fn end_container(&mut self, host: usize, told: bool) {
        let ended = self.hosts[host].container.take();
        self.hosts[host].start = Start::Idle;
        if told {
            self.hosts[host].gone = ended;
        }
    }

    fn kill_for(&mut self, host: usize) {
        self.killed_without_reason |=
            self.hosts[host].container.is_some() && self.hosts[host].container == self.truly_wanted;
        self.end_container(host, false);
    }

    fn release(&mut self, host: usize, claim: Claim) {
        if self.store.placed == Some((host, claim)) {
            self.keep_copy();
            self.store.placed = None;
            self.store.version[host] += 1;
        }
    }

    /// Whether, after a restore was declared, every host was heard and has nothing that is still to be judged, or was silent for so
    /// long that its lease is over.
    fn all_heard(&self, mutant: Option<Mutant>) -> bool {
        let Some(declared_at) = self.declared_at else { return true };
        let silent = self.now >= declared_at.max(self.still_since) + replace_after(mutant);
        let broken = self.store.heard[BROKEN] || silent;
        mutant == Some(Mutant::PlacedBeforeHeard) || (broken && self.store.heard[STEADY])
    }
}

/// Whether the share lets a claim start.
fn share_allows(share: Option<Claim>, claim: Claim) -> bool {
    share.is_none_or(|found| found.pair() < claim.pair() || found == claim)
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
            wanted: true,
            placed: None,
            version: [0; 2],
            session: [1; 2],
            behind: false,
            heard: [true; 2],
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
        if self.stops && !store.wanted && state.starts < 2 {
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
        if stands_still && !store.behind && store.placed.is_some_and(|(node, _)| node == BROKEN) {
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
        if host.container.is_some_and(|claim| !share_allows(state.share, claim)) {
            steps.push(Step::LookAtShare(index));
        }
        let Some((claim, run)) = host.order else { return };
        let over = host.gone == Some(claim) || host.acked_gone == Some(claim);
        match host.start {
            Start::Idle if run && host.container.is_none() && !over && lease_holds => {
                let taken = share_allows(state.share, claim) || self.has(Mutant::LowerPairAccepted);
                steps.push(if taken { Step::Write(index) } else { Step::Refused(index) });
            }
            Start::Written(_) => steps.push(Step::ReadBack(index)),
            Start::ReadBack(claim) if lease_holds && host.order == Some((claim, true)) => {
                steps.push(Step::Launch(index));
            }
            Start::Idle | Start::ReadBack(_) => {}
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

    fn take(&self, state: &mut State, step: Step) {
        match step {
            Step::Tick => {
                state.now += 1;
                // A start that is under way ends with the lease.
                if !state.lease_holds(BROKEN) {
                    state.hosts[BROKEN].start = Start::Idle;
                }
            }
            Step::PressStart => {
                state.store.wanted = true;
                state.starts += 1;
            }
            Step::PressStop => {
                let (node, _) = state.store.placed.expect("it is placed");
                state.store.wanted = false;
                state.store.version[node] += 1;
                state.truly_wanted = None;
            }
            Step::Place(host) => self.place(state, host),
            Step::Fence => {
                let (node, claim) = state.store.placed.expect("it is placed");
                state.release(node, claim);
                // Its session can never renew again.
                state.sessions += 1;
                state.store.session[node] = state.sessions;
                state.truly_wanted = None;
            }
            Step::Declare => {
                state.store.incarnation += 1;
                state.store.behind = false;
                state.store.heard = [false; 2];
                state.declared_at = Some(state.now);
                for host in &mut state.hosts {
                    host.session = None;
                }
            }
            Step::Hello(host) => hello(state, host, self.has(Mutant::OldOrdersHold)),
            Step::Judge(host) => self.judge(state, host),
            Step::SendHeartbeat => {
                let session = state.hosts[BROKEN].session.expect("it is connected");
                state.under_way.retain(|message| !matches!(message, Message::Heartbeat { .. }));
                state.under_way.insert(Message::Heartbeat { session, sent: state.now });
            }
            Step::SendOrder(host) => {
                let message = Message::Order {
                    session: state.store.session[host],
                    pair: state.pair_of_set(host),
                    order: state.order_of(host),
                };
                match host {
                    BROKEN => {
                        state.under_way.retain(|message| !matches!(message, Message::Order { .. }));
                        state.under_way.insert(message);
                    }
                    _ => deliver_to(&mut state.hosts[host], message, state.now, self.mutant),
                }
            }
            Step::Deliver(message) => self.deliver(state, message),
            Step::Write(host) => {
                let (claim, _) = state.hosts[host].order.expect("there is an order");
                state.share = Some(claim);
                state.hosts[host].start = Start::Written(claim);
            }
            Step::ReadBack(host) => {
                let Start::Written(claim) = state.hosts[host].start else { return };
                let ours = state.share == Some(claim) || self.has(Mutant::LowerPairAccepted);
                state.hosts[host].start = if ours { Start::ReadBack(claim) } else { Start::Idle };
            }
            Step::Launch(host) => {
                let Start::ReadBack(claim) = state.hosts[host].start else { return };
                state.hosts[host].container = Some(claim);
                state.hosts[host].start = Start::Idle;
            }
            Step::Refused(host) => self.refused(state, host),
            Step::Obey(host) => {
                let (claim, run) = state.hosts[host].order.expect("there is an order");
                if run {
                    state.kill_for(host);
                } else {
                    state.end_container(host, false);
                    state.hosts[host].gone = Some(claim);
                }
            }
            Step::TellGone(host) => {
                let claim = state.hosts[host].gone.expect("something is gone");
                if host == BROKEN {
                    let session = state.hosts[host].session.expect("it is connected");
                    state.under_way.insert(Message::Gone { session, claim });
                } else if state.connected(host) {
                    state.release(host, claim);
                    state.hosts[host].gone = None;
                    state.hosts[host].acked_gone = Some(claim);
                }
            }
            Step::LookAtShare(host) => state.end_container(host, true),
            Step::LeaseEnds => {
                let told = state.hosts[BROKEN].agent == Agent::Up;
                state.end_container(BROKEN, told);
            }
            Step::SessionEnds => state.hosts[BROKEN].session = None,
            Step::Heal => state.hosts[BROKEN].linked = true,
            Step::Wake => state.hosts[BROKEN].agent = Agent::Up,
            Step::AckOnly => {
                let gone = state.under_way.iter().find_map(|message| match message {
                    Message::Gone { claim, .. } => Some((*message, *claim)),
                    _ => None,
                });
                let (message, claim) = gone.expect("a report is under way");
                state.under_way.remove(&message);
                state.under_way.insert(Message::GoneAck { claim });
            }
            Step::Cut | Step::Freeze | Step::Die | Step::Restart | Step::Clone | Step::GoBack => {
                state.faults += 1;
                fault(state, step);
            }
        }
    }

    fn place(&self, state: &mut State, host: usize) {
        state.keep_copy();
        state.placements += 1;
        let store = &mut state.store;
        store.generation += 1;
        let claim = Claim {
            incarnation: store.incarnation,
            generation: store.generation,
            placement: state.placements,
        };
        store.placed = Some((host, claim));
        store.version[host] += 1;
        state.truly_wanted = Some(claim);
    }

    /// What the store says of a container that no order names.
    fn judge(&self, state: &mut State, host: usize) {
        let Some(claim) = state.hosts[host].container else { return };
        let known_over =
            claim.generation <= state.store.generation && claim.incarnation <= state.store.incarnation;
        if self.has(Mutant::UnknownIsStopped) || (known_over && state.declared_at.is_none()) {
            state.kill_for(host);
        } else if state.store.placed.is_none() {
            state.store.held[host] = None;
            state.keep_copy();
            state.store.placed = Some((host, claim));
            state.store.generation = state.store.generation.max(claim.generation);
            state.store.wanted = true;
            state.store.version[host] += 1;
        } else if !self.has(Mutant::HeldIsForgotten) {
            state.store.held[host] = Some(claim);
        }
        state.store.heard[host] = true;
    }

    /// The share holds what the store does not know. Of its own incarnation: it went back in time. Of an older one: that was
    /// declared, and once every host was heard the generation may be raised above it.
    fn refused(&self, state: &mut State, host: usize) {
        if !state.connected(host) {
            return;
        }
        let declared = state.share.is_some_and(|found| found.incarnation < state.store.incarnation);
        if declared && !state.all_heard(self.mutant) {
            return;
        }
        if declared || self.has(Mutant::RaisedAtOnce) {
            let (claim, _) = state.hosts[host].order.expect("there is an order");
            let found = state.share.map_or(0, |found| found.generation);
            state.release(host, claim);
            state.store.generation = state.store.generation.max(found);
            state.hosts[host].order = None;
        } else {
            state.store.behind = true;
        }
    }

    fn deliver(&self, state: &mut State, message: Message) {
        state.under_way.remove(&message);
        match message {
            Message::Heartbeat { session, sent } => {
                if state.store.session[BROKEN] == session {
                    state.still_since = state.now;
                    state.under_way.retain(|m| !matches!(m, Message::HeartbeatAck { .. }));
                    state.under_way.insert(Message::HeartbeatAck { session, sent });
                }
            }
            Message::Gone { session, claim } => {
                if state.store.session[BROKEN] == session {
                    state.release(BROKEN, claim);
                    state.under_way.insert(Message::GoneAck { claim });
                }
            }
            Message::HeartbeatAck { .. } | Message::Order { .. } | Message::GoneAck { .. } => {
                deliver_to(&mut state.hosts[BROKEN], message, state.now, self.mutant);
            }
        }
    }
}

fn deliver_to(host: &mut Host, message: Message, now: u8, mutant: Option<Mutant>) {
    match message {
        Message::HeartbeatAck { session, sent } if host.session == Some(session) => {
            let from = if mutant == Some(Mutant::LeaseFromReceipt) { now } else { sent };
            host.lease_from = host.lease_from.max(from);
        }
        // A set older than the one taken is refused; the same one holds again.
        Message::Order { session, pair, order } if host.session == Some(session) && pair >= host.accepted => {
            host.accepted = pair;
            host.order = order;
        }
        Message::GoneAck { claim } if host.gone == Some(claim) => {
            host.gone = None;
            host.acked_gone = Some(claim);
        }
        Message::HeartbeatAck { .. }
        | Message::Order { .. }
        | Message::GoneAck { .. }
        | Message::Heartbeat { .. }
        | Message::Gone { .. } => {}
    }
}

fn hello(state: &mut State, index: usize, old_orders_hold: bool) {
    let set = state.pair_of_set(index);
    let newest = (state.store.incarnation, state.store.generation);
    let host = &mut state.hosts[index];
    let ahead = host.accepted > set || host.container.is_some_and(|claim| claim.pair() > newest);
    // What was declared restored is known to be older than what runs.
    state.store.behind |= ahead && state.declared_at.is_none();
    state.sessions += 1;
    state.store.session[index] = state.sessions;
    host.session = Some(state.sessions);
    let unknown = host.container.is_some_and(|claim| state.store.placed != Some((index, claim)));
    // Heard is who has nothing that is still to be judged.
    state.store.heard[index] = state.store.heard[index] || !unknown;
    // What was ordered in another session may have been given to another host since: it starts nothing more.
    host.order = if old_orders_hold { host.order } else { None };
    // Everything is told anew in a new session.
    host.gone = host.gone.or(host.acked_gone.take());
}

fn fault(state: &mut State, step: Step) {
    let host = &mut state.hosts[BROKEN];
    match step {
        Step::Cut => host.linked = false,
        Step::Freeze => host.agent = Agent::Frozen,
        Step::Die => (host.agent, host.session) = (Agent::Dead, None),
        // What it knew is gone; what runs, runs on.
        Step::Restart => {
            (host.session, host.accepted, host.order) = (None, (0, 0), None);
            (host.start, host.gone, host.acked_gone) = (Start::Idle, None, None);
        }
        // The clone takes the session, and shows that it has no container.
        Step::Clone => {
            state.sessions += 1;
            state.store.session[BROKEN] = state.sessions;
            if let Some((BROKEN, claim)) = state.store.placed {
                state.release(BROKEN, claim);
            }
        }
        Step::GoBack => {
            state.store = *state.old.take().expect("there is a copy");
            state.still_since = state.now;
            state.went_back = true;
            for host in &mut state.hosts {
                host.session = None;
            }
        }
        _ => {}
    }
}
