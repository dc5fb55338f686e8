//! Policies and explanations: messages to values and back.

use std::collections::BTreeMap;
use std::time::Duration;

use carrel_common::id::StudentId;
use carrel_common::model::StopReason;
use carrel_common::wire::{self, WireError, duration, timestamp};
use carrel_proto::v1 as pb;

use super::convert;
use crate::app::StoredPolicy;
use crate::app::{Explained, policy_etag};
use crate::domain::idle::Clock;
use crate::domain::policy::{Effective, Policy, QuietWindow, Scope};
use crate::domain::workspace::State;

const LONGEST_WINDOW: Duration = Duration::from_secs(7 * 24 * 3600);
const LONGEST_EXTRA: Duration = Duration::from_secs(24 * 3600);
/// Enough for a term's exams.
const MOST_WINDOWS: usize = 100;
/// Timers below are for nobody: the loops themselves look each second.
const SHORTEST: Duration = Duration::from_millis(100);
/// Years: beyond every use, and still a time that can be added.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// `policies/site`, `policies/course-…`, `policies/student-…`.
pub(super) fn scope(field: &'static str, name: &str) -> Result<Scope, WireError> {
    let wrong = |problem: String| WireError::new(field, problem);
    let scope = name.strip_prefix("policies/").ok_or_else(|| {
        wrong(format!(
            "{name:?} must be policies/site, policies/course-{{course_id}} or policies/student-{{student_id}}"
        ))
    })?;
    scope.parse().map_err(|e: carrel_common::id::InvalidId| wrong(e.0))
}

fn span(
    field: &'static str,
    message: Option<&prost_types::Duration>,
    least: Duration,
) -> Result<Option<Duration>, WireError> {
    let Some(span) = message.map(|span| wire::span_of(field, span)).transpose()? else { return Ok(None) };
    match span {
        span if span < least => Err(WireError::new(field, format!("must be at least {least:?}"))),
        span if span > LONGEST => Err(WireError::new(field, "must be at most 366 days")),
        span => Ok(Some(span)),
    }
}

fn positive(field: &'static str, number: Option<i64>, least: i64) -> Result<Option<i64>, WireError> {
    match number {
        Some(n) if n < least => Err(WireError::new(field, format!("must be at least {least}"))),
        number => Ok(number),
    }
}

fn window(message: pb::QuietWindow) -> Result<QuietWindow, WireError> {
    let present = |field, time: Option<prost_types::Timestamp>| {
        wire::time_of(field, &time.ok_or_else(|| WireError::new(field, "must be set"))?)
    };
    let start = present("policy.quiet_windows.start_time", message.start_time)?;
    let end = present("policy.quiet_windows.end_time", message.end_time)?;
    if end <= start || end - start > LONGEST_WINDOW {
        let problem = "must be later than start_time, by at most 7 days";
        return Err(WireError::new("policy.quiet_windows.end_time", problem));
    }
    let mut student_extra = BTreeMap::new();
    for (student, extra) in message.student_extra_time {
        let field = "policy.quiet_windows.student_extra_time";
        let student: StudentId =
            student.parse().map_err(|e: carrel_common::id::InvalidId| WireError::new(field, e.0))?;
        let extra = wire::span_of(field, &extra)?;
        if extra > LONGEST_EXTRA {
            return Err(WireError::new(field, "must be at most 24 hours"));
        }
        student_extra.insert(student.key(), extra);
    }
    Ok(QuietWindow { start, end, student_extra })
}

/// What a caller wants set.
pub(super) fn policy(message: pb::Policy) -> Result<Policy, WireError> {
    if message.quiet_windows.len() > MOST_WINDOWS {
        return Err(WireError::new("policy.quiet_windows", format!("at most {MOST_WINDOWS}")));
    }
    if message.image.as_deref() == Some("") {
        return Err(WireError::new("policy.image", "must not be empty; leave it out to inherit it"));
    }
    let mut quiet_windows = message.quiet_windows.into_iter().map(window).collect::<Result<Vec<_>, _>>()?;
    quiet_windows.sort_by_key(|window| (window.start, window.end));
    let policy = Policy {
        idle_timeout: span("policy.idle_timeout", message.idle_timeout.as_ref(), Duration::from_secs(1))?,
        warning_lead: span("policy.warning_lead", message.warning_lead.as_ref(), SHORTEST)?,
        max_lifetime: span("policy.max_lifetime", message.max_lifetime.as_ref(), Duration::ZERO)?,
        extension_budget: span("policy.extension_budget", message.extension_budget.as_ref(), Duration::ZERO)?,
        quiet_windows,
        cpu_millicores: positive("policy.cpu_millicores", message.cpu_millicores, 1)?,
        memory_bytes: positive("policy.memory_bytes", message.memory_bytes, 6 << 20)?,
        pids: positive("policy.pids", message.pids, 1)?,
        image: message.image,
    };
    match (policy.idle_timeout, policy.warning_lead) {
        (Some(timeout), Some(lead)) if timeout <= lead => {
            Err(WireError::new("policy.idle_timeout", "must be longer than warning_lead"))
        }
        _ => Ok(policy),
    }
}

