//! Connections for one statement that is made all the time.
//!
//! Each is used again as it is: a pool asks a connection before and after every use whether it is still there, which for a
//! statement that takes less than a millisecond is a good part of what it costs.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sea_orm::{DbErr, QueryResult};
use sqlx::Connection as _;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::limited::{ACQUIRE, PATIENCE, PING, runtime, silent};

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

    /// Runs a statement, a transaction of its own, and gives its rows.
    pub(super) async fn rows(
        &self,
        statement: &'static str,
        arguments: PgArguments,
    ) -> Result<Vec<QueryResult>, DbErr> {
        let held = async {
            let place = self.places.acquire().await.map_err(|_| silent("the connections are closed"))?;
            Ok::<_, DbErr>((place, self.connection().await?))
        };
        let (_place, mut connection) =
            timeout(ACQUIRE, held).await.map_err(|_| silent("no connection in time"))??;
        let rows = sqlx::query_with(statement, arguments).fetch_all(&mut connection);
        // Where something failed, or the caller went away, the connection is closed: it may be in the midst of an answer.
        let rows = timeout(PATIENCE, rows).await.map_err(|_| silent("no answer in time"))?;
        let rows = rows.map_err(|error| DbErr::Query(runtime(error)))?;
        self.free().push((connection, Instant::now()));
        Ok(rows.into_iter().map(QueryResult::from).collect())
    }

    async fn connection(&self) -> Result<PgConnection, DbErr> {
        let newest = self.free().pop();
        if let Some((mut connection, used)) = newest {
            if used.elapsed() < FRESH || matches!(timeout(PING, connection.ping()).await, Ok(Ok(()))) {
                return Ok(connection);
            }
            // It leads nowhere any more, and the others were used before it.
            self.free().clear();
        }
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
