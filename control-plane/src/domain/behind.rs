//! Whether the store has gone back in time. Pure.
//!
//! An agent holds what only the store can have told it. A store that kept everything has all of that; one that lacks any of it
//! was restored from a copy, or lost what it had confirmed. Each line of the table is proof by itself:
//!
//! | the agent has | a store that kept everything has |
//! |---|---|
//! | accepted a desired set | a version of the node's set that is as high |
//! | heartbeats acknowledged | counted as many, but for a few: see [`LOST_AT_MOST`] |
//! | a container, or a fence file, of incarnation i | an incarnation that is as high |
//! | a container (i, g) of a student the store has placed on that node, i being the present incarnation | a generation of that student that is as high |
//! | read a fence file (i, g) before a start, i being the present incarnation | a generation of that student that is as high |
//! | read a fence file of a placement before a start, of the present incarnation | made that placement |
//! | an identity of this Carrel | a row of the node |
//!
//! What is no proof: a container of a student whom the store does not know, or has never placed on that node. Somebody may have made
//! it by hand, and a store that lacks it lacks one of the above as well; alone it is an orphan. Nothing of an *earlier* incarnation is proof:
//! that the store knows less than happened then is what an operator declared. Nor is an incarnation that no Carrel can have come to: see
//! [`REACH`].

use std::collections::HashMap;
use std::fmt;

use carrel_common::id::{ClusterId, Generation, NodeId, Pair, PlacementId, StudentId};
use carrel_common::model::{Container, DesiredPair, HeartbeatCount};
use time::OffsetDateTime;

/// Acknowledged heartbeats that a store may lack without being behind. A standby that takes over may lack the last moments, and
/// what matters of these shows in the other lines; a copy that is older than this many heartbeats is always noticed.
const LOST_AT_MOST: i64 = 3;

/// What is counted on from a number that the store has not given is at most so far above what it knows. Nobody restores a database,
/// or starts a desk, so often; a number further off was made up, and the highest of all would leave none to follow.
pub const REACH: i64 = 1 << 20;

/// Whether a Carrel can have counted to what was told, by what the store knows.
pub fn in_reach(told: i64, known: i64) -> bool {
    told.saturating_sub(known) <= REACH
}

/// How the store stands in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreState {
    /// Names this Carrel.
    pub cluster: ClusterId,
    /// Rises when an operator declares the store restored.
    pub incarnation: i64,
    /// It has gone back in time, and nobody has declared it restored yet.
    pub behind: Option<Behind>,
    /// When it was last declared restored.
    pub declared_at: Option<OffsetDateTime>,
}

/// Since when a store is behind, and what showed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behind {
    /// When it was noticed.
    pub since: OffsetDateTime,
    /// The node whose agent showed it.
    pub node: Option<NodeId>,
    /// What showed it, for operators.
    pub evidence: String,
}

/// What an agent holds.
#[derive(Debug, Clone, Copy)]
pub struct Told<'a> {
    /// The highest desired pair it has accepted.
    pub accepted: Option<DesiredPair>,
    /// The highest count of its heartbeats that was acknowledged.
    pub acked: Option<HeartbeatCount>,
    /// Its containers.
    pub containers: &'a [Container],
}

impl Told<'_> {
    /// The highest incarnation in it; 0 when there is none.
    pub fn incarnation(&self) -> i64 {
        let of_containers = self.containers.iter().map(|container| container.incarnation).max();
        let of_set = self.accepted.map(|pair| pair.incarnation);
        let of_heartbeats = self.acked.map(|count| count.incarnation);
        of_containers.max(of_set).max(of_heartbeats).unwrap_or(0)
    }
}

/// What the store knows of the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its incarnation.
    pub incarnation: i64,
    /// Version of the node's desired set.
    pub desired_generation: i64,
    /// The node's heartbeats.
    pub heartbeats: i64,
    /// The highest generation of each student that it has placed on the node, deleted ones too; by [`StudentId::key`].
    pub generations: HashMap<String, Generation>,
}

/// What shows that the store has gone back in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evidence {
    /// A desired set was accepted that is newer than any the store has made.
    Set {
        /// What the agent holds.
        accepted: DesiredPair,
        /// What the store has made.
        known: DesiredPair,
    },
    /// Heartbeats were acknowledged that the store has not counted.
    Heartbeats {
        /// What the agent holds.
        acked: HeartbeatCount,
        /// What the store has counted.
        known: HeartbeatCount,
    },
    /// A container is later than anything the store knows of its student.
    Container {
        /// The student.
        student: StudentId,
        /// The container's pair.
        pair: Pair,
        /// What the store knows.
        known: Pair,
    },
    /// The share holds a later incarnation.
    Share {
        /// The student whose fence file it is.
        student: StudentId,
        /// The file's pair.
        pair: Pair,
        /// The latest that the store has given.
        known: Pair,
    },
    /// The share holds a placement of the present incarnation that the store has not made.
    Placement {
        /// The student whose fence file it is.
        student: StudentId,
        /// The file's pair.
        pair: Pair,
        /// The file's placement.
        placement: PlacementId,
    },
    /// A node of this Carrel that the store does not know.
    Node {
        /// The Carrel that it says it belongs to, when that is not the store's: then the database is new.
        cluster: Option<ClusterId>,
        /// How many containers it has.
        containers: usize,
    },
}

