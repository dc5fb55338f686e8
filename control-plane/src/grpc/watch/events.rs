//! One caller's watch of the event log itself.

use carrel_proto::v1 as pb;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;

use super::{BUFFER, Following, Message, news, same_log, token};
use crate::app::{App, AppError, EventQuery, Position};
use crate::grpc::{convert, to_status};

/// Follows the event log itself; with `token_first` where it begins is told before any event.
pub(in crate::grpc) fn events(
    app: App,
    query: EventQuery,
    mut stand: Position,
    token_first: bool,
    following: &Following,
    tasks: &TaskTracker,
) -> ReceiverStream<Message<pb::WatchEventsResponse>> {
    let (to, stream) = mpsc::channel(BUFFER);
    let (stop, incarnation) = (following.stop.clone(), app.state.incarnation());
    tasks.spawn(async move {
        let mut bell = app.nudge.events();
        if token_first {
            let resume_token = token(incarnation, stand);
            to.send(Ok(pb::WatchEventsResponse { event: None, resume_token })).await.ok();
        }
        loop {
            let found = match same_log(&app, incarnation) {
                Ok(()) => app.events_after(&query, stand).await,
                Err(error) => Err(error),
            };
            match found {
                Err(error) => {
                    to.send(Err(to_status(error))).await.ok();
                    return;
                }
                Ok(events) if events.is_empty() => {
                    if !news(&mut bell, &to, &stop).await {
                        if stop.is_cancelled() {
                            to.send(Err(to_status(AppError::ShuttingDown))).await.ok();
                        }
                        return;
                    }
                }
                Ok(events) => {
                    for event in events {
                        stand = event.position;
                        let resume_token = token(incarnation, stand);
                        let told =
                            pb::WatchEventsResponse { event: Some(convert::event(event)), resume_token };
                        if to.send(Ok(told)).await.is_err() {
                            return;
                        }
                    }
                }
            }
        }
    });
    ReceiverStream::new(stream)
}
