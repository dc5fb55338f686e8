//! Policies: times and limits of a site, its courses and its students, each field inherited singly.
//!
//! A [`PolicyBook`] is all of them at one version; what holds for a workspace is asked of it, never stored. So a changed
//! policy moves running workspaces too. `effective` tells where each value comes from, `check` what contradicts.

mod check;
mod effective;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use carrel_common::id::{CourseId, InvalidId, StudentId};
use carrel_common::image::canonical;
use carrel_common::model::{Resources, Signal, WorkspaceSpec};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::activity::BySignal;
use super::idle::IdlePolicy;

pub use check::Contradiction;
pub use effective::Effective;

/// No time that a policy sets is longer: years are beyond every use, and a time that is so far away can still be told.
pub const LONGEST_TIME: Duration = Duration::from_secs(366 * 24 * 3600);

/// The kernel counts no more processes and threads than this, and takes no higher limit.
pub const MOST_PIDS: i64 = 4_194_304;

/// Every quiet window ends before: what follows from it has to be told, too, and no time after the year 9999 can be.
pub const WINDOWS_END_BEFORE: OffsetDateTime = time::macros::datetime!(9000-01-01 00:00 UTC);

/// Whose policy it is. Students are kept by `StudentId::key`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Everybody's.
    Site,
    /// A course's.
    Course(CourseId),
    /// A student's.
    Student(StudentId),
}

impl Scope {
    /// Whether what this scope sets is inherited, or restricted, by `other`: site, then course, then student.
    fn is_farther_than(&self, other: &Self) -> bool {
        let rank = |scope: &Self| match scope {
            Self::Site => 0,
            Self::Course(_) => 1,
            Self::Student(_) => 2,
        };
        rank(self) < rank(other)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Site => f.write_str("site"),
            Self::Course(id) => write!(f, "course-{id}"),
            Self::Student(id) => write!(f, "student-{}", id.key()),
        }
    }
}

impl FromStr for Scope {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        if text == "site" {
            return Ok(Self::Site);
        }
        if let Some(id) = text.strip_prefix("course-") {
            return id.parse().map(Self::Course);
        }
        match text.strip_prefix("student-") {
            Some(id) => id.parse::<StudentId>()?.key().parse().map(Self::Student),
            None => Err(InvalidId("must be site, course-{course_id} or student-{student_id}".into())),
        }
    }
}

/// A time without idle or lifetime stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuietWindow {
    /// From here.
    #[serde(with = "time::serde::rfc3339")]
    pub start: OffsetDateTime,
    /// To here.
    #[serde(with = "time::serde::rfc3339")]
    pub end: OffsetDateTime,
    /// Students for whom it ends later, by `StudentId::key`.
    pub student_extra: BTreeMap<String, Duration>,
}

/// How the editor in a container is asked whether it is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Port inside the container.
    pub port: u16,
    /// Path that answers 200; begins with `/`.
    pub path: String,
}

/// Whether a kind of activity counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalRule {
    /// It keeps a workspace from its idle stop.
    pub counts: bool,
    /// Why, for the people who ask.
    pub reason: String,
}

impl SignalRule {
    /// Where no policy says otherwise, all input counts.
    pub fn by_default(signal: Signal) -> Self {
        let reason = match signal {
            Signal::LmsInput => "mouse or keys in the LMS's page: the student is there",
            Signal::EditorInput => "keys, clicks or edits in the editor: the student works",
            Signal::KeepWorking => "the student said so, or pressed Start on a running workspace",
            Signal::Job => "a job was declared that needs the workspace",
        };
        Self { counts: true, reason: reason.to_owned() }
    }
}

