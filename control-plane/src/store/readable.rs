//! Rows that mean something, of many.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sea_orm::prelude::Uuid;
use tokio::time::Instant;

use super::entity::Model;
use super::error::Result;
use crate::domain::workspace::Workspace;

/// What is left out of one pass is left out of the next as well, by the second: it is told again after this long.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Whether a problem is to be told: it was not a moment ago.
pub fn is_news(problem: String) -> bool {
    static TOLD: Mutex<BTreeMap<String, Instant>> = Mutex::new(BTreeMap::new());
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    told.retain(|_, at| at.elapsed() < AGAIN_AFTER);
    let news = !told.contains_key(&problem);
    told.entry(problem).or_insert_with(Instant::now);
    news
}

/// What could be read, each named by its id. What could not is told and left out, so that it holds nobody else up: for passes over
/// many, in which who is left out stays as they are, and for lists.
pub(super) fn readable<T>(rows: impl Iterator<Item = (Option<Uuid>, Result<T>)>) -> Vec<T> {
    readable_by_name(rows)
}

/// As [`readable`], of rows that have names instead of ids.
pub(super) fn readable_by_name<T, I: Display + Default>(
    rows: impl Iterator<Item = (Option<I>, Result<T>)>,
) -> Vec<T> {
    let told = |(id, read): (Option<I>, Result<T>)| {
        let id = id.unwrap_or_default();
        let tell = |error: &_| {
            if is_news(format!("{id}: {error}")) {
                tracing::error!(%id, %error, "a row that cannot be read is left out");
            }
        };
        read.inspect_err(tell).ok()
    };
    rows.filter_map(told).collect()
}

/// A page of rows, one more of which was asked for, and what the next page comes after: its last row, whether that can be read or not.
pub(super) fn page<T, M>(
    mut rows: Vec<T>,
    page_size: usize,
    mark: impl FnOnce(&T) -> Option<M>,
) -> (Vec<T>, Option<M>) {
    let more = rows.len() > page_size;
    rows.truncate(page_size);
    let next = rows.last().filter(|_| more).and_then(mark);
    (rows, next)
}

/// As [`readable`].
pub(super) fn readable_workspaces(models: Vec<Model>) -> Vec<Workspace> {
    readable(models.into_iter().map(|model| (Some(model.id), model.try_into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_problem_is_told_once_a_minute_and_another_one_at_once() {
        let told = |problem: &str| is_news(format!("of this test: {problem}"));
        assert_eq!([told("one"), told("one"), told("another"), told("one")], [true, false, true, false]);
        tokio::time::advance(AGAIN_AFTER - Duration::from_secs(1)).await;
        assert!(!told("one"));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!([told("one"), told("one")], [true, false]);
    }
}
