//! A store that has gone back in time: that it has, that an operator declared it restored, and who has told since what runs.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use carrel_common::id::{ClusterId, Generation, NodeId, Pair, PlacementId, WorkspaceUid};
use sea_orm::{ConnectionTrait, QueryResult};

use super::error::{Result, StoreError};
use super::{Store, Work, sql};
use crate::domain::behind::{Behind, REACH, StoreState};

/// Nodes that are waited for: not those that were taken out. A node that is given up, or confirmed dead, leaves `awaited_nodes`.
/// `watched`: it has had a session, so it will be given up when it stays silent.
const AWAITED: &str =
    "SELECT awaited, coalesce(n.state <> 'FENCED' AND n.leased_seconds IS NOT NULL, false) AS watched
     FROM restoration, unnest(awaited_nodes) AS awaited LEFT JOIN nodes n ON n.id = awaited WHERE n.removed_at IS NULL";

/// Of the workspaces `$1`, those that may run on a node that has not told; `$2`: seconds after which a node that this store has
/// never watched has stopped everything by itself. Nodes that it knows are given up by their renewals, which no clock that is
/// stepped can shorten; those it has never heard of, or that the copy had given up already, it can only wait for. Nor can it know
/// that there are none which it does not know: one may have been enrolled after the copy was made.
const UNSEEN: &str = "
WITH wait AS (
    SELECT c.incarnation, r.declared_at + make_interval(secs => $2) > clock_timestamp() AS within
    FROM cluster c, restoration r WHERE r.declared_at IS NOT NULL AND r.awaits)
SELECT w.id FROM unnest($1::uuid[]) AS w (id), wait
WHERE (wait.within OR EXISTS (SELECT 1 FROM (AWAITED) a WHERE a.watched))
  AND NOT EXISTS (SELECT 1 FROM placements p WHERE p.workspace_id = w.id AND wait.incarnation IN (p.incarnation, p.confirmed_in))";

async fn unseen(
    connection: &impl ConnectionTrait,
    uids: Vec<WorkspaceUid>,
    longest: Duration,
) -> Result<HashSet<WorkspaceUid>> {
    let sorted = StoreError::sort("look which workspaces may run unseen");
    let uids: Vec<sea_orm::prelude::Uuid> = uids.into_iter().map(|uid| uid.0).collect();
    let text = UNSEEN.replace("AWAITED", AWAITED);
    let rows = connection
        .query_all_raw(sql(&text, [uids.into(), longest.as_secs_f64().into()]))
        .await
        .map_err(&sorted)?;
    let uids = rows.iter().map(|row| row.try_get("", "id").map(WorkspaceUid));
    uids.collect::<std::result::Result<_, _>>().map_err(sorted)
}

/// What a declaration that the store was restored led to, or would lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// How the store stood.
    pub before: StoreState,
    /// The Carrel it is from now on.
    pub cluster: ClusterId,
    /// Its incarnation from now on.
    pub incarnation: i64,
    /// Nodes that are to tell what they run before anything is started that may run on one of them: name, and host name when
    /// it is known.
    pub awaited: Vec<(NodeId, Option<String>)>,
    /// Workspaces by their state in the store.
    pub workspaces: Vec<(String, i64)>,
}

/// Why a store cannot be declared restored as asked.
#[derive(Debug, thiserror::Error)]
pub enum DeclareError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A store that is in use keeps its name.
    #[error(
        "--cluster-id is for an empty database: this one is of Carrel {0}, and has nodes or workspaces of its own"
    )]
    OfAnotherCarrel(ClusterId),
}

async fn state(connection: &impl ConnectionTrait) -> Result<StoreState> {
    let sorted = StoreError::sort("read how the store stands");
    let row = connection
        .query_one_raw(sql(
            "SELECT cluster_id, incarnation, behind_since, behind_node, behind_evidence, declared_at FROM cluster, restoration",
            [],
        ))
        .await
        .map_err(&sorted)?
        .ok_or_else(|| StoreError::Corrupt { table: "cluster", problem: "it has no row".into() })?;
    let read = |row: &QueryResult| -> std::result::Result<_, sea_orm::DbErr> {
        let since: Option<time::OffsetDateTime> = row.try_get("", "behind_since")?;
        let node: Option<sea_orm::prelude::Uuid> = row.try_get("", "behind_node")?;
        let evidence = row.try_get("", "behind_evidence")?;
        Ok(StoreState {
            cluster: ClusterId(row.try_get("", "cluster_id")?),
            incarnation: row.try_get("", "incarnation")?,
            behind: since.map(|since| Behind { since, node: node.map(NodeId), evidence }),
            declared_at: row.try_get("", "declared_at")?,
        })
    };
    read(&row).map_err(sorted)
}

