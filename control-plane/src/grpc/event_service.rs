//! `EventService`.

use carrel_common::wire::WireError;
use carrel_proto::v1 as pb;
use carrel_proto::v1::event_service_server::EventService;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use super::status::bad_field;
use super::watch::{self, Following};
use super::{convert, parse, to_status};
use crate::app::App;
use crate::app::EventQuery;

/// The service.
#[derive(Debug, Clone)]
pub struct Events {
    app: App,
    following: Following,
    tasks: TaskTracker,
}

impl Events {
    /// Streams end when `following` says so; what feeds them runs in `tasks`.
    pub fn new(app: App, following: Following, tasks: TaskTracker) -> Self {
        Self { app, following, tasks }
    }
}

#[tonic::async_trait]
impl EventService for Events {
    async fn list_events(
        &self,
        request: Request<pb::ListEventsRequest>,
    ) -> Result<Response<pb::ListEventsResponse>, Status> {
        let request = request.into_inner();
        let size = parse::page_size(request.page_size).map_err(bad_field)?;
        let query = parse::event_filter(request.filter).map_err(bad_field)?;
        let query = EventQuery { newest_first: request.newest_first, ..query };
        let described = format!("events {query:?}");
        let mark = parse::page_mark(&request.page_token, &described).map_err(bad_field)?;
        let after =
            mark.map(|mark| mark.parse().map_err(|()| WireError::new("page_token", "is not a token")));
        let query = EventQuery { after: after.transpose().map_err(bad_field)?, ..query };
        let (events, more) = self.app.events(&query, size).await.map_err(to_status)?;
        let next = events
            .last()
            .filter(|_| more)
            .map(|last| parse::page_token(&last.position.to_string(), &described));
        Ok(Response::new(pb::ListEventsResponse {
            events: events.into_iter().map(convert::event).collect(),
            next_page_token: next.unwrap_or_default(),
        }))
    }

    type WatchEventsStream = ReceiverStream<Result<pb::WatchEventsResponse, Status>>;

    async fn watch_events(
        &self,
        request: Request<pb::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let request = request.into_inner();
        let query = parse::event_filter(request.filter).map_err(bad_field)?;
        let resume = parse::resume_token(&request.resume_token).map_err(bad_field)?;
        let stand = self.app.stand(resume).await.map_err(to_status)?;
        let (app, token_first) = (self.app.clone(), request.begin_with_token);
        Ok(Response::new(watch::events(app, query, stand, token_first, &self.following, &self.tasks)))
    }
}
