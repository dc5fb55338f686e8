//! Connections to Postgres that nobody waits on for ever.
//!
//! A host that is lost without a word closes nothing: what is asked of it stays without an answer, for ever or until TCP gives
//! up. So each statement, and each step of a transaction, has a limit on this side, and so has the way back into the pool, on
//! which a connection is asked once more. One that ran into it is closed: whatever it may still say would be taken for the
//! answer to what is asked next.
//!
//! Nor is a connection kept that leads to a Postgres which takes no changes. One that stepped down for another goes on answering
//! whoever reached it, and where its address leads only a new connection finds out.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use sea_orm::prelude::async_trait::async_trait;
use sea_orm::sea_query::Values;
use sea_orm::{ConnectionTrait, DbBackend, DbErr, ExecResult, QueryResult, RuntimeErr, Statement};
use sea_query_sqlx::SqlxValues;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Postgres};
use tokio::sync::Mutex;
use tokio::time::error::Elapsed;
use tokio::time::timeout;

/// Above what Postgres itself allows a statement: as long as it can say anything, it is Postgres that says no.
pub(super) const PATIENCE: Duration = Duration::from_secs(35);
/// For a connection, whoever has it now, or a new one.
pub(super) const ACQUIRE: Duration = Duration::from_secs(3);
/// Of that, for a connection that was idle to show that it still leads to a Postgres which takes changes; then another is made.
pub(super) const PING: Duration = Duration::from_secs(1);
/// One that came back so short a time ago has just shown it: under load each statement would else cost one more.
const FRESH: Duration = Duration::from_millis(500);

/// Connections that are used again and again. Each statement takes one for itself.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    pool: PgPool,
    patience: Duration,
}

/// A transaction. Dropped without a commit it changes nothing.
#[derive(Debug)]
pub(super) struct Transaction(Mutex<Held>);

impl Pool {
    /// Of at most so many. Does not wait for the database: the first use does.
    pub(super) fn new(options: PgConnectOptions, connections: u32) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(ACQUIRE)
            // Its own test before use has no limit but that of all the waiting, so one silent connection would use that up.
            .test_before_acquire(false)
            .before_acquire(|connection, since| {
                Box::pin(async move {
                    let tested = since.idle_for < FRESH
                        || matches!(timeout(PING, takes_changes(connection)).await, Ok(Ok(())));
                    Ok(tested)
                })
            })
            .after_connect(|connection, _| Box::pin(takes_changes(connection)))
            .connect_lazy_with(options);
        Self { pool, patience: PATIENCE }
    }

    /// The same connections, for one who has no time to wait.
    pub(super) fn within(&self, patience: Duration) -> Self {
        Self { pool: self.pool.clone(), patience }
    }

    /// Fails when Postgres takes no changes, or is silent.
    pub(super) async fn takes_changes(&self) -> Result<(), DbErr> {
        let mut held = self.held().await?;
        let done = timeout(held.patience, takes_changes(held.connection()?)).await;
        held.settle(done)
    }

    /// Begins a transaction.
    pub(super) async fn begin(&self) -> Result<Transaction, DbErr> {
        self.begin_as("BEGIN").await
    }

    /// Begins a transaction that reads everything as it is at one moment.
    pub(super) async fn begin_snapshot(&self) -> Result<Transaction, DbErr> {
        self.begin_as("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await
    }

    async fn begin_as(&self, begin: &'static str) -> Result<Transaction, DbErr> {
        let mut held = self.held().await?;
        held.in_transaction = true;
        held.run(begin).await?;
        Ok(Transaction(Mutex::new(held)))
    }

    /// Ends all connections, those that are in use when they come back.
    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    async fn held(&self) -> Result<Held, DbErr> {
        let connection = self.pool.acquire().await.map_err(|error| DbErr::Conn(runtime(error)))?;
        Ok(Held { connection: Some(connection), patience: self.patience, in_transaction: false })
    }
}

impl Transaction {
    /// Commits. After an error it is not known whether the change happened.
    pub(super) async fn commit(self) -> Result<(), DbErr> {
        let mut held = self.0.into_inner();
        held.run("COMMIT").await?;
        held.in_transaction = false;
        Ok(())
    }
}

/// A connection in use. Goes back when dropped, unless it was silent or is spent.
#[derive(Debug)]
struct Held {
    connection: Option<PoolConnection<Postgres>>,
    patience: Duration,
    /// Whether there is something to take back.
    in_transaction: bool,
}

impl Held {
    async fn execute(&mut self, statement: Statement) -> Result<ExecResult, DbErr> {
        let done = timeout(self.patience, query(statement).execute(self.connection()?)).await;
        self.settle(done).map(ExecResult::from)
    }

