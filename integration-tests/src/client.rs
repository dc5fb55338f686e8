//! Talks to the control plane as an LMS would.

use std::time::{Duration, Instant};

use carrel_proto::v1::event_service_client::EventServiceClient;
use carrel_proto::v1::node_service_client::NodeServiceClient;
use carrel_proto::v1::policy_service_client::PolicyServiceClient;
use carrel_proto::v1::workspace_change::Kind;
use carrel_proto::v1::workspace_service_client::WorkspaceServiceClient;
use carrel_proto::v1::{self as pb, workspace::State};
use futures_util::StreamExt as _;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Longer than any state of a healthy workspace lasts on a busy machine.
const PATIENCE: Duration = Duration::from_secs(45);

/// The control plane's clients. Cheap to clone; reconnects by itself.
#[derive(Clone, Debug)]
pub struct Client {
    /// `WorkspaceService`, for what has no method here.
    pub workspaces: WorkspaceServiceClient<Channel>,
    /// `PolicyService`.
    pub policies: PolicyServiceClient<Channel>,
    /// `EventService`.
    pub events: EventServiceClient<Channel>,
    /// `NodeService`.
    pub nodes: NodeServiceClient<Channel>,
}

/// The resource name of a student's workspace.
pub fn name_of(student: &str) -> String {
    format!("workspaces/{student}")
}

/// The stable reason of an error.
pub fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// The fields that an error complains of.
pub fn violations(status: &Status) -> Vec<String> {
    let bad = status.get_details_bad_request();
    bad.map(|bad| bad.field_violations.into_iter().map(|v| v.field).collect()).unwrap_or_default()
}

/// The moment a timestamp tells, in milliseconds since 1970.
pub fn millis(time: Option<prost_types::Timestamp>) -> i64 {
    let time = time.expect("the time is set");
    time.seconds * 1000 + i64::from(time.nanos) / 1_000_000
}

impl Client {
    /// A client of the server at `address`, which need not be up yet.
    pub fn of(address: &str) -> Self {
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .expect("an address")
            .connect_timeout(Duration::from_secs(2))
            .tcp_nodelay(true)
            .connect_lazy();
        Self {
            workspaces: WorkspaceServiceClient::new(channel.clone()),
            policies: PolicyServiceClient::new(channel.clone()),
            events: EventServiceClient::new(channel.clone()),
            nodes: NodeServiceClient::new(channel),
        }
    }

    /// StartWorkspace.
    pub async fn try_start(&self, student: &str) -> Result<pb::Workspace, Status> {
        let request = pb::StartWorkspaceRequest { student_id: student.into(), ..Default::default() };
        let response = self.workspaces.clone().start_workspace(request).await?;
        Ok(response.into_inner().workspace.expect("a workspace"))
    }

    /// StartWorkspace that must work.
    pub async fn start(&self, student: &str) -> pb::Workspace {
        self.try_start(student).await.expect("StartWorkspace")
    }

    /// StartWorkspace, then waits for RUNNING.
    pub async fn start_and_wait(&self, student: &str) -> pb::Workspace {
        let started = self.start(student).await;
        let ready = |w: &pb::Workspace| w.state() == State::Running && w.generation >= started.generation;
        self.wait_until(student, "RUNNING", ready).await
    }

    /// StopWorkspace.
    pub async fn try_stop(&self, student: &str) -> Result<pb::Workspace, Status> {
        let request = pb::StopWorkspaceRequest { name: name_of(student), ..Default::default() };
        let response = self.workspaces.clone().stop_workspace(request).await?;
        Ok(response.into_inner().workspace.expect("a workspace"))
    }

    /// StopWorkspace that must work, then waits for STOPPED.
    pub async fn stop_and_wait(&self, student: &str) -> pb::Workspace {
        self.try_stop(student).await.expect("StopWorkspace");
        self.wait_for(student, State::Stopped).await
    }

    /// RestartWorkspace that must work.
    pub async fn restart(&self, student: &str) -> pb::Workspace {
        let request = pb::RestartWorkspaceRequest { name: name_of(student), ..Default::default() };
        let response = self.workspaces.clone().restart_workspace(request).await.expect("RestartWorkspace");
        response.into_inner().workspace.expect("a workspace")
    }

    /// DeleteWorkspace.
    pub async fn try_delete(&self, student: &str, etag: &str, purge: bool) -> Result<pb::Workspace, Status> {
        let request = pb::DeleteWorkspaceRequest {
            name: name_of(student),
            etag: etag.into(),
            purge_files: purge,
            ..Default::default()
        };
        let response = self.workspaces.clone().delete_workspace(request).await?;
        Ok(response.into_inner().workspace.expect("a workspace"))
    }

