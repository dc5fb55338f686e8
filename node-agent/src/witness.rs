//! What the store has confirmed to this node, kept in a file over restarts of the agent: the node's testimony in case the store
//! goes back in time, and the name of the Docker daemon that its containers belong to.
//!
//! Losing it loses testimony and nothing else, so a file that cannot be read is begun anew.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use carrel_common::id::{ClusterId, NodeId};
use carrel_common::model::{DesiredPair, HeartbeatCount};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::runtime::Scope;

/// The file's name below the state directory.
const FILE: &str = "confirmed.json";

/// What the store has confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Testimony {
    /// Whose it is.
    pub node: NodeId,
    /// By the store of this Carrel.
    pub cluster: ClusterId,
    /// The highest desired pair that was accepted.
    pub accepted: Option<DesiredPair>,
    /// The highest count of this node's heartbeats that was acknowledged.
    pub acked: Option<HeartbeatCount>,
    /// Id of the Docker daemon with which a session was accepted; empty before the first.
    pub docker_id: String,
}

/// Collects testimony, and keeps it.
#[derive(Debug)]
pub struct Witness {
    path: PathBuf,
    testimony: watch::Sender<Testimony>,
}

impl Witness {
    /// With what was kept of this very node. Blocking.
    pub fn open(state_dir: &Path, scope: Scope) -> Self {
        let path = state_dir.join(FILE);
        let Scope { node, cluster } = scope;
        let anew = Testimony { node, cluster, accepted: None, acked: None, docker_id: String::new() };
        let kept = match read(&path) {
            Ok(kept) => kept.filter(|kept| (kept.node, kept.cluster) == (node, cluster)),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "what the store had confirmed is forgotten");
                None
            }
        };
        Self { path, testimony: watch::Sender::new(kept.unwrap_or(anew)) }
    }

    /// What is known.
    pub fn testimony(&self) -> Testimony {
        self.testimony.borrow().clone()
    }

    /// A desired set was accepted.
    pub fn accepted(&self, pair: DesiredPair) {
        self.change(|known| known.accepted = known.accepted.max(Some(pair)));
    }

    /// A heartbeat was acknowledged.
    pub fn acked(&self, count: HeartbeatCount) {
        self.change(|known| known.acked = known.acked.max(Some(count)));
    }

    /// A session was accepted with this Docker daemon.
    pub fn bound_to(&self, docker_id: &str) {
        self.change(|known| known.docker_id = docker_id.to_owned());
    }

    fn change(&self, change: impl FnOnce(&mut Testimony)) {
        self.testimony.send_if_modified(|known| {
            let before = known.clone();
            change(known);
            before != *known
        });
    }

    /// Writes what changes, the newest, until `stop`.
    pub async fn keep(&self, stop: CancellationToken) {
        let mut changes = self.testimony.subscribe();
        // Cancel-safe: a change that is not seen is written by the next one, or lost with the process.
        while let Some(Ok(())) = stop.run_until_cancelled(changes.changed()).await {
            let (path, newest) = (self.path.clone(), changes.borrow_and_update().clone());
            let written = tokio::task::spawn_blocking(move || write(&path, &newest)).await;
            if let Ok(Err(error)) = written {
                tracing::warn!(%error, path = %self.path.display(), "what the store has confirmed is not kept");
            }
        }
    }
}

fn read(path: &Path) -> io::Result<Option<Testimony>> {
    match fs::read(path) {
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(other) => Err(other),
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
    }
}

/// The old file or the new one, whatever ends the process. Not forced to the disk: after a loss of power it may be a little old.
fn write(path: &Path, testimony: &Testimony) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = fs::File::create(&new)?;
    file.write_all(&serde_json::to_vec(testimony)?)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope() -> Scope {
        Scope { node: NodeId::new(), cluster: ClusterId::new() }
    }

    fn set(incarnation: i64, generation: i64) -> DesiredPair {
        DesiredPair { incarnation, generation }
    }

    #[test]
    fn comes_back_as_it_was_kept_for_the_same_node_and_no_other() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (ours, other) = (scope(), scope());
        let witness = Witness::open(dir.path(), ours);
        witness.accepted(set(1, 7));
        witness.acked(HeartbeatCount { incarnation: 1, heartbeats: 90 });
        witness.bound_to("daemon");
        write(&witness.path, &witness.testimony()).expect("written");
        assert_eq!(Witness::open(dir.path(), ours).testimony(), witness.testimony());
        assert_eq!(Witness::open(dir.path(), other).testimony().accepted, None);
    }

    #[test]
    fn only_rises() {
        let dir = tempfile::tempdir().expect("tempdir");
        let witness = Witness::open(dir.path(), scope());
        for pair in [set(1, 7), set(1, 6), set(2, 1), set(1, 9)] {
            witness.accepted(pair);
        }
        assert_eq!(witness.testimony().accepted, Some(set(2, 1)));
    }

    #[test]
    fn a_broken_file_is_begun_anew() {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::write(dir.path().join(FILE), "{").expect("write");
        assert_eq!(Witness::open(dir.path(), scope()).testimony().acked, None);
    }
}