impl Store {
    /// How the store stands in time.
    ///
    /// # Errors
    /// When the database cannot be reached or has no schema.
    pub async fn state(&self) -> Result<StoreState> {
        state(&self.db).await
    }
}

impl Store {
    /// Of these workspaces, those that may run on a node that has not told; see [`Work::may_run_unseen`].
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn may_run_unseen(
        &self,
        workspaces: Vec<WorkspaceUid>,
        longest: Duration,
    ) -> Result<HashSet<WorkspaceUid>> {
        unseen(&self.db, workspaces, longest).await
    }
}

impl Work {
    /// How the store stands in time.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn state(&mut self) -> Result<StoreState> {
        state(&self.tx).await
    }

    /// Notes that a node has shown that the store went back in time; whether that is news. It was judged by what the store of
    /// `incarnation` knew: nothing is noted of a store that was declared restored since, which explains it. `seen` is the highest
    /// incarnation that the node named.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn mark_behind(
        &mut self,
        node: NodeId,
        evidence: &str,
        incarnation: i64,
        seen: i64,
    ) -> Result<bool> {
        let operation = "mark the store as behind";
        let news = self.lock_restoration(operation).await?.0;
        // Read after the lock: a declaration is before it, or waits for this and then takes back what is noted here.
        if state(&self.tx).await?.incarnation != incarnation {
            return Ok(false);
        }
        self.tx
            .execute_raw(sql(
                "UPDATE restoration SET behind_since = coalesce(behind_since, clock_timestamp()),
                        behind_node = CASE WHEN behind_since IS NULL THEN $1 ELSE behind_node END,
                        behind_evidence = CASE WHEN behind_since IS NULL THEN $2 ELSE behind_evidence END,
                        seen_incarnation = greatest(seen_incarnation, $3)",
                [node.0.into(), evidence.into(), seen.into()],
            ))
            .await
            .map_err(StoreError::sort(operation))?;
        self.await_node(node).await?;
        Ok(news)
    }

    /// Locks what is noted of a restoration: whether nothing is noted yet, and the highest incarnation that was seen.
    async fn lock_restoration(&mut self, operation: &'static str) -> Result<(bool, i64)> {
        let row = self
            .tx
            .query_one_raw(sql(
                "SELECT behind_since IS NULL AS news, seen_incarnation FROM restoration FOR UPDATE",
                [],
            ))
            .await
            .map_err(StoreError::sort(operation))?
            .ok_or_else(|| StoreError::Corrupt { table: "restoration", problem: "it has no row".into() })?;
        let read = || Ok((row.try_get("", "news")?, row.try_get("", "seen_incarnation")?));
        read().map_err(StoreError::sort(operation))
    }

    /// From now on this node is waited for: it may run what the store does not know.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn await_node(&mut self, node: NodeId) -> Result<()> {
        self.tx
            .execute_raw(sql(
                "UPDATE restoration SET awaited_nodes = array_append(awaited_nodes, $1) WHERE NOT $1 = ANY (awaited_nodes)",
                [node.0.into()],
            ))
            .await
            .map_err(StoreError::sort("wait for a node"))?;
        Ok(())
    }

    /// Whether a node is waited for.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn awaits(&mut self, node: NodeId) -> Result<bool> {
        let row = self
            .tx
            .query_one_raw(sql(
                "SELECT $1 = ANY (awaited_nodes) AS awaited FROM restoration",
                [node.0.into()],
            ))
            .await
            .map_err(StoreError::sort("look whether a node is waited for"))?;
        Ok(row.and_then(|row| row.try_get("", "awaited").ok()).unwrap_or(false))
    }

    /// Whether a node that is watched is waited for: it will tell what it runs, or be given up. Of one that the copy had given up, or
    /// never heard, only time tells, and that whether it is taken out or not.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn has_yet_to_tell(&mut self, node: NodeId) -> Result<bool> {
        let text = format!("SELECT 1 AS one FROM ({AWAITED}) a WHERE a.awaited = $1 AND a.watched");
        let row = self
            .tx
            .query_one_raw(sql(&text, [node.0.into()]))
            .await
            .map_err(StoreError::sort("look whether a node has yet to tell"))?;
        Ok(row.is_some())
    }

    /// A node has told what it runs, and that is in the store: it gets its orders again.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn has_told(&mut self, node: NodeId) -> Result<()> {
        self.tx
            .execute_raw(sql(
                "UPDATE restoration SET awaited_nodes = array_remove(awaited_nodes, $1)",
                [node.0.into()],
            ))
            .await
            .map_err(StoreError::sort("note that a node has told"))?;
        self.touched.nodes.insert(node);
        self.touched.queue = true;
        Ok(())
    }

    /// Whether the store has never had a node or a workspace.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn is_pristine(&mut self) -> Result<bool> {
        let row = self
            .tx
            .query_one_raw(sql(
                "SELECT NOT EXISTS (SELECT 1 FROM nodes) AND NOT EXISTS (SELECT 1 FROM workspaces) AS pristine",
                [],
            ))
            .await
            .map_err(StoreError::sort("look whether the store is new"))?;
        Ok(row.and_then(|row| row.try_get("", "pristine").ok()).unwrap_or(false))
    }

    /// The highest generation of each of these students, deleted desks included; students that are not known are left out.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn generations(&mut self, keys: Vec<String>) -> Result<HashMap<String, Generation>> {
        let operation = "look up generations";
        let rows = self
            .tx
            .query_all_raw(sql(
                // In two halves, each with its index.
                "SELECT key, max(generation) AS generation FROM (
                     SELECT lower(student_id) AS key, generation FROM workspaces WHERE deleted_at IS NULL
                     UNION ALL
                     SELECT lower(student_id) AS key, generation FROM workspaces WHERE deleted_at IS NOT NULL) AS known
                 WHERE key = ANY ($1) GROUP BY key",
                [keys.into()],
            ))
            .await
            .map_err(StoreError::sort(operation))?;
        rows.iter()
            .map(|row| Ok((row.try_get("", "key")?, Generation(row.try_get("", "generation")?))))
            .collect::<std::result::Result<_, sea_orm::DbErr>>()
            .map_err(StoreError::sort(operation))
    }

    /// The same of those students only that were placed on a node, as far as that is kept.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn generations_on(
        &mut self,
        node: NodeId,
        keys: Vec<String>,
    ) -> Result<HashMap<String, Generation>> {
        let operation = "look up who was placed on a node";
        let rows = self
            .tx
            .query_all_raw(sql(
                "SELECT DISTINCT lower(w.student_id) AS key FROM workspaces w JOIN placements p ON p.workspace_id = w.id
                 WHERE p.node_id = $1 AND lower(w.student_id) = ANY ($2)",
                [node.0.into(), keys.into()],
            ))
            .await
            .map_err(StoreError::sort(operation))?;
        let here = rows.iter().map(|row| row.try_get("", "key")).collect::<std::result::Result<_, _>>();
        self.generations(here.map_err(StoreError::sort(operation))?).await
    }

    /// The latest pair of a workspace that was ever placed, as far as it is kept.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn newest_pair(&mut self, workspace: WorkspaceUid) -> Result<Option<Pair>> {
        let operation = "look up what was placed last";
        let row = self
            .tx
            .query_one_raw(sql(
                "SELECT incarnation, generation FROM placements WHERE workspace_id = $1
                 ORDER BY incarnation DESC, generation DESC LIMIT 1",
                [workspace.0.into()],
            ))
            .await
            .map_err(StoreError::sort(operation))?;
        let read = |row: QueryResult| -> std::result::Result<_, sea_orm::DbErr> {
            let generation = Generation(row.try_get("", "generation")?);
            Ok(Pair { incarnation: row.try_get("", "incarnation")?, generation })
        };
        row.map(read).transpose().map_err(StoreError::sort(operation))
    }

    /// The node has the container of this placement, in the present incarnation.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn confirm_placement(&mut self, placement: PlacementId) -> Result<()> {
        self.tx
            .execute_raw(sql(
                "UPDATE placements SET confirmed_in = (SELECT incarnation FROM cluster) WHERE id = $1",
                [placement.0.into()],
            ))
            .await
            .map_err(StoreError::sort("confirm a placement"))?;
        Ok(())
    }

    /// Whether a placement was made in the present incarnation, or its container was found since that began.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn is_settled(&mut self, placement: PlacementId) -> Result<bool> {
        let row = self
            .tx
            .query_one_raw(sql(
                "SELECT 1 FROM placements p, cluster c WHERE p.id = $1 AND c.incarnation IN (p.incarnation, p.confirmed_in)",
                [placement.0.into()],
            ))
            .await
            .map_err(StoreError::sort("look whether a placement is settled"))?;
        Ok(row.is_some())
    }

    /// Of these workspaces, those that may run on a node that has not told yet what it runs, since the store was declared restored:
    /// they are not placed. It ends when hosts that the store does not know have stopped everything by themselves, `longest` after
    /// the declaration, and all that it knows have told or were given up. A workspace that was found or placed since is where the
    /// store says.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn may_run_unseen(
        &mut self,
        workspaces: Vec<WorkspaceUid>,
        longest: Duration,
    ) -> Result<HashSet<WorkspaceUid>> {
        unseen(&self.tx, workspaces, longest).await
    }

    /// Declares the store restored: a higher incarnation, and every node is waited for. `cluster` gives an empty database the
    /// name that the nodes know; `wait` is false when all hosts, known to this store or not, are back or dead.
    ///
    /// # Errors
    /// See [`DeclareError`].
    pub async fn declare_restored(
        &mut self,
        cluster: Option<ClusterId>,
        wait: bool,
    ) -> std::result::Result<Declared, DeclareError> {
        let operation = "declare the store restored";
        let sorted = || StoreError::sort(operation);
        let before = state(&self.tx).await?;
        let named = cluster.unwrap_or(before.cluster);
        if named != before.cluster && !self.is_pristine().await? {
            return Err(DeclareError::OfAnotherCarrel(before.cluster));
        }
        // In the order of locks: the cluster's row first, what is noted of a restoration last.
        self.tx.execute_raw(sql("SELECT 1 FROM cluster FOR UPDATE", [])).await.map_err(sorted())?;
        let (_, seen) = self.lock_restoration(operation).await?;
        self.tx
            .execute_raw(sql(
                "UPDATE restoration SET behind_since = NULL, behind_node = NULL, behind_evidence = '',
                        declared_at = clock_timestamp(), awaits = $1,
                        awaited_nodes = ARRAY(SELECT unnest(awaited_nodes) UNION SELECT id FROM nodes)",
                [wait.into()],
            ))
            .await
            .map_err(sorted())?;
        let row = self
            .tx
            .query_one_raw(sql(
                // However high a number was seen, there is a next one.
                "UPDATE cluster SET cluster_id = $1, pruned_position = '',
                        incarnation = least(greatest(incarnation, $2), incarnation + $3) + 1
                 RETURNING incarnation",
                [named.0.into(), seen.into(), REACH.into()],
            ))
            .await
            .map_err(sorted())?
            .ok_or_else(|| StoreError::Corrupt { table: "cluster", problem: "it has no row".into() })?;
        let incarnation = row.try_get("", "incarnation").map_err(sorted())?;
        let awaited = self.awaited().await?;
        // A copy that another server took in carries that server's transaction numbers. Events are read in their order, below the
        // oldest open transaction: those from the future would not be read, and newer ones would come before them.
        self.tx
            .execute_raw(sql(
                "UPDATE events SET xid = 0 WHERE EXISTS
                     (SELECT 1 FROM events WHERE xid >= pg_current_xact_id()::text::bigint)",
                [],
            ))
            .await
            .map_err(sorted())?;
        let rows = self
            .tx
            .query_all_raw(sql(
                "SELECT state, count(*) AS count FROM workspaces WHERE deleted_at IS NULL GROUP BY state ORDER BY state",
                [],
            ))
            .await
            .map_err(sorted())?;
        let workspaces = rows
            .iter()
            .map(|row| Ok((row.try_get("", "state")?, row.try_get("", "count")?)))
            .collect::<std::result::Result<_, sea_orm::DbErr>>()
            .map_err(sorted())?;
        Ok(Declared { before, cluster: named, incarnation, awaited, workspaces })
    }

    async fn awaited(&mut self) -> Result<Vec<(NodeId, Option<String>)>> {
        let sorted = StoreError::sort("read which nodes are waited for");
        let text = format!(
            "SELECT a.awaited AS id, n.facts ->> 'hostname' AS hostname FROM ({AWAITED}) a
             LEFT JOIN nodes n ON n.id = a.awaited ORDER BY 2, 1"
        );
        let rows = self.tx.query_all_raw(sql(&text, [])).await.map_err(&sorted)?;
        rows.iter()
            .map(|row| Ok((NodeId(row.try_get("", "id")?), row.try_get("", "hostname")?)))
            .collect::<std::result::Result<_, sea_orm::DbErr>>()
            .map_err(sorted)
    }
}
