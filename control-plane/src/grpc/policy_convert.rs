//! Policies and explanations: messages to values and back.

use std::collections::BTreeMap;
use std::time::Duration;

use carrel_common::id::StudentId;
use carrel_common::model::{Signal, StopReason};
use carrel_common::wire::{self, WireError, duration, timestamp};
use carrel_proto::v1 as pb;
use carrel_proto::v1::idle_explanation::Verdict;

use super::{convert, parse};
use crate::app::StoredPolicy;
use crate::app::{Explained, policy_etag};
use crate::domain::idle::Clock;
use crate::domain::policy::{
    Effective, LONGEST_TIME, MOST_PIDS, Policy, Probe, QuietWindow, Scope, SignalRule, WINDOWS_END_BEFORE,
};
use crate::domain::workspace::State;

const LONGEST_WINDOW: Duration = Duration::from_secs(7 * 24 * 3600);
const LONGEST_EXTRA: Duration = Duration::from_secs(24 * 3600);
/// Enough for a term's exams.
const MOST_WINDOWS: usize = 100;
const MOST_IMAGES: usize = 100;
const LONGEST_REASON: usize = 200;
/// Timers below are for nobody: the loops themselves look each second.
const SHORTEST: Duration = Duration::from_millis(100);

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
        span if span > LONGEST_TIME => Err(WireError::new(field, "must be at most 366 days")),
        span => Ok(Some(span)),
    }
}

fn at_least(field: &'static str, number: Option<i64>, least: i64) -> Result<Option<i64>, WireError> {
    match number {
        Some(n) if n < least => Err(WireError::new(field, format!("must be at least {least}"))),
        number => Ok(number),
    }
}