    async fn fetch_optional(&mut self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        let done = timeout(self.patience, query(statement).fetch_optional(self.connection()?)).await;
        Ok(self.settle(done)?.map(QueryResult::from))
    }

    async fn fetch_all(&mut self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let done = timeout(self.patience, query(statement).fetch_all(self.connection()?)).await;
        Ok(self.settle(done)?.into_iter().map(QueryResult::from).collect())
    }

    /// A statement without values and without an answer, not prepared.
    async fn run(&mut self, text: &str) -> Result<ExecResult, DbErr> {
        let statement = sqlx::raw_sql(AssertSqlSafe(text));
        let done = timeout(self.patience, statement.execute(self.connection()?)).await;
        self.settle(done).map(ExecResult::from)
    }

    fn connection(&mut self) -> Result<&mut PgConnection, DbErr> {
        self.connection.as_deref_mut().ok_or_else(|| silent("the connection was closed: it led nowhere"))
    }

    /// What became of a step: a connection on which it is still under way, or that is spent, is closed.
    fn settle<T>(&mut self, done: Result<sqlx::Result<T>, Elapsed>) -> Result<T, DbErr> {
        match done {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => {
                if is_spent(&error) {
                    self.close();
                }
                Err(DbErr::Query(runtime(error)))
            }
            Err(_) => {
                self.close();
                Err(silent(&format!("no answer within {:?}", self.patience)))
            }
        }
    }

    fn close(&mut self) {
        drop(self.connection.take().map(PoolConnection::detach));
    }
}

impl Drop for Held {
    #[expect(clippy::disallowed_methods, reason = "as the pool itself does: no shutdown has to wait for it")]
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        if !self.in_transaction {
            // Past its limit it is dropped, which closes the connection.
            tokio::spawn(timeout(PATIENCE, connection.return_to_pool()));
            return;
        }
        tokio::spawn(async move {
            let rollback = sqlx::raw_sql("ROLLBACK").execute(&mut *connection);
            match timeout(PATIENCE, rollback).await {
                Ok(Ok(_)) => _ = timeout(PATIENCE, connection.return_to_pool()).await,
                Ok(Err(_)) | Err(_) => drop(connection.detach()),
            }
        });
    }
}

fn query(statement: Statement) -> Query<'static, Postgres, SqlxValues> {
    let values = statement.values.unwrap_or_else(|| Values(vec![]));
    sqlx::query_with(AssertSqlSafe(statement.sql), SqlxValues(values))
}

/// Fails on a Postgres that takes no changes: it follows another one, or was told so.
async fn takes_changes(connection: &mut PgConnection) -> sqlx::Result<()> {
    let question = "SELECT current_setting('transaction_read_only')::boolean";
    let read_only: bool = sqlx::query_scalar(question).fetch_one(connection).await?;
    if read_only {
        return Err(sqlx::Error::Io(io::Error::other("this Postgres takes no changes")));
    }
    Ok(())
}

/// Whether another connection may do what this one did not: it has ended, and Postgres may have said why (57P01: it was told to
/// stop, 57P02: one of its processes died), or it leads to a Postgres that takes no changes (25006).
pub(super) fn is_spent(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(error) => matches!(error.code().as_deref(), Some("57P01" | "57P02" | "25006")),
        _ => false,
    }
}

pub(super) fn runtime(error: sqlx::Error) -> RuntimeErr {
    RuntimeErr::SqlxError(Arc::new(error))
}

pub(super) fn silent(problem: &str) -> DbErr {
    DbErr::Conn(RuntimeErr::Internal(problem.to_owned()))
}

#[async_trait]
impl ConnectionTrait for Pool {
    fn get_database_backend(&self) -> DbBackend {
        DbBackend::Postgres
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        self.held().await?.execute(statement).await
    }

    async fn execute_unprepared(&self, text: &str) -> Result<ExecResult, DbErr> {
        self.held().await?.run(text).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        self.held().await?.fetch_optional(statement).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        self.held().await?.fetch_all(statement).await
    }
}

#[async_trait]
impl ConnectionTrait for Transaction {
    fn get_database_backend(&self) -> DbBackend {
        DbBackend::Postgres
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        self.0.lock().await.execute(statement).await
    }

    async fn execute_unprepared(&self, text: &str) -> Result<ExecResult, DbErr> {
        self.0.lock().await.run(text).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        self.0.lock().await.fetch_optional(statement).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        self.0.lock().await.fetch_all(statement).await
    }
}
