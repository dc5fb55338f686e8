//! Keeps a verdict on the base, and does what starts and stops need on it. The share itself is touched by probers only.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use carrel_common::clock::Clock;
use carrel_common::id::{Pair, StudentId, WorkspaceUid};
use carrel_common::model::{Health, Latency};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::check::{Problem, check};
use super::errand::{Errand, Place, Told};
use super::fence_file::Token;
use super::fences::{Asking, Claim};
use super::latency::Looks;
use super::prober::{Prober, Trouble};

/// What an answer takes on top of a look that ran into its deadline.
const PATIENCE: Duration = Duration::from_secs(1);

/// A verdict this fresh is good enough for a start; the share is looked at again in the background at half of it.
const FRESH: Duration = Duration::from_secs(15);

/// While something is wrong it is looked at this often: somebody may be mending it.
const MENDED: Duration = Duration::from_secs(2);

/// The base and the last verdict on it.
#[derive(Debug)]
pub struct Storage {
    place: Place,
    prober: Prober,
    /// A healthy share answers in milliseconds; one that takes longer than this would hang every editor on it.
    within: Duration,
    clock: Arc<dyn Clock>,
    verdict: watch::Sender<Option<Verdict>>,
    wanted: Notify,
    turned: Notify,
}

#[derive(Debug, Clone)]
struct Verdict {
    /// When the look began, by the monotonic clock.
    began: Duration,
    problem: Option<Problem>,
    /// Of the looks up to this one.
    latency: Option<Latency>,
}

impl Storage {
    /// The base at `place`, touched by `prober`; a touch that takes longer than `within` is given up. Touches nothing yet.
    pub fn new(place: Place, prober: Prober, within: Duration, clock: Arc<dyn Clock>) -> Self {
        let verdict = watch::Sender::new(None);
        Self { place, prober, within, clock, verdict, wanted: Notify::new(), turned: Notify::new() }
    }

    /// The base's path.
    pub fn base(&self) -> &Path {
        &self.place.base
    }

    /// The last verdict; not healthy before the first.
    pub fn health(&self) -> Health {
        match &*self.verdict.borrow() {
            None => Health {
                problem: Some(("STORAGE_TIMEOUT".into(), "the share has not been looked at yet".into())),
                age: Duration::ZERO,
                latency: None,
            },
            Some(verdict) => Health {
                problem: verdict.problem.clone().map(|p| (p.reason.to_owned(), p.message)),
                age: self.clock.monotonic().saturating_sub(verdict.began),
                latency: verdict.latency,
            },
        }
    }

    /// Completes when the verdict is another than before; a single waiter. Cancel-safe.
    pub async fn turned(&self) {
        self.turned.notified().await;
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
        match tokio::time::timeout(self.within + PATIENCE, fresh).await {
            Ok(Ok(verdict)) => verdict.as_ref().and_then(|verdict| verdict.problem.clone()),
            Ok(Err(_)) | Err(_) => Some(Problem::timeout(self.base(), self.within)),
        }
    }

