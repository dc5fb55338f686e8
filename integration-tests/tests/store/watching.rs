//! Watches as callers have them: what is told after a break, how often, and with which token.

use std::time::Duration;

use carrel_proto::v1 as pb;
use carrel_proto::v1::event_service_server::EventService as _;
use carrel_proto::v1::workspace::State;
use carrel_proto::v1::workspace_change::Kind;
use carrel_proto::v1::workspace_service_server::WorkspaceService as _;
use control_plane::domain::policy::Policy;
use control_plane::grpc::{Events, Following, Workspaces};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Status};

use crate::rig::{Rig, call, id};

type Messages<T> = ReceiverStream<Result<T, Status>>;

/// The next message; panics when none comes.
async fn next<T>(messages: &mut Messages<T>) -> T {
    let told = tokio::time::timeout(Duration::from_secs(20), messages.next()).await;
    told.expect("a message in time").expect("no end").unwrap()
}

struct Watch(Messages<pb::WatchWorkspacesResponse>);

impl Watch {
    async fn open(rig: &Rig, request: pb::WatchWorkspacesRequest) -> Self {
        let following = Following { stop: CancellationToken::new() };
        let door = Workspaces::new(rig.app.clone(), following, TaskTracker::new());
        Self(door.watch_workspaces(Request::new(request)).await.unwrap().into_inner())
    }

    async fn next(&mut self) -> pb::WorkspaceChange {
        next(&mut self.0).await.change.unwrap()
    }

    /// Reads up to a message of this kind about a student; who has left up to it.
    async fn until(&mut self, who: &str, kind: Kind) -> Vec<String> {
        let mut left = Vec::new();
        loop {
            let change = self.next().await;
            if change.kind() == Kind::Left {
                left.push(student(&change).to_owned());
            }
            if (student(&change), change.kind()) == (who, kind) {
                return left;
            }
        }
    }

    /// Reads up to SYNCED; the token that comes with it.
    async fn synced(&mut self) -> String {
        loop {
            let change = self.next().await;
            if change.kind() == Kind::Synced {
                return change.resume_token;
            }
        }
    }
}

/// A watch of what runs.
fn running(resume_token: &str) -> pb::WatchWorkspacesRequest {
    let filter = pb::WorkspaceFilter { states: vec![State::Running.into()], ..Default::default() };
    pb::WatchWorkspacesRequest {
        filter: Some(filter),
        resume_token: resume_token.to_owned(),
        ..Default::default()
    }
}

fn student(change: &pb::WorkspaceChange) -> &str {
    &change.workspace.as_ref().expect("a workspace").student_id
}

