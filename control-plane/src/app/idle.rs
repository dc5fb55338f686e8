//! Warning and stopping workspaces in which nobody works.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use carrel_common::id::WorkspaceUid;
use carrel_common::model::StopReason;
use time::OffsetDateTime;

use super::rules::Rules;
use super::settle::settle;
use super::workspaces::rfc3339;
use super::{App, Result};
use crate::domain::activity::Activity;
use crate::domain::event::{Actor, Entry};
use crate::domain::idle::{Look, Verdict};
use crate::domain::workspace::{Event, IdleEvidence, Warning, Workspace};
use crate::store::{Change, Locked, SweepLimits, Work};

/// While nothing may be decided it is asked again so soon.
const BLIND_PAUSE: Duration = Duration::from_secs(1);

/// A workspace that somebody else holds is looked at again so soon: by then a heartbeat or a report is over.
const HELD_PAUSE: Duration = Duration::from_millis(50);

/// After a warning it is looked at once more so soon: for input that was written right behind it.
const AFTER_A_WARNING: Duration = Duration::from_secs(1);

/// What a look at a workspace found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdleCheck {
    /// Look again then; `None`: nothing to look for until it runs again.
    pub again_at: Option<OffsetDateTime>,
    /// The database's time of the look.
    pub now: OffsetDateTime,
}

impl App {
    /// Running workspaces that may be due for a warning or a stop within `horizon`, each with when to look, and the
    /// database's time.
    ///
    /// # Errors
    /// The database.
    pub async fn idle_soon(
        &self,
        horizon: Duration,
    ) -> Result<(Vec<(WorkspaceUid, OffsetDateTime)>, OffsetDateTime)> {
        let rules = self.rules.get();
        let (idle, lifetime) = rules.book.shortest_until_warning();
        let limits = SweepLimits {
            counts: rules.book.count_for_all(),
            idle: idle.saturating_sub(horizon),
            lifetime: lifetime.map(|span| span.saturating_sub(horizon)),
            held: rules.book.longest_lead() + horizon,
            emptied: rules.drains.keys().copied().collect(),
        };
        let (found, now) = self.store.running_for(limits).await?;
        let due = |(workspace, activity): (Workspace, Activity)| {
            let times = rules.clock(&workspace, &activity, now).times()?;
            Some((workspace.uid, if workspace.warning.is_some() { now } else { times.warning_at }))
        };
        let soon = found.into_iter().filter_map(due).filter(|(_, at)| *at <= now + horizon).collect();
        Ok((soon, now))
    }

    /// Looks at one workspace and does what is due: a warning, its withdrawal, or the stop.
    ///
    /// # Errors
    /// The database.
    pub async fn check_idle(&self, uid: WorkspaceUid) -> Result<IdleCheck> {
        settle!(self.check_idle_once(uid))
    }

    async fn check_idle_once(&self, uid: WorkspaceUid) -> Result<IdleCheck> {
        let mut work = self.store.begin().await?;
        let Some(locked) = work.lock(uid).await? else {
            return Ok(IdleCheck { again_at: None, now: OffsetDateTime::UNIX_EPOCH });
        };
        let now = locked.now;
        let checks = self.decide_locked(work, &[locked]).await?;
        Ok(checks.first().map_or(IdleCheck { again_at: None, now }, |(_, check)| *check))
    }

    /// Looks at several workspaces, each named once, in one transaction. When that fails each is looked at by itself, so that
    /// one of which nothing can be made holds nobody else up.
    pub async fn check_idle_all(&self, uids: &[WorkspaceUid]) -> Vec<(WorkspaceUid, Result<IdleCheck>)> {
        let error = match self.check_idle_together(uids).await {
            Ok(checks) => return checks.into_iter().map(|(uid, check)| (uid, Ok(check))).collect(),
            Err(error) => error,
        };
        if error.is_passing() && !error.is_conflict() {
            return uids.iter().map(|uid| (*uid, Err(error.clone()))).collect();
        }
        tracing::debug!(%error, workspaces = uids.len(), "looking at several at once failed; each is looked at alone");
        let mut checks = Vec::with_capacity(uids.len());
        for uid in uids {
            match self.check_idle_together(&[*uid]).await {
                Ok(found) => checks.extend(found.into_iter().map(|(uid, check)| (uid, Ok(check)))),
                Err(error) => checks.push((*uid, Err(error))),
            }
        }
        checks
    }

