//! That policies do not contradict each other. A change of one scope can do that to another that inherits from it, so all of
//! them are looked at, whichever is changed; and since nothing may be decided meanwhile, what many share is looked at once.

use std::collections::BTreeSet;
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

/// What one scope, or several together, say of a timeout and its lead.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Times {
    idle_timeout: Option<Duration>,
    warning_lead: Option<Duration>,
}

impl Times {
    fn of(policy: &Policy) -> Self {
        Self { idle_timeout: policy.idle_timeout, warning_lead: policy.warning_lead }
    }

    /// What is not said here is inherited.
    fn or(self, farther: Self) -> Self {
        Self {
            idle_timeout: self.idle_timeout.or(farther.idle_timeout),
            warning_lead: self.warning_lead.or(farther.warning_lead),
        }
    }
}

/// Whether a list of images lets one through, however either is written.
fn allows(list: &[String], image: &str) -> bool {
    let fits = |pattern: &String| match pattern.strip_suffix('*') {
        Some(beginning) => spellings(image).iter().any(|image| image.starts_with(beginning)),
        None => canonical(image) == canonical(pattern),
    };
    list.iter().any(fits)
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

    /// The first course, and none, of all that have the same times.
    fn courses(&self) -> Vec<(Option<&CourseId>, Times)> {
        let courses = self.policies.iter().filter_map(|(scope, policy)| match scope {
            Scope::Course(id) => Some((Some(id), Times::of(policy))),
            Scope::Site | Scope::Student(_) => None,
        });
        let mut known = BTreeSet::new();
        courses.chain([(None, Times::default())]).filter(|(_, times)| known.insert(*times)).collect()
    }

    /// Those with times of their own, and nobody: all others have their course's.
    fn students(&self) -> impl Iterator<Item = (Option<&StudentId>, Times)> {
        let students = self.policies.iter().filter_map(|(scope, policy)| match scope {
            Scope::Student(id) => Some((Some(id), Times::of(policy))),
            Scope::Site | Scope::Course(_) => None,
        });
        students.filter(|(_, times)| *times != Times::default()).chain([(None, Times::default())])
    }

    fn check_times(&self) -> Result<(), Contradiction> {
        let idle = &self.defaults.idle;
        let site = self.policies.get(&Scope::Site).map(Times::of).unwrap_or_default();
        let courses = self.courses();
        for (student, own) in self.students() {
            for (course, times) in &courses {
                let times = own.or(*times).or(site);
                let idle_timeout = times.idle_timeout.unwrap_or(idle.idle_timeout);
                let warning_lead = times.warning_lead.unwrap_or(idle.warning_lead);
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
        let lists: Vec<_> =
            self.policies.iter().filter(|(_, policy)| !policy.allowed_images.is_empty()).collect();
        let named =
            self.policies.iter().filter_map(|(scope, p)| p.image.as_ref().map(|image| (scope, image)));
        for (named_by, image) in named {
            for (list_of, policy) in &lists {
                if list_of.is_farther_than(named_by) && !allows(&policy.allowed_images, image) {
                    let (named_by, list_of) = (named_by.clone(), (*list_of).clone());
                    return Err(Contradiction::Image { named_by, image: image.clone(), list_of });
                }
            }
        }
        Ok(())
    }
}
