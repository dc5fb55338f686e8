//! `node-agent mark-share`

use std::path::PathBuf;

use anyhow::Context as _;
use carrel_common::id::ClusterId;
use clap::Args;

use crate::enroll;
use crate::storage::check::Kind;
use crate::storage::errand;
use crate::storage::marker::{self, Marked};

/// Which share, and whose it becomes.
#[derive(Debug, Clone, Args)]
pub(super) struct MarkShare {
    /// Directory that holds a directory for each student, on the share.
    #[arg(long, env = "WORKSPACE_BASE_PATH")]
    workspace_base_path: PathBuf,
    /// What that directory has to be: any directory, or one on a mount such as EFS.
    #[arg(long, env = "CARREL_STORAGE", default_value = "directory")]
    storage: Kind,
    /// The Carrel that the share is for; the one that this host has enrolled with when it is not given.
    #[arg(long)]
    cluster_id: Option<ClusterId>,
    /// Where the agent of this host keeps its identity.
    #[arg(long, env = "CARREL_STATE_DIR", default_value = "/var/lib/carrel-agent")]
    state_dir: PathBuf,
}

/// Marks the share, or says why not. Makes nothing where the base is not as it should be.
pub(super) fn mark_share(asked: &MarkShare) -> anyhow::Result<()> {
    let cluster =
        match asked.cluster_id {
            Some(cluster) => cluster,
            None => enroll::kept(&asked.state_dir)?
                .with_context(|| {
                    format!(
                        "{} holds no identity: start the agent once, so that it enrols, or say --cluster-id",
                        asked.state_dir.display()
                    )
                })?
                .cluster,
        };
    let base = std::path::absolute(&asked.workspace_base_path)
        .with_context(|| format!("--workspace-base-path {}", asked.workspace_base_path.display()))?;
    if let Some(problem) = errand::look_at_place(&base, asked.storage) {
        anyhow::bail!("{}: {}", problem.reason, problem.message);
    }
    let base_shown = base.display();
    match marker::mark(&base, cluster)? {
        Marked::Now => println!("{base_shown} is marked as the share of the Carrel {cluster}"),
        Marked::Before => println!("{base_shown} is the share of the Carrel {cluster} already"),
        Marked::Of(other) => anyhow::bail!(
            "STORAGE_OF_ANOTHER_CLUSTER: {base_shown} is the share of the Carrel {other} and stays so; if that Carrel is no \
             more, remove {base_shown}/.carrel/cluster-id and mark it again"
        ),
        Marked::Unreadable(why) => {
            anyhow::bail!("{base_shown}/.carrel/cluster-id cannot be understood ({why}) and is left as it is")
        }
    }
    Ok(())
}
