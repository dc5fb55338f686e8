//! The nodes as a placement sees them.

use carrel_common::id::{CourseId, NodeId};
use carrel_common::model::{NodeFacts, Resources};
use sea_orm::{ConnectionTrait, QueryResult};

use super::entity::value;
use super::error::{Result, StoreError};
use super::readable::{readable, readable_by_name};
use super::{Work, sql};
use crate::domain::node::NodeState;
use crate::domain::placement::{Candidate, FAILURES_COUNT_FOR, Service};

/// How much more than it has a node may promise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CandidateLimits {
    /// Processors promised for each one there is.
    pub cpu_overcommit: f64,
    /// Bytes promised for each one there is.
    pub memory_overcommit: f64,
}

/// How many workspaces of a course are on a node.
pub type CoursePlaces = Vec<(NodeId, Option<CourseId>, i64)>;

/// $1: the images that are asked for; $2: how long failures count, in seconds; OF_STARTS: as below. What a node holds is summed in
/// its index, node by node.
const CANDIDATES: &str = "
SELECT n.id, n.state, n.facts, n.cordon_reason IS NULL AS schedulable, n.drain_deadline_at IS NOT NULL AS draining,
       p.cpu, p.memory, p.count, coalesce(s.count, 0) AS starting, coalesce(f.count, 0) AS failures,
       ARRAY(SELECT image FROM unnest(i.images) AS image WHERE image = ANY ($1)) AS images
FROM nodes n
CROSS JOIN LATERAL (
    SELECT coalesce(sum(cpu_millicores), 0)::bigint AS cpu, coalesce(sum(memory_bytes), 0)::bigint AS memory,
           count(*) AS count
    FROM placements WHERE node_id = n.id AND released_at IS NULL
) p
OF_STARTS
LEFT JOIN (
    SELECT node_id, count(*) AS count FROM start_failures
    WHERE NOT over AND at > clock_timestamp() - make_interval(secs => $2) GROUP BY node_id
) f ON f.node_id = n.id
LEFT JOIN node_images i ON i.node_id = n.id
WHERE n.removed_at IS NULL";

/// Of all nodes: what moves is little, and is counted once.
const STARTING_ANYWHERE: &str = "
LEFT JOIN (SELECT node_id, count(*) AS count FROM workspaces WHERE state = 'STARTING' GROUP BY node_id) s
       ON s.node_id = n.id";

/// Of a few: what moves elsewhere is none of theirs. As a filter, since by an old estimate of how many start Postgres would read all
/// that do, for each of the nodes.
const STARTING_HERE: &str = "
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE state = 'STARTING') AS count FROM workspaces WHERE node_id = n.id
) s";

/// `count` times `ratio`, cut at what an `i64` holds.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "a capacity is an estimate; float casts saturate"
)]
fn times(count: i64, ratio: f64) -> i64 {
    (count as f64 * ratio) as i64
}

impl CandidateLimits {
    /// What a node of these facts can hold.
    pub(super) fn capacity(self, facts: &NodeFacts) -> Resources {
        Resources {
            cpu_millicores: times(facts.cpu_millicores, self.cpu_overcommit),
            memory_bytes: times(facts.memory_bytes, self.memory_overcommit),
            pids: 0,
        }
    }
}

fn candidate(row: &QueryResult, limits: CandidateLimits) -> Result<Candidate> {
    let get = StoreError::sort("read the nodes");
    let facts: NodeFacts = value("nodes", row.try_get("", "facts").map_err(&get)?)?;
    let state: String = row.try_get("", "state").map_err(&get)?;
    let schedulable: bool = row.try_get("", "schedulable").map_err(&get)?;
    let draining: bool = row.try_get("", "draining").map_err(&get)?;
    let service = match schedulable {
        _ if draining => Service::Draining,
        false => Service::Cordoned,
        true if state == NodeState::Ready.as_str() => Service::Ready,
        true if state == NodeState::Degraded.as_str() => Service::Unhealthy,
        true => Service::Silent,
    };
    Ok(Candidate {
        node: NodeId(row.try_get("", "id").map_err(&get)?),
        service,
        capacity: limits.capacity(&facts),
        processors: facts.cpu_millicores,
        allocated: Resources {
            cpu_millicores: row.try_get("", "cpu").map_err(&get)?,
            memory_bytes: row.try_get("", "memory").map_err(&get)?,
            pids: 0,
        },
        count: row.try_get("", "count").map_err(&get)?,
        most: facts.max_workspaces,
        zone: facts.zone,
        starting: row.try_get("", "starting").map_err(&get)?,
        failures: row.try_get("", "failures").map_err(&get)?,
        images: row.try_get("", "images").map_err(&get)?,
    })
}

/// A course as it is written, whatever can be made of it.
pub(super) fn raw_course(row: &QueryResult) -> Option<String> {
    row.try_get("", "course_id").ok()
}

