//! What decisions are made by: the policies, what could not be observed, and which nodes are being emptied; all at one
//! version.

use std::collections::BTreeMap;
use std::time::Duration;

use carrel_common::id::NodeId;
use sea_orm::{ConnectionTrait, QueryResult};
use time::OffsetDateTime;

use super::entity::{json, value};
use super::error::{Result, StoreError};
use super::{Store, Work, sql};
use crate::domain::idle::{LONGEST_PAUSE, Pause};
use crate::domain::policy::{Policy, Scope};

/// Arbitrary, but ours: the advisory lock that stops are decided under, and policies changed.
const RULES_LOCK: i64 = 0x6361_7272_656d;

/// Older pauses move no deadline any more: no idle timeout is that long.
const PAUSES_MATTER: Duration = Duration::from_secs(48 * 3600);

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
    /// Rises with each change.
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
    /// Why.
    pub reason: String,
}

/// What a sign of life found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pulse {
    /// Nothing was missed.
    Steady,
    /// Nobody gave a sign of life for this long: it was recorded as a pause.
    Missed(Duration),
    /// The database's clock was set back by this long: what lay in the future was brought to the present.
    SetBack(Duration),
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
    let (version, _) = version(connection).await?;
    let rows = connection.query_all_raw(sql(POLICIES, [])).await.map_err(&sorted)?;
    let policies = rows
        .iter()
        .map(|row| read(row).map(|kept| (kept.scope, kept.policy)))
        .collect::<Result<BTreeMap<_, _>>>()?;
    let rows = connection
        .query_all_raw(sql(
            "SELECT from_at, to_at FROM pauses WHERE to_at > clock_timestamp() - make_interval(secs => $1)
             ORDER BY from_at, to_at",
            [PAUSES_MATTER.as_secs_f64().into()],
        ))
        .await
        .map_err(&sorted)?;
    let pause = |row: &QueryResult| -> std::result::Result<_, sea_orm::DbErr> {
        Ok(Pause { from: row.try_get("", "from_at")?, to: row.try_get("", "to_at")? })
    };
    let pauses = rows.iter().map(pause).collect::<std::result::Result<_, _>>().map_err(&sorted)?;
    let rows = connection
        .query_all_raw(sql(
            "SELECT id, drain_deadline_at, drain_reason FROM nodes
             WHERE drain_deadline_at IS NOT NULL AND removed_at IS NULL",
            [],
        ))
        .await
        .map_err(&sorted)?;
    let drain = |row: &QueryResult| -> std::result::Result<_, sea_orm::DbErr> {
        Ok(StoredDrain {
            node: NodeId(row.try_get("", "id")?),
            deadline_at: row.try_get("", "drain_deadline_at")?,
            reason: row.try_get("", "drain_reason")?,
        })
    };
    let drains = rows.iter().map(drain).collect::<std::result::Result<_, _>>().map_err(&sorted)?;
    Ok(StoredRules { version, policies, pauses, drains })
}

/// Version of the rules, and how long ago the last sign of life was.
async fn version(connection: &impl ConnectionTrait) -> Result<(i64, Duration)> {
    let sorted = StoreError::sort("read the version of the policies");
    let row = connection
        .query_one_raw(sql(
            "SELECT rules_version, extract(epoch FROM clock_timestamp() - alive_at)::float8 AS silence FROM cluster",
            [],
        ))
        .await
        .map_err(&sorted)?
        .ok_or_else(|| StoreError::Corrupt { table: "cluster", problem: "it has no row".into() })?;
    let silence: f64 = row.try_get("", "silence").map_err(&sorted)?;
    let version = row.try_get("", "rules_version").map_err(&sorted)?;
    // A clock that was set back is an outage like another.
    let silence =
        if silence < 0.0 { Duration::MAX } else { Duration::try_from_secs_f64(silence).unwrap_or_default() };
    Ok((version, silence))
}

impl Store {
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
        Ok(version(&self.db).await?.0)
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

    /// Up to `limit` policies in the order of their names, after one.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn list_policies(&self, after: &str, limit: i64) -> Result<Vec<StoredPolicy>> {
        let query =
            format!("{POLICIES} WHERE scope COLLATE \"C\" > $1 ORDER BY scope COLLATE \"C\" LIMIT $2");
        let rows = self
            .db
            .query_all_raw(sql(&query, [after.into(), limit.into()]))
            .await
            .map_err(StoreError::sort("list policies"))?;
        rows.iter().map(read).collect()
    }

    /// A sign of life of this replica. When none was given for longer than `tolerance`, by anybody, that time is
    /// recorded as a pause; when the clock was set back, times that lie in the future are brought to the present.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn take_pulse(&self, tolerance: Duration) -> Result<Pulse> {
        let operation = "take the pulse";
        let mut work = self.begin().await?;
        let row = work
            .tx
            .query_one_raw(sql("SELECT alive_at, clock_timestamp() AS now FROM cluster FOR UPDATE", []))
            .await
            .map_err(StoreError::sort(operation))?
            .ok_or_else(|| StoreError::Corrupt { table: "cluster", problem: "it has no row".into() })?;
        let get = StoreError::sort(operation);
        let alive_at: OffsetDateTime = row.try_get("", "alive_at").map_err(&get)?;
        let now: OffsetDateTime = row.try_get("", "now").map_err(&get)?;
        let silence = now - alive_at;
        let pulse = if silence > tolerance {
            work.tx
                .execute_raw(sql(
                    "INSERT INTO pauses (from_at, to_at) VALUES ($1, $2)",
                    [alive_at.into(), now.into()],
                ))
                .await
                .map_err(StoreError::sort(operation))?;
            let stood_still = silence.min(LONGEST_PAUSE.try_into().unwrap_or(silence));
            work.move_spans(MOVE_JOBS, stood_still, tolerance).await?;
            work.move_spans(MOVE_EXTENSIONS, stood_still, tolerance).await?;
            work.move_spans(MOVE_STAYS, silence, tolerance).await?;
            Pulse::Missed(Duration::try_from(silence).unwrap_or_default())
        } else if -silence > tolerance {
            for (move_spans, bring_to_present) in
                [(MOVE_JOBS, &BRING_TO_PRESENT[..1]), (MOVE_EXTENSIONS, &BRING_TO_PRESENT[1..])]
            {
                work.move_spans(move_spans, silence, tolerance).await?;
                for statement in bring_to_present {
                    work.tx
                        .execute_raw(sql(statement, [now.into()]))
                        .await
                        .map_err(StoreError::sort(operation))?;
                }
            }
            Pulse::SetBack(Duration::try_from(-silence).unwrap_or_default())
        } else {
            Pulse::Steady
        };
        if pulse != Pulse::Steady {
            // Whatever was seen meanwhile is told first, then something may be decided.
            work.tx
                .execute_raw(sql("UPDATE nodes SET told = false WHERE told", []))
                .await
                .map_err(StoreError::sort(operation))?;
        }
        let changed = i64::from(pulse != Pulse::Steady);
        work.tx
            .execute_raw(sql(
                "UPDATE cluster SET alive_at = $1, rules_version = rules_version + $2",
                [now.into(), changed.into()],
            ))
            .await
            .map_err(StoreError::sort(operation))?;
        work.commit().await?;
        Ok(pulse)
    }
}

