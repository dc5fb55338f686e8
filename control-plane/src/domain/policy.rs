//! Policies: times and limits of a site, its courses and its students, each field inherited singly.
//!
//! A [`PolicyBook`] is all of them at one version; what holds for a workspace is asked of it, never stored. So a changed
//! policy moves running workspaces too.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use carrel_common::id::{CourseId, InvalidId, StudentId};
use carrel_common::image::canonical;
use carrel_common::model::{Resources, WorkspaceSpec};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::idle::IdlePolicy;

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

/// What one scope sets; an unset field is inherited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Stop after this long without activity.
    pub idle_timeout: Option<Duration>,
    /// Warn this long before.
    pub warning_lead: Option<Duration>,
    /// Stop this long after readiness whatever happens; zero: never.
    pub max_lifetime: Option<Duration>,
    /// An extension reaches at most this far from now.
    pub extension_budget: Option<Duration>,
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
}

/// What the control plane was started with: it stands under every policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// Times.
    pub idle: IdlePolicy,
    /// Resources, image, probe.
    pub spec: WorkspaceSpec,
}

/// What holds for somebody, and where each value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// The values, all set but for `quiet_windows`, which may be empty.
    pub values: Policy,
    /// For each field that is set, by its name in the API: a policy's resource name, or `default`.
    pub origins: BTreeMap<&'static str, String>,
}

/// Times that contradict each other for somebody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{whose} would have an idle timeout of {idle_timeout:?}, which is not longer than its warning lead of {warning_lead:?}"
)]
pub struct Contradiction {
    whose: String,
    idle_timeout: Duration,
    warning_lead: Duration,
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