fn values(policy: Policy) -> pb::Policy {
    let shown = |window: QuietWindow| pb::QuietWindow {
        start_time: Some(timestamp(window.start)),
        end_time: Some(timestamp(window.end)),
        student_extra_time: window
            .student_extra
            .into_iter()
            .map(|(id, extra)| (id, duration(extra)))
            .collect(),
    };
    pb::Policy {
        idle_timeout: policy.idle_timeout.map(duration),
        warning_lead: policy.warning_lead.map(duration),
        max_lifetime: policy.max_lifetime.map(duration),
        extension_budget: policy.extension_budget.map(duration),
        quiet_windows: policy.quiet_windows.into_iter().map(shown).collect(),
        cpu_millicores: policy.cpu_millicores,
        memory_bytes: policy.memory_bytes,
        pids: policy.pids,
        image: policy.image,
        ..pb::Policy::default()
    }
}

/// A policy as it is kept.
pub(super) fn stored(kept: StoredPolicy) -> pb::Policy {
    pb::Policy {
        name: format!("policies/{}", kept.scope),
        etag: policy_etag(&kept),
        update_time: Some(timestamp(kept.updated_at)),
        ..values(kept.policy)
    }
}

/// What holds for somebody.
pub(super) fn effective(effective: Effective, policy_version: i64) -> pb::EffectivePolicy {
    pb::EffectivePolicy {
        values: Some(values(effective.values)),
        origins: effective.origins.into_iter().map(|(field, origin)| (field.to_owned(), origin)).collect(),
        policy_version,
    }
}

/// What keeps a workspace alive, and what never does, by construction: nothing reports it.
fn why(signal: &str) -> &'static str {
    match signal {
        "LMS_INPUT" => "mouse or keys in the LMS's page: the student is there",
        "EDITOR_INPUT" => "keys, clicks or edits in the editor: the student works",
        "KEEP_WORKING" => "the student said so, or pressed Start on a running workspace",
        "OPEN_TAB" => "a forgotten tab would keep a workspace for days",
        "HEALTH_CHECK" => "asked by machines, whether or not anybody works",
        "API_READ" => "a dashboard that shows a workspace does not use it",
        _ => "",
    }
}

const NEVER: [&str; 3] = ["OPEN_TAB", "HEALTH_CHECK", "API_READ"];

/// Why a workspace is, or is not, stopped.
pub(super) fn explanation(told: Explained) -> pb::IdleExplanation {
    use pb::idle_explanation::Verdict;
    let (verdict, message) = match told.clock {
        Clock::Off => (Verdict::NotRunning, "It does not run, so nothing is counted."),
        Clock::Paused => (Verdict::PausedUnobservable, "Its host is silent, so the clock stands still."),
        Clock::Quiet(times) | Clock::Running(times) if times.reason == StopReason::Drain => (
            if told.warned { Verdict::Warned } else { Verdict::Active },
            "Its host is being emptied: it leaves when nobody has worked in it for a moment, or at the drain's deadline.",
        ),
        Clock::Quiet(_) => {
            (Verdict::PausedQuiet, "A quiet window holds stops back; the times are those after it.")
        }
        Clock::Running(_) if told.warned => (
            Verdict::Warned,
            "The warning is out: it is stopped at the deadline unless somebody works in it.",
        ),
        Clock::Running(times) if times.reason == StopReason::MaxLifetime => {
            (Verdict::Active, "Its longest lifetime ends next; work in it does not move that.")
        }
        Clock::Running(_) => (Verdict::Active, "It is stopped at the deadline unless somebody works in it."),
    };
    let seen = told.signals.into_iter().map(|(signal, at)| (signal, at, true));
    let signals = seen
        .chain(NEVER.into_iter().map(|signal| (signal, None, false)))
        .map(|(signal, at, counts)| pb::SignalExplanation {
            signal: signal.to_owned(),
            last_time: at.map(timestamp),
            counts,
            why: why(signal).to_owned(),
        })
        .collect();
    let step = |what: &str, at| pb::NextStep { what: what.to_owned(), time: Some(timestamp(at)) };
    let next = told.clock.times().map(|times| {
        let stop = step("stop", times.deadline_at);
        if told.warned { vec![stop] } else { vec![step("warning", times.warning_at), stop] }
    });
    let stopped = !matches!(told.workspace.state, State::Running | State::Unreachable);
    let last_stop = told.workspace.stop.filter(|_| stopped).and_then(|stop| stop.evidence);
    let mut explained = pb::IdleExplanation {
        message: message.to_owned(),
        signals,
        policy: Some(effective(told.policy, told.policy_version)),
        next: next.unwrap_or_default(),
        last_stop_evidence: last_stop.as_ref().map(convert::evidence),
        ..pb::IdleExplanation::default()
    };
    explained.set_verdict(verdict);
    explained
}
