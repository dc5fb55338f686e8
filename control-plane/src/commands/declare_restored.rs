//! `control-plane declare-restored`.

use anyhow::Context as _;
use carrel_common::id::ClusterId;

use crate::config::DeclareRestoredArgs;
use crate::domain::event::{Actor, Entry, Subject};
use crate::store::{Declared, Store};

/// Declares the store restored: its incarnation rises, and what runs is adopted as the nodes tell it.
///
/// # Errors
/// When the database cannot be reached, has no current schema, or is not one that can be declared so.
pub async fn declare_restored(args: &DeclareRestoredArgs) -> anyhow::Result<()> {
    args.database_url.check()?;
    let store = Store::open(&args.database_url.0, 2)?;
    if !store.schema_is_current().await.context("--database-url cannot be used")? {
        anyhow::bail!("the database's schema is not up to date; run `control-plane migrate` first");
    }
    let declared = declare(&store, args.cluster_id, !args.no_wait, args.dry_run).await?;
    print!("{}", report(&declared, args));
    store.close().await;
    Ok(())
}

async fn declare(
    store: &Store,
    cluster: Option<ClusterId>,
    wait: bool,
    dry_run: bool,
) -> anyhow::Result<Declared> {
    let mut work = store.begin().await?;
    let declared = work.declare_restored(cluster, wait).await?;
    if dry_run {
        return Ok(declared);
    }
    let evidence = declared.before.behind.as_ref().map(|behind| behind.evidence.clone()).unwrap_or_default();
    let entry = Entry::new("store.declared_restored", Actor::Operator)
        .with("incarnation", declared.incarnation)
        .with("cluster_id", declared.cluster.to_string())
        .with("evidence", evidence);
    work.append(Subject::default(), entry).await?;
    work.commit().await.context("it is not known whether it was declared; run it again with --dry-run")?;
    Ok(declared)
}

/// What was done, or would be, for people.
fn report(declared: &Declared, args: &DeclareRestoredArgs) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let mut line = |said: String| _ = writeln!(text, "{said}");
    let before = &declared.before;
    match &before.behind {
        Some(behind) => line(format!("noticed    {}: {}", behind.since, behind.evidence)),
        None => line("noticed    nothing: no agent has shown that the database went back in time".into()),
    }
    line(format!("cluster    {} -> {}", before.cluster, declared.cluster));
    line(format!("incarnation {} -> {}", before.incarnation, declared.incarnation));
    let counts: Vec<_> =
        declared.workspaces.iter().map(|(state, count)| format!("{count} {state}")).collect();
    line(format!("workspaces {}", if counts.is_empty() { "none".into() } else { counts.join(", ") }));
    for (node, hostname) in &declared.awaited {
        line(format!("awaited    nodes/{node} {}", hostname.as_deref().unwrap_or("(not in this database)")));
    }
    if declared.awaited.is_empty() {
        line("awaited    no node by its name: this database knows none".into());
    }
    line(match args.no_wait {
        true => "starts     at once: you said that every host is back, or dead, also those that this database does not know".into(),
        false => {
            "starts     of what no host has told of wait for the hosts above, and for --replace-after in any case, as there may be \
             hosts that this database does not know; once all are back or dead, --no-wait ends that"
                .into()
        }
    });
    line(match args.dry_run {
        true => "DRY RUN: nothing was changed".into(),
        false => {
            "declared: agents tell what they run within half a minute, and all of it is adopted".to_owned()
        }
    });
    text
}
