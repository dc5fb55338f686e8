//! Nodes: enrolment, sessions, heartbeats, silence.

use std::collections::HashSet;
use std::time::Duration;

use carrel_common::id::NodeId;
use carrel_common::model::{Health, HeartbeatCount, NodeFacts};
use sea_orm::{ConnectionTrait, QueryResult};
use time::OffsetDateTime;

use super::entity::{json, value};
use super::error::{Result, StoreError};
use super::readable::readable;
use super::{Store, Work, sql};
use crate::domain::node::{Challenge, Holder, Node, NodeDrain, NodeState};

/// Whether a node has told all that it saw, in a session that stands and since the last time that could not be observed. A session
/// whose replica was killed stands for all that is written: it does while a heartbeat came within `$2` seconds.
pub(super) const HAS_TOLD: &str = "(nodes.told AND nodes.agent_connected
    AND nodes.last_heartbeat_at > clock_timestamp() - make_interval(secs => $2))";

/// What an accepted session is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewSession {
    /// Names the session.
    pub session_epoch: i64,
    /// Names the agent process.
    pub boot_epoch: i64,
}

pub(super) fn node(row: &QueryResult) -> Result<Node> {
    let get = StoreError::sort("read the nodes");
    let state: String = row.try_get("", "state").map_err(&get)?;
    let drain = |deadline_at| -> std::result::Result<_, sea_orm::DbErr> {
        Ok(NodeDrain {
            deadline_at,
            reason: row.try_get("", "drain_reason")?,
            drained_at: row.try_get("", "drained_at")?,
        })
    };
    let deadline_at: Option<_> = row.try_get("", "drain_deadline_at").map_err(&get)?;
    Ok(Node {
        id: NodeId(row.try_get("", "id").map_err(&get)?),
        facts: value("nodes", row.try_get("", "facts").map_err(&get)?)?,
        docker: value("nodes", row.try_get("", "docker").map_err(&get)?)?,
        storage: value("nodes", row.try_get("", "storage").map_err(&get)?)?,
        state: value("nodes", state.into())?,
        session_epoch: row.try_get("", "session_epoch").map_err(&get)?,
        boot_epoch: row.try_get("", "boot_epoch").map_err(&get)?,
        desired_generation: row.try_get("", "desired_generation").map_err(&get)?,
        heartbeats: row.try_get("", "renewals").map_err(&get)?,
        holder: Holder {
            process: row.try_get("", "agent_process").map_err(&get)?,
            connected: row.try_get("", "agent_connected").map_err(&get)?,
        },
        challenge: challenge(row).map_err(&get)?,
        stops_withheld: row.try_get("", "stops_withheld").map_err(&get)?,
        last_heartbeat_at: row.try_get("", "last_heartbeat_at").map_err(&get)?,
        certificate_expires_at: row.try_get("", "certificate_expires_at").map_err(&get)?,
        cordon: row.try_get("", "cordon_reason").map_err(&get)?,
        drain: deadline_at.map(drain).transpose().map_err(&get)?,
        banned_at: row.try_get("", "banned_at").map_err(&get)?,
        removed_at: row.try_get("", "removed_at").map_err(&get)?,
        created_at: row.try_get("", "created_at").map_err(&get)?,
    })
}

fn challenge(row: &QueryResult) -> std::result::Result<Option<Challenge>, sea_orm::DbErr> {
    let since: Option<time::OffsetDateTime> = row.try_get("", "challenged_at")?;
    let (process, told) = (row.try_get("", "challenger")?, row.try_get("", "challenge_told")?);
    Ok(since.map(|since| Challenge { process, since, told }))
}

const COLUMNS: &str = "SELECT * FROM nodes";

