//! What decisions are made by: the policies, what could not be observed, and which nodes are being emptied; all at one
//! version.

use std::collections::BTreeMap;
use std::time::Duration;

use carrel_common::id::NodeId;
use sea_orm::{ConnectionTrait, QueryResult};
use time::OffsetDateTime;

use super::entity::{json, value};
use super::error::{Result, StoreError};
use super::pulse::with_clock;
use super::readable::{page, readable_by_name};
use super::{Store, Work, sql};
use crate::domain::idle::Pause;
use crate::domain::policy::{Policy, Scope};
use crate::domain::pulse::Reading;

/// Arbitrary, but ours: the advisory lock that stops are decided under, and policies changed.
const RULES_LOCK: i64 = 0x6361_7272_656d;

/// Rises with each change, and never to a number that it had before: a standby that takes over may lack the last changes, and what it
/// gives to the next must not be taken for them. By a clock, so that it is above whatever was lost.
pub(super) const NEXT_VERSION: &str =
    "greatest(rules_version + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)";

/// A policy as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPolicy {
    /// Whose.
    pub scope: Scope,
    /// What it sets.
    pub policy: Policy,
    /// Behind the etag: rises with each change.
    pub version: i64,
    /// When it was last changed.
    pub updated_at: OffsetDateTime,
}

/// Everything that decisions are made by.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoredRules {
    /// Rises with each change, and names no other rules, whatever a database lost that took over.
    pub version: i64,
    /// The policies.
    pub policies: BTreeMap<Scope, Policy>,
    /// What could not be observed lately, sorted.
    pub pauses: Vec<Pause>,
    /// Nodes that are being emptied.
    pub drains: Vec<StoredDrain>,
}

/// A node that is being emptied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDrain {
    /// The node.
    pub node: NodeId,
    /// Everything is gone from it by then.
    pub deadline_at: OffsetDateTime,
    /// Also in an exam.
    pub forced: bool,
    /// Why.
    pub reason: String,
}

/// The version of the rules, and what says whether anything may be decided by them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Rises with each change.
    pub version: i64,
    /// How long ago the last sign of life of any replica was; [`Duration::MAX`] when the clock was set back since.
    pub silence: Duration,
    /// The store has gone back in time: it does not know what is.
    pub behind: bool,
    /// The database's clock at that moment.
    pub clock: Reading,
}

const POLICIES: &str = "SELECT scope, version, policy, updated_at FROM policies";

fn read(row: &QueryResult) -> Result<StoredPolicy> {
    let get = StoreError::sort("read policies");
    let scope: String = row.try_get("", "scope").map_err(&get)?;
    Ok(StoredPolicy {
        scope: scope.parse().map_err(|e: carrel_common::id::InvalidId| StoreError::Corrupt {
            table: "policies",
            problem: e.to_string(),
        })?,
        policy: value("policies", row.try_get("", "policy").map_err(&get)?)?,
        version: row.try_get("", "version").map_err(&get)?,
        updated_at: row.try_get("", "updated_at").map_err(&get)?,
    })
}

async fn load(connection: &impl ConnectionTrait) -> Result<StoredRules> {
    let sorted = StoreError::sort("read the policies");
    // The version first: what is read after it is at least as new, and read again when the version has moved on.
    let Standing { version, .. } = standing(connection).await?;
    let rows = connection.query_all_raw(sql(POLICIES, [])).await.map_err(&sorted)?;
    let policies = rows
        .iter()
        .map(|row| read(row).map(|kept| (kept.scope, kept.policy)))
        .collect::<Result<BTreeMap<_, _>>>()?;
    let rows = connection
        .query_all_raw(sql(
            "SELECT from_at, to_at, set_forward_seconds FROM pauses ORDER BY from_at, to_at",
            [],
        ))
        .await
        .map_err(&sorted)?;
    let pause = |row: &QueryResult| -> std::result::Result<_, sea_orm::DbErr> {
        let set_forward: f64 = row.try_get("", "set_forward_seconds")?;
        Ok(Pause {
            from: row.try_get("", "from_at")?,
            to: row.try_get("", "to_at")?,
            set_forward: Duration::try_from_secs_f64(set_forward).unwrap_or_default(),
        })
    };
    let pauses = rows.iter().map(pause).collect::<std::result::Result<_, _>>().map_err(&sorted)?;
    let rows = connection
        .query_all_raw(sql(
            "SELECT id, drain_deadline_at, drain_forced, drain_reason FROM nodes
             WHERE drain_deadline_at IS NOT NULL AND removed_at IS NULL",
            [],
        ))
        .await
        .map_err(&sorted)?;
    let drain = |row: &QueryResult| -> std::result::Result<_, sea_orm::DbErr> {
        Ok(StoredDrain {
            node: NodeId(row.try_get("", "id")?),
            deadline_at: row.try_get("", "drain_deadline_at")?,
            forced: row.try_get("", "drain_forced")?,
            reason: row.try_get("", "drain_reason")?,
        })
    };
    let drains = rows.iter().map(drain).collect::<std::result::Result<_, _>>().map_err(&sorted)?;
    Ok(StoredRules { version, policies, pauses, drains })
}

