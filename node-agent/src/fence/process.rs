//! The fence process: looks at the deadline until it is told to end, through everything that happens to the agent and to Docker.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use carrel_common::clock::SystemClock;
use tokio_util::sync::CancellationToken;

use super::enforce::Enforcer;
use super::files::FenceFiles;
use crate::facts;

/// After a look that failed.
const AGAIN: Duration = Duration::from_secs(1);

/// The lock is tried for so often before somebody else is taken to have it, with so long a pause.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(100);

/// Why the fence process does not run.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// Nobody else may end other users' processes.
    #[error("it has to run as root, to end the processes of containers")]
    NotRoot,
    /// What it reads of the host is not there.
    #[error("this host's boot id cannot be read: {0}")]
    Host(#[source] io::Error),
    /// Its files cannot be used.
    #[error("the files in {} cannot be used: {source}", .path.display())]
    Files {
        /// The state directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is one already.
    #[error("another fence process watches {}", .0.display())]
    Taken(PathBuf),
}

/// Runs until `stop`. What happens then is up to the agent alone.
///
/// # Errors
/// When it cannot begin: see [`FenceError`]. Once it runs, nothing ends it but `stop`.
pub async fn run(state_dir: &Path, stop: CancellationToken) -> Result<(), FenceError> {
    if !rustix::process::geteuid().is_root() {
        return Err(FenceError::NotRoot);
    }
    let unusable = |source| FenceError::Files { path: state_dir.to_owned(), source };
    let boot_id = facts::boot_id().map_err(FenceError::Host)?;
    let files = FenceFiles::open(state_dir).map_err(unusable)?;
    let _lock = lock(&files, state_dir).await?;
    spare_from_oom();
    tracing::info!(files = %files.root().display(), boot = boot_id, "the fence watches the lease of this host");
    let mut enforcer = Enforcer::new(files, boot_id, Arc::new(SystemClock::new()));
    loop {
        // Blocking, on purpose: there is nothing else for this process to do.
        let again_in = match enforcer.once() {
            Ok(look) => look.again_in,
            Err(error) => {
                tracing::error!(%error, "the lists of containers cannot be used; trying again");
                AGAIN
            }
        };
        if stop.run_until_cancelled(tokio::time::sleep(again_in)).await.is_none() {
            tracing::info!("the fence ends; the agent alone looks after the lease now");
            return Ok(());
        }
    }
}

/// Held until the end.
async fn lock(files: &FenceFiles, state_dir: &Path) -> Result<File, FenceError> {
    for _ in 0..TRIES {
        match files.lock() {
            Ok(Some(lock)) => return Ok(lock),
            // The agent has it for a moment when it looks whether there is a fence process.
            Ok(None) => tokio::time::sleep(PAUSE).await,
            Err(source) => return Err(FenceError::Files { path: state_dir.to_owned(), source }),
        }
    }
    Err(FenceError::Taken(state_dir.to_owned()))
}

/// A host that is out of memory must not lose the process that ends workspaces.
fn spare_from_oom() {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-1000") {
        tracing::warn!(%error, "the kernel may end the fence when the host is out of memory");
    }
}