impl Store {
    /// What is stored of a node's secret; `None` for one that has a certificate instead.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn node_secret_hash(&self, id: NodeId) -> Result<Option<String>> {
        let row = self
            .db
            .query_one_raw(sql(
                "SELECT secret_hash FROM nodes WHERE id = $1 AND secret_hash IS NOT NULL",
                [id.0.into()],
            ))
            .await
            .map_err(StoreError::sort("find a node"))?;
        row.map(|row| row.try_get("", "secret_hash").map_err(StoreError::sort("find a node"))).transpose()
    }

    /// The stream of a session is over, by the agent's doing or the network's.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn session_broke(&self, id: NodeId, session_epoch: i64) -> Result<()> {
        self.db
            .execute_raw(sql(
                "UPDATE nodes SET agent_connected = false WHERE id = $1 AND session_epoch = $2",
                [id.0.into(), session_epoch.into()],
            ))
            .await
            .map_err(StoreError::sort("note that a session broke"))?;
        Ok(())
    }

    /// Nodes that have not been heard of for `silence`, or are banned, and are not marked so yet, or hold workspaces that are not, or that wait for
    /// them without knowing it.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn silent_nodes(&self, silence: Duration) -> Result<Vec<NodeId>> {
        let rows = self
            .db
            .query_all_raw(sql(
                "SELECT id FROM nodes n
                 WHERE removed_at IS NULL AND state <> 'FENCED'
                   AND (banned_at IS NOT NULL
                        OR coalesce(last_heartbeat_at, created_at) < clock_timestamp() - make_interval(secs => $1))
                   AND (state <> 'UNREACHABLE' OR EXISTS (
                        SELECT 1 FROM workspaces w WHERE w.node_id = n.id
                          AND (w.state IN ('STARTING', 'RUNNING') OR w.state = 'PENDING'
                               AND w.status_reason IS DISTINCT FROM '\"PREVIOUS_HOST_UNREACHABLE\"')))",
                [silence.as_secs_f64().into()],
            ))
            .await
            .map_err(StoreError::sort("look for silent nodes"))?;
        rows.iter()
            .map(|row| row.try_get("", "id").map(NodeId))
            .collect::<std::result::Result<_, _>>()
            .map_err(StoreError::sort("look for silent nodes"))
    }
}

