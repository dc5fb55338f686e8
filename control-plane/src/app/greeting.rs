//! What an agent says first, and what follows: who it is, whether the store has gone back in time, and what its node runs.

use carrel_common::id::ClusterId;
use carrel_common::model::{Container, DesiredPair, HeartbeatCount, NodeFacts};

use super::enrolment::{Credentials, not_banned, of_this_carrel};
use super::node_admin::about;
use super::settle::settle;
use super::{App, AppError, Result};
use crate::domain::admission::{Admission, admit};
use crate::domain::behind::{Evidence, Known, StoreState, Told, evidence};
use crate::domain::event::{Actor, Entry};
use crate::domain::node::Node;
use crate::store::{NewSession, Work};

/// What an agent says first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// The host.
    pub facts: NodeFacts,
    /// The first session of this agent process.
    pub process_start: bool,
    /// Random, of this agent process; empty when the agent is older than this word.
    pub process: String,
    /// The Carrel that the node belongs to; `None` when the agent is older than this word.
    pub cluster: Option<ClusterId>,
    /// The highest desired pair it has accepted.
    pub accepted: Option<DesiredPair>,
    /// The highest count of its heartbeats that was acknowledged.
    pub acked: Option<HeartbeatCount>,
    /// Its containers.
    pub containers: Vec<Container>,
    /// That is what Docker answered just now: what is missing is not there.
    pub current: bool,
}

impl Greeting {
    /// Of an agent that has nothing to tell but its facts.
    pub fn of(facts: NodeFacts, process_start: bool) -> Self {
        Self {
            facts,
            process_start,
            process: String::new(),
            cluster: None,
            accepted: None,
            acked: None,
            containers: vec![],
            current: true,
        }
    }

    fn told(&self) -> Told<'_> {
        Told { accepted: self.accepted, acked: self.acked, containers: &self.containers }
    }
}

/// A session that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeted {
    /// What it is called.
    pub session: NewSession,
    /// How the store stands.
    pub state: StoreState,
    /// The node has not told what it runs, since its Docker does not answer: its orders wait for that.
    pub awaited: bool,
}

impl App {
    /// Accepts a session of a node that has shown who it is: the ones before it can no longer renew the node.
    ///
    /// # Errors
    /// [`AppError::NodeUnknown`], [`AppError::NodeIdentityChanged`], [`AppError::NodeHeld`], [`AppError::NodeBanned`],
    /// [`AppError::CertificateRefused`]; [`AppError::SessionSuperseded`] when another one came while it told what it runs; the
    /// database.
    pub async fn accept_session(&self, credentials: &Credentials, greeting: &Greeting) -> Result<Greeted> {
        let (session, state) = settle!(self.accept_once(credentials, greeting))?;
        self.metrics.session_accepted();
        let (node, epoch) = (credentials.node, session.session_epoch);
        let told = state.behind.is_none() && self.take_stock(node, epoch, greeting).await?;
        Ok(Greeted { session, awaited: state.behind.is_none() && !told, state })
    }

    async fn accept_once(
        &self,
        credentials: &Credentials,
        greeting: &Greeting,
    ) -> Result<(NewSession, StoreState)> {
        let id = credentials.node;
        let mut work = self.store.begin().await?;
        let state = work.state().await?;
        let known = work.lock_node(id).await?;
        let stranger = known.is_none();
        let node = match known {
            Some(node) => node,
            None => match self.readmit(&mut work, credentials, greeting, &state).await? {
                Some(node) => node,
                None => {
                    self.nudge.ring(&work.commit().await?);
                    of_this_carrel(credentials, state.cluster)?;
                    return Err(AppError::NodeUnknown(id));
                }
            },
        };
        not_banned(&node)?;
        of_this_carrel(credentials, state.cluster)?;
        if let Err(error) = self.check_who(&mut work, &node, greeting).await? {
            self.nudge.ring(&work.commit().await?);
            return Err(error);
        }
        // Nodes are never forgotten, but by a store that was restored.
        let forgotten = stranger && state.declared_at.is_none();
        let lost = match forgotten {
            true => Some(Evidence::Node { cluster: None, containers: greeting.containers.len() }),
            false => self.what_is_lost(&mut work, &node, greeting, &state).await?,
        };
        if let Some(lost) = lost {
            self.note_behind(&mut work, id, &lost, state.incarnation, greeting.told().incarnation()).await?;
        }
        let mut facts = greeting.facts.clone();
        if facts.docker_id.is_empty() {
            // Its Docker does not answer now; what it was stays known.
            facts.docker_id.clone_from(&node.facts.docker_id);
            facts.docker_version.clone_from(&node.facts.docker_version);
        }
        if facts.hardware_id.is_empty() {
            facts.hardware_id.clone_from(&node.facts.hardware_id);
        }
        let session =
            work.accept_session(id, &facts, greeting.process_start, greeting.process.as_str()).await?;
        work.promise_lease(id, self.settings.lease.promised()).await?;
        let entry = Entry::new("node.connected", Actor::Agent).with("session_epoch", session.session_epoch);
        work.append(about(id), entry).await?;
        let state = work.state().await?;
        self.nudge.ring(&work.commit().await?);
        Ok((session, state))
    }

