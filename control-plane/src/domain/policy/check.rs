//! That policies do not contradict each other. A change of one scope can do that to another that inherits from it, so all of
//! them are looked at, whichever is changed.

use std::time::Duration;

use carrel_common::id::{CourseId, StudentId};
use carrel_common::image::{canonical, spellings};

use super::{Policy, PolicyBook, Scope};

/// Policies that contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// Somebody's times do.
    #[error(
        "{whose} would have an idle timeout of {idle_timeout:?}, which is not longer than its warning lead of {warning_lead:?}"
    )]
    Times {
        /// Whose.
        whose: String,
        /// Theirs.
        idle_timeout: Duration,
        /// Theirs.
        warning_lead: Duration,
    },
    /// A scope names an image that a farther one does not allow.
    #[error("policies/{named_by} names the image {image:?}, which policies/{list_of} does not allow")]
    Image {
        /// Who names it.
        named_by: Scope,
        /// The image.
        image: String,
        /// Whose list does not allow it.
        list_of: Scope,
    },
}

impl Contradiction {
    /// The field, by its name in the API, of the change of `changed` that leads to it.
    pub fn field(&self, changed: &Scope) -> &'static str {
        match self {
            Self::Times { .. } => "policy.idle_timeout",
            Self::Image { list_of, .. } if list_of == changed => "policy.allowed_images",
            Self::Image { .. } => "policy.image",
        }
    }
}

/// Whether a list of images lets one through, however either is written; an empty list lets all through.
fn allows(list: &[String], image: &str) -> bool {
    let fits = |pattern: &String| match pattern.strip_suffix('*') {
        Some(beginning) => spellings(image).iter().any(|image| image.starts_with(beginning)),
        None => canonical(image) == canonical(pattern),
    };
    list.is_empty() || list.iter().any(fits)
}

impl PolicyBook {
    /// That nobody's times contradict each other, and nobody names an image that a farther scope does not allow. Which course
    /// a student takes is not known here, so a student's policy has to go with every course's.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn check(&self) -> Result<(), Contradiction> {
        self.check_images()?;
        self.check_times()
    }

    fn courses(&self) -> impl Iterator<Item = &CourseId> {
        self.policies.keys().filter_map(|scope| if let Scope::Course(id) = scope { Some(id) } else { None })
    }

    fn students(&self) -> impl Iterator<Item = (&StudentId, &Policy)> {
        self.policies.iter().filter_map(|(scope, policy)| match scope {
            Scope::Student(id) => Some((id, policy)),
            Scope::Site | Scope::Course(_) => None,
        })
    }

    fn check_times(&self) -> Result<(), Contradiction> {
        // Only students with a policy of their own that sets a time can differ from their course.
        let timed = self
            .students()
            .filter(|(_, policy)| policy.idle_timeout.is_some() || policy.warning_lead.is_some())
            .map(|(id, _)| Some(id));
        for student in timed.chain([None]) {
            for course in self.courses().map(Some).chain([None]) {
                let layers = self.layers(course, student);
                let first = |field: fn(&Policy) -> Option<Duration>| {
                    layers.iter().find_map(|(_, policy)| field(policy))
                };
                let idle = &self.defaults.idle;
                let idle_timeout = first(|policy| policy.idle_timeout).unwrap_or(idle.idle_timeout);
                let warning_lead = first(|policy| policy.warning_lead).unwrap_or(idle.warning_lead);
                if idle_timeout <= warning_lead {
                    let student = student.map(|id| format!("student {id}"));
                    let whose: Vec<String> =
                        student.into_iter().chain(course.map(|id| format!("course {id}"))).collect();
                    let whose = if whose.is_empty() { "the site".to_owned() } else { whose.join(" of ") };
                    return Err(Contradiction::Times { whose, idle_timeout, warning_lead });
                }
            }
        }
        Ok(())
    }

    fn check_images(&self) -> Result<(), Contradiction> {
        let named =
            self.policies.iter().filter_map(|(scope, p)| p.image.as_ref().map(|image| (scope, image)));
        for (named_by, image) in named {
            for (list_of, policy) in &self.policies {
                if list_of.is_farther_than(named_by) && !allows(&policy.allowed_images, image) {
                    let (named_by, list_of) = (named_by.clone(), list_of.clone());
                    return Err(Contradiction::Image { named_by, image: image.clone(), list_of });
                }
            }
        }
        Ok(())
    }
}
