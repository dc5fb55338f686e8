//! A database of a test's own.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

/// A database; `drop_now` removes it.
#[derive(Clone, Debug)]
pub struct Database {
    server: String,
    name: String,
}

impl Database {
    /// Makes an empty database in the server that `server` points into.
    pub async fn create(server: &str) -> Self {
        let name = format!("carrel_e2e_{}", uuid::Uuid::new_v4().simple());
        let mut connection = connect(server).await;
        connection
            .execute(AssertSqlSafe(format!("CREATE DATABASE {name}")))
            .await
            .expect("a database can be made");
        Self { server: server.to_owned(), name }
    }

    /// One that was made before.
    pub(crate) fn of(server: &str, name: &str) -> Self {
        Self { server: server.to_owned(), name: name.to_owned() }
    }

    /// The server's URL and the database's name.
    pub(crate) fn parts(&self) -> [&str; 2] {
        [&self.server, &self.name]
    }

    /// Where it is.
    pub fn url(&self) -> String {
        self.url_in(&self.server)
    }

    /// The same, when the server is reached in another way.
    pub fn url_in(&self, server: &str) -> String {
        let (address, options) = server.split_once('?').unwrap_or((server, ""));
        let (base, _) = address.rsplit_once('/').expect("a URL with a database");
        if options.is_empty() {
            format!("{base}/{}", self.name)
        } else {
            format!("{base}/{}?{options}", self.name)
        }
    }

    /// Another one that holds the same as this one, which nobody may be connected to: who is, is thrown out.
    pub(crate) async fn copy(&self) -> Self {
        let name = format!("carrel_e2e_{}", uuid::Uuid::new_v4().simple());
        let mut connection = connect(&self.server).await;
        let own = &self.name;
        for statement in [
            format!("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{own}'"),
            format!("CREATE DATABASE {name} TEMPLATE {own}"),
        ] {
            connection.execute(AssertSqlSafe(statement)).await.expect("a database can be copied");
        }
        Self { server: self.server.clone(), name }
    }

    /// Its only value: the first column of the first row, as text.
    pub async fn text(&self, query: &str) -> String {
        let mut connection = connect(&self.url()).await;
        sqlx::query_scalar(AssertSqlSafe(query.to_owned()))
            .fetch_one(&mut connection)
            .await
            .unwrap_or_else(|error| panic!("{query}: {error}"))
    }

    /// What an agent has shown that means that the store went back in time; empty when nothing has, as always when it did not.
    pub async fn behind(&self) -> String {
        self.text("SELECT behind_evidence FROM restoration").await
    }

    /// Changes something in it behind everybody's back.
    pub async fn execute(&self, statement: &str) {
        let mut connection = connect(&self.url()).await;
        let done = connection.execute(AssertSqlSafe(statement.to_owned())).await;
        done.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }

    /// The same in a transaction that stays open until what is given is dropped.
    pub async fn hold(&self, statement: &str) -> PgConnection {
        let mut connection = connect(&self.url()).await;
        let done = connection.execute(AssertSqlSafe(format!("BEGIN; {statement}"))).await;
        done.unwrap_or_else(|error| panic!("{statement}: {error}"));
        connection
    }

    /// Waits until at least so many wait in it for a lock.
    pub async fn until_waiting(&self, how_many: usize) {
        let waiting = "SELECT count(*)::text FROM pg_locks WHERE NOT granted
                       AND pid IN (SELECT pid FROM pg_stat_activity WHERE datname = current_database())";
        while self.text(waiting).await.parse::<usize>().expect("a number") < how_many {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Removes it, with whoever is connected to it.
    pub async fn drop_now(&self) {
        let Ok(mut connection) = PgConnection::connect(&self.server).await else {
            return; // the server was the test's own and is gone
        };
        let query = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        if let Err(error) = connection.execute(AssertSqlSafe(query)).await {
            eprintln!("the database {} stays behind: {error}", self.name);
        }
    }
}

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap_or_else(|error| panic!("no Postgres at {url}: {error}"))
}