    /// What holds for a student of a course, or for a course, or for the site.
    pub fn effective(&self, course: Option<&CourseId>, student: Option<&StudentId>) -> Effective {
        let layers = self.layers(course, student);
        let mut origins = BTreeMap::new();
        macro_rules! inherit {
            ($field:ident, $default:expr) => {{
                let set = layers
                    .iter()
                    .find_map(|(scope, policy)| policy.$field.clone().map(|value| (scope, value)));
                let (origin, value) = match set {
                    Some((scope, value)) => (format!("policies/{scope}"), value),
                    None => ("default".to_owned(), $default),
                };
                origins.insert(stringify!($field), origin);
                Some(value)
            }};
        }
        let Defaults { idle, spec } = &self.defaults;
        let values = Policy {
            idle_timeout: inherit!(idle_timeout, idle.idle_timeout),
            warning_lead: inherit!(warning_lead, idle.warning_lead),
            max_lifetime: inherit!(max_lifetime, idle.max_lifetime),
            extension_budget: inherit!(extension_budget, idle.extension_budget),
            cpu_millicores: inherit!(cpu_millicores, spec.resources.cpu_millicores),
            memory_bytes: inherit!(memory_bytes, spec.resources.memory_bytes),
            pids: inherit!(pids, spec.resources.pids),
            image: inherit!(image, spec.image.clone()),
            quiet_windows: match layers.iter().find(|(_, policy)| !policy.quiet_windows.is_empty()) {
                Some((scope, policy)) => {
                    origins.insert("quiet_windows", format!("policies/{scope}"));
                    policy.quiet_windows.clone()
                }
                None => vec![],
            },
        };
        Effective { values, origins }
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
            quiet,
            drain: None,
        }
    }

    /// What the next generation of a student's workspace is made of.
    pub fn spec(&self, course: Option<&CourseId>, student: &StudentId) -> WorkspaceSpec {
        let layers = self.layers(course, Some(student));
        let number = |field: fn(&Policy) -> Option<i64>| layers.iter().find_map(|(_, policy)| field(policy));
        let spec = &self.defaults.spec;
        WorkspaceSpec {
            image: layers.iter().find_map(|(_, p)| p.image.clone()).unwrap_or_else(|| spec.image.clone()),
            resources: Resources {
                cpu_millicores: number(|p| p.cpu_millicores).unwrap_or(spec.resources.cpu_millicores),
                memory_bytes: number(|p| p.memory_bytes).unwrap_or(spec.resources.memory_bytes),
                pids: number(|p| p.pids).unwrap_or(spec.resources.pids),
            },
            probe_port: spec.probe_port,
            probe_path: spec.probe_path.clone(),
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
        let lead = all().filter_map(|p| p.warning_lead).chain([idle.warning_lead]).max().unwrap_or_default();
        let lifetimes =
            all().filter_map(|p| p.max_lifetime).chain([idle.max_lifetime]).filter(|span| !span.is_zero());
        let idle = least(idle.idle_timeout, |p| p.idle_timeout).saturating_sub(lead);
        (idle, lifetimes.min().map(|span| span.saturating_sub(lead)))
    }

    /// That no one's times contradict each other: a change of one scope can do that to another that inherits from it.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn check(&self) -> Result<(), Contradiction> {
        let courses: Vec<&CourseId> = self
            .policies
            .keys()
            .filter_map(|s| if let Scope::Course(id) = s { Some(id) } else { None })
            .collect();
        let students: Vec<&StudentId> = self
            .policies
            .keys()
            .filter_map(|s| if let Scope::Student(id) = s { Some(id) } else { None })
            .collect();
        // Only students with a policy of their own that sets a time can differ from their course.
        let timed = |id: &&StudentId| {
            let own = self.policies.get(&Scope::Student((*id).clone()));
            own.is_some_and(|p| p.idle_timeout.is_some() || p.warning_lead.is_some())
        };
        let students: Vec<&StudentId> = students.into_iter().filter(timed).collect();
        let with_none =
            |ids: &[&StudentId]| ids.iter().map(|id| Some((*id).clone())).chain([None]).collect::<Vec<_>>();
        for student in with_none(&students) {
            for course in courses.iter().map(|id| Some(*id)).chain([None]) {
                let Policy { idle_timeout, warning_lead, .. } =
                    self.effective(course, student.as_ref()).values;
                let (idle_timeout, warning_lead) =
                    (idle_timeout.unwrap_or_default(), warning_lead.unwrap_or_default());
                if idle_timeout <= warning_lead {
                    let of = |kind: &str, id: Option<String>| id.map(|id| format!("{kind} {id}"));
                    let course = of("course", course.map(ToString::to_string));
                    let student = of("student", student.as_ref().map(ToString::to_string));
                    let whose: Vec<String> = student.into_iter().chain(course).collect();
                    let whose = if whose.is_empty() { "the site".to_owned() } else { whose.join(" of ") };
                    return Err(Contradiction { whose, idle_timeout, warning_lead });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn minutes(n: u64) -> Duration {
        Duration::from_secs(n * 60)
    }

    fn book(policies: &[(&str, Policy)]) -> PolicyBook {
        let defaults = Defaults {
            idle: IdlePolicy {
                idle_timeout: minutes(15),
                warning_lead: minutes(2),
                max_lifetime: Duration::ZERO,
                extension_budget: minutes(60),
                quiet: vec![],
                drain: None,
            },
            spec: WorkspaceSpec {
                image: "default".into(),
                resources: Resources { cpu_millicores: 1000, memory_bytes: 1 << 30, pids: 512 },
                probe_port: 8080,
                probe_path: "/healthz".into(),
            },
        };
        let policies = policies.iter().map(|(name, p)| (name.parse().expect("a scope"), p.clone())).collect();
        PolicyBook { version: 1, defaults, policies }
    }

    fn timeout(n: u64) -> Policy {
        Policy { idle_timeout: Some(minutes(n)), ..Policy::default() }
    }

    #[test]
    fn each_field_is_inherited_singly_and_says_where_it_comes_from() {
        let image = Policy { image: Some("big".into()), ..Policy::default() };
        let book = book(&[("site", timeout(20)), ("course-cs101", image), ("student-ada", timeout(40))]);
        let (course, ada) = ("cs101".parse().expect("valid"), "Ada".parse().expect("valid"));
        let effective = book.effective(Some(&course), Some(&ada));
        assert_eq!(effective.values.idle_timeout, Some(minutes(40)));
        assert_eq!(effective.values.image.as_deref(), Some("big"));
        let origin = |field| effective.origins.get(field).map(String::as_str);
        assert_eq!(
            [origin("idle_timeout"), origin("image"), origin("warning_lead"), origin("quiet_windows")],
            [Some("policies/student-ada"), Some("policies/course-cs101"), Some("default"), None]
        );
        let bob = "bob".parse().expect("valid");
        assert_eq!(book.times(Some(&course), &bob).idle_timeout, minutes(20));
        assert_eq!(book.spec(Some(&course), &bob).image, "big");
    }

    #[test]
    fn the_images_of_all_policies_are_known_and_the_default_while_anybody_may_get_it() {
        let of = |image: &str| Policy { image: Some(image.into()), ..Policy::default() };
        assert_eq!(
            book(&[("course-a", of("big:1")), ("student-ada", of("big:1"))]).images(),
            ["big:1", "default:latest"]
        );
        assert_eq!(
            book(&[("site", of("ours")), ("course-a", of("big:1"))]).images(),
            ["big:1", "ours:latest"]
        );
    }

    #[test]
    fn a_change_that_contradicts_another_scope_is_found() {
        let lead = |n| Policy { warning_lead: Some(minutes(n)), ..Policy::default() };
        assert_eq!(book(&[("site", lead(5)), ("course-a", timeout(6))]).check(), Ok(()));
        let contradiction =
            book(&[("site", lead(5)), ("course-a", timeout(5))]).check().expect_err("5 is not longer than 5");
        assert_eq!(contradiction.whose, "course a");
        let mixed =
            book(&[("course-a", lead(10)), ("student-ada", timeout(10))]).check().expect_err("ada in a");
        assert_eq!(mixed.whose, "student ada of course a");
    }

    #[test]
    fn extra_time_is_for_the_named_student_alone() {
        let at = |h| time::macros::datetime!(2026-03-02 00:00 UTC) + time::Duration::hours(h);
        let window = QuietWindow {
            start: at(9),
            end: at(11),
            student_extra: BTreeMap::from([("ada".to_owned(), minutes(30))]),
        };
        let exam = Policy { quiet_windows: vec![window], ..Policy::default() };
        let book = book(&[("course-x", exam)]);
        let (course, ada, bob) =
            ("x".parse().expect("valid"), "ADA".parse().expect("valid"), "bob".parse().expect("valid"));
        assert_eq!(book.times(Some(&course), &ada).quiet, [(at(9), at(11) + minutes(30))]);
        assert_eq!(book.times(Some(&course), &bob).quiet, [(at(9), at(11))]);
    }

    #[test]
    fn scopes_come_back_as_they_went() {
        for text in ["site", "course-CS-101", "student-ada@x"] {
            assert_eq!(text.parse::<Scope>().map(|s| s.to_string()).as_deref(), Ok(text));
        }
        for bad in ["", "sites", "course-", "student-../x"] {
            assert!(bad.parse::<Scope>().is_err(), "{bad}");
        }
    }
}