fn pids(number: Option<i64>) -> Result<Option<i64>, WireError> {
    match number {
        Some(n) if !(1..=MOST_PIDS).contains(&n) => {
            Err(WireError::new("policy.pids", format!("must be 1 to {MOST_PIDS}")))
        }
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
    if end >= WINDOWS_END_BEFORE {
        return Err(WireError::new("policy.quiet_windows.end_time", "must be before the year 9000"));
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

fn probe(message: pb::Probe) -> Result<Probe, WireError> {
    let port = u16::try_from(message.port).ok().filter(|port| *port > 0);
    let port = port.ok_or_else(|| WireError::new("policy.probe.port", "must be 1 to 65535"))?;
    let printable = |c: char| c.is_ascii_graphic();
    if !message.path.starts_with('/') || !message.path.chars().all(printable) {
        let problem = "must begin with / and have neither spaces nor other than ASCII characters";
        return Err(WireError::new("policy.probe.path", problem));
    }
    Ok(Probe { port, path: message.path })
}

fn signal_rule(message: pb::SignalRule) -> Result<(Signal, SignalRule), WireError> {
    let field = "policy.signal_rules.signal";
    let signal = pb::Signal::try_from(message.signal)
        .map_err(|_| WireError::new(field, format!("{} is not a signal", message.signal)))?;
    let signal = signal.try_into().map_err(|e: WireError| WireError::new(field, e.problem))?;
    let reason = message.reason.trim();
    if reason.is_empty() || reason.chars().count() > LONGEST_REASON {
        let problem = format!("must say why, in at most {LONGEST_REASON} characters");
        return Err(WireError::new("policy.signal_rules.reason", problem));
    }
    parse::text("policy.signal_rules.reason", reason)?;
    Ok((signal, SignalRule { counts: message.counts, reason: reason.to_owned() }))
}

fn signal_rules(messages: Vec<pb::SignalRule>) -> Result<BTreeMap<Signal, SignalRule>, WireError> {
    let mut rules = BTreeMap::new();
    for message in messages {
        let (signal, rule) = signal_rule(message)?;
        if rules.insert(signal, rule).is_some() {
            let problem = format!("{} is named twice", signal.as_str());
            return Err(WireError::new("policy.signal_rules.signal", problem));
        }
    }
    Ok(rules)
}

fn allowed_images(list: Vec<String>) -> Result<Vec<String>, WireError> {
    let field = "policy.allowed_images";
    if list.len() > MOST_IMAGES {
        return Err(WireError::new(field, format!("at most {MOST_IMAGES}")));
    }
    let wrong = |image: &&String| image.is_empty() || image.strip_suffix('*').unwrap_or(image).contains('*');
    if let Some(image) = list.iter().find(wrong) {
        let problem = format!("{image:?} must be an image, or its beginning and one * at the end");
        return Err(WireError::new(field, problem));
    }
    for image in &list {
        parse::text(field, image)?;
    }
    Ok(list)
}

/// What a caller wants set.
pub(super) fn policy(message: pb::Policy) -> Result<Policy, WireError> {
    if message.quiet_windows.len() > MOST_WINDOWS {
        return Err(WireError::new("policy.quiet_windows", format!("at most {MOST_WINDOWS}")));
    }
    if message.image.as_deref() == Some("") {
        return Err(WireError::new("policy.image", "must not be empty; leave it out to inherit it"));
    }
    parse::text("policy.image", message.image.as_deref().unwrap_or_default())?;
    let mut quiet_windows = message.quiet_windows.into_iter().map(window).collect::<Result<Vec<_>, _>>()?;
    quiet_windows.sort_by_key(|window| (window.start, window.end));
    let policy = Policy {
        idle_timeout: span("policy.idle_timeout", message.idle_timeout.as_ref(), Duration::from_secs(1))?,
        warning_lead: span("policy.warning_lead", message.warning_lead.as_ref(), SHORTEST)?,
        max_lifetime: span("policy.max_lifetime", message.max_lifetime.as_ref(), Duration::ZERO)?,
        extension_budget: span("policy.extension_budget", message.extension_budget.as_ref(), Duration::ZERO)?,
        keep_awake_budget: span(
            "policy.keep_awake_budget",
            message.keep_awake_budget.as_ref(),
            Duration::ZERO,
        )?,
        quiet_windows,
        cpu_millicores: at_least("policy.cpu_millicores", message.cpu_millicores, 1)?,
        memory_bytes: at_least("policy.memory_bytes", message.memory_bytes, 6 << 20)?,
        pids: pids(message.pids)?,
        image: message.image,
        allowed_images: allowed_images(message.allowed_images)?,
        probe: message.probe.map(probe).transpose()?,
        signal_rules: signal_rules(message.signal_rules)?,
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
    let rule = |(signal, rule): (Signal, SignalRule)| {
        let mut message =
            pb::SignalRule { counts: rule.counts, reason: rule.reason, ..pb::SignalRule::default() };
        message.set_signal(signal.into());
        message
    };
    pb::Policy {
        idle_timeout: policy.idle_timeout.map(duration),
        warning_lead: policy.warning_lead.map(duration),
        max_lifetime: policy.max_lifetime.map(duration),
        extension_budget: policy.extension_budget.map(duration),
        keep_awake_budget: policy.keep_awake_budget.map(duration),
        quiet_windows: policy.quiet_windows.into_iter().map(shown).collect(),
        cpu_millicores: policy.cpu_millicores,
        memory_bytes: policy.memory_bytes,
        pids: policy.pids,
        image: policy.image,
        allowed_images: policy.allowed_images,
        probe: policy.probe.map(|probe| pb::Probe { port: i32::from(probe.port), path: probe.path }),
        signal_rules: policy.signal_rules.into_iter().map(rule).collect(),
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

/// What never keeps a workspace alive, by construction: nothing reports it.
const NEVER: [(&str, &str); 3] = [
    ("OPEN_TAB", "a forgotten tab would keep a workspace for days"),
    ("HEALTH_CHECK", "asked by machines, whether or not anybody works"),
    ("API_READ", "a dashboard that shows a workspace does not use it"),
];

fn signals(told: &Explained) -> Vec<pb::SignalExplanation> {
    let known = Signal::ALL.into_iter().map(|signal| {
        let rule = told.policy.values.signal_rules.get(&signal).cloned();
        let SignalRule { counts, reason } = rule.unwrap_or_else(|| SignalRule::by_default(signal));
        pb::SignalExplanation {
            signal: signal.as_str().to_owned(),
            last_time: told.activity.seen.get(signal).map(timestamp),
            counts,
            why: reason,
        }
    });
    let never = NEVER.into_iter().map(|(signal, why)| pb::SignalExplanation {
        signal: signal.to_owned(),
        last_time: None,
        counts: false,
        why: why.to_owned(),
    });
    known.chain(never).collect()
}

/// What will happen when, soonest first.
fn next(told: &Explained) -> Vec<pb::NextStep> {
    let idle = &told.idle;
    let Some(times) = idle.clock.times() else { return vec![] };
    let extended = told.workspace.extended_until.filter(|until| *until > idle.now);
    let mut steps: Vec<_> = [
        ("job_end", idle.awake_until),
        ("extension_end", extended),
        ("warning", Some(times.warning_at).filter(|_| !idle.warned)),
        ("stop", Some(times.deadline_at)),
    ]
    .into_iter()
    .filter_map(|(what, at)| at.map(|at| (at, what)))
    .collect();
    // Stable: what is due at the same moment stays in this order.
    steps.sort_by_key(|(at, _)| *at);
    let step = |(at, what): (_, &str)| pb::NextStep { what: what.to_owned(), time: Some(timestamp(at)) };
    steps.into_iter().map(step).collect()
}

/// Where the decision stands, and why, in one sentence.
fn verdict(told: &Explained) -> (Verdict, &'static str) {
    let warned = told.idle.warned;
    let active = if warned { Verdict::Warned } else { Verdict::Active };
    match told.idle.clock {
        Clock::Off => (Verdict::NotRunning, "It does not run, so nothing is counted."),
        Clock::Paused if told.unheard && told.workspace.state == State::Starting => (
            Verdict::PausedUnobservable,
            "Its deadline passed while it starts again: it is decided when it is up.",
        ),
        Clock::Paused if told.unheard => (
            Verdict::PausedUnobservable,
            "Its host has yet to tell what it saw while nobody could hear it: nothing is decided before.",
        ),
        Clock::Paused => (
            Verdict::PausedUnobservable,
            "Its host is silent, or the database was restored and nobody has declared that yet: the clock stands still.",
        ),
        Clock::Running(times) if times.reason == StopReason::Drain => (
            active,
            "Its host is being emptied: it leaves when nobody has worked in it for a moment, or at the drain's deadline.",
        ),
        Clock::Quiet(_) => {
            (Verdict::PausedQuiet, "A quiet window holds stops back; the times are those after it.")
        }
        Clock::Running(times) if times.reason == StopReason::MaxLifetime => match warned {
            true => (
                active,
                "The warning is out: its longest lifetime ends at the deadline; work in it does not move that.",
            ),
            false => (active, "Its longest lifetime ends next; work in it does not move that."),
        },
        Clock::Running(_) if warned => {
            (active, "The warning is out: it is stopped at the deadline unless somebody works in it.")
        }
        Clock::Running(_) if told.idle.awake_until.is_some() => {
            (active, "A declared job keeps it awake; then it is stopped at the deadline.")
        }
        Clock::Running(_) => (active, "It is stopped at the deadline unless somebody works in it."),
    }
}

/// Why a workspace is, or is not, stopped.
pub(super) fn explanation(told: Explained) -> pb::IdleExplanation {
    let (verdict, message) = verdict(&told);
    let last_stop = told.workspace.stop.as_ref().and_then(|stop| stop.evidence.as_ref());
    let mut explained = pb::IdleExplanation {
        message: message.to_owned(),
        signals: signals(&told),
        next: next(&told),
        last_stop_evidence: last_stop.map(convert::evidence),
        policy: Some(effective(told.policy, told.idle.policy_version)),
        ..pb::IdleExplanation::default()
    };
    explained.set_verdict(verdict);
    explained
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_has_a_character_that_the_database_does_not_take() {
        let bad = || "a\0b".to_owned();
        let rule = pb::SignalRule { reason: bad(), signal: pb::Signal::Job.into(), counts: true };
        let set = |message| policy(message).map_err(|error| error.field);
        let refused = [
            pb::Policy { image: Some(bad()), ..pb::Policy::default() },
            pb::Policy { allowed_images: vec![bad()], ..pb::Policy::default() },
            pb::Policy { signal_rules: vec![rule], ..pb::Policy::default() },
        ]
        .map(set);
        let fields = ["policy.image", "policy.allowed_images", "policy.signal_rules.reason"];
        assert_eq!(refused, fields.map(Err));
    }

    #[test]
    fn no_more_processes_are_promised_than_the_kernel_counts() {
        let set = |pids| {
            policy(pb::Policy { pids: Some(pids), ..pb::Policy::default() })
                .map(|policy| policy.pids)
                .map_err(|error| error.field)
        };
        assert_eq!([1, 4_194_304].map(set), [Ok(Some(1)), Ok(Some(4_194_304))]);
        assert_eq!([0, 4_194_305, i64::MAX].map(set), [Err("policy.pids"); 3]);
    }

    #[test]
    fn a_window_ends_where_what_follows_from_it_can_still_be_told() {
        let seconds = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let set = |end_seconds: i64| {
            let extra = ("ada".to_owned(), duration(LONGEST_EXTRA));
            let window = pb::QuietWindow {
                start_time: seconds(end_seconds - 3600),
                end_time: seconds(end_seconds),
                student_extra_time: [extra].into(),
            };
            policy(pb::Policy { quiet_windows: vec![window], ..pb::Policy::default() })
                .map_err(|error| error.field)
        };
        let first_refused = WINDOWS_END_BEFORE.unix_timestamp();
        assert!(set(first_refused - 1).is_ok());
        let refused = Err("policy.quiet_windows.end_time");
        assert_eq!(
            [first_refused, 253_402_300_799].map(set),
            [refused.clone(), refused],
            "the last second of the year 9999"
        );
    }
}
