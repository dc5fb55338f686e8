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
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::check::{Entry, Facts, Kind, Problem, WriteTrial, check, mount_of};
use super::layout::{OWN, ensure_own};

/// A healthy share answers in milliseconds; one that takes longer would hang every editor on it.
const DEADLINE: Duration = Duration::from_secs(10);

/// What an answer takes on top of a look that ran into its deadline.
const PATIENCE: Duration = Duration::from_secs(1);

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
    wanted: Notify,
}

/// A clock that can stand in a `Debug` struct.
trait DebugClock: Clock + std::fmt::Debug {}
impl<T: Clock + std::fmt::Debug> DebugClock for T {}

#[derive(Debug, Clone)]
struct Verdict {
    /// When the look began, by the monotonic clock.
    began: Duration,
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
        Self { base, kind, trial_name, clock, verdict: watch::Sender::new(None), wanted: Notify::new() }
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
                age: self.clock.monotonic().saturating_sub(verdict.began),
            },
        }
    }

    /// A verdict for a start: a good one that is fresh, else a new look.
    ///
    /// # Errors
    /// The problem, when the base takes no workspaces.
    pub async fn verdict_for_start(&self) -> Result<(), Problem> {
        let now = self.clock.monotonic();
        let fresh =
            |verdict: &Verdict| verdict.problem.is_none() && now.saturating_sub(verdict.began) < FRESH;
        if self.verdict.borrow().as_ref().is_some_and(fresh) {
            return Ok(());
        }
        self.look().await.map_or(Ok(()), Err)
    }

    /// A verdict from now on; what is wrong with the base, if anything. Waits for [`Storage::watch`], which does the looking.
    pub async fn look(&self) -> Option<Problem> {
        let asked = self.clock.monotonic();
        let mut verdicts = self.verdict.subscribe();
        self.wanted.notify_one();
        let fresh =
            verdicts.wait_for(|verdict| verdict.as_ref().is_some_and(|verdict| verdict.began >= asked));
        match tokio::time::timeout(DEADLINE + PATIENCE, fresh).await {
            Ok(Ok(verdict)) => verdict.as_ref().and_then(|verdict| verdict.problem.clone()),
            Ok(Err(_)) | Err(_) => Some(Problem::timeout(&self.base, DEADLINE)),
        }
    }

    /// Keeps the verdict fresh until `stop`, and looks when asked. Run it once: it alone touches the share, so that one that
    /// hangs holds one thread.
    pub async fn watch(&self, stop: CancellationToken) {
        let pending = Arc::new(AtomicBool::new(false));
        loop {
            let began = self.clock.monotonic();
            // Cancel-safe: a look that is cut off leaves the last verdict.
            let Some(problem) = stop.run_until_cancelled(self.probe(&pending)).await else { return };
            self.tell(began, problem);
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.wanted.notified() => {}
                () = tokio::time::sleep(FRESH / 2) => {}
            }
        }
    }

    fn tell(&self, began: Duration, problem: Option<Problem>) {
        let told = problem.clone();
        let before = self.verdict.send_replace(Some(Verdict { began, problem }));
        match (before.map(|verdict| verdict.problem), told) {
            (Some(before), now) if before == now => {}
            (_, Some(problem)) => tracing::error!(reason = problem.reason, "{}", problem.message),
            (_, None) => tracing::info!(base = %self.base.display(), "the base takes workspaces"),
        }
    }

    /// `pending`: a look that has not come back. No second one is sent after it, each could hang for ever.
    async fn probe(&self, pending: &Arc<AtomicBool>) -> Option<Problem> {
        if pending.swap(true, Ordering::AcqRel) {
            return Some(Problem::timeout(&self.base, DEADLINE));
        }
        let (base, kind, trial_name, pending) =
            (self.base.clone(), self.kind, self.trial_name.clone(), Arc::clone(pending));
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
