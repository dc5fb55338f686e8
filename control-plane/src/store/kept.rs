//! Connections for one statement that is made all the time.
//!
//! Each is used again as it is: a pool asks a connection before and after every use whether it is still there, which for a
//! statement that takes less than a millisecond is a good part of what it costs. So it is the statement that finds that a
//! connection has ended, or leads to a Postgres that takes no changes any more; then it is made again on a new one.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sea_orm::DbErr;
use sqlx::Connection as _;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection, PgRow};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::limited::{ACQUIRE, PATIENCE, PING, is_spent, runtime, silent};

/// One that was not used for this long is asked whether it is still there.
const FRESH: Duration = Duration::from_secs(1);

/// The connections.
#[derive(Debug)]
pub(super) struct Kept {
    options: PgConnectOptions,
    /// One for each that may be used at once.
    places: Semaphore,
    /// Those that nobody uses, with when they were used last.
    free: Mutex<Vec<(PgConnection, Instant)>>,
}

impl Kept {
    /// At most so many. Does not wait for the database: the first use does.
    pub(super) fn new(options: PgConnectOptions, connections: usize) -> Self {
        Self { options, places: Semaphore::new(connections), free: Mutex::default() }
    }

    /// Runs a statement, a transaction of its own, and gives its rows. It has to be one that does no harm when it is made twice:
    /// of one whose connection ended nobody can tell whether it was committed. So a Postgres that was restarted costs no
    /// caller an error.
    pub(super) async fn rows(
        &self,
        statement: &'static str,
        arguments: PgArguments,
    ) -> Result<Vec<PgRow>, DbErr> {
        let held = async {
            let place = self.places.acquire().await.map_err(|_| silent("the connections are closed"))?;
            Ok((place, self.kept().await))
        };
        let (_place, kept) = in_time(held).await?;
        if let Some(connection) = kept {
            match self.run(connection, statement, arguments.clone()).await? {
                // So are the others.
                Err(error) if is_spent(&error) => self.free().clear(),
                done => return rows(done),
            }
        }
        let connection = in_time(self.connect()).await?;
        rows(self.run(connection, statement, arguments).await?)
    }

    /// A connection on which something fails, or whose caller goes away, is closed: it may be in the midst of an answer.
    async fn run(
        &self,
        mut connection: PgConnection,
        statement: &'static str,
        arguments: PgArguments,
    ) -> Result<sqlx::Result<Vec<PgRow>>, DbErr> {
        let done = sqlx::query_with(statement, arguments).fetch_all(&mut connection);
        let done = timeout(PATIENCE, done).await.map_err(|_| silent("no answer in time"))?;
        if done.is_ok() {
            self.free().push((connection, Instant::now()));
        }
        Ok(done)
    }

    /// One that was used before, if there is one that leads somewhere.
    async fn kept(&self) -> Option<PgConnection> {
        let (mut connection, used) = self.free().pop()?;
        if used.elapsed() < FRESH || matches!(timeout(PING, connection.ping()).await, Ok(Ok(()))) {
            return Some(connection);
        }
        // The others were used before it.
        self.free().clear();
        None
    }

    async fn connect(&self) -> Result<PgConnection, DbErr> {
        PgConnection::connect_with(&self.options).await.map_err(|error| DbErr::Conn(runtime(error)))
    }

    fn free(&self) -> std::sync::MutexGuard<'_, Vec<(PgConnection, Instant)>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends them.
    pub(super) async fn close(&self) {
        self.places.close();
        let free = std::mem::take(&mut *self.free());
        for (connection, _) in free {
            connection.close().await.ok();
        }
    }
}

async fn in_time<T>(connection: impl Future<Output = Result<T, DbErr>>) -> Result<T, DbErr> {
    timeout(ACQUIRE, connection).await.map_err(|_| silent("no connection in time"))?
}

fn rows(done: sqlx::Result<Vec<PgRow>>) -> Result<Vec<PgRow>, DbErr> {
    done.map_err(|error| DbErr::Query(runtime(error)))
}