/// What one scope sets; an unset field is inherited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// Stop after this long without activity.
    pub idle_timeout: Option<Duration>,
    /// Warn this long before.
    pub warning_lead: Option<Duration>,
    /// Stop this long after readiness whatever happens; zero: never.
    pub max_lifetime: Option<Duration>,
    /// An extension reaches at most this far from now.
    pub extension_budget: Option<Duration>,
    /// Declared jobs keep it awake for at most this long in all, in one generation.
    pub keep_awake_budget: Option<Duration>,
    /// Times without stops; empty: inherited.
    pub quiet_windows: Vec<QuietWindow>,
    /// Thousandths of a processor.
    pub cpu_millicores: Option<i64>,
    /// Bytes.
    pub memory_bytes: Option<i64>,
    /// Processes and threads.
    pub pids: Option<i64>,
    /// Image reference.
    pub image: Option<String>,
    /// Images that nearer scopes may name, a trailing `*` for any end; empty: inherited.
    pub allowed_images: Vec<String>,
    /// How the editor is asked whether it is ready.
    pub probe: Option<Probe>,
    /// Which signals count; one that is not named is inherited.
    pub signal_rules: BTreeMap<Signal, SignalRule>,
}

/// What the control plane was started with: it stands under every policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// Times.
    pub idle: IdlePolicy,
    /// Resources, image, probe.
    pub spec: WorkspaceSpec,
}

/// All policies, at one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyBook {
    /// Rises with each change of any.
    pub version: i64,
    /// What stands under all of them.
    pub defaults: Defaults,
    /// The policies.
    pub policies: BTreeMap<Scope, Policy>,
}

impl PolicyBook {
    /// A book without policies.
    pub fn new(defaults: Defaults) -> Self {
        Self { version: 0, defaults, policies: BTreeMap::new() }
    }

    /// The policies that bear on somebody, nearest first.
    fn layers(&self, course: Option<&CourseId>, student: Option<&StudentId>) -> Vec<(Scope, &Policy)> {
        let student = student.and_then(|id| id.key().parse().ok()).map(Scope::Student);
        let course = course.cloned().map(Scope::Course);
        let scopes = student.into_iter().chain(course).chain([Scope::Site]);
        scopes.filter_map(|scope| self.policies.get(&scope).map(|policy| (scope, policy))).collect()
    }

    /// The times that hold for a student of a course. Cheap: asked for each workspace that is shown or looked at.
    pub fn times(&self, course: Option<&CourseId>, student: &StudentId) -> IdlePolicy {
        if self.policies.is_empty() {
            return self.defaults.idle.clone();
        }
        let layers = self.layers(course, Some(student));
        let first =
            |field: fn(&Policy) -> Option<Duration>| layers.iter().find_map(|(_, policy)| field(policy));
        let idle = &self.defaults.idle;
        let quiet =
            layers.iter().map(|(_, policy)| &policy.quiet_windows).find(|windows| !windows.is_empty());
        let ends = |window: &QuietWindow| {
            let extra = window.student_extra.get(&student.key()).copied().unwrap_or_default();
            (window.start, window.end + extra)
        };
        let mut quiet: Vec<_> = quiet.map(|windows| windows.iter().map(ends).collect()).unwrap_or_default();
        quiet.sort_unstable();
        IdlePolicy {
            idle_timeout: first(|policy| policy.idle_timeout).unwrap_or(idle.idle_timeout),
            warning_lead: first(|policy| policy.warning_lead).unwrap_or(idle.warning_lead),
            max_lifetime: first(|policy| policy.max_lifetime).unwrap_or(idle.max_lifetime),
            extension_budget: first(|policy| policy.extension_budget).unwrap_or(idle.extension_budget),
            keep_awake_budget: first(|policy| policy.keep_awake_budget).unwrap_or(idle.keep_awake_budget),
            counts: BySignal::of(|signal| {
                let rule = layers.iter().find_map(|(_, policy)| policy.signal_rules.get(&signal));
                rule.map_or(*idle.counts.get(signal), |rule| rule.counts)
            }),
            ack_within: idle.ack_within,
            quiet,
            drain: None,
        }
    }

