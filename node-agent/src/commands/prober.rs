//! `node-agent prober`: started by the agent for itself, see `storage::prober`.

use std::io;

use crate::storage::prober;

/// Runs errands until the agent is gone. It says nothing: an agent that ended is no trouble of a prober's.
pub(super) fn serve() {
    let _ = prober::serve(io::stdin().lock(), io::stdout().lock());
}