    async fn check_idle_together(&self, uids: &[WorkspaceUid]) -> Result<Vec<(WorkspaceUid, IdleCheck)>> {
        let mut work = self.store.begin().await?;
        let locked = work.lock_free(uids).await?;
        let free: HashSet<_> = locked.iter().map(|locked| locked.workspace.uid).collect();
        let missed: Vec<_> = uids.iter().copied().filter(|uid| !free.contains(uid)).collect();
        let mut checks = vec![];
        if !missed.is_empty() {
            let now = work.now().await?;
            let held = IdleCheck { again_at: Some(now + HELD_PAUSE), now };
            checks.extend(work.known(&missed).await?.into_iter().map(|uid| (uid, held)));
        }
        checks.extend(self.decide_locked(work, &locked).await?);
        Ok(checks)
    }

    /// Decides on workspaces that are locked, writes what follows, and commits.
    async fn decide_locked(
        &self,
        mut work: Work,
        locked: &[Locked],
    ) -> Result<Vec<(WorkspaceUid, IdleCheck)>> {
        let Some(now) = locked.first().map(|locked| locked.now) else { return Ok(vec![]) };
        let Some(rules) = self.rules_in(&mut work).await? else {
            let blind = IdleCheck { again_at: Some(now + BLIND_PAUSE), now };
            return Ok(locked.iter().map(|locked| (locked.workspace.uid, blind)).collect());
        };
        let nodes: BTreeSet<_> = locked.iter().filter_map(|locked| locked.workspace.node).collect();
        let told =
            work.nodes_that_have_told(nodes.into_iter().collect(), self.settings.told_within()).await?;
        let policies: Vec<_> = locked.iter().map(|locked| rules.times(&locked.workspace)).collect();
        let mut looks = Vec::with_capacity(locked.len());
        for (Locked { workspace, activity, .. }, policy) in locked.iter().zip(&policies) {
            let heard = workspace.node.is_some_and(|node| told.contains(&node));
            let look = Look { heard, ..rules.look(policy, workspace, activity, now) };
            looks.push(look);
        }
        let due: Vec<_> = looks.iter().map(|look| matches!(look.decide(), Verdict::Stop { .. })).collect();
        let held = due.contains(&true) && work.hold_rules(rules.book.version).await?;
        // Just before it is written, however long all this took: a lead that nobody acks counts from here.
        let now = work.now().await?;

        let (mut checks, mut warnings, mut stops) = (Vec::with_capacity(looks.len()), vec![], vec![]);
        for (look, was_due) in looks.into_iter().zip(due) {
            let look = Look { now, ..look };
            let again_at = match look.decide() {
                Verdict::Unobservable => None,
                Verdict::Unheard => Some(now + BLIND_PAUSE),
                Verdict::Active { recheck_at } => Some(recheck_at),
                Verdict::Withdraw { warning } => {
                    let change = with_warning(&look, None, warning.withdrawn());
                    let next = Look { workspace: &change.after, ..look }.decide();
                    warnings.push(change);
                    Some(if let Verdict::Active { recheck_at } = next { recheck_at } else { now })
                }
                Verdict::Warn { warning, deadline_at } => {
                    let why = look.policy.drain.as_ref().map_or("", |drain| drain.reason.as_str());
                    let entry = Entry::new("workspace.warning", Actor::Policy)
                        .because(warning.reason)
                        .with("deadline_time", rfc3339(deadline_at))
                        .with("deadline_version", warning.version)
                        .with("why", why);
                    warnings.push(with_warning(&look, Some(warning), entry));
                    // Input that waited for this step saw no warning yet, so it rings nobody.
                    Some(deadline_at.min(now + AFTER_A_WARNING))
                }
                // A policy was changed meanwhile: decided anew by that one. Or it came due only now, by a clock that may have been set
                // since it was found steady.
                Verdict::Stop { .. } if !(held && was_due) => Some(now),
                Verdict::Stop { reason, evidence } => {
                    let evidence = IdleEvidence { grounds: rules.grounds(&look), ..evidence };
                    let deadline_at = evidence.deadline_at;
                    stops.push((self.stop_for(&rules, &look, reason, evidence)?, deadline_at));
                    None
                }
            };
            checks.push((look.workspace.uid, IdleCheck { again_at, now }));
        }
        if warnings.is_empty() && stops.is_empty() {
            return Ok(checks);
        }
        let changed = warnings.iter().chain(stops.iter().map(|(change, _)| change));
        let nodes: BTreeSet<_> = changed.filter_map(|change| change.before.node).collect();
        work.save_warnings(warnings, now).await?;
        let mut decided = Vec::with_capacity(stops.len());
        for (Change { before, after, log }, deadline_at) in stops {
            let after = work.save(&before, after, log, now).await?;
            decided.push((after.uid, before.generation, (now - deadline_at).as_seconds_f64()));
        }
        self.nudge.ring(&work.commit().await?);
        for (uid, generation, lateness) in decided {
            self.metrics.idle_stop_lateness(lateness);
            tracing::info!(workspace.id = %uid, generation = generation.0, lateness, "idle stop decided");
        }
        for node in nodes {
            self.nudge.ring_deadlines(Some(node));
        }
        Ok(checks)
    }