    /// What the next generation of a student's workspace is made of.
    pub fn spec(&self, course: Option<&CourseId>, student: &StudentId) -> WorkspaceSpec {
        let layers = self.layers(course, Some(student));
        let number = |field: fn(&Policy) -> Option<i64>| layers.iter().find_map(|(_, policy)| field(policy));
        let spec = &self.defaults.spec;
        let probe = layers.iter().find_map(|(_, policy)| policy.probe.as_ref());
        WorkspaceSpec {
            image: layers.iter().find_map(|(_, p)| p.image.clone()).unwrap_or_else(|| spec.image.clone()),
            resources: Resources {
                cpu_millicores: number(|p| p.cpu_millicores).unwrap_or(spec.resources.cpu_millicores),
                memory_bytes: number(|p| p.memory_bytes).unwrap_or(spec.resources.memory_bytes),
                pids: number(|p| p.pids).unwrap_or(spec.resources.pids),
            },
            probe_port: probe.map_or(spec.probe_port, |probe| probe.port),
            probe_path: probe.map_or(&spec.probe_path, |probe| &probe.path).clone(),
        }
    }

    /// Every image that a next start may be made of, canonical and sorted: worth having on a node before anybody asks.
    pub fn images(&self) -> Vec<String> {
        // The default counts unless the site's policy stands before it for everybody.
        let site = self.policies.get(&Scope::Site).and_then(|policy| policy.image.as_ref());
        let default = site.unwrap_or(&self.defaults.spec.image);
        let named = self.policies.values().filter_map(|policy| policy.image.as_ref());
        let images: BTreeSet<_> = named.chain([default]).map(|image| canonical(image)).collect();
        images.into_iter().collect()
    }

    /// The shortest time from the basis of idleness to a warning, and from readiness to the warning of a lifetime's end,
    /// that any policy, or any mixture of them, can lead to: nobody younger needs to be looked at.
    pub fn shortest_until_warning(&self) -> (Duration, Option<Duration>) {
        let idle = &self.defaults.idle;
        let all = || self.policies.values();
        let least = |default: Duration, field: fn(&Policy) -> Option<Duration>| {
            all().filter_map(field).chain([default]).min().unwrap_or(default)
        };
        let lead = self.longest_lead();
        let lifetimes =
            all().filter_map(|p| p.max_lifetime).chain([idle.max_lifetime]).filter(|span| !span.is_zero());
        let idle = least(idle.idle_timeout, |p| p.idle_timeout).saturating_sub(lead);
        (idle, lifetimes.min().map(|span| span.saturating_sub(lead)))
    }

    /// The signals that count for everybody: activity of these alone makes sure that nobody needs to be looked at.
    pub fn count_for_all(&self) -> BySignal<bool> {
        let somewhere_not = |signal| {
            self.policies.values().any(|p| p.signal_rules.get(&signal).is_some_and(|rule| !rule.counts))
        };
        BySignal::of(|signal| *self.defaults.idle.counts.get(signal) && !somewhere_not(signal))
    }

    /// Whether a quiet window begins or ends for anybody between two times: clocks that stood still run then, or the other way round.
    pub fn quiet_turns(&self, from: OffsetDateTime, to: OffsetDateTime) -> bool {
        // A clock that was set back passes the same times the other way.
        let (from, to) = (from.min(to), from.max(to));
        let windows = self.policies.values().flat_map(|policy| &policy.quiet_windows);
        let mut turns = windows.flat_map(|window| {
            let later = window.student_extra.values().map(|extra| window.end + *extra);
            later.chain([window.start, window.end])
        });
        turns.any(|turn| from < turn && turn <= to)
    }

    /// The longest warning lead that anybody has.
    pub fn longest_lead(&self) -> Duration {
        let set = self.policies.values().filter_map(|policy| policy.warning_lead);
        set.max().unwrap_or_default().max(self.defaults.idle.warning_lead)
    }
}