    /// DeleteWorkspace that must work, then waits until the workspace is not found.
    pub async fn delete_and_wait(&self, student: &str, purge: bool) {
        self.try_delete(student, "", purge).await.expect("DeleteWorkspace");
        let start = Instant::now();
        loop {
            match self.try_get(student).await {
                Err(status) if status.code() == Code::NotFound => return,
                Ok(last) => assert!(start.elapsed() < PATIENCE, "{student} is still there: {last:#?}"),
                Err(status) => panic!("GetWorkspace: {status}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// GetWorkspace.
    pub async fn try_get(&self, student: &str) -> Result<pb::Workspace, Status> {
        let request = pb::GetWorkspaceRequest { name: name_of(student) };
        let response = self.workspaces.clone().get_workspace(request).await?;
        Ok(response.into_inner().workspace.expect("a workspace"))
    }

    /// GetWorkspace that must work.
    pub async fn get(&self, student: &str) -> pb::Workspace {
        self.try_get(student).await.expect("GetWorkspace")
    }

    /// RecordHeartbeat.
    pub async fn try_heartbeat(&self, student: &str) -> Result<pb::Idle, Status> {
        let request = pb::RecordHeartbeatRequest { name: name_of(student), ..Default::default() };
        let response = self.workspaces.clone().record_heartbeat(request).await?;
        Ok(response.into_inner().idle.expect("a deadline"))
    }

    /// The editor's address.
    pub async fn access(&self, student: &str) -> String {
        let request = pb::CreateAccessRequest { name: name_of(student), ..Default::default() };
        let response = self.workspaces.clone().create_access(request).await.expect("CreateAccess");
        response.into_inner().url
    }

    /// The last lines of the container's output, each with its generation.
    pub async fn try_logs(&self, student: &str, lines: i32) -> Result<Vec<(i64, String)>, Status> {
        let request = pb::TailWorkspaceLogsRequest { name: name_of(student), lines, follow: false };
        let mut stream = self.workspaces.clone().tail_workspace_logs(request).await?.into_inner();
        let mut all = Vec::new();
        while let Some(piece) = stream.message().await? {
            let chunk = piece.chunk.expect("a chunk");
            all.extend(chunk.text.lines().map(|line| (chunk.generation, line.to_owned())));
        }
        Ok(all)
    }

    /// All kept events of a workspace, oldest first.
    pub async fn events_of(&self, student: &str) -> Vec<pb::Event> {
        let filter = pb::EventFilter { workspace: name_of(student), ..Default::default() };
        self.list_events(filter).await
    }

    /// All kept events that pass a filter, oldest first.
    pub async fn list_events(&self, filter: pb::EventFilter) -> Vec<pb::Event> {
        let mut request =
            pb::ListEventsRequest { page_size: 500, filter: Some(filter), ..Default::default() };
        let mut all = Vec::new();
        loop {
            let response =
                self.events.clone().list_events(request.clone()).await.expect("ListEvents").into_inner();
            all.extend(response.events);
            if response.next_page_token.is_empty() {
                return all;
            }
            request.page_token = response.next_page_token;
        }
    }

    /// Watches one student's workspace until it is in this state.
    pub async fn wait_for(&self, student: &str, state: State) -> pb::Workspace {
        self.wait_until(student, state.as_str_name(), |w| w.state() == state).await
    }

    /// Watches one student's workspace until it is as wanted; over outages of the server, too.
    pub async fn wait_until(
        &self,
        student: &str,
        wanted: &str,
        is_so: impl Fn(&pb::Workspace) -> bool,
    ) -> pb::Workspace {
        self.wait_within(PATIENCE, student, wanted, is_so).await
    }

    /// As `wait_until`, with a time of its own.
    pub async fn wait_within(
        &self,
        within: Duration,
        student: &str,
        wanted: &str,
        is_so: impl Fn(&pb::Workspace) -> bool,
    ) -> pb::Workspace {
        let mut last = None;
        let watch = async {
            loop {
                if let Some(workspace) = self.watch_once(student, &is_so, &mut last).await {
                    return workspace;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let found = tokio::time::timeout(within, watch).await;
        found.unwrap_or_else(|_| panic!("{student} is not {wanted} within {within:?}; last seen: {last:#?}"))
    }

    /// `None` when the stream ended first.
    async fn watch_once(
        &self,
        student: &str,
        is_so: &impl Fn(&pb::Workspace) -> bool,
        last: &mut Option<Result<pb::Workspace, Status>>,
    ) -> Option<pb::Workspace> {
        let request = pb::WatchWorkspacesRequest { names: vec![name_of(student)], ..Default::default() };
        let mut stream = match self.workspaces.clone().watch_workspaces(request).await {
            Ok(response) => response.into_inner(),
            Err(status) => {
                *last = Some(Err(status));
                return None;
            }
        };
        while let Some(message) = stream.next().await {
            match message {
                Ok(response) => {
                    let change = response.change.expect("a change");
                    if let (Kind::Snapshot | Kind::Changed, Some(workspace)) =
                        (change.kind(), change.workspace)
                    {
                        if is_so(&workspace) {
                            return Some(workspace);
                        }
                        *last = Some(Ok(workspace));
                    }
                }
                Err(status) => {
                    *last = Some(Err(status));
                    return None;
                }
            }
        }
        None
    }
}
