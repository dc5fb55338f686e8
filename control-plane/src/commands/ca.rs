//! `control-plane ca …`: makes, replaces and retires the authority that vouches for nodes.

use anyhow::Context as _;
use carrel_common::clock::{Clock as _, SystemClock};

use crate::authority::files;
use crate::config::CaCommand;

/// Does what the command line says.
///
/// # Errors
/// When the directory does not hold what it must, or the disk refuses.
pub fn ca(command: &CaCommand) -> anyhow::Result<()> {
    let now = SystemClock::new().now();
    match command {
        CaCommand::Init(args) => {
            files::init(&args.ca_dir, now).context("no authority was made")?;
            println!("an authority is in {}; back it up, and let nobody read it", args.ca_dir.display());
        }
        CaCommand::Rotate(args) => {
            files::rotate(&args.ca_dir, now).context("the authority was not replaced")?;
            println!(
                "a new authority signs, the one before is still trusted; copy the directory to all replicas, where it has to belong to \
                 their user, and run `control-plane ca prune` when every node has renewed its certificate"
            );
        }
        CaCommand::Prune { dir, node_certificate_ttl, force } => {
            let after = node_certificate_ttl.filter(|_| !force);
            let dropped = files::prune(&dir.ca_dir, now, after).context("no authority was retired")?;
            println!(
                "{dropped} retired; only the one that signs is trusted; copy the directory to all replicas, where it has to belong \
                 to their user"
            );
        }
    }
    Ok(())
}
