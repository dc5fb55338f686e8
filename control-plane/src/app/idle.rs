//! Warning and stopping workspaces in which nobody works.

use std::time::Duration;

use carrel_common::id::WorkspaceUid;
use carrel_common::model::StopReason;
use time::OffsetDateTime;

use super::settle::settle;
use super::workspaces::rfc3339;
use super::{App, Result};
use crate::domain::activity::Activity;
use crate::domain::event::{Actor, Entry};
use crate::domain::idle::{Look, Verdict};
use crate::domain::workspace::{Event, Workspace};
use crate::store::{Locked, SweepLimits};

/// While nothing may be decided it is asked again so soon.
const BLIND_PAUSE: Duration = Duration::from_secs(1);

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
        let Locked { workspace: before, activity, now } = locked;
        let Some(rules) = self.rules_in(&mut work).await? else {
            return Ok(IdleCheck { again_at: Some(now + BLIND_PAUSE), now });
        };
        let policy = rules.times(&before);
        let heard = work.node_has_told(before.node).await?;
        let look = Look { heard, ..rules.look(&policy, &before, &activity, now) };
        let (next, log, again_at) = match look.decide() {
            Verdict::Unobservable => return Ok(IdleCheck { again_at: None, now }),
            Verdict::Unheard => return Ok(IdleCheck { again_at: Some(now + BLIND_PAUSE), now }),
            Verdict::Active { recheck_at } => return Ok(IdleCheck { again_at: Some(recheck_at), now }),
            Verdict::Withdraw { warning } => {
                (Workspace { warning: None, ..before.clone() }, vec![warning.withdrawn()], Some(now))
            }
            Verdict::Warn { warning, deadline_at } => {
                let entry = Entry::new("workspace.warning", Actor::Policy)
                    .because(warning.reason)
                    .with("deadline_time", rfc3339(deadline_at))
                    .with("deadline_version", warning.version)
                    .with("why", policy.drain.as_ref().map_or("", |drain| drain.reason.as_str()));
                (Workspace { warning: Some(warning), ..before.clone() }, vec![entry], Some(deadline_at))
            }
            // A policy was changed meanwhile: decided anew by that one.
            Verdict::Stop { .. } if !work.hold_rules(rules.book.version).await? => {
                return Ok(IdleCheck { again_at: Some(now), now });
            }
            Verdict::Stop { reason, evidence } => {
                let lateness = (now - evidence.deadline_at).as_seconds_f64();
                let data = [
                    ("deadline_time", rfc3339(evidence.deadline_at)),
                    ("warning_time", rfc3339(evidence.warned_at)),
                    ("last_active_time", evidence.last_active_at.map(rfc3339).unwrap_or_default()),
                ];
                let event = match reason {
                    StopReason::Drain => self.leaves(&rules, &look, evidence),
                    StopReason::MaxLifetime => {
                        let message =
                            format!("Stopped because it had run for {}.", spoken(policy.max_lifetime));
                        Event::Stop { reason, force: false, message, evidence: Some(evidence) }
                    }
                    _ => {
                        let message = format!(
                            "Stopped because nobody worked in it for {}.",
                            spoken(policy.idle_timeout)
                        );
                        Event::Stop { reason, force: false, message, evidence: Some(evidence) }
                    }
                };
                let (next, log) = before.apply(event, now)?;
                let log = log
                    .into_iter()
                    .map(|entry| {
                        data.iter().fold(entry, |entry, (key, value)| entry.with(key, value.clone()))
                    })
                    .collect();
                self.metrics.idle_stop_lateness(lateness);
                tracing::info!(workspace.id = %uid, generation = before.generation.0, lateness, "idle stop decided");
                (next, log, None)
            }
        };
        let node = before.node;
        work.save(&before, next, log, now).await?;
        self.nudge.ring(&work.commit().await?);
        self.nudge.ring_deadlines(node);
        Ok(IdleCheck { again_at, now })
    }
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
