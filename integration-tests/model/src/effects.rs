//! What each step changes.

use crate::rules::Mutant;
use crate::state::{Agent, Claim, Finding, Host, Message, Start, State};
use crate::steps::{BROKEN, Fleet, Step, Word};

impl Fleet {
    pub(crate) fn take(&self, state: &mut State, step: Step) {
        match step {
            Step::Tick => {
                state.now += 1;
                // A start that is under way ends with the lease; but a write that hangs may still come.
                let writes = matches!(state.hosts[BROKEN].start, Start::Checked(_));
                if !state.lease_holds(BROKEN) && !writes {
                    state.hosts[BROKEN].start = Start::Idle;
                }
            }
            Step::PressStart => {
                state.store.wanted = true;
                state.starts += 1;
                // What is being stopped is stopped all the same; the next one is another generation.
                if let Some((node, _)) = state.store.placed {
                    state.store.generation += 1;
                    state.store.version[node] += 1;
                }
            }
            Step::PressStop => {
                let (node, _) = state.store.placed.expect("it is placed");
                state.store.wanted = false;
                state.store.version[node] += 1;
                state.truly_wanted = None;
            }
            Step::Place(host) => self.place(state, host),
            Step::Fence => {
                if let Some((BROKEN, claim)) = state.store.placed {
                    state.release(BROKEN, claim);
                    state.truly_wanted = None;
                }
                // What it held it has ended; its session can never renew again.
                state.store.held[BROKEN] = None;
                state.sessions += 1;
                state.store.session[BROKEN] = state.sessions;
            }
            Step::Declare => {
                state.store.incarnation += 1;
                state.store.behind = false;
                state.store.settled = false;
                state.store.heard = [false; 2];
                state.declared_at = Some(state.now);
                for host in &mut state.hosts {
                    host.session = None;
                }
            }
            Step::Hello(host) => self.hello(state, host),
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
            Step::Check(host) => {
                let (claim, _) = state.hosts[host].order.expect("there is an order");
                state.hosts[host].start = Start::Checked(claim);
            }
            Step::Write(host) => {
                let Start::Checked(claim) = state.hosts[host].start else { return };
                state.share = Some(claim);
                let goes_on = state.lease_holds(host) && state.hosts[host].order == Some((claim, true));
                state.hosts[host].start = if goes_on { Start::Written(claim) } else { Start::Idle };
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
            Step::LookAtShare(host) => {
                let claim = state.hosts[host].container.expect("it runs");
                if state.share_says(claim) == Word::Fenced {
                    state.end_container(host, true);
                } else if state.hosts[host].order == Some((claim, true)) {
                    state.share = Some(claim);
                }
            }
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
        store.put(host, claim);
        state.truly_wanted = Some(claim);
    }

    /// What the store says of a container that no order names. It is never taken in here: outside of a restore only an operator does that.
    fn judge(&self, state: &mut State, host: usize) {
        let Some(claim) = state.hosts[host].container else { return };
        if self.has(Mutant::UnknownIsStopped) || state.store.find(claim) == Finding::Over {
            state.kill_for(host);
        } else if state.store.placed_on[host] && !self.has(Mutant::HeldIsForgotten) {
            state.store.held[host] = Some(claim);
        }
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

    fn hello(&self, state: &mut State, index: usize) {
        let set = state.pair_of_set(index);
        let (store, host) = (&state.store, &mut state.hosts[index]);
        // Of a student whom the store has never placed there a container proves nothing, but by its incarnation.
        let known = if store.placed_on[index] { store.generation } else { u8::MAX };
        let shows = |claim: Claim| claim.pair() > (store.incarnation, known);
        let ahead = host.accepted > set || host.container.is_some_and(shows);
        // What was declared restored is known to be older than what runs.
        state.store.behind |= ahead && state.declared_at.is_none();
        state.sessions += 1;
        state.store.session[index] = state.sessions;
        host.session = Some(state.sessions);
        // What was ordered in another session may have been given to another host since: it starts nothing more.
        host.order = if self.has(Mutant::OldOrdersHold) { host.order } else { None };
        // Everything is told anew in a new session.
        host.gone = host.gone.or(host.acked_gone.take());
        if !state.store.behind && !state.store.heard[index] {
            self.take_stock(state, index);
        }
    }

    /// The first Hello to a store that was declared restored: what runs there is taken in, or keeps its student waiting until it is gone;
    /// what the copy has there in vain is over.
    fn take_stock(&self, state: &mut State, index: usize) {
        let container = state.hosts[index].container;
        let is_there = |claim: Claim| container.is_some_and(|found| found.pair() == claim.pair());
        let (placed, settled) = (state.store.placed, state.store.settled);
        if let Some(found) = container {
            // Of two hosts the first to tell is believed.
            let free = placed.is_none_or(|(node, _)| node == index) || !settled;
            if placed.is_some_and(|(node, claim)| node == index && is_there(claim)) {
                state.store.settled = true;
            } else if state.store.find(found) == Finding::Forgotten && free {
                state.keep_copy();
                if let Some((node, _)) = placed {
                    state.store.version[node] += 1;
                }
                state.store.put(index, found);
                state.store.generation = state.store.generation.max(found.generation);
                state.store.wanted = true;
            } else if !self.has(Mutant::HeldIsForgotten) {
                state.store.held[index] = Some(found);
            }
        }
        if state.store.placed.is_some_and(|(node, claim)| node == index && !is_there(claim)) {
            state.store.wanted = false;
            state.store.version[index] += 1;
        }
        state.store.heard[index] = true;
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