/// Whoever reads the log from now on finds all that was written: transactions of other tests in the same Postgres hold readers
/// back for moments.
async fn all_is_visible(rig: &Rig) {
    let hidden = "SELECT count(*)::text FROM events WHERE xid >= pg_snapshot_xmin(pg_current_snapshot())::text::bigint";
    while rig.database.text(hidden).await != "0" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_watch_that_breaks_amid_what_was_read_at_once_is_told_the_rest_when_it_is_resumed() {
    let rig = Rig::new().await;
    let node = rig.node(8).await;
    for student in ["ada", "bob", "eve"] {
        rig.running(node, student).await;
    }
    let token = Watch::open(&rig, pb::WatchWorkspacesRequest::default()).await.synced().await;
    rig.stop("ada").await;
    rig.app.delete(&call("DeleteWorkspace"), &id("bob"), "", false).await.unwrap();
    rig.stop("eve").await;
    rig.obey(node).await;
    all_is_visible(&rig).await;

    let resume = async |resume_token: String| {
        Watch::open(&rig, pb::WatchWorkspacesRequest { resume_token, ..Default::default() }).await
    };
    let first = resume(token).await.next().await;
    let mut watch = resume(first.resume_token).await;
    let mut told = Vec::new();
    for _ in 0..3 {
        told.push(watch.next().await);
    }
    let mut students: Vec<_> = told.iter().map(|change| (student(change), change.kind())).collect();
    students.sort_unstable();
    assert_eq!(students, [("ada", Kind::Changed), ("bob", Kind::Deleted), ("eve", Kind::Changed)]);
    // Once all of it is told, it is not told again.
    watch = resume(told.pop().unwrap().resume_token).await;
    rig.start("kim").await.unwrap();
    assert_eq!(student(&watch.next().await), "kim");
    drop(watch);
    rig.end().await;
}

#[tokio::test]
async fn a_watch_that_is_resumed_tells_once_of_a_desk_that_is_not_in_its_filter() {
    let rig = Rig::new().await;
    let node = rig.node(8).await;
    rig.running(node, "ada").await;
    rig.was_on(node, "bob").await;
    all_is_visible(&rig).await;
    let resume_token = Watch::open(&rig, running("")).await.synced().await;
    let mut watch = Watch::open(&rig, running(&resume_token)).await;
    // What the watch is to tell is waited for: two changes that are read at once are told as one.
    rig.start("bob").await.unwrap();
    let mut left = watch.until("bob", Kind::Left).await;
    rig.stop("bob").await;
    rig.obey(node).await;
    rig.stop("ada").await;
    left.extend(watch.until("ada", Kind::Left).await);
    rig.obey(node).await;
    rig.running(node, "ada").await;
    left.extend(watch.until("ada", Kind::Changed).await);
    rig.stop("ada").await;
    left.extend(watch.until("ada", Kind::Left).await);
    assert_eq!(left, ["bob", "ada", "ada"]);
    drop(watch);
    rig.end().await;
}

#[tokio::test]
async fn a_desk_that_was_told_for_its_deadline_alone_is_told_when_it_leaves() {
    let rig = Rig::new().await;
    let node = rig.node(8).await;
    rig.running(node, "bob").await;
    let mut watch = Watch::open(&rig, running("")).await;
    watch.synced().await;
    // Readers of the log are held back, and a policy moves everybody's deadline.
    let held_back = rig.database.hold("SELECT pg_current_xact_id()").await;
    rig.running(node, "ada").await;
    let idle_timeout = Some(Duration::from_secs(3600));
    let longer = Policy { idle_timeout, ..Policy::default() };
    rig.app.set_policy(&call("SetPolicy"), &"site".parse().unwrap(), "", &longer).await.unwrap();
    rig.app.refresh_rules().await.unwrap();
    watch.until("ada", Kind::Changed).await;
    rig.stop("ada").await;
    drop(held_back);
    watch.until("ada", Kind::Left).await;
    drop(watch);
    rig.end().await;
}

#[tokio::test]
async fn a_desk_that_is_deleted_and_made_again_before_the_log_is_read_is_told_as_deleted_first() {
    let rig = Rig::new().await;
    let node = rig.node(8).await;
    rig.was_on(node, "eve").await;
    let before = rig.get("eve").await.uid;
    all_is_visible(&rig).await;
    let mut live = Watch::open(&rig, pb::WatchWorkspacesRequest::default()).await;
    let resume_token = live.synced().await;
    let held_back = rig.database.hold("SELECT pg_current_xact_id()").await;
    rig.app.delete(&call("DeleteWorkspace"), &id("eve"), "", false).await.unwrap();
    let after = rig.start("eve").await.unwrap().uid;
    assert_ne!(before, after);
    drop(held_back);
    all_is_visible(&rig).await;

    let of_all = pb::WatchWorkspacesRequest { resume_token, ..Default::default() };
    let of_eve = pb::WatchWorkspacesRequest { names: vec!["workspaces/Eve".to_owned()], ..of_all.clone() };
    for mut watch in [live, Watch::open(&rig, of_all).await, Watch::open(&rig, of_eve).await] {
        let deleted = watch.next().await;
        let workspace = pb::Workspace {
            name: "workspaces/eve".to_owned(),
            uid: before.to_string(),
            student_id: "eve".to_owned(),
            ..Default::default()
        };
        assert_eq!((deleted.kind(), deleted.workspace), (Kind::Deleted, Some(workspace)));
        let made = watch.next().await;
        assert_eq!((made.kind(), made.workspace.unwrap().uid), (Kind::Changed, after.to_string()));
    }
    rig.end().await;
}

async fn watch_events(rig: &Rig, request: pb::WatchEventsRequest) -> Messages<pb::WatchEventsResponse> {
    let following = Following { stop: CancellationToken::new() };
    let door = Events::new(rig.app.clone(), following, TaskTracker::new());
    door.watch_events(Request::new(request)).await.unwrap().into_inner()
}

#[tokio::test]
async fn events_can_be_followed_from_a_token_that_is_there_before_the_first_of_them() {
    let rig = Rig::new().await;
    rig.node(8).await;
    all_is_visible(&rig).await;
    let types = vec!["workspace.requested".to_owned()];
    let request = pb::WatchEventsRequest {
        filter: Some(pb::EventFilter { types, ..Default::default() }),
        ..Default::default()
    };
    // Who did not ask for it reads an event from every message.
    let mut plain = watch_events(&rig, request.clone()).await;
    let with_token = pb::WatchEventsRequest { begin_with_token: true, ..request.clone() };
    let begin = next(&mut watch_events(&rig, with_token).await).await;
    assert_eq!(begin.event, None);
    rig.start("ada").await.unwrap();
    let resumed = pb::WatchEventsRequest { resume_token: begin.resume_token, ..request };
    for told in [next(&mut plain).await, next(&mut watch_events(&rig, resumed).await).await] {
        let event = told.event.expect("an event");
        assert_eq!(
            (event.r#type.as_str(), event.workspace.as_str()),
            ("workspace.requested", "workspaces/ada")
        );
    }
    rig.end().await;
}