    /// A node that the store does not know, with an identity of this Carrel: the store was further once, and takes it in again.
    /// With an identity of another Carrel it is a stranger, but to a store that is new: that one's database was lost.
    async fn readmit(
        &self,
        work: &mut Work,
        credentials: &Credentials,
        greeting: &Greeting,
        state: &StoreState,
    ) -> Result<Option<Node>> {
        let (id, containers) = (credentials.node, greeting.containers.len());
        // What a certificate proves counts before what is said.
        match credentials.cluster().or(greeting.cluster) {
            Some(ours) if ours == state.cluster => {
                work.insert_node(id, credentials.secret_hash.as_deref(), &greeting.facts).await?;
                work.await_node(id).await?;
                let entry = Entry::new("node.readmitted", Actor::Agent)
                    .with("hostname", greeting.facts.hostname.as_str())
                    .with("containers", containers);
                work.append(about(id), entry).await?;
                Ok(work.lock_node(id).await?)
            }
            Some(theirs) if containers > 0 && work.is_pristine().await? => {
                let lost = Evidence::Node { cluster: Some(theirs), containers };
                self.note_behind(work, id, &lost, state.incarnation, greeting.told().incarnation()).await?;
                Ok(None)
            }
            Some(_) | None => Ok(None),
        }
    }

    /// Whether the agent speaks for the node; what it is told when it does not.
    async fn check_who(
        &self,
        work: &mut Work,
        node: &Node,
        greeting: &Greeting,
    ) -> Result<std::result::Result<(), AppError>> {
        let (now, process) = (work.now().await?, greeting.process.as_str());
        // Once, until the node itself connects again: an agent that is restarted each time it is refused is news once.
        let told = node.challenge.as_ref().is_some_and(|c| c.told);
        let (error, reason, what, tell) =
            match admit(node, &greeting.facts, process, self.settings.heartbeat_interval, now) {
                Admission::Admit => return Ok(Ok(())),
                Admission::Changed(what) => {
                    let error = AppError::NodeIdentityChanged { node: node.id, what };
                    (error, "NODE_IDENTITY_CHANGED", what, true)
                }
                Admission::Held { both_alive } => {
                    (AppError::NodeHeld(node.id), "SECOND_AGENT", "agent process", both_alive)
                }
            };
        work.challenge(node.id, process, tell).await?;
        if tell && !told {
            let entry = Entry::new("node.identity_refused", Actor::Agent)
                .because(reason)
                .with("what", what)
                .with("hostname", greeting.facts.hostname.as_str())
                .with("machine_id", greeting.facts.machine_id.as_str())
                .with("docker_id", greeting.facts.docker_id.as_str());
            work.append(about(node.id), entry).await?;
            tracing::error!(
                node.id = %node.id, hostname = greeting.facts.hostname, what,
                "a second agent says that it is this node; it is refused, and the first one keeps the session"
            );
        }
        Ok(Err(error))
    }

    /// What the agent holds that the store has lost.
    async fn what_is_lost(
        &self,
        work: &mut Work,
        node: &Node,
        greeting: &Greeting,
        state: &StoreState,
    ) -> Result<Option<Evidence>> {
        let keys = greeting.containers.iter().map(|container| container.student.key()).collect();
        let known = Known {
            incarnation: state.incarnation,
            desired_generation: node.desired_generation,
            heartbeats: node.heartbeats,
            generations: work.generations_on(node.id, keys).await?,
        };
        Ok(evidence(&greeting.told(), &known))
    }
}
