//! `WorkspaceService`.

use carrel_common::wire::{WireError, timestamp};
use carrel_proto::v1 as pb;
use carrel_proto::v1::workspace_service_server::WorkspaceService;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use super::status::bad_field;
use super::watch::{self, Following, Moves};
use super::{convert, parse, policy_convert, to_status};
use crate::app::WorkspaceQuery;
use crate::app::{App, AppError, Extended, LogPart, Tail, WorkspaceView};

/// The service.
#[derive(Debug, Clone)]
pub struct Workspaces {
    app: App,
    following: Following,
    tasks: TaskTracker,
    moves: Moves,
}

impl Workspaces {
    /// Streams end when `following` says so; what feeds them runs in `tasks`.
    pub fn new(app: App, following: Following, tasks: TaskTracker) -> Self {
        Self { app, following, tasks, moves: Moves::default() }
    }
}

type Answer<T> = Result<Response<T>, Status>;

fn shown(view: WorkspaceView) -> Option<pb::Workspace> {
    Some(convert::workspace(view))
}

#[tonic::async_trait]
impl WorkspaceService for Workspaces {
    async fn start_workspace(
        &self,
        request: Request<pb::StartWorkspaceRequest>,
    ) -> Answer<pb::StartWorkspaceResponse> {
        let request = request.into_inner();
        let student = parse::student("student_id", &request.student_id).map_err(bad_field)?;
        let course = parse::course(&request.course_id).map_err(bad_field)?;
        let content = [request.student_id.as_str(), &request.course_id];
        let call = parse::call("StartWorkspace", &request.request_id, &content).map_err(bad_field)?;
        let view = self.app.start(&call, &student, course.as_ref()).await.map_err(to_status)?;
        Ok(Response::new(pb::StartWorkspaceResponse { workspace: shown(view) }))
    }

    async fn stop_workspace(
        &self,
        request: Request<pb::StopWorkspaceRequest>,
    ) -> Answer<pb::StopWorkspaceResponse> {
        let request = request.into_inner();
        let student = parse::workspace_name("name", &request.name).map_err(bad_field)?;
        let why = parse::reason(&request.reason).map_err(bad_field)?;
        use pb::stop_workspace_request::Mode;
        let force = match Mode::try_from(request.mode) {
            Ok(Mode::Force) => true,
            Ok(Mode::Graceful | Mode::Unspecified) => false,
            Err(_) => {
                return Err(bad_field(WireError::new("mode", format!("{} is not a mode", request.mode))));
            }
        };
        let content = [request.name.as_str(), if force { "force" } else { "" }, why];
        let call = parse::call("StopWorkspace", &request.request_id, &content).map_err(bad_field)?;
        let view = self.app.stop(&call, &student, force, why).await.map_err(to_status)?;
        Ok(Response::new(pb::StopWorkspaceResponse { workspace: shown(view) }))
    }

    async fn restart_workspace(
        &self,
        request: Request<pb::RestartWorkspaceRequest>,
    ) -> Answer<pb::RestartWorkspaceResponse> {
        let request = request.into_inner();
        let student = parse::workspace_name("name", &request.name).map_err(bad_field)?;
        let call =
            parse::call("RestartWorkspace", &request.request_id, &[&request.name]).map_err(bad_field)?;
        let view = self.app.restart(&call, &student).await.map_err(to_status)?;
        Ok(Response::new(pb::RestartWorkspaceResponse { workspace: shown(view) }))
    }

    async fn delete_workspace(
        &self,
        request: Request<pb::DeleteWorkspaceRequest>,
    ) -> Answer<pb::DeleteWorkspaceResponse> {
        let request = request.into_inner();
        let student = parse::workspace_name("name", &request.name).map_err(bad_field)?;
        let content = [request.name.as_str(), &request.etag, if request.purge_files { "purge" } else { "" }];
        let call = parse::call("DeleteWorkspace", &request.request_id, &content).map_err(bad_field)?;
        let deleted = self.app.delete(&call, &student, &request.etag, request.purge_files).await;
        let view = deleted.map_err(to_status)?;
        Ok(Response::new(pb::DeleteWorkspaceResponse { workspace: shown(view) }))
    }

    async fn get_workspace(
        &self,
        request: Request<pb::GetWorkspaceRequest>,
    ) -> Answer<pb::GetWorkspaceResponse> {
        let student = parse::workspace_name("name", &request.get_ref().name).map_err(bad_field)?;
        let view = self.app.get(&student).await.map_err(to_status)?;
        Ok(Response::new(pb::GetWorkspaceResponse { workspace: shown(view) }))
    }

