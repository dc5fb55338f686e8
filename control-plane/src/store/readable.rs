//! Rows that mean something, of many.

use sea_orm::prelude::Uuid;

use super::entity::Model;
use super::error::Result;
use crate::domain::workspace::Workspace;

/// What could be read, each named by its id. What could not is told and left out, so that it holds nobody else up: for passes over
/// many, in which who is left out stays as they are.
pub(super) fn readable<T>(rows: impl Iterator<Item = (Option<Uuid>, Result<T>)>) -> Vec<T> {
    let told = |(id, read): (Option<Uuid>, Result<T>)| {
        let id = id.unwrap_or_default();
        read.inspect_err(|error| tracing::error!(%id, %error, "a row that cannot be read is left out")).ok()
    };
    rows.filter_map(told).collect()
}

/// As [`readable`].
pub(super) fn readable_workspaces(models: Vec<Model>) -> Vec<Workspace> {
    readable(models.into_iter().map(|model| (Some(model.id), model.try_into())))
}
