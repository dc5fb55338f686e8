//! What there is: the store, two hosts, the share, messages under way, and what only the model knows.

use std::collections::BTreeSet;

/// A container's identity: the pair, compared in this order, and the placement it was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Claim {
    pub(crate) incarnation: u8,
    pub(crate) generation: u8,
    pub(crate) placement: u8,
}

impl Claim {
    pub(crate) fn pair(self) -> (u8, u8) {
        (self.incarnation, self.generation)
    }
}

/// What Postgres holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Store {
    pub(crate) incarnation: u8,
    pub(crate) generation: u8,
    /// The latest pair that was ever placed.
    pub(crate) newest: (u8, u8),
    /// Hosts on which the student was ever placed: about those a host is believed.
    pub(crate) placed_on: [bool; 2],
    pub(crate) wanted: bool,
    /// The unreleased placement.
    pub(crate) placed: Option<(usize, Claim)>,
    /// Version of each node's desired set.
    pub(crate) version: [u8; 2],
    /// The accepted session of each node.
    pub(crate) session: [u8; 2],
    /// It has noticed that it went back in time.
    pub(crate) behind: bool,
    /// Hosts that have told what they run since the restore was declared.
    pub(crate) heard: [bool; 2],
    /// The student was placed or found since the restore was declared: it runs where the store says.
    pub(crate) settled: bool,
    /// A container on a host that is left alone and keeps the student waiting.
    pub(crate) held: [Option<Claim>; 2],
}

/// What a container is that no order names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// Its time is over.
    Over,
    /// Later than all that the store knows, and of an incarnation whose end it may have lost.
    Forgotten,
    /// Anything else.
    Unclear,
}

/// How an agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Agent {
    Up,
    Frozen,
    Dead,
}

/// How far a start is on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Start {
    Idle,
    /// The fence file was read and has nothing later. What is written next may overwrite what came between, and may come late.
    Checked(Claim),
    /// The fence file was written.
    Written(Claim),
    /// It was read back and is ours.
    ReadBack(Claim),
}

/// One host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Host {
    pub(crate) agent: Agent,
    pub(crate) linked: bool,
    /// The session the agent believes to hold; `None`: it has to say Hello.
    pub(crate) session: Option<u8>,
    /// When the last acked heartbeat was sent.
    pub(crate) lease_from: u8,
    /// Highest pair of a desired set taken since the agent started.
    pub(crate) accepted: (u8, u8),
    /// What that set says: the claim, and whether it should run.
    pub(crate) order: Option<(Claim, bool)>,
    pub(crate) start: Start,
    pub(crate) container: Option<Claim>,
    /// Gone, and to be told until it is acked.
    pub(crate) gone: Option<Claim>,
    /// Gone, and acked.
    pub(crate) acked_gone: Option<Claim>,
}

/// Under way; each may arrive late, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Message {
    Heartbeat { session: u8, sent: u8 },
    HeartbeatAck { session: u8, sent: u8 },
    Order { session: u8, pair: (u8, u8), order: Option<(Claim, bool)> },
    Gone { session: u8, claim: Claim },
    GoneAck { claim: Claim },
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) now: u8,
    pub(crate) store: Store,
    /// The store before its last change of placement: what a restore brings back.
    pub(crate) old: Option<Box<Store>>,
    /// Since when host 0's renewals stand still, as a replica has watched it.
    pub(crate) still_since: u8,
    pub(crate) hosts: [Host; 2],
    /// The fence file.
    pub(crate) share: Option<Claim>,
    /// To and from host 0; host 1 hears and is heard at once.
    pub(crate) under_way: BTreeSet<Message>,
    /// The store was restored from an old copy.
    pub(crate) went_back: bool,
    /// When the restore was declared.
    pub(crate) declared_at: Option<u8>,
    /// Names of sessions that were given: a stream is never taken for another, whatever the store has forgotten.
    pub(crate) sessions: u8,
    pub(crate) faults: u8,
    pub(crate) starts: u8,
    pub(crate) placements: u8,
    /// What the student wants running, whatever the store has forgotten.
    pub(crate) truly_wanted: Option<Claim>,
    pub(crate) killed_without_reason: bool,
    /// An acked report that the store does not hold, though it never went back.
    pub(crate) lost_report: bool,
}
