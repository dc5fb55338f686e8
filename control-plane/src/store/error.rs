//! What can go wrong with the store.

use sea_orm::{DbErr, RuntimeErr, SqlErr};

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Postgres cannot be reached, takes no changes, or was lost on the way: what was asked may or may not have happened.
    #[error("the database cannot be reached while it should {operation}")]
    Unavailable {
        /// What was being done.
        operation: &'static str,
        /// What the driver says.
        #[source]
        source: DbErr,
    },
    /// Somebody else changed the same thing first; nothing was changed.
    #[error("another change came first while it should {operation}")]
    Conflict {
        /// What was being done.
        operation: &'static str,
    },
    /// The database refused: a bug of ours, or a schema that is not ours.
    #[error("the database refused to {operation}")]
    Refused {
        /// What was being done.
        operation: &'static str,
        /// What the driver says.
        #[source]
        source: DbErr,
    },
    /// A row that means nothing.
    #[error("a row of {table} cannot be read: {problem}")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// Why.
        problem: String,
    },
}

/// SQLSTATE classes and codes that say "not now" rather than "never".
/// 57014: the statement took longer than we allow any, as on a machine that has too much to do; nothing is wrong with it.
/// 25006: this Postgres takes no changes, as one that stepped down for another; 55000: nor does it know its place in a log that it
/// only follows. 53100: its disk is full.
const UNAVAILABLE_STATES: [&str; 9] =
    ["57P01", "57P02", "57P03", "53300", "25P03", "57014", "25006", "55000", "53100"];
/// Serialization failure, deadlock, lock timeout, unique violation, and that of a key by its hash: somebody else was first.
const CONFLICT_STATES: [&str; 5] = ["40001", "40P01", "55P03", "23505", "23P01"];

impl StoreError {
    /// Sorts a driver's error.
    pub(super) fn sort(operation: &'static str) -> impl Fn(DbErr) -> Self {
        move |source| match &source {
            DbErr::Conn(_) | DbErr::ConnectionAcquire(_) => Self::Unavailable { operation, source },
            DbErr::Exec(runtime) | DbErr::Query(runtime) => match Self::state(runtime) {
                Some(Ok(state)) if CONFLICT_STATES.contains(&state.as_str()) => Self::Conflict { operation },
                Some(Ok(state))
                    if state.starts_with("08") || UNAVAILABLE_STATES.contains(&state.as_str()) =>
                {
                    Self::Unavailable { operation, source }
                }
                Some(Ok(_)) => Self::Refused { operation, source },
                // Not the database's word: the connection broke.
                Some(Err(())) => Self::Unavailable { operation, source },
                None => Self::Refused { operation, source },
            },
            _ if matches!(source.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))) => {
                Self::Conflict { operation }
            }
            _ => Self::Refused { operation, source },
        }
    }

    /// `Ok`: the SQLSTATE; `Err`: the driver failed below SQL; `None`: neither can be told.
    fn state(error: &RuntimeErr) -> Option<std::result::Result<String, ()>> {
        let RuntimeErr::SqlxError(error) = error else { return None };
        match error.as_ref() {
            sqlx::Error::Database(e) => e.code().map(|code| Ok(code.into_owned())),
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => Some(Err(())),
            _ => None,
        }
    }

    /// Whether trying again may help.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// A store's answer.
pub type Result<T> = std::result::Result<T, StoreError>;
