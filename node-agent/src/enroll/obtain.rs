//! Who the node is: as kept in its files, or enrolled now.

use std::path::Path;
use std::time::Duration;

use carrel_common::clock::Clock;
use carrel_common::id::{ClusterId, NodeId};
use carrel_common::join::JoinToken;
use carrel_common::model::{Container, NodeFacts};
use futures_util::TryStreamExt as _;
use time::OffsetDateTime;
use tonic::transport::Endpoint;

use super::{EnrollError, Identity, enroll, enroll_with_token, files, reach};
use crate::facts::{self, HostFacts, Told};
use crate::runtime::{EngineFacts, Runtime, RuntimeError};

/// Between attempts.
const AGAIN: Duration = Duration::from_secs(1);
/// Time between SIGTERM and SIGKILL for what `--stop-existing` stops: what the control plane grants by default.
const GRACE: Duration = Duration::from_secs(10);
/// So many at once; more only wait inside the daemon.
const STOPS_AT_ONCE: usize = 8;

/// How a host enrols.
#[derive(Debug, Clone)]
pub enum Entry {
    /// In `--dev`, in plaintext on loopback.
    Dev,
    /// Over TLS.
    Tls {
        /// With which token, when it has no identity that can be used.
        token: Option<JoinToken>,
        /// Containers of other nodes of this Carrel are stopped first.
        stop_existing: bool,
    },
}

/// What a host does that speaks TLS.
#[derive(Debug, PartialEq, Eq)]
enum Way<'a> {
    /// It stays who it is, even when its certificate has ended: what runs goes on being looked after.
    Stay,
    /// It enrols with this token.
    Join(&'a JoinToken),
}

/// What to do with an identity that was kept and a token that was given. A token helps those alone who have no identity that
/// counts, since it has ended or is `left_behind`: it may lie about long after it was used.
fn way<'a>(
    kept: Option<&Identity>,
    token: Option<&'a JoinToken>,
    left_behind: bool,
    now: OffsetDateTime,
) -> Result<Way<'a>, EnrollError> {
    match (kept, token) {
        (None, None) => Err(EnrollError::NotEnrolled),
        (None, Some(token)) => Ok(Way::Join(token)),
        (Some(kept), Some(token)) if kept.cluster != token.cluster => {
            let (ours, theirs) = (kept.cluster, token.cluster);
            Err(EnrollError::OtherCarrel { node: kept.node, ours, theirs })
        }
        (Some(kept), Some(token)) if left_behind || kept.has_ended(now) => Ok(Way::Join(token)),
        (Some(_), _) => Ok(Way::Stay),
    }
}

/// What it takes to find out.
#[derive(Debug)]
pub struct Obtain<'a, R> {
    /// How the host enrols.
    pub entry: &'a Entry,
    /// Where identities are kept.
    pub state_dir: &'a Path,
    /// The control plane's replicas.
    pub endpoints: &'a [Endpoint],
    /// The container engine: the identity is bound to it.
    pub runtime: &'a R,
    /// What is known of the host.
    pub host: &'a HostFacts,
    /// What the operator says of the host.
    pub told: &'a Told,
    /// The time of day.
    pub clock: &'a dyn Clock,
}