/// How the rules stand.
async fn standing(connection: &impl ConnectionTrait) -> Result<Standing> {
    let operation = "read the version of the policies";
    let sorted = StoreError::sort(operation);
    let statement = sql(
        "SELECT rules_version, alive_at, clock_timestamp() AS now, behind_since IS NOT NULL AS behind
         FROM cluster, restoration",
        [],
    );
    let (row, clock) = with_clock(connection, statement, operation).await?;
    let version = row.try_get("", "rules_version").map_err(&sorted)?;
    let alive_at: OffsetDateTime = row.try_get("", "alive_at").map_err(&sorted)?;
    // A clock that was set back is an outage like another.
    let silence = Duration::try_from(clock.shown - alive_at).unwrap_or(Duration::MAX);
    let behind = row.try_get("", "behind").map_err(&sorted)?;
    Ok(Standing { version, silence, behind, clock })
}

impl Store {
    /// How the rules stand.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn standing(&self) -> Result<Standing> {
        standing(&self.db).await
    }

    /// Everything that decisions are made by.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn rules(&self) -> Result<StoredRules> {
        load(&self.db).await
    }

    /// Version of everything that decisions are made by.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn rules_version(&self) -> Result<i64> {
        Ok(standing(&self.db).await?.version)
    }

    /// One policy.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn find_policy(&self, scope: &Scope) -> Result<Option<StoredPolicy>> {
        let row = self
            .db
            .query_one_raw(sql(&format!("{POLICIES} WHERE scope = $1"), [scope.to_string().into()]))
            .await
            .map_err(StoreError::sort("find a policy"))?;
        row.map(|row| read(&row)).transpose()
    }

    /// A page of policies in the order of their names, after one, as far as they can be read, and the name that the next page comes
    /// after.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn list_policies(
        &self,
        after: &str,
        page_size: usize,
    ) -> Result<(Vec<StoredPolicy>, Option<String>)> {
        let limit = i64::try_from(page_size).unwrap_or(i64::MAX).saturating_add(1);
        let query =
            format!("{POLICIES} WHERE scope COLLATE \"C\" > $1 ORDER BY scope COLLATE \"C\" LIMIT $2");
        let rows = self
            .db
            .query_all_raw(sql(&query, [after.into(), limit.into()]))
            .await
            .map_err(StoreError::sort("list policies"))?;
        let scope = |row: &QueryResult| row.try_get::<String>("", "scope").ok();
        let (rows, next) = page(rows, page_size, scope);
        Ok((readable_by_name(rows.iter().map(|row| (scope(row), read(row)))), next))
    }
}

impl Work {
    /// How the rules stand as this transaction finds them.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn standing(&mut self) -> Result<Standing> {
        standing(&self.tx).await
    }

    /// Everything that decisions are made by.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn rules(&mut self) -> Result<StoredRules> {
        load(&self.tx).await
    }

    /// Whether the rules are still at this version, and stay there until this transaction ends: a change of a policy that was
    /// answered is never followed by a stop that was decided by the policy before.
    ///
    /// # Errors
    /// When the database cannot be reached, or the lock is not had in time.
    pub async fn hold_rules(&mut self, version: i64) -> Result<bool> {
        // An advisory lock, since that of the row would make each decision write it. A statement of its own: the version must
        // be read after the lock was had.
        self.tx
            .execute_raw(sql("SELECT pg_advisory_xact_lock_shared($1)", [RULES_LOCK.into()]))
            .await
            .map_err(StoreError::sort("hold the policies"))?;
        Ok(self.standing().await?.version == version)
    }

    /// Locks the rules against other changes and against decisions by them, and raises their version.
    ///
    /// # Errors
    /// When the database cannot be reached, or the lock is not had in time.
    pub async fn change_rules(&mut self) -> Result<()> {
        self.tx
            .execute_raw(sql("SELECT pg_advisory_xact_lock($1)", [RULES_LOCK.into()]))
            .await
            .map_err(StoreError::sort("lock the policies"))?;
        self.tx
            .execute_raw(sql(&format!("UPDATE cluster SET rules_version = {NEXT_VERSION}"), []))
            .await
            .map_err(StoreError::sort("lock the policies"))?;
        Ok(())
    }

    /// One policy; after [`Work::change_rules`] nobody else changes it.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn find_policy(&mut self, scope: &Scope) -> Result<Option<StoredPolicy>> {
        let row = self
            .tx
            .query_one_raw(sql(&format!("{POLICIES} WHERE scope = $1"), [scope.to_string().into()]))
            .await
            .map_err(StoreError::sort("find a policy"))?;
        row.map(|row| read(&row)).transpose()
    }

    /// Sets a policy, whole.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn set_policy(&mut self, scope: &Scope, policy: &Policy) -> Result<()> {
        self.tx
            .execute_raw(sql(
                "INSERT INTO policies (scope, policy) VALUES ($1, $2) ON CONFLICT (scope) DO UPDATE
                 SET policy = $2, version = policies.version + 1, updated_at = clock_timestamp()",
                [scope.to_string().into(), json("policies", policy)?.into()],
            ))
            .await
            .map_err(StoreError::sort("set a policy"))?;
        Ok(())
    }

    /// Removes a policy.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn delete_policy(&mut self, scope: &Scope) -> Result<()> {
        self.tx
            .execute_raw(sql("DELETE FROM policies WHERE scope = $1", [scope.to_string().into()]))
            .await
            .map_err(StoreError::sort("delete a policy"))?;
        Ok(())
    }
}
