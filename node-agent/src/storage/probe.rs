//! Gathers what `check` decides on. Every touch of the share is on a blocking thread that can be abandoned.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use carrel_common::clock::Clock;
use carrel_common::model::Health;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::check::{Entry, Facts, Kind, Problem, WriteTrial, check, mount_of};
use super::layout::{OWN, ensure_own};

/// A healthy share answers in milliseconds; one that takes longer would hang every editor on it.
const DEADLINE: Duration = Duration::from_secs(10);

/// A verdict this fresh is good enough for a start; the share is looked at again in the background at half of it.
const FRESH: Duration = Duration::from_secs(15);

/// The base and the last verdict on it.
#[derive(Debug)]
pub struct Storage {
    base: PathBuf,
    kind: Kind,
    /// Names the trial file, so that two agents on one share do not meet.
    trial_name: String,
    clock: Arc<dyn DebugClock>,
    verdict: watch::Sender<Option<Verdict>>,
    /// A probe that has not come back. No second one is sent after it: each could hang for ever.
    pending: Arc<AtomicBool>,
}

/// A clock that can stand in a `Debug` struct.
trait DebugClock: Clock + std::fmt::Debug {}
impl<T: Clock + std::fmt::Debug> DebugClock for T {}

#[derive(Debug, Clone)]
struct Verdict {
    at: Duration,
    problem: Option<Problem>,
}

impl Storage {
    /// The base at `base` (absolute). Touches nothing.
    pub fn new<C: Clock + std::fmt::Debug>(
        base: PathBuf,
        kind: Kind,
        trial_name: String,
        clock: Arc<C>,
    ) -> Self {
        let pending = Arc::new(AtomicBool::new(false));
        Self { base, kind, trial_name, clock, verdict: watch::Sender::new(None), pending }
    }

    /// The base's path.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The last verdict; not healthy before the first.
    pub fn health(&self) -> Health {
        match &*self.verdict.borrow() {
            None => Health {
                problem: Some(("STORAGE_TIMEOUT".into(), "the share has not been looked at yet".into())),
                age: Duration::ZERO,
            },
            Some(verdict) => Health {
                problem: verdict.problem.clone().map(|p| (p.reason.to_owned(), p.message)),
                age: self.clock.monotonic().saturating_sub(verdict.at),
            },
        }
    }

    /// A verdict for a start: a good one that is fresh, else a new look.
    ///
    /// # Errors
    /// The problem, when the base takes no workspaces.
    pub async fn verdict_for_start(&self) -> Result<(), Problem> {
        let now = self.clock.monotonic();
        let fresh = |verdict: &Verdict| verdict.problem.is_none() && now.saturating_sub(verdict.at) < FRESH;
        if self.verdict.borrow().as_ref().is_some_and(fresh) {
            return Ok(());
        }
        self.look().await.map_or(Ok(()), Err)
    }

    /// Looks at the base now; what is wrong with it, if anything.
    pub async fn look(&self) -> Option<Problem> {
        let problem = self.probe().await;
        let verdict = Verdict { at: self.clock.monotonic(), problem: problem.clone() };
        let before = self.verdict.send_replace(Some(verdict)).and_then(|verdict| verdict.problem);
        if before != problem {
            match &problem {
                Some(problem) => tracing::error!(reason = problem.reason, "{}", problem.message),
                None => tracing::info!(base = %self.base.display(), "the share takes workspaces again"),
            }
        }
        problem
    }

    async fn probe(&self) -> Option<Problem> {
        if self.pending.swap(true, Ordering::AcqRel) {
            return Some(Problem::timeout(&self.base, DEADLINE));
        }
        let (base, kind, trial_name, pending) =
            (self.base.clone(), self.kind, self.trial_name.clone(), Arc::clone(&self.pending));
        let look = tokio::task::spawn_blocking(move || {
            let problem = gather_and_check(&base, kind, &trial_name);
            pending.store(false, Ordering::Release);
            problem
        });
        match tokio::time::timeout(DEADLINE, look).await {
            Ok(Ok(problem)) => problem,
            Ok(Err(_)) | Err(_) => Some(Problem::timeout(&self.base, DEADLINE)),
        }
    }

    /// Keeps the verdict fresh until `stop`.
    pub async fn watch(&self, stop: CancellationToken) {
        // Cancel-safe: a look that is cut off leaves the last verdict.
        while stop.run_until_cancelled(self.look()).await.is_some() {
            if stop.run_until_cancelled(tokio::time::sleep(FRESH / 2)).await.is_none() {
                return;
            }
        }
    }
}

/// Blocking. Writes only below a base that is otherwise as it should be.
fn gather_and_check(base: &Path, kind: Kind, trial_name: &str) -> Option<Problem> {
    let mut facts = gather(base);
    if let Some(problem) = check(kind, &facts) {
        return Some(problem);
    }
    facts.trial = try_to_write(base, trial_name);
    check(kind, &facts)
}

fn gather(base: &Path) -> Facts {
    let entry = match fs::metadata(base) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Entry::Missing,
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => Entry::Missing,
        Err(error) => Entry::Unreadable(error.to_string()),
        Ok(metadata) if !metadata.is_dir() => Entry::NotADirectory,
        Ok(metadata) => Entry::Directory { mode: metadata.permissions().mode() & 0o7777 },
    };
    let real = fs::canonicalize(base).unwrap_or_else(|_| base.to_owned());
    let mount = fs::read_to_string("/proc/self/mountinfo").ok().and_then(|text| mount_of(&real, &text));
    Facts { base: base.to_owned(), entry, mount, trial: WriteTrial::NotTried }
}

fn try_to_write(base: &Path, trial_name: &str) -> WriteTrial {
    if let Err(error) = ensure_own(base) {
        let read_only = matches!(&error, super::layout::LayoutError::Refused { source, .. }
            if source.kind() == std::io::ErrorKind::ReadOnlyFilesystem);
        return if read_only { WriteTrial::ReadOnly } else { WriteTrial::Failed(error.to_string()) };
    }
    let path = base.join(OWN).join(format!("trial.{trial_name}"));
    let write = || {
        let mut file = fs::File::create(&path)?;
        file.write_all(b"carrel\n")?;
        file.sync_all()?;
        fs::remove_file(&path)
    };
    match write() {
        Ok(()) => WriteTrial::Worked,
        Err(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => WriteTrial::ReadOnly,
        Err(error) => WriteTrial::Failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
