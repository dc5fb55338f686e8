//! A store that has gone back in time: noticed, told, and followed by this process when an operator has declared it restored.

use std::sync::Arc;

use carrel_common::id::{ClusterId, NodeId};
use tokio::sync::watch;

use super::node_admin::about;
use super::{App, AppError, Result};
use crate::domain::behind::{Evidence, StoreState};
use crate::domain::event::{Actor, Entry};
use crate::store::Work;

/// How the store stands, as this process read it last; at most a second old.
#[derive(Debug, Clone)]
pub struct SharedState(Arc<watch::Sender<StoreState>>);

impl SharedState {
    /// As it was read at the start.
    pub fn new(state: StoreState) -> Self {
        Self(Arc::new(watch::Sender::new(state)))
    }

    /// As it is known.
    pub fn get(&self) -> StoreState {
        self.0.borrow().clone()
    }

    /// Whether it has gone back in time, as it is known.
    pub fn is_behind(&self) -> bool {
        self.0.borrow().behind.is_some()
    }

    /// Incarnation of the store, as it is known.
    pub fn incarnation(&self) -> i64 {
        self.0.borrow().incarnation
    }

    /// Name of this Carrel, as it is known.
    pub fn cluster(&self) -> ClusterId {
        self.0.borrow().cluster
    }

    /// Hears of changes.
    pub fn subscribe(&self) -> watch::Receiver<StoreState> {
        self.0.subscribe()
    }
}

impl App {
    /// Reads how the store stands; whether that has changed. A store that was declared restored is another one: what this
    /// process remembers of the one before goes.
    ///
    /// # Errors
    /// The database.
    pub async fn refresh_state(&self) -> Result<bool> {
        let (known, state) = (self.state.get(), self.store.state().await?);
        if known == state {
            return Ok(false);
        }
        if (known.cluster, known.incarnation) != (state.cluster, state.incarnation) {
            tracing::warn!(
                cluster = %state.cluster, incarnation = state.incarnation,
                "the store was declared restored; sessions and watchers begin anew"
            );
            self.rules.forget(self.settings.defaults.clone());
        }
        self.metrics.store_behind(state.behind.is_some());
        self.state.0.send_replace(state);
        Ok(true)
    }

    /// Refuses what would change what runs while the store is behind: it would be decided on what was.
    pub(super) async fn refuse_while_behind(&self, work: &mut Work) -> Result<()> {
        match work.state().await?.behind {
            None => Ok(()),
            Some(behind) => Err(AppError::StoreBehind { since: behind.since, evidence: behind.evidence }),
        }
    }

    /// Takes note of what shows that the store went back in time, by what its `incarnation` knew.
    pub(super) async fn note_behind(
        &self,
        work: &mut Work,
        node: NodeId,
        evidence: &Evidence,
        incarnation: i64,
        seen: i64,
    ) -> Result<()> {
        let (told, seen) = (evidence.to_string(), seen.max(evidence.incarnation()));
        if work.mark_behind(node, &told, incarnation, seen).await? {
            tracing::error!(
                node.id = %node, evidence = told,
                "THE DATABASE HAS GONE BACK IN TIME: nothing is started, stopped or replaced until an operator has run \
                 `control-plane declare-restored` (see docs/operating.md)"
            );
            let entry = Entry::new("store.behind", Actor::ControlPlane).with("evidence", told);
            work.append(about(node), entry).await?;
        }
        Ok(())
    }
}