impl Work {
    async fn read_candidates(
        &mut self,
        nodes: Option<&[NodeId]>,
        images: &[String],
        limits: CandidateLimits,
    ) -> Result<Vec<Candidate>> {
        let mut values = vec![images.to_vec().into(), FAILURES_COUNT_FOR.as_secs_f64().into()];
        let text = match nodes {
            None => CANDIDATES.replace("OF_STARTS", STARTING_ANYWHERE) + " ORDER BY n.id",
            Some(nodes) => {
                values.push(nodes.iter().map(|node| node.0).collect::<Vec<_>>().into());
                CANDIDATES.replace("OF_STARTS", STARTING_HERE) + " AND n.id = ANY ($3) ORDER BY n.id"
            }
        };
        let rows =
            self.tx.query_all_raw(sql(&text, values)).await.map_err(StoreError::sort("read the nodes"))?;
        Ok(readable(rows.iter().map(|row| (row.try_get("", "id").ok(), candidate(row, limits)))))
    }

    /// Every node as a placement sees it, not locked; of the images on it those that are asked for.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn candidates(&mut self, images: &[String], limits: CandidateLimits) -> Result<Vec<Candidate>> {
        self.read_candidates(None, images, limits).await
    }

    /// Nodes as a placement sees them, locked: nothing else is placed there until this transaction ends.
    ///
    /// # Errors
    /// When the database cannot be reached, or the locks are not had in time.
    pub async fn lock_candidates(
        &mut self,
        nodes: &[NodeId],
        images: &[String],
        limits: CandidateLimits,
    ) -> Result<Vec<Candidate>> {
        let ids: Vec<_> = nodes.iter().map(|node| node.0).collect();
        // The locks come first, in a statement of their own: the sums must be read after they were had.
        self.tx
            .execute_raw(sql(
                "SELECT 1 AS one FROM nodes WHERE id = ANY ($1) ORDER BY id FOR NO KEY UPDATE",
                [ids.into()],
            ))
            .await
            .map_err(StoreError::sort("lock nodes"))?;
        self.read_candidates(Some(nodes), images, limits).await
    }

    /// A node as a placement sees it, locked as by [`Work::lock_candidates`] but without a wait: `None` when another transaction has
    /// it at this moment, or it was taken out.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn try_lock_candidate(
        &mut self,
        node: NodeId,
        images: &[String],
        limits: CandidateLimits,
    ) -> Result<Option<Candidate>> {
        let had = self
            .tx
            .query_one_raw(sql(
                "SELECT 1 AS one FROM nodes WHERE id = $1 FOR NO KEY UPDATE SKIP LOCKED",
                [node.0.into()],
            ))
            .await
            .map_err(StoreError::sort("lock a node"))?;
        if had.is_none() {
            return Ok(None);
        }
        Ok(self.read_candidates(Some(&[node]), images, limits).await?.pop())
    }

    /// How many workspaces of each course are on each node.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn course_places(&mut self) -> Result<CoursePlaces> {
        self.places(
            "SELECT course_id, node_id, count(*) AS count FROM workspaces WHERE node_id IS NOT NULL
             GROUP BY course_id, node_id",
            None,
        )
        .await
    }

    /// How many workspaces of one course are on each node.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn places_of_course(&mut self, course: Option<&CourseId>) -> Result<CoursePlaces> {
        // Two forms, since `IS NOT DISTINCT FROM` finds no index.
        let query = match course {
            Some(_) => {
                "SELECT course_id, node_id, count(*) AS count FROM workspaces
                 WHERE node_id IS NOT NULL AND course_id = $1 GROUP BY course_id, node_id"
            }
            None => {
                "SELECT course_id, node_id, count(*) AS count FROM workspaces
                 WHERE node_id IS NOT NULL AND course_id IS NULL GROUP BY course_id, node_id"
            }
        };
        self.places(query, course).await
    }

    async fn places(&mut self, query: &str, course: Option<&CourseId>) -> Result<CoursePlaces> {
        let get = StoreError::sort("count the places of courses");
        let values = course.map(|course| sea_orm::Value::from(course.as_str()));
        let rows = self.tx.query_all_raw(sql(query, values)).await.map_err(&get)?;
        let read = |row: &QueryResult| -> Result<(NodeId, Option<CourseId>, i64)> {
            let course: Option<String> = row.try_get("", "course_id").map_err(&get)?;
            let course = course.map(|course| value("workspaces", course.into())).transpose()?;
            let node = NodeId(row.try_get("", "node_id").map_err(&get)?);
            Ok((node, course, row.try_get("", "count").map_err(&get)?))
        };
        // Nobody in line is of a course that cannot be read.
        Ok(readable_by_name(rows.iter().map(|row| (raw_course(row), read(row)))))
    }
}
