//! Identities: newtypes that parse, so that no bare `Uuid` or `String` stands in a signature.
//!
//! The only place that makes random ids.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Why a text is not an id; the sentence is fit for an error's field violation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidId(pub String);

const LONGEST: usize = 64;

fn check_key(text: &str) -> Result<(), InvalidId> {
    let ok = text.len() <= LONGEST
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._@-".contains(c));
    if ok {
        return Ok(());
    }
    Err(InvalidId(format!(
        "must be 1 to {LONGEST} characters of A-Z a-z 0-9 . _ @ -, the first a letter or digit"
    )))
}

macro_rules! key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The id as it was given.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                check_key(text)?;
                Ok(Self(text.to_owned()))
            }
        }
        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

key!(
    /// A student as the LMS names them. Safe as one path component: it holds no `/`, and cannot be `.` or `..`.
    StudentId
);
key!(
    /// A course as the LMS names it.
    CourseId
);

impl StudentId {
    /// The form under which an id is unique: two ids that differ only in case name the same student.
    pub fn key(&self) -> String {
        self.0.to_ascii_lowercase()
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $make:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new one.
            #[expect(clippy::disallowed_methods, reason = "ids are made here and nowhere else")]
            #[expect(clippy::new_without_default, reason = "a default that differs each time would surprise")]
            pub fn new() -> Self {
                Self(Uuid::$make())
            }
        }
        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Uuid::parse_str(text)
                    .map(Self)
                    .map_err(|_| InvalidId(format!("{text:?} is not a UUID")))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

uuid_id!(
    /// One desk; new when a student's workspace is created again after a delete.
    WorkspaceUid,
    now_v7
);
uuid_id!(
    /// One enrolled node.
    NodeId,
    now_v7
);
uuid_id!(
    /// One placement of a workspace on a node.
    PlacementId,
    now_v7
);
uuid_id!(
    /// One Carrel: a control plane and its store. In the labels of every container.
    ClusterId,
    new_v4
);
uuid_id!(
    /// One process of a node agent.
    ProcessId,
    new_v4
);
uuid_id!(
    /// Given by a caller so that a repeated call has one effect.
    RequestId,
    new_v4
);

/// One incarnation of a workspace's container: a fencing token that only rises. 0: never started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Generation(pub i64);

impl Generation {
    /// The one after it.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A container's place in time, and what decides between two of one workspace: the incarnation of the store that ordered it, then
/// its generation. A store that was restored counts generations from where its copy stood; its higher incarnation puts whatever
/// it orders after whatever ran before. The lower of two pairs never wins anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Pair {
    /// Incarnation of the store; compared first.
    pub incarnation: i64,
    /// Generation of the workspace.
    pub generation: Generation,
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.incarnation, self.generation)
    }
}

/// Characters of a secret.
pub const SECRET_LENGTH: usize = 64;

/// A secret of 256 random bits, in hexadecimal; the store keeps only `secret_hash` of it.
pub fn new_secret() -> String {
    hex(&rand::random::<[u8; SECRET_LENGTH / 2]>())
}

/// What is stored of a secret: its SHA-256 in hexadecimal. No salt: the secrets are random, not chosen by people.
pub fn secret_hash(secret: &str) -> String {
    use sha2::{Digest as _, Sha256};
    hex(&Sha256::digest(secret.as_bytes()))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refuses_ids_that_could_leave_the_base() {
        for bad in
            ["", ".", "..", "../x", "a/b", "a\\b", ".hidden", "-rf", "a b", "ä", "a\0b", &"x".repeat(65)]
        {
            assert!(bad.parse::<StudentId>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn keeps_an_id_as_given_and_compares_it_without_case() {
        let id: StudentId = "Ada.L@school-1_x".parse().expect("valid");
        assert_eq!((id.as_str(), id.key().as_str()), ("Ada.L@school-1_x", "ada.l@school-1_x"));
    }

    #[test]
    fn of_two_pairs_the_later_incarnation_is_higher_whatever_the_generations() {
        let pair = |incarnation, generation| Pair { incarnation, generation: Generation(generation) };
        let mut pairs = vec![pair(2, 1), pair(1, 9), pair(1, 10), pair(2, 0)];
        pairs.sort();
        assert_eq!(pairs, [pair(1, 9), pair(1, 10), pair(2, 0), pair(2, 1)]);
    }

    proptest! {
        #[test]
        fn an_accepted_id_is_one_path_component(text in ".*") {
            if let Ok(id) = text.parse::<StudentId>() {
                let parts: Vec<_> = std::path::Path::new(id.as_str()).components().collect();
                prop_assert!(matches!(parts[..], [std::path::Component::Normal(_)]));
            }
        }
    }
}