impl Evidence {
    /// The incarnation it names, 0 when it names none: the one that follows must be higher.
    pub fn incarnation(&self) -> i64 {
        match self {
            Self::Set { accepted, .. } => accepted.incarnation,
            Self::Heartbeats { acked, .. } => acked.incarnation,
            Self::Container { pair, .. } | Self::Share { pair, .. } | Self::Placement { pair, .. } => {
                pair.incarnation
            }
            Self::Node { .. } => 0,
        }
    }

    /// A fence file shows a later pair than the store has ever given the student.
    pub fn of_share(student: &StudentId, pair: Pair, given: Pair) -> Option<Self> {
        let later = pair > given && in_reach(pair.incarnation, given.incarnation);
        later.then(|| Self::Share { student: student.clone(), pair, known: given })
    }

    /// The same, or an earlier one, was given to a placement that a store of this `incarnation` does not know: it was forgotten, and
    /// what was given since may have been given twice. Of an earlier incarnation that is what was declared.
    pub fn of_twin(
        student: &StudentId,
        pair: Pair,
        placement: PlacementId,
        incarnation: i64,
    ) -> Option<Self> {
        (pair.incarnation == incarnation).then(|| Self::Placement {
            student: student.clone(),
            pair,
            placement,
        })
    }

    /// A desired set was refused by an agent that holds a newer one.
    pub fn of_refusal(offered: DesiredPair, accepted: DesiredPair) -> Option<Self> {
        let later = accepted > offered && in_reach(accepted.incarnation, offered.incarnation);
        later.then_some(Self::Set { accepted, known: offered })
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set { accepted, known } => write!(
                f,
                "it has accepted version {}.{} of its desired set, and the store is at {}.{}",
                accepted.incarnation, accepted.generation, known.incarnation, known.generation
            ),
            Self::Heartbeats { acked, known } => write!(
                f,
                "heartbeat {}.{} was acknowledged to it, and the store is at {}.{}",
                acked.incarnation, acked.heartbeats, known.incarnation, known.heartbeats
            ),
            Self::Container { student, pair, known } => {
                write!(f, "it has container {pair} of student {student}, and the store is at {known}")
            }
            Self::Share { student, pair, known } => {
                write!(f, "the share holds {pair} for student {student}, and the store has given {known}")
            }
            Self::Placement { student, pair, placement } => write!(
                f,
                "the share holds {pair} for student {student}, of placement {placement}, which the store has not made"
            ),
            Self::Node { cluster: None, containers } => {
                write!(f, "the store does not know this node, which has {containers} containers")
            }
            Self::Node { cluster: Some(cluster), containers } => write!(
                f,
                "the store is new and does not know this node, which has {containers} containers of Carrel {cluster}"
            ),
        }
    }
}

/// The first proof in what an agent holds that the store has gone back in time.
pub fn evidence(told: &Told<'_>, known: &Known) -> Option<Evidence> {
    let set = DesiredPair { incarnation: known.incarnation, generation: known.desired_generation };
    if let Some(lost) = told.accepted.and_then(|accepted| Evidence::of_refusal(set, accepted)) {
        return Some(lost);
    }
    let later = |container: &&Container| later(container, known).is_some();
    // The latest of all, since the next incarnation must be higher than any that was seen.
    if let Some(container) = told.containers.iter().filter(later).max_by_key(|c| c.pair()) {
        let known = self::later(container, known)?;
        return Some(Evidence::Container {
            student: container.student.clone(),
            pair: container.pair(),
            known,
        });
    }
    let counted = HeartbeatCount {
        incarnation: known.incarnation,
        heartbeats: known.heartbeats.saturating_add(LOST_AT_MOST),
    };
    let acked =
        told.acked.filter(|acked| *acked > counted && in_reach(acked.incarnation, known.incarnation))?;
    Some(Evidence::Heartbeats {
        acked,
        known: HeartbeatCount { incarnation: known.incarnation, heartbeats: known.heartbeats },
    })
}

/// What the store knows of a container's student, when the container is later than that.
fn later(container: &Container, known: &Known) -> Option<Pair> {
    let of_student = known.generations.get(&container.student.key()).copied();
    let pair = Pair { incarnation: known.incarnation, generation: of_student.unwrap_or(Generation(0)) };
    let unknown_to_us = container.incarnation == known.incarnation && of_student.is_none();
    let counted = in_reach(container.incarnation, known.incarnation);
    (container.pair() > pair && !unknown_to_us && counted).then_some(pair)
}

#[cfg(test)]
mod tests;
