//! What holds for somebody, each value with where it comes from.

use std::collections::BTreeMap;

use carrel_common::id::{CourseId, StudentId};
use carrel_common::model::Signal;

use super::{Defaults, Policy, PolicyBook, Probe, Scope, SignalRule};

/// What holds for somebody, and where each value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// The values, all set but for `quiet_windows` and `allowed_images`, which may be empty.
    pub values: Policy,
    /// For each field that is set, by its name in the API: a policy's resource name, or `default`. Each signal has an entry of
    /// its own: `signal_rules.LMS_INPUT`.
    pub origins: BTreeMap<&'static str, String>,
}

fn origin_of(scope: Option<&Scope>) -> String {
    scope.map_or_else(|| "default".to_owned(), |scope| format!("policies/{scope}"))
}

impl PolicyBook {
    /// What holds for a student of a course, or for a course, or for the site.
    pub fn effective(&self, course: Option<&CourseId>, student: Option<&StudentId>) -> Effective {
        let layers = self.layers(course, student);
        let mut origins = BTreeMap::new();
        macro_rules! inherit {
            ($field:ident, $default:expr) => {{
                let set = layers
                    .iter()
                    .find_map(|(scope, policy)| policy.$field.clone().map(|value| (scope, value)));
                origins.insert(stringify!($field), origin_of(set.as_ref().map(|(scope, _)| *scope)));
                Some(set.map_or_else(|| $default, |(_, value)| value))
            }};
        }
        macro_rules! inherit_list {
            ($field:ident) => {{
                let set = layers.iter().find(|(_, policy)| !policy.$field.is_empty());
                set.map_or_else(Vec::new, |(scope, policy)| {
                    origins.insert(stringify!($field), origin_of(Some(scope)));
                    policy.$field.clone()
                })
            }};
        }
        let Defaults { idle, spec } = &self.defaults;
        let values = Policy {
            idle_timeout: inherit!(idle_timeout, idle.idle_timeout),
            warning_lead: inherit!(warning_lead, idle.warning_lead),
            max_lifetime: inherit!(max_lifetime, idle.max_lifetime),
            extension_budget: inherit!(extension_budget, idle.extension_budget),
            keep_awake_budget: inherit!(keep_awake_budget, idle.keep_awake_budget),
            quiet_windows: inherit_list!(quiet_windows),
            cpu_millicores: inherit!(cpu_millicores, spec.resources.cpu_millicores),
            memory_bytes: inherit!(memory_bytes, spec.resources.memory_bytes),
            pids: inherit!(pids, spec.resources.pids),
            image: inherit!(image, spec.image.clone()),
            allowed_images: inherit_list!(allowed_images),
            probe: inherit!(probe, Probe { port: spec.probe_port, path: spec.probe_path.clone() }),
            signal_rules: Signal::ALL
                .into_iter()
                .map(|signal| {
                    let set = layers.iter().find_map(|(scope, policy)| {
                        policy.signal_rules.get(&signal).map(|rule| (scope, rule))
                    });
                    origins.insert(origin_key(signal), origin_of(set.map(|(scope, _)| scope)));
                    (signal, set.map_or_else(|| SignalRule::by_default(signal), |(_, rule)| rule.clone()))
                })
                .collect(),
        };
        Effective { values, origins }
    }
}

fn origin_key(signal: Signal) -> &'static str {
    match signal {
        Signal::LmsInput => "signal_rules.LMS_INPUT",
        Signal::EditorInput => "signal_rules.EDITOR_INPUT",
        Signal::KeepWorking => "signal_rules.KEEP_WORKING",
        Signal::Job => "signal_rules.JOB",
    }
}
