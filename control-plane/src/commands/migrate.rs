//! `control-plane migrate`.

use anyhow::Context as _;

use crate::config::MigrateArgs;
use crate::store::Store;

/// Brings the schema up to date.
///
/// # Errors
/// When the URL is not one to connect to, or the database cannot be reached or refuses.
pub async fn migrate(args: &MigrateArgs) -> anyhow::Result<()> {
    args.database_url.check()?;
    Store::migrate(&args.database_url.0).await.context("the schema could not be brought up to date")?;
    println!("the schema is up to date");
    Ok(())
}
