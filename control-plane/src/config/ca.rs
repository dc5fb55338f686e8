//! Flags of `control-plane ca …`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

/// What to do with the authority.
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Make one, in a directory that has none.
    Init(CaDir),
    /// Make a new one that signs from now on; the one before stays trusted, so nobody is cut off.
    Rotate(CaDir),
    /// Trust only the one that signs; for when every node has renewed its certificate since the rotation.
    Prune {
        /// The directory.
        #[command(flatten)]
        dir: CaDir,
        /// Life of a node's certificate, as every `serve` has it: refused until the rotation is that long ago. Without a default, as a
        /// shell does not know what the service is told.
        #[arg(long, env = "CARREL_NODE_CERTIFICATE_TTL", required_unless_present = "force", value_parser = humantime::parse_duration)]
        node_certificate_ttl: Option<Duration>,
        /// Do it now; nodes that have not renewed have to enrol again.
        #[arg(long)]
        force: bool,
    },
}

/// Where the authority is.
#[derive(Debug, Args)]
pub struct CaDir {
    /// Directory of the authority: its key, and the certificates that are trusted.
    #[arg(long, env = "CARREL_CA_DIR")]
    pub ca_dir: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::Cli;

    #[test]
    fn an_authority_is_pruned_by_a_time_that_was_said_or_by_force() {
        let takes = |more: &[&str]| {
            let line =
                ["control-plane", "ca", "prune", "--ca-dir", "/x"].into_iter().chain(more.iter().copied());
            Cli::try_parse_from(line).is_ok()
        };
        assert!(!takes(&[]), "nobody knows how long nodes have theirs");
        assert!(takes(&["--node-certificate-ttl", "24h"]) && takes(&["--force"]));
    }
}
