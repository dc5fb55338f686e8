//! The node's identity: asked for once, then kept in a file that the agent alone can read.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use carrel_common::id::{ClusterId, NodeId};
use carrel_common::model::NodeFacts;
use carrel_common::wire::WireError;
use carrel_proto::v1 as pb;
use carrel_proto::v1::agent_service_client::AgentServiceClient;
use serde::{Deserialize, Serialize};
use tonic::transport::Endpoint;

use crate::runtime::Scope;

/// Who the node is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The node.
    pub node: NodeId,
    /// The Carrel it belongs to.
    pub cluster: ClusterId,
    /// Proves it.
    pub secret: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("node", &self.node)
            .field("cluster", &self.cluster)
            .field("secret", &"***")
            .finish()
    }
}

impl Identity {
    /// Whose containers the node's are.
    pub fn scope(&self) -> Scope {
        Scope { cluster: self.cluster, node: self.node }
    }
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The file cannot be read, written or understood.
    #[error("the identity in {} cannot be used: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The control plane cannot be reached.
    #[error("the control plane cannot be reached: {0}")]
    Unreachable(#[source] tonic::transport::Error),
    /// The control plane refused.
    #[error("the control plane refused to enrol this node: {}", .0.message())]
    Refused(Box<tonic::Status>),
    /// Its answer means nothing.
    #[error("the control plane's answer cannot be understood: {0}")]
    Answer(#[from] WireError),
}

impl EnrollError {
    /// Whether another attempt may go better.
    pub fn passes(&self) -> bool {
        use tonic::Code;
        match self {
            Self::Unreachable(_) => true,
            Self::Refused(status) => matches!(
                status.code(),
                Code::Unavailable
                    | Code::DeadlineExceeded
                    | Code::Unknown
                    | Code::Internal
                    | Code::Aborted
                    | Code::Cancelled
            ),
            Self::File { .. } | Self::Answer(_) => false,
        }
    }
}

/// The file's name below the state directory.
const FILE: &str = "identity.json";

/// A control plane that does not answer within this is not there.
const DEADLINE: Duration = Duration::from_secs(10);

fn file_error(path: &Path) -> impl Fn(io::Error) -> EnrollError {
    let path = path.to_owned();
    move |source| EnrollError::File { path: path.clone(), source }
}

/// The identity kept in `state_dir`, if the node has enrolled before. Blocking.
///
/// # Errors
/// When the file is there and cannot be read or understood.
pub fn load(state_dir: &Path) -> Result<Option<Identity>, EnrollError> {
    let path = state_dir.join(FILE);
    let error = file_error(&path);
    match fs::read(&path) {
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(other) => Err(error(other)),
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|bad| error(bad.into())),
    }
}

/// Keeps the identity, readable by the owner alone; a crash leaves the old file or the new one. Blocking.
///
/// # Errors
/// When the disk refuses.
pub fn save(state_dir: &Path, identity: &Identity) -> Result<(), EnrollError> {
    let path = state_dir.join(FILE);
    let error = file_error(&path);
    let write = || {
        fs::create_dir_all(state_dir)?;
        let new = path.with_extension("new");
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec_pretty(identity)?)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        fs::File::open(state_dir)?.sync_all()
    };
    write().map_err(error)
}

/// Asks the control plane for an identity.
///
/// # Errors
/// See [`EnrollError`]; [`EnrollError::passes`] says whether to try again.
pub async fn enroll(endpoint: &Endpoint, facts: NodeFacts) -> Result<Identity, EnrollError> {
    let endpoint = endpoint.clone().timeout(DEADLINE);
    let channel = endpoint.connect().await.map_err(EnrollError::Unreachable)?;
    let request = pb::EnrollRequest { facts: Some(facts.into()), ..Default::default() };
    let answer = AgentServiceClient::new(channel)
        .enroll(request)
        .await
        .map_err(|status| EnrollError::Refused(Box::new(status)))?
        .into_inner();
    let bad = |field| move |e: carrel_common::id::InvalidId| WireError::new(field, e.0);
    Ok(Identity {
        node: answer.node_id.parse().map_err(bad("node_id"))?,
        cluster: answer.cluster_id.parse().map_err(bad("cluster_id"))?,
        secret: answer.secret,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn identity() -> Identity {
        Identity { node: NodeId::new(), cluster: ClusterId::new(), secret: "s3cret".into() }
    }

    #[test]
    fn comes_back_as_it_was_kept_and_only_the_owner_can_read_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (state, identity) = (dir.path().join("state"), identity());
        assert_eq!(load(&state).expect("nothing there"), None);
        save(&state, &identity).expect("save");
        assert_eq!(load(&state).expect("load"), Some(identity));
        let mode = fs::metadata(state.join(FILE)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_broken_file_is_an_error_and_no_reason_to_enrol_anew() {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::write(dir.path().join(FILE), "{").expect("write");
        assert!(load(dir.path()).is_err());
    }

    #[test]
    fn the_secret_is_not_shown() {
        assert!(!format!("{:?}", identity()).contains("s3cret"));
    }
}
