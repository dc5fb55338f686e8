//! Who waits for what inside this process.
//!
//! A nudge only makes things faster: every waiter also polls, so a lost one, or one of another replica, costs a second.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use carrel_common::id::{NodeId, WorkspaceUid};
use time::OffsetDateTime;
use tokio::sync::{Notify, mpsc, watch};

use crate::store::Touched;

/// A workspace to look at for idleness, and when (by the database's clock).
pub type IdleDue = (WorkspaceUid, OffsetDateTime);

/// The bells of this process.
#[derive(Debug)]
pub struct Nudge {
    events: watch::Sender<u64>,
    /// Somebody waits for a place, or one became free.
    pub queue: Notify,
    /// A node was given up: what it held is to be moved or stopped.
    pub lost: Notify,
    /// The rules have changed: every deadline is to be looked at anew.
    pub sweep: Notify,
    idle: mpsc::UnboundedSender<IdleDue>,
    desired: Bells,
    deadlines: Bells,
}

/// One bell for each node.
#[derive(Debug, Default)]
struct Bells(Mutex<HashMap<NodeId, Arc<Notify>>>);

impl Bells {
    fn of(&self, node: NodeId) -> Arc<Notify> {
        Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(node).or_default())
    }

    fn ring(&self, nodes: impl IntoIterator<Item = NodeId>) {
        let bells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for bell in nodes.into_iter().filter_map(|node| bells.get(&node)) {
            bell.notify_one();
        }
    }
}

impl Nudge {
    /// New bells, and the end at which the idle loop listens.
    pub fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<IdleDue>) {
        let (idle, due) = mpsc::unbounded_channel();
        let nudge = Self {
            events: watch::Sender::new(0),
            queue: Notify::new(),
            lost: Notify::new(),
            sweep: Notify::new(),
            idle,
            desired: Bells::default(),
            deadlines: Bells::default(),
        };
        (Arc::new(nudge), due)
    }

    /// Rings for a committed transaction.
    pub fn ring(&self, touched: &Touched) {
        if touched.events {
            self.events.send_modify(|count| *count = count.wrapping_add(1));
        }
        if touched.queue {
            self.queue.notify_one();
        }
        self.desired.ring(touched.nodes.iter().copied());
    }

    /// Has the idle loop look at a workspace at a time.
    pub fn look_at(&self, uid: WorkspaceUid, at: OffsetDateTime) {
        // Without a listener there is no loop in this process; another's sweep finds it.
        self.idle.send((uid, at)).ok();
    }

    /// Hears of new events.
    pub fn events(&self) -> watch::Receiver<u64> {
        self.events.subscribe()
    }

    /// The bell of a node's desired set, for the session that holds it.
    pub fn node(&self, node: NodeId) -> Arc<Notify> {
        self.desired.of(node)
    }

    /// The bell of the warnings on a node, for the session that holds it.
    pub fn deadlines(&self, node: NodeId) -> Arc<Notify> {
        self.deadlines.of(node)
    }

    /// A warning on a node was given or withdrawn.
    pub fn ring_deadlines(&self, node: Option<NodeId>) {
        self.deadlines.ring(node);
    }
}