    /// The stop that is due.
    fn stop_for(
        &self,
        rules: &Rules,
        look: &Look<'_>,
        reason: StopReason,
        evidence: IdleEvidence,
    ) -> Result<Change> {
        let (before, policy) = (look.workspace, look.policy);
        let data = [
            ("deadline_time", rfc3339(evidence.deadline_at)),
            ("warning_time", rfc3339(evidence.warned_at)),
            ("last_active_time", evidence.last_active_at.map(rfc3339).unwrap_or_default()),
        ];
        let stop =
            |message, evidence| Event::Stop { reason, force: false, message, evidence: Some(evidence) };
        let event = match reason {
            StopReason::Drain => self.leaves(rules, look, evidence),
            StopReason::MaxLifetime => {
                stop(format!("Stopped because it had run for {}.", spoken(policy.max_lifetime)), evidence)
            }
            _ => stop(
                format!("Stopped because nobody worked in it for {}.", spoken(policy.idle_timeout)),
                evidence,
            ),
        };
        let (after, log) = before.apply(event, look.now)?;
        let with =
            |entry: Entry| data.iter().fold(entry, |entry, (key, value)| entry.with(key, value.clone()));
        Ok(Change { before: before.clone(), after, log: log.into_iter().map(with).collect() })
    }
}

/// The workspace with another warning, or none.
fn with_warning(look: &Look<'_>, warning: Option<Warning>, entry: Entry) -> Change {
    let before = look.workspace.clone();
    Change { after: Workspace { warning, ..before.clone() }, before, log: vec![entry] }
}

/// "15 minutes", "1 hour 30 minutes", "8 seconds".
fn spoken(span: Duration) -> String {
    let seconds = span.as_secs();
    let parts = [(seconds / 3600, "hour"), (seconds % 3600 / 60, "minute"), (seconds % 60, "second")];
    let said: Vec<_> = parts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, unit)| format!("{count} {unit}{}", if *count == 1 { "" } else { "s" }))
        .collect();
    if said.is_empty() { "a moment".into() } else { said.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_spans_as_people_do() {
        let said = |seconds| spoken(Duration::from_secs(seconds));
        assert_eq!(
            [said(900), said(5400), said(1), said(0)],
            ["15 minutes", "1 hour 30 minutes", "1 second", "a moment"]
        );
    }
}