impl<R: Runtime> Obtain<'_, R> {
    /// The identity. Waits for the container engine and the control plane as long as it takes. An identity that counts no more, without a
    /// token that helps, is given all the same: what runs goes on being looked after.
    ///
    /// # Errors
    /// The files cannot be used; the host has none and no token; the control plane refuses.
    pub async fn obtain(&self) -> Result<Identity, EnrollError> {
        let Entry::Tls { token, stop_existing } = self.entry else {
            return match self.load(files::load).await? {
                Some(kept) => Ok(kept),
                None => self.insist(None, false).await,
            };
        };
        let kept = self.load(files::load_certified).await?;
        let left_behind = match (&kept, token) {
            (Some(kept), Some(token)) => self.is_left_behind(kept, token).await,
            (_, _) => false,
        };
        match (way(kept.as_ref(), token.as_ref(), left_behind, self.clock.now())?, kept) {
            (Way::Stay, Some(kept)) => {
                if token.is_some() {
                    tracing::info!(node.id = %kept.node, "this host has enrolled already: the join token is not used");
                }
                Ok(kept)
            }
            (Way::Stay, None) => Err(EnrollError::NotEnrolled),
            (Way::Join(token), None) => self.insist(Some((token, *stop_existing)), false).await,
            (Way::Join(token), Some(kept)) => match self.insist(Some((token, *stop_existing)), true).await {
                Ok(identity) => Ok(identity),
                Err(error) => {
                    tracing::error!(node.id = %kept.node, "the join token did not help: {error}");
                    Ok(kept)
                }
            },
        }
    }

    /// Whether the authority was replaced, and this identity not: the token is of an authority that it does not trust, those that it trusts vouch
    /// for no replica, and one is there. A used token of an authority that was replaced since lies about on many a host, and changes nothing there.
    async fn is_left_behind(&self, kept: &Identity, token: &JoinToken) -> bool {
        if kept.trusts_one_of(&token.authorities) {
            return false;
        }
        let mut of_another = false;
        for endpoint in self.endpoints {
            match reach(endpoint, kept).await {
                Ok(()) => return false,
                Err(error) => of_another |= error.is_of_unknown_authority(),
            }
        }
        of_another
    }

    async fn load(
        &self,
        load: fn(&Path) -> Result<Option<Identity>, EnrollError>,
    ) -> Result<Option<Identity>, EnrollError> {
        let dir = self.state_dir.to_owned();
        let kept = tokio::task::spawn_blocking(move || load(&dir)).await;
        kept.map_err(|e| EnrollError::File {
            path: self.state_dir.to_owned(),
            source: std::io::Error::other(e),
        })?
    }

    /// Tries one replica after the other until one answers. Who can do without (`may_fail`) gives up once all have been tried, and one is there
    /// that the token's authorities do not vouch for: they were replaced since it was made.
    async fn insist(
        &self,
        join: Option<(&JoinToken, bool)>,
        may_fail: bool,
    ) -> Result<Identity, EnrollError> {
        let facts = self.facts().await;
        let mut of_another = None;
        for (attempt, endpoint) in self.endpoints.iter().cycle().enumerate() {
            if may_fail
                && attempt.is_multiple_of(self.endpoints.len())
                && let Some(error) = of_another
            {
                return Err(error);
            }
            let answer = match join {
                None => enroll(endpoint, facts.clone(), self.state_dir).await,
                Some((token, stop_existing)) => self.join(endpoint, token, &facts, stop_existing).await,
            };
            match answer {
                Err(error) if error.passes() => {
                    tracing::warn!(%error, endpoint = %endpoint.uri(), "not enrolled yet; trying again");
                    if error.is_of_unknown_authority() {
                        of_another = Some(error);
                    }
                }
                done => return done,
            }
            tokio::time::sleep(AGAIN).await;
        }
        Err(EnrollError::NotEnrolled)
    }

    async fn join(
        &self,
        endpoint: &Endpoint,
        token: &JoinToken,
        facts: &NodeFacts,
        stop_existing: bool,
    ) -> Result<Identity, EnrollError> {
        let inventory = self.inventory(token.cluster).await;
        let answer =
            enroll_with_token(endpoint, token, facts.clone(), inventory.clone(), self.state_dir).await;
        let foreign = answer.as_ref().err().and_then(EnrollError::foreign_containers);
        let (true, Some(own)) = (stop_existing, foreign) else { return answer };
        self.stop_others(&inventory, own).await;
        let inventory = self.inventory(token.cluster).await;
        enroll_with_token(endpoint, token, facts.clone(), inventory, self.state_dir).await
    }

    /// The identity is bound to the engine's id, so it has to be known.
    async fn facts(&self) -> NodeFacts {
        let engine: EngineFacts = self.engine_answers(|| self.runtime.facts()).await;
        facts::of_node(self.host, Some(&engine), self.told)
    }

    async fn inventory(&self, cluster: ClusterId) -> Vec<Container> {
        let found = self.engine_answers(|| self.runtime.list(cluster, None)).await;
        found.into_iter().map(|found| found.container).collect()
    }

    async fn engine_answers<T, F: Future<Output = Result<T, RuntimeError>>>(&self, ask: impl Fn() -> F) -> T {
        loop {
            match ask().await {
                Ok(answer) => return answer,
                Err(error) => {
                    tracing::error!(%error, "Docker has to answer before this node can enrol; trying again");
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Stops and removes all containers but those of `own`. What cannot be removed is found again by the next attempt.
    async fn stop_others(&self, inventory: &[Container], own: Option<NodeId>) {
        let others = inventory.iter().filter(|container| Some(container.node) != own);
        let stopped: Result<(), RuntimeError> = futures_util::stream::iter(others.map(Ok))
            .try_for_each_concurrent(STOPS_AT_ONCE, |container| async move {
                let (id, student) = (&container.container_id, &container.student);
                tracing::warn!(%student, container = id, node.id = %container.node, "stopping a container of another node");
                self.runtime.ensure_stopped(id, GRACE).await?;
                self.runtime.ensure_removed(id).await
            })
            .await;
        if let Err(error) = stopped {
            tracing::error!(%error, "not all containers of other nodes are stopped");
        }
    }
}

#[cfg(test)]
mod tests {
    use carrel_common::certificate::{Validity, pem_of_certificates};
    use carrel_common::id::new_secret;
    use time::macros::datetime;

    use super::super::{Credentials, Proof, Secret};
    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-24 12:00:00 UTC);

    fn identity(cluster: ClusterId, until: OffsetDateTime) -> Identity {
        let credentials = Credentials {
            key_pem: Secret(String::new()),
            certificate_pem: String::new(),
            ca_pem: String::new(),
            validity: Validity { from: until - Duration::from_secs(86_400), until },
        };
        Identity { node: NodeId::new(), cluster, proof: Proof::Certificate(Box::new(credentials)) }
    }

    #[test]
    fn a_token_is_used_only_by_who_has_no_identity_that_counts() {
        let cluster = ClusterId::new();
        let (good, ended) = (identity(cluster, NOW), identity(cluster, NOW - Duration::from_secs(1)));
        let token = JoinToken { cluster, secret: new_secret(), authorities: vec![vec![1]] };
        for (kept, given, left_behind, expected) in [
            (None, Some(&token), false, Way::Join(&token)),
            (Some(&good), Some(&token), false, Way::Stay),
            (Some(&good), Some(&token), true, Way::Join(&token)),
            (Some(&good), None, false, Way::Stay),
            (Some(&ended), Some(&token), false, Way::Join(&token)),
            (Some(&ended), None, false, Way::Stay),
        ] {
            let way = way(kept, given, left_behind, NOW).expect("a way");
            assert_eq!(way, expected, "{kept:?} {given:?} {left_behind}");
        }
        assert!(matches!(way(None, None, false, NOW), Err(EnrollError::NotEnrolled)));
    }

    #[test]
    fn a_token_of_another_carrel_is_refused_and_not_passed_over() {
        let token = JoinToken { cluster: ClusterId::new(), secret: new_secret(), authorities: vec![vec![1]] };
        for until in [NOW, NOW - Duration::from_secs(1)] {
            let kept = identity(ClusterId::new(), until);
            let refused = way(Some(&kept), Some(&token), true, NOW);
            assert!(matches!(refused, Err(EnrollError::OtherCarrel { .. })), "{refused:?}");
        }
    }

    #[test]
    fn an_identity_knows_whom_it_trusts() {
        let trusting = |authorities: &[&[u8]]| {
            let mut identity = identity(ClusterId::new(), NOW);
            let Proof::Certificate(own) = &mut identity.proof else { panic!("a certificate") };
            own.ca_pem = pem_of_certificates(authorities.iter().copied());
            identity
        };
        let both = trusting(&[&[1], &[2]]);
        assert!(both.trusts_one_of(&[vec![3], vec![2]]) && !both.trusts_one_of(&[vec![3]]));
        assert!(!trusting(&[]).trusts_one_of(&[vec![1]]));
    }
}
