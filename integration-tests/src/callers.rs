//! An LMS that knows several replicas: it goes to the next one when one does not answer, and makes the same call again
//! under the same request id, so that whatever became of the first attempt, it counts once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use carrel_proto::v1::{self as pb, workspace::State};
use tonic::{Code, Status};

use crate::client::{Client, name_of};

/// An outage that lasts longer than this is one.
const PATIENCE: Duration = Duration::from_secs(30);

/// Clients of all replicas.
#[derive(Clone, Debug)]
pub struct Callers {
    clients: Vec<Client>,
    next: Arc<AtomicUsize>,
}

impl Callers {
    /// Of replicas at these addresses.
    pub fn of(addresses: &[String]) -> Self {
        Self { clients: addresses.iter().map(|address| Client::of(address)).collect(), next: Arc::default() }
    }

    /// The same, beginning with the replica of this index.
    #[must_use]
    pub fn beginning_with(self, index: usize) -> Self {
        Self { next: Arc::new(AtomicUsize::new(index)), ..self }
    }

    /// Whose turn it is.
    pub fn any(&self) -> &Client {
        &self.clients[self.next.load(Ordering::Relaxed) % self.clients.len()]
    }

    /// The one whose turn it is does not answer.
    fn another(&self) {
        self.next.fetch_add(1, Ordering::Relaxed);
    }

    /// Makes a call until it is answered, by whichever replica.
    ///
    /// # Errors
    /// What a replica refused.
    pub async fn call<T, F>(&self, what: &str, mut call: impl FnMut(Client) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let start = Instant::now();
        loop {
            let within = tokio::time::timeout(Duration::from_secs(5), call(self.any().clone()));
            let answer =
                within.await.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer within 5 s")));
            match answer {
                Err(status) if is_outage(&status) => {
                    assert!(start.elapsed() < PATIENCE, "{what}: no replica answers: {status}");
                }
                answered => return answered,
            }
            self.another();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// StartWorkspace, which counts once.
    pub async fn start(&self, student: &str) -> pb::Workspace {
        let request = pb::StartWorkspaceRequest {
            student_id: student.into(),
            request_id: uuid::Uuid::new_v4().to_string(),
            ..Default::default()
        };
        let call = self.call("StartWorkspace", |client| {
            let request = request.clone();
            async move { client.workspaces.clone().start_workspace(request).await }
        });
        call.await.expect("StartWorkspace").into_inner().workspace.expect("a workspace")
    }

    /// The same, until its editor answers.
    pub async fn start_and_wait(&self, student: &str) -> pb::Workspace {
        self.start(student).await;
        self.wait_for(student, State::Running).await
    }

    /// StopWorkspace, which counts once.
    pub async fn stop(&self, student: &str) -> pb::Workspace {
        let request = pb::StopWorkspaceRequest {
            name: name_of(student),
            request_id: uuid::Uuid::new_v4().to_string(),
            ..Default::default()
        };
        let call = self.call("StopWorkspace", |client| {
            let request = request.clone();
            async move { client.workspaces.clone().stop_workspace(request).await }
        });
        call.await.expect("StopWorkspace").into_inner().workspace.expect("a workspace")
    }

    /// RecordHeartbeat; refused when the desk does not run.
    ///
    /// # Errors
    /// What a replica refused.
    pub async fn heartbeat(&self, student: &str) -> Result<pb::Idle, Status> {
        self.call("RecordHeartbeat", |client| {
            let student = student.to_owned();
            async move { client.try_heartbeat(&student).await }
        })
        .await
    }

    /// GetWorkspace.
    pub async fn get(&self, student: &str) -> pb::Workspace {
        let call = self.call("GetWorkspace", |client| {
            let student = student.to_owned();
            async move { client.try_get(&student).await }
        });
        call.await.expect("GetWorkspace")
    }

    /// Asks until a desk is in this state.
    pub async fn wait_for(&self, student: &str, state: State) -> pb::Workspace {
        let start = Instant::now();
        loop {
            let now = self.get(student).await;
            if now.state() == state {
                return now;
            }
            let waited = start.elapsed();
            assert!(waited < PATIENCE * 2, "{student} is not {state:?} after {waited:?}: {now:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Follows the event log after `resume_token`, over outages, until an event that is the last: every event as it was told.
    pub async fn follow_events(
        &self,
        mut resume_token: String,
        is_last: impl Fn(&pb::Event) -> bool,
    ) -> Vec<pb::Event> {
        let mut told = Vec::new();
        loop {
            let request = pb::WatchEventsRequest { resume_token: resume_token.clone(), ..Default::default() };
            let stream = self.call("WatchEvents", |client| {
                let request = request.clone();
                async move { client.events.clone().watch_events(request).await }
            });
            let mut stream = stream.await.expect("WatchEvents").into_inner();
            while let Ok(Some(message)) = stream.message().await {
                resume_token = message.resume_token;
                let event = message.event.expect("an event");
                let last = is_last(&event);
                told.push(event);
                if last {
                    return told;
                }
            }
            self.another();
        }
    }
}

/// Whether a call may go better elsewhere or later. A connection that breaks shows as `Unknown` or `Internal`, too.
fn is_outage(status: &Status) -> bool {
    use Code::{Aborted, Cancelled, DeadlineExceeded, Internal, Unavailable, Unknown};
    matches!(status.code(), Aborted | Cancelled | DeadlineExceeded | Internal | Unavailable | Unknown)
}
