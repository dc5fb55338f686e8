//! All state, in Postgres: the only place that knows `sea_orm`.
//!
//! [`Store`] reads and opens [`Work`]; a `Work` is one transaction with the rows it has locked, in the one order that
//! cannot deadlock: activity row, workspace row, node row; of several activity rows in the order of students' keys, of
//! several others in that of ids. The database copies some of a workspace into its activity row, which whoever changes
//! that holds. A `Work` writes the events of what it changes, raises the version of each node's desired set that it
//! touched, and tells at its commit whom to nudge. Rows never leave this folder.

mod activity;
mod address;
mod batch;
mod beats;
mod deadlines;
mod entity;
mod error;
mod events;
mod failures;
mod fencing;
mod fleet;
mod housekeeping;
mod images;
mod join_tokens;
mod kept;
mod limited;
mod line;
mod log_tails;
mod migration;
mod node_admin;
mod nodes;
mod orphans;
mod placements;
mod pulse;
mod readable;
mod requests;
mod restored;
mod rules;
mod warnings;
mod work;
mod workspaces;

use std::sync::Arc;
use std::time::Duration;

use sea_orm::{ConnectOptions, ConnectionTrait, Database, DbBackend, Statement, Value};
use sea_orm_migration::MigratorTrait;
use time::OffsetDateTime;

use limited::Pool;

pub use activity::{Known, SweepLimits};
pub use address::check_address;
pub use batch::{Change, Claim};
pub use beats::{Beat, Beaten, Input, Job, Written};
pub use error::{Result, StoreError};
pub use events::{EventQuery, Position, StoredEvent};
pub use failures::Blamed;
pub use fleet::{CandidateLimits, CoursePlaces};
pub use line::{InLine, NextIdle};
pub use log_tails::{Served, StoredPiece, WantedLog};
pub use node_admin::NodeLoad;
pub use nodes::NewSession;
pub use orphans::{Kept, Orphan, WITHHELD};
pub use placements::{OrdersState, PlacedOn};
pub use readable::is_news;
pub use requests::Replay;
pub use restored::{DeclareError, Declared};
pub use rules::{Standing, StoredDrain, StoredPolicy, StoredRules};
pub use work::{Locked, Touched, Work};
pub use workspaces::WorkspaceQuery;

/// Arbitrary, but ours: the advisory lock under which one process at a time migrates.
const MIGRATION_LOCK: i64 = 0x6361_7272_656c;

/// Of the connections, those that write reports of activity: as many as are written at once.
const BEAT_CONNECTIONS: u16 = 4;

/// A database that takes longer to say that it takes changes serves nobody.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

/// What the connections of a process that ends are waited for.
const CLOSED_WITHIN: Duration = Duration::from_secs(3);

/// The database.
#[derive(Debug, Clone)]
pub struct Store {
    db: Pool,
    /// For the statement of `beats` that relies on the order in which it comes to rows.
    beats: Arc<kept::Kept>,
}

fn sql(text: &str, values: impl IntoIterator<Item = Value>) -> Statement {
    Statement::from_sql_and_values(DbBackend::Postgres, text, values)
}

/// One column of many rows, as the value of a parameter. It holds no NULL: statements read one from an empty text, or from JSON's.
fn column<T, V>(rows: &[T], of: impl Fn(&T) -> V) -> Value
where
    Vec<V>: Into<Value>,
{
    rows.iter().map(of).collect::<Vec<_>>().into()
}

async fn time_of(connection: &impl ConnectionTrait) -> Result<OffsetDateTime> {
    let row = connection
        .query_one_raw(sql("SELECT clock_timestamp() AS now", []))
        .await
        .map_err(StoreError::sort("ask for the time"))?;
    row.and_then(|row| row.try_get("", "now").ok())
        .ok_or_else(|| StoreError::Corrupt { table: "clock", problem: "no time came back".into() })
}

impl Store {
    /// A pool of at most `connections`. Does not wait for the database: the first use does.
    ///
    /// # Errors
    /// When the URL means nothing.
    pub fn open(url: &str, connections: u32) -> Result<Self> {
        use StoreError as E;
        use std::str::FromStr as _;
        let sorted = E::sort("open the database");
        // A transaction whose process is frozen must not hold locks for ever; a lock that is not had in time is a
        // conflict, not a hang. No query of ours is worth a second core.
        let options = sqlx::postgres::PgConnectOptions::from_str(url)
            .map_err(|e| sorted(sea_orm::DbErr::Custom(format!("--database-url: {e}"))))?
            .application_name("carrel-control-plane")
            .options([
                ("idle_in_transaction_session_timeout", "10s"),
                ("lock_timeout", "5s"),
                ("statement_timeout", "30s"),
                ("max_parallel_workers_per_gather", "0"),
            ]);
        let beats = kept::Kept::new(options.clone().options(beats::SETTINGS), BEAT_CONNECTIONS.into());
        let db = Pool::new(options, connections.saturating_sub(BEAT_CONNECTIONS.into()).max(2));
        Ok(Self { db, beats: Arc::new(beats) })
    }

    /// Brings the schema up to date. Safe when several start at once: one works, the others wait and find it done.
    ///
    /// # Errors
    /// When the database cannot be reached or refuses.
    pub async fn migrate(url: &str) -> Result<()> {
        let sorted = StoreError::sort("migrate");
        let mut options = ConnectOptions::new(url);
        options.max_connections(1).sqlx_logging(false).acquire_timeout(Duration::from_secs(10));
        // The lock belongs to a session, so it gets a connection of its own, which ends with it.
        let lock = Database::connect(options.clone()).await.map_err(&sorted)?;
        lock.execute_raw(sql("SELECT pg_advisory_lock($1)", [MIGRATION_LOCK.into()]))
            .await
            .map_err(&sorted)?;
        let db = Database::connect(options).await.map_err(&sorted)?;
        let done = migration::Migrator::up(&db, None).await.map_err(&sorted);
        db.close().await.ok();
        lock.close().await.ok();
        done
    }

    /// Whether the schema is the one this binary was built for.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn schema_is_current(&self) -> Result<bool> {
        let ours = migration::Migrator::migrations().len();
        let row = self
            .db
            .query_one_raw(sql("SELECT to_regclass('seaql_migrations') IS NOT NULL AS there", []))
            .await
            .map_err(StoreError::sort("look at the schema"))?;
        if !row.and_then(|row| row.try_get::<bool>("", "there").ok()).unwrap_or(false) {
            return Ok(false);
        }
        let row = self
            .db
            .query_one_raw(sql("SELECT count(*) AS steps FROM seaql_migrations", []))
            .await
            .map_err(StoreError::sort("look at the schema"))?;
        let steps = row.and_then(|row| row.try_get::<i64>("", "steps").ok()).unwrap_or(0);
        Ok(usize::try_from(steps).is_ok_and(|steps| steps >= ours))
    }

    /// The database's time, which all decisions are made by: it is the same for every replica.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn now(&self) -> Result<OffsetDateTime> {
        time_of(&self.db).await
    }

    /// Whether the database can be reached and takes changes: told within seconds, also when nothing comes back from it at all.
    ///
    /// # Errors
    /// When it cannot.
    pub async fn answers(&self) -> Result<()> {
        let sorted = StoreError::sort("tell whether it takes changes");
        self.db.within(ANSWERS_WITHIN).takes_changes().await.map_err(sorted)
    }

    /// Ends all connections; one that is silent is not waited for.
    pub async fn close(&self) {
        let closed = async { tokio::join!(self.db.close(), self.beats.close()) };
        tokio::time::timeout(CLOSED_WITHIN, closed).await.ok();
    }
}