    /// Keeps the verdict fresh until `stop`, and looks when asked. Run it once.
    pub async fn watch(&self, stop: CancellationToken) {
        let mut looks = Looks::default();
        loop {
            let began = self.clock.monotonic();
            // Cancel-safe: a look that is cut off leaves the last verdict.
            let Some(problem) = stop.run_until_cancelled(self.probe()).await else { return };
            let pause = if problem.is_some() { MENDED } else { FRESH / 2 };
            looks.note(self.clock.monotonic().saturating_sub(began));
            self.tell(Verdict { began, problem, latency: looks.latency() });
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.wanted.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn tell(&self, verdict: Verdict) {
        let told = verdict.problem.clone();
        let before = self.verdict.send_replace(Some(verdict));
        match (before.map(|verdict| verdict.problem), told) {
            (Some(before), now) if before == now => return,
            (_, Some(problem)) => tracing::error!(reason = problem.reason, "{}", problem.message),
            (_, None) => tracing::info!(base = %self.base().display(), "the base takes workspaces"),
        }
        self.turned.notify_one();
    }

    async fn probe(&self) -> Option<Problem> {
        match self.prober.run(&self.place, Errand::Look, self.within).await {
            Ok(Told::Facts(facts)) => check(self.place.expected, &facts),
            Ok(told) => Some(Problem::unanswered(self.base(), &format!("it told {told:?}"))),
            Err(Trouble::Slow(within)) => Some(Problem::timeout(self.base(), within)),
            Err(trouble) => Some(Problem::unanswered(self.base(), &trouble.to_string())),
        }
    }

    /// The student's directory, made when it is missing.
    ///
    /// # Errors
    /// One sentence, when the share takes no workspaces, refuses, or does not answer.
    pub async fn student_dir(&self, student: &StudentId) -> Result<PathBuf, String> {
        self.verdict_for_start().await.map_err(|problem| problem.message)?;
        match self.errand(Errand::StudentDir(student.clone())).await? {
            Told::Dir(path) => Ok(path),
            other => Err(format!("the prober told {other:?}")),
        }
    }

    /// Whether the share lets a container be started: it has said there that it is the student's, and read it back.
    ///
    /// # Errors
    /// One sentence, when that is not known; then nothing may be started.
    pub async fn claim(&self, student: &StudentId, own: Token) -> Result<Claim, String> {
        match self.errand(Errand::Claim(student.clone(), own)).await? {
            Told::Claim(claim) => Ok(claim),
            other => Err(format!("the prober told {other:?}")),
        }
    }

    /// The same for all that run, in their order; an error in place of what is not known.
    ///
    /// # Errors
    /// One sentence, when nothing is known.
    pub async fn claim_all(&self, all: Vec<Asking>) -> Result<Vec<Result<Claim, String>>, String> {
        let asked = all.len();
        match self.prober.run(&self.place, Errand::ClaimAll(all), self.within).await {
            Ok(Told::Claims(claims)) if claims.len() == asked => Ok(claims),
            Ok(Told::Refused(why)) => Err(why),
            Ok(other) => Err(format!("the prober told {other:?}")),
            Err(trouble) => Err(trouble.to_string()),
        }
    }

    /// Moves a student's directory to the trash.
    ///
    /// # Errors
    /// One sentence, when it was not moved, or when that is not known.
    pub async fn move_to_trash(
        &self,
        student: &StudentId,
        workspace: WorkspaceUid,
        pair: Pair,
    ) -> Result<(), String> {
        if let Some(problem) = self.look().await {
            return Err(problem.message);
        }
        match self.errand(Errand::Trash { student: student.clone(), workspace, pair }).await? {
            Told::Done => Ok(()),
            other => Err(format!("the prober told {other:?}")),
        }
    }

    /// Removes what cut-off writes left on the share.
    ///
    /// # Errors
    /// One sentence, when that did not work.
    pub async fn tidy(&self) -> Result<(), String> {
        match self.prober.run(&self.place, Errand::Tidy, self.within).await {
            Ok(Told::Done) => Ok(()),
            Ok(Told::Refused(why)) => Err(why),
            Ok(other) => Err(format!("the prober told {other:?}")),
            Err(trouble) => Err(trouble.to_string()),
        }
    }

    /// How many touches of the share have not come back.
    pub fn stuck(&self) -> usize {
        self.prober.stuck()
    }

    async fn errand(&self, errand: Errand) -> Result<Told, String> {
        match self.prober.run(&self.place, errand, self.within).await {
            // Perhaps the share went away since the last look: then that is the better sentence.
            Ok(Told::Refused(why)) => Err(self.look().await.map_or(why, |problem| problem.message)),
            Ok(told) => Ok(told),
            Err(trouble) => Err(trouble.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
