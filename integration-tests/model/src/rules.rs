//! What the design demands, and the mutants that leave one demand out.

/// Ticks after which the node stops everything, counted from when the last acked heartbeat was sent (F).
pub(crate) const FENCE_AFTER: u8 = 2;
/// Ticks that may take (S).
pub(crate) const STOP_BUDGET: u8 = 1;
/// Ticks on top (M).
const MARGIN: u8 = 1;

/// One demand that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mutant {
    /// Replacement after F + S alone.
    NoMargin,
    /// What was ordered in one session is still started in the next, before its first set.
    OldOrdersHold,
    /// The lease counts from when the ack arrived.
    LeaseFromReceipt,
    /// A start goes on although the share holds the same pair of another placement, or a higher one.
    LowerPairAccepted,
    /// A start that is under way goes on when its session ends.
    LaunchedCutOff,
    /// A silent host's workspace is placed anew without the fence.
    PlaceBeforeRelease,
    /// A clone of the host, with an empty Docker, may take the session over, and its empty inventory counts as proof. That it is refused
    /// is no step of the model: it is told apart by what it is, whatever the state is, and nothing follows from it.
    CloneAccepted,
    /// Only the agent itself stops what runs when the lease ends.
    NoFenceProcess,
    /// A container that the store does not know is stopped.
    UnknownIsStopped,
    /// A refusal by the share only raises the generation above the one found there.
    RaisedAtOnce,
    /// After a restore was declared, placements do not wait for the hosts.
    PlacedBeforeHeard,
    /// A container that was left alone does not keep its student from being placed elsewhere, not even where the student was placed.
    HeldIsForgotten,
    /// A report is acked when it arrives, and committed later or never.
    AckBeforeCommit,
}

/// Ticks without a renewal after which a node is replaced.
pub(crate) fn replace_after(mutant: Option<Mutant>) -> u8 {
    let margin = if mutant == Some(Mutant::NoMargin) { 0 } else { MARGIN };
    FENCE_AFTER + STOP_BUDGET + margin
}