    async fn list_workspaces(
        &self,
        request: Request<pb::ListWorkspacesRequest>,
    ) -> Answer<pb::ListWorkspacesResponse> {
        let request = request.into_inner();
        let size = parse::page_size(request.page_size).map_err(bad_field)?;
        let query = parse::filter(request.filter).map_err(bad_field)?;
        let described = format!("workspaces {query:?}");
        let mark = parse::page_mark(&request.page_token, &described).map_err(bad_field)?;
        let query = WorkspaceQuery { after_key: mark.map(str::to_owned), ..query };
        let (views, next) = self.app.list(&query, size).await.map_err(to_status)?;
        Ok(Response::new(pb::ListWorkspacesResponse {
            workspaces: views.into_iter().map(convert::workspace).collect(),
            next_page_token: next.map(|mark| parse::page_token(&mark, &described)).unwrap_or_default(),
        }))
    }

    type WatchWorkspacesStream = ReceiverStream<Result<pb::WatchWorkspacesResponse, Status>>;

    async fn watch_workspaces(
        &self,
        request: Request<pb::WatchWorkspacesRequest>,
    ) -> Answer<Self::WatchWorkspacesStream> {
        let request = request.into_inner();
        let mut query = parse::filter(request.filter).map_err(bad_field)?;
        if query.idle_longer_than.is_some() {
            let problem = "a watch cannot be restricted by time; list instead";
            return Err(bad_field(WireError::new("filter.idle_longer_than", problem)));
        }
        if request.names.len() > parse::MOST_AT_ONCE {
            return Err(bad_field(WireError::new("names", format!("at most {}", parse::MOST_AT_ONCE))));
        }
        for name in &request.names {
            query.keys.push(parse::workspace_name("names", name).map_err(bad_field)?.key());
        }
        let resume = parse::resume_token(&request.resume_token).map_err(bad_field)?;
        let stand = self.app.stand(resume).await.map_err(to_status)?;
        let (app, moves) = (self.app.clone(), self.moves.clone());
        let watch = watch::WorkspaceWatch::new(app, moves, query, stand, resume.is_none());
        Ok(Response::new(watch.stream(&self.following, &self.tasks)))
    }

    async fn record_heartbeat(
        &self,
        request: Request<pb::RecordHeartbeatRequest>,
    ) -> Answer<pb::RecordHeartbeatResponse> {
        let beat = parse::beat(request.get_ref()).map_err(bad_field)?;
        let mut answers = self.app.record(vec![beat]).await.map_err(to_status)?;
        let recorded = answers.pop().unwrap_or(Err(AppError::ShuttingDown)).map_err(to_status)?;
        Ok(Response::new(pb::RecordHeartbeatResponse {
            idle: Some(convert::idle(&recorded.idle)),
            clamped: recorded.clamped,
        }))
    }

    async fn record_heartbeats(
        &self,
        request: Request<pb::RecordHeartbeatsRequest>,
    ) -> Answer<pb::RecordHeartbeatsResponse> {
        let heartbeats = request.into_inner().heartbeats;
        if heartbeats.len() > parse::MOST_AT_ONCE {
            return Err(bad_field(WireError::new(
                "heartbeats",
                format!("at most {} a call", parse::MOST_AT_ONCE),
            )));
        }
        let parsed: Vec<_> = heartbeats.iter().map(parse::beat).collect();
        let good = parsed.iter().filter_map(|beat| beat.as_ref().ok().cloned()).collect();
        let mut answers = self.app.record(good).await.map_err(to_status)?.into_iter();
        let mut results = Vec::with_capacity(parsed.len());
        for (heartbeat, beat) in heartbeats.into_iter().zip(parsed) {
            let outcome = match beat {
                Err(bad) => Err(("INVALID_ARGUMENT", bad.to_string(), None)),
                Ok(_) => match answers.next().unwrap_or(Err(AppError::ShuttingDown)) {
                    Ok(recorded) => Ok(recorded),
                    Err(e @ AppError::GenerationOver { .. }) => {
                        Err(("WORKSPACE_NOT_RUNNING", e.to_string(), None))
                    }
                    Err(e @ AppError::WorkspaceNotFound(_)) => {
                        Err(("WORKSPACE_NOT_FOUND", e.to_string(), None))
                    }
                    Err(AppError::NotRunning { state, stop }) => {
                        let message = AppError::NotRunning { state, stop: None }.to_string();
                        Err(("WORKSPACE_NOT_RUNNING", message, stop.as_deref().map(convert::stop)))
                    }
                    Err(e) if e.is_unreadable() => Err(("INTERNAL", to_status(e).message().to_owned(), None)),
                    // Not one report's fault but the store's: the whole call failed, and can be made again.
                    Err(other) => return Err(to_status(other)),
                },
            };
            use pb::heartbeat_result::Result as P;
            let (result, clamped) = match outcome {
                Ok(recorded) => (P::Idle(convert::idle(&recorded.idle)), recorded.clamped),
                Err((reason, message, stop)) => {
                    (P::Error(pb::HeartbeatError { reason: reason.into(), message, stop }), false)
                }
            };
            results.push(pb::HeartbeatResult { name: heartbeat.name, result: Some(result), clamped });
        }
        Ok(Response::new(pb::RecordHeartbeatsResponse { results }))
    }