impl Work {
    /// All nodes that are not taken out, as far as they can be read.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn list_nodes(&mut self) -> Result<Vec<Node>> {
        let rows = self
            .tx
            .query_all_raw(sql(&format!("{COLUMNS} WHERE removed_at IS NULL"), []))
            .await
            .map_err(StoreError::sort("read the nodes"))?;
        Ok(readable(rows.iter().map(|row| (row.try_get("", "id").ok(), node(row)))))
    }

    /// A new node, with the hash of its secret when that is how it shows who it is.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn insert_node(
        &mut self,
        id: NodeId,
        secret_hash: Option<&str>,
        facts: &NodeFacts,
    ) -> Result<()> {
        let unknown = Health {
            problem: Some(("NOT_CONNECTED".into(), "It has not connected yet.".into())),
            age: Duration::ZERO,
            latency: None,
        };
        self.tx
            .execute_raw(sql(
                "INSERT INTO nodes (id, secret_hash, facts, docker, storage, state) VALUES ($1, $2, $3, $4, $4, $5)",
                [
                    id.0.into(),
                    secret_hash.map(str::to_owned).into(),
                    json("nodes", facts)?.into(),
                    json("nodes", &unknown)?.into(),
                    NodeState::Unreachable.as_str().into(),
                ],
            ))
            .await
            .map_err(StoreError::sort("enrol a node"))?;
        Ok(())
    }

    /// Notes when the certificate ends that a node has been given.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn note_certificate(&mut self, id: NodeId, expires_at: OffsetDateTime) -> Result<()> {
        self.tx
            .execute_raw(sql(
                "UPDATE nodes SET certificate_expires_at = $2 WHERE id = $1",
                [id.0.into(), expires_at.into()],
            ))
            .await
            .map_err(StoreError::sort("note a certificate"))?;
        Ok(())
    }

    /// A node, locked.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn lock_node(&mut self, id: NodeId) -> Result<Option<Node>> {
        let row = self
            .tx
            .query_one_raw(sql(&format!("{COLUMNS} WHERE id = $1 FOR NO KEY UPDATE"), [id.0.into()]))
            .await
            .map_err(StoreError::sort("lock a node"))?;
        row.map(|row| node(&row)).transpose()
    }

    /// Accepts a session of a locked node: the ones before it can no longer write.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn accept_session(
        &mut self,
        id: NodeId,
        facts: &NodeFacts,
        process_start: bool,
        process: &str,
    ) -> Result<NewSession> {
        let operation = "accept a session";
        let row = self
            .tx
            .query_one_raw(sql(
                "UPDATE nodes SET session_epoch = session_epoch + 1, facts = $2, told = false,
                        boot_epoch = boot_epoch + CASE WHEN $3 THEN 1 ELSE 0 END,
                        agent_process = $4, agent_connected = true,
                        challenger = '', challenged_at = NULL, challenge_told = false
                 WHERE id = $1 RETURNING session_epoch, boot_epoch",
                [id.0.into(), json("nodes", facts)?.into(), process_start.into(), process.into()],
            ))
            .await
            .map_err(StoreError::sort(operation))?
            .ok_or(StoreError::Conflict { operation })?;
        let get = StoreError::sort(operation);
        Ok(NewSession {
            session_epoch: row.try_get("", "session_epoch").map_err(&get)?,
            boot_epoch: row.try_get("", "boot_epoch").map_err(&get)?,
        })
    }

    /// Those of some nodes that have told all that they saw, in a session that stands and since the last time that could not be
    /// observed, and whose heartbeat came `within`.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn nodes_that_have_told(
        &mut self,
        nodes: Vec<NodeId>,
        within: Duration,
    ) -> Result<HashSet<NodeId>> {
        let ids: Vec<sea_orm::prelude::Uuid> = nodes.into_iter().map(|node| node.0).collect();
        let rows = self
            .tx
            .query_all_raw(sql(
                &format!("SELECT id FROM nodes WHERE {HAS_TOLD} AND id = ANY ($1::uuid[])"),
                [ids.into(), within.as_secs_f64().into()],
            ))
            .await
            .map_err(StoreError::sort("ask what nodes have told"))?;
        Ok(rows.iter().filter_map(|row| row.try_get("", "id").ok()).map(NodeId).collect())
    }

    /// Another agent process says that it is this locked node; `told`: operators are told now.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn challenge(&mut self, id: NodeId, process: &str, told: bool) -> Result<()> {
        self.tx
            .execute_raw(sql(
                "UPDATE nodes SET challenger = $2,
                        challenged_at = CASE WHEN challenger = $2 THEN coalesce(challenged_at, clock_timestamp())
                                             ELSE clock_timestamp() END,
                        challenge_told = challenge_told OR $3
                 WHERE id = $1",
                [id.0.into(), process.into(), told.into()],
            ))
            .await
            .map_err(StoreError::sort("note a second agent"))?;
        Ok(())
    }

    /// How many stops the agent of a session holds back; whether that is news of the session that stands.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn withhold(&mut self, id: NodeId, session_epoch: i64, stops: i32) -> Result<bool> {
        let done = self
            .tx
            .execute_raw(sql(
                "UPDATE nodes SET stops_withheld = $3 WHERE id = $1 AND session_epoch = $2 AND stops_withheld <> $3",
                [id.0.into(), session_epoch.into(), stops.into()],
            ))
            .await
            .map_err(StoreError::sort("note what an agent held back"))?;
        Ok(done.rows_affected() == 1)
    }

    /// Whether this session is still the node's. Asked after the locks of what it reports on: whoever changed that for a
    /// newer session has been accepted before.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn session_is_current(&mut self, id: NodeId, session_epoch: i64) -> Result<bool> {
        let row = self
            .tx
            .query_one_raw(sql(
                "SELECT 1 FROM nodes WHERE id = $1 AND session_epoch = $2",
                [id.0.into(), session_epoch.into()],
            ))
            .await
            .map_err(StoreError::sort("look at a session"))?;
        Ok(row.is_some())
    }

    /// Commits a sign of life, and how many there have been; `None` when another session has taken over.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn renew_node(
        &mut self,
        id: NodeId,
        session_epoch: i64,
        docker: &Health,
        storage: &Health,
        state: NodeState,
    ) -> Result<Option<HeartbeatCount>> {
        let operation = "renew a node";
        let row = self
            .tx
            .query_one_raw(sql(
                "UPDATE nodes SET last_heartbeat_at = clock_timestamp(), renewals = renewals + 1, docker = $3,
                        storage = $4, state = $5, told = true WHERE id = $1 AND session_epoch = $2
                 RETURNING renewals, (SELECT incarnation FROM cluster) AS incarnation",
                [
                    id.0.into(),
                    session_epoch.into(),
                    json("nodes", docker)?.into(),
                    json("nodes", storage)?.into(),
                    state.as_str().into(),
                ],
            ))
            .await
            .map_err(StoreError::sort(operation))?;
        let read = |row: QueryResult| -> std::result::Result<_, sea_orm::DbErr> {
            let heartbeats = row.try_get("", "renewals")?;
            Ok(HeartbeatCount { incarnation: row.try_get("", "incarnation")?, heartbeats })
        };
        row.map(read).transpose().map_err(StoreError::sort(operation))
    }

    /// Marks a locked node as silent.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn mark_unreachable(&mut self, id: NodeId) -> Result<()> {
        self.tx
            .execute_raw(sql(
                "UPDATE nodes SET state = $2, replacement_held = false WHERE id = $1",
                [id.0.into(), NodeState::Unreachable.as_str().into()],
            ))
            .await
            .map_err(StoreError::sort("mark a node"))?;
        Ok(())
    }
}