/// In the order of locks. A pause that ends in the future would hold back every stop until then. What was never seen stays
/// so: `least` of nothing and something is something.
const BRING_TO_PRESENT: [&str; 5] = [
    "UPDATE workspace_activity SET
            lms_input_at = CASE WHEN lms_input_at > $1 THEN $1 ELSE lms_input_at END,
            editor_input_at = CASE WHEN editor_input_at > $1 THEN $1 ELSE editor_input_at END,
            keep_working_at = CASE WHEN keep_working_at > $1 THEN $1 ELSE keep_working_at END,
            job_at = CASE WHEN job_at > $1 THEN $1 ELSE job_at END,
            acked_warning_at = CASE WHEN acked_warning_at > $1 THEN $1 ELSE acked_warning_at END,
            warning_acked_at = CASE WHEN warning_acked_at > $1 THEN $1 ELSE warning_acked_at END
     WHERE greatest(lms_input_at, editor_input_at, keep_working_at, job_at, acked_warning_at) > $1",
    "UPDATE workspaces SET
            state_since = least(state_since, $1),
            ready_at = CASE WHEN ready_at > $1 THEN $1 ELSE ready_at END,
            started_at = CASE WHEN started_at > $1 THEN $1 ELSE started_at END,
            resumed_at = CASE WHEN resumed_at > $1 THEN $1 ELSE resumed_at END,
            version = version + 1
     WHERE deleted_at IS NULL AND (state_since > $1 OR ready_at > $1 OR resumed_at > $1)",
    "UPDATE nodes SET last_heartbeat_at = least(last_heartbeat_at, $1) WHERE last_heartbeat_at > $1",
    "DELETE FROM pauses WHERE from_at > $1",
    "UPDATE pauses SET to_at = $1 WHERE to_at > $1",
];

/// Jobs last for a span from when they were declared, so they move with the clock, by $1 seconds; one that is younger than $2
/// seconds was declared by the clock as it is now.
const MOVE_JOBS: &str = "
    UPDATE workspace_activity SET awake_until = awake_until + make_interval(secs => $1), version = version + 1
     WHERE awake_until > clock_timestamp() - make_interval(secs => greatest($1, 0))
       AND coalesce(job_at NOT BETWEEN clock_timestamp() - make_interval(secs => $2) AND clock_timestamp(), true)";

/// The same of extensions.
const MOVE_EXTENSIONS: &str = "
    UPDATE workspaces SET extended_until = extended_until + make_interval(secs => $1), version = version + 1
     WHERE deleted_at IS NULL AND extended_until > clock_timestamp() - make_interval(secs => greatest($1, 0))
       AND updated_at NOT BETWEEN clock_timestamp() - make_interval(secs => $2) AND clock_timestamp()";

/// A start, a stop or a wait is not too long because nobody could tell of its end, or because the clock was set: moved by $1
/// seconds, unless it began within the last $2, by the clock as it is now.
const MOVE_STAYS: &str = "
    UPDATE workspaces SET state_since = least(state_since + make_interval(secs => $1), clock_timestamp()), version = version + 1
     WHERE deleted_at IS NULL AND state IN ('PENDING', 'STARTING', 'STOPPING')
       AND state_since < clock_timestamp() - make_interval(secs => $2)";

impl Work {
    async fn move_spans(&mut self, statement: &str, by: time::Duration, tolerance: Duration) -> Result<()> {
        self.tx
            .execute_raw(sql(statement, [by.as_seconds_f64().into(), tolerance.as_secs_f64().into()]))
            .await
            .map_err(StoreError::sort("take the pulse"))?;
        Ok(())
    }

    /// Version of everything that decisions are made by, and how long ago the last sign of life of any replica was.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn rules_version(&mut self) -> Result<(i64, Duration)> {
        version(&self.tx).await
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
        Ok(self.rules_version().await?.0 == version)
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
            .execute_raw(sql("UPDATE cluster SET rules_version = rules_version + 1", []))
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