    async fn extend_workspace(
        &self,
        request: Request<pb::ExtendWorkspaceRequest>,
    ) -> Answer<pb::ExtendWorkspaceResponse> {
        let request = request.into_inner();
        let student = parse::workspace_name("name", &request.name).map_err(bad_field)?;
        let why = parse::reason(&request.reason).map_err(bad_field)?;
        let asked = format!("{:?}", request.extent);
        let extent = parse::extent(request.extent).map_err(bad_field)?;
        let content = [request.name.as_str(), &asked, why];
        let call = parse::call("ExtendWorkspace", &request.request_id, &content).map_err(bad_field)?;
        let Extended { idle, until, clamped } =
            self.app.extend(&call, &student, extent, why).await.map_err(to_status)?;
        Ok(Response::new(pb::ExtendWorkspaceResponse {
            idle: Some(convert::idle(&idle)),
            extended_until_time: Some(timestamp(until)),
            clamped,
        }))
    }

    async fn explain_idle(
        &self,
        request: Request<pb::ExplainIdleRequest>,
    ) -> Answer<pb::ExplainIdleResponse> {
        let student = parse::workspace_name("name", &request.get_ref().name).map_err(bad_field)?;
        let told = self.app.explain_idle(&student).await.map_err(to_status)?;
        Ok(Response::new(pb::ExplainIdleResponse { explanation: Some(policy_convert::explanation(told)) }))
    }

    async fn create_access(
        &self,
        request: Request<pb::CreateAccessRequest>,
    ) -> Answer<pb::CreateAccessResponse> {
        let request = request.into_inner();
        let student = parse::workspace_name("name", &request.name).map_err(bad_field)?;
        if pb::create_access_request::Purpose::try_from(request.purpose).is_err() {
            return Err(bad_field(WireError::new(
                "purpose",
                format!("{} is not a purpose", request.purpose),
            )));
        }
        let url = self.app.editor_url(&student).await.map_err(to_status)?;
        Ok(Response::new(pb::CreateAccessResponse { url }))
    }

    type TailWorkspaceLogsStream = ReceiverStream<Result<pb::TailWorkspaceLogsResponse, Status>>;

    async fn tail_workspace_logs(
        &self,
        request: Request<pb::TailWorkspaceLogsRequest>,
    ) -> Answer<Self::TailWorkspaceLogsStream> {
        let request = request.into_inner();
        let student = parse::workspace_name("name", &request.name).map_err(bad_field)?;
        let lines = parse::lines(request.lines).map_err(bad_field)?;
        let tail = self.app.tail(&student, lines, request.follow).await.map_err(to_status)?;
        let (to, stream) = tokio::sync::mpsc::channel(16);
        self.tasks.spawn(tell_log(tail, to, self.following.stop.clone()));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Tells a log until it ends or nobody listens.
async fn tell_log(
    mut tail: Tail,
    to: tokio::sync::mpsc::Sender<Result<pb::TailWorkspaceLogsResponse, Status>>,
    stop: CancellationToken,
) {
    loop {
        let part = tokio::select! {
            // Every other arm ends the log, so what is lost when one of them wins is not missed.
            part = tail.next() => part,
            () = to.closed() => None,
            () = stop.cancelled() => Some(LogPart::Broken("this replica is shutting down".into())),
        };
        let (message, last) = match part {
            None => break,
            Some(LogPart::Text { generation, text }) => {
                (Ok(pb::TailWorkspaceLogsResponse { chunk: Some(pb::LogChunk { generation, text }) }), false)
            }
            Some(LogPart::Broken(why)) => (Err(to_status(AppError::LogBroken { why })), true),
        };
        if to.send(message).await.is_err() || last {
            break;
        }
    }
    tail.close().await;
}
