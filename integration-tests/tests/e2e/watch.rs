//! Watches: a snapshot, then every change, and after a break exactly what was missed.

use std::time::Duration;

use carrel_proto::v1::workspace::State;
use carrel_proto::v1::workspace_change::Kind;
use carrel_proto::v1::{self as pb};
use integration_tests::client::{Client, name_of};
use integration_tests::cluster::{Cluster, Options};
use tonic::{Code, Streaming};

struct Watch(Streaming<pb::WatchWorkspacesResponse>);

impl Watch {
    async fn open(client: &Client, request: pb::WatchWorkspacesRequest) -> Self {
        Self(client.workspaces.clone().watch_workspaces(request).await.expect("a watch").into_inner())
    }

    /// The next message; panics when none comes.
    async fn next(&mut self) -> pb::WorkspaceChange {
        let message =
            tokio::time::timeout(Duration::from_secs(20), self.0.message()).await.expect("a message in time");
        message.expect("no error").expect("no end").change.expect("a change")
    }

    /// Reads to the first message of this kind and state of a student.
    async fn until(
        &mut self,
        student: &str,
        is_so: impl Fn(&pb::WorkspaceChange) -> bool,
    ) -> pb::WorkspaceChange {
        loop {
            let change = self.next().await;
            if change.workspace.as_ref().is_some_and(|w| w.student_id == student) && is_so(&change) {
                return change;
            }
        }
    }

    /// The students of the snapshot, up to SYNCED, and the token that came with it.
    async fn snapshot(&mut self) -> (Vec<String>, String) {
        let mut students = Vec::new();
        loop {
            let change = self.next().await;
            match change.kind() {
                Kind::Snapshot => students.push(change.workspace.expect("a workspace").student_id),
                Kind::Synced => {
                    students.sort();
                    return (students, change.resume_token);
                }
                other => panic!("{other:?} before SYNCED"),
            }
        }
    }
}

fn in_state(state: State) -> impl Fn(&pb::WorkspaceChange) -> bool {
    move |change| change.workspace.as_ref().is_some_and(|w| w.state() == state)
}

#[tokio::test]
async fn a_watch_gives_a_snapshot_then_changes_then_a_deletion() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let mut watch = Watch::open(&client, pb::WatchWorkspacesRequest::default()).await;
    let (students, token) = watch.snapshot().await;
    assert_eq!(students, ["ada"]);
    assert!(!token.is_empty(), "SYNCED can be resumed from");

    client.start("bob").await;
    let running = watch.until("bob", in_state(State::Running)).await;
    assert_eq!(running.kind(), Kind::Changed);
    assert!(!running.resume_token.is_empty());
    client.try_delete("bob", "", false).await.unwrap();
    let deleted = watch.until("bob", |change| change.kind() == Kind::Deleted).await;
    assert_eq!(deleted.workspace.unwrap().name, "workspaces/bob");
}

#[tokio::test]
async fn a_resumed_watch_gives_what_was_missed_and_no_snapshot() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    let mut watch = Watch::open(&client, pb::WatchWorkspacesRequest::default()).await;
    watch.snapshot().await;
    client.start("ada").await;
    let token = watch.until("ada", in_state(State::Running)).await.resume_token;
    drop(watch);

    client.stop_and_wait("ada").await;
    client.start("bob").await;
    client.start("eve").await;
    client.delete_and_wait("eve", false).await;
    let mut request = pb::WatchWorkspacesRequest { resume_token: token, ..Default::default() };
    let mut watch = Watch::open(&client, request.clone()).await;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let change = watch.next().await;
        assert!(matches!(change.kind(), Kind::Changed | Kind::Deleted), "{change:?}");
        let student = change.workspace.as_ref().unwrap().student_id.clone();
        let is_last_of_ada = student != "ada" || in_state(State::Stopped)(&change);
        if is_last_of_ada && !seen.contains(&student) {
            seen.push(student);
        }
    }
    seen.sort();
    assert_eq!(seen, ["ada", "bob", "eve"]);

    request.resume_token = "nonsense".into();
    let refused = client.workspaces.clone().watch_workspaces(request).await;
    let status = match refused {
        Err(status) => status,
        Ok(response) => response.into_inner().message().await.unwrap_err(),
    };
    assert!(matches!(status.code(), Code::InvalidArgument | Code::OutOfRange), "{status}");
}

#[tokio::test]
async fn a_watch_outlives_a_new_control_plane_by_its_token() {
    let mut cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    let mut watch = Watch::open(&client, pb::WatchWorkspacesRequest::default()).await;
    watch.snapshot().await;
    client.start("ada").await;
    let token = watch.until("ada", in_state(State::Running)).await.resume_token;
    cluster.control_plane().kill();
    cluster.start_control_plane().await;
    client.try_stop("ada").await.unwrap();
    let request = pb::WatchWorkspacesRequest { resume_token: token, ..Default::default() };
    let mut watch = Watch::open(&client, request).await;
    watch.until("ada", in_state(State::Stopped)).await;
}

#[tokio::test]
async fn a_desk_that_leaves_the_filter_is_told_once_more() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    client.start_and_wait("bob").await;
    client.stop_and_wait("bob").await;
    let filter = pb::WorkspaceFilter { states: vec![State::Running.into()], ..Default::default() };
    let request = pb::WatchWorkspacesRequest { filter: Some(filter.clone()), ..Default::default() };
    let mut watch = Watch::open(&client, request).await;
    assert_eq!(watch.snapshot().await.0, ["ada"]);
    client.try_stop("ada").await.unwrap();
    let left = watch.until("ada", |_| true).await;
    assert_eq!(left.kind(), Kind::Left);

    let listed = client
        .workspaces
        .clone()
        .list_workspaces(pb::ListWorkspacesRequest {
            filter: Some(pb::WorkspaceFilter { states: vec![State::Stopped.into()], ..Default::default() }),
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert!(listed.workspaces.iter().any(|w| w.student_id == "bob"));

    let idle = pb::WorkspaceFilter {
        idle_longer_than: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        ..filter
    };
    let request = pb::WatchWorkspacesRequest { filter: Some(idle), ..Default::default() };
    let status = client.workspaces.clone().watch_workspaces(request).await.map(|_| ()).unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_watch_of_names_tells_of_no_other() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    client.start("bob").await;
    let request = pb::WatchWorkspacesRequest { names: vec![name_of("ada")], ..Default::default() };
    let mut watch = Watch::open(&client, request).await;
    assert_eq!(watch.snapshot().await.0, Vec::<String>::new());
    client.try_stop("bob").await.unwrap();
    client.start("ada").await;
    let first = watch.next().await;
    assert_eq!(first.workspace.unwrap().student_id, "ada");
}

#[tokio::test]
async fn those_who_wait_are_told_where_they_stand_as_the_line_moves() {
    let cluster = Cluster::start(Options::new().agent_flag("max-workspaces", "1")).await;
    let client = cluster.client();
    client.start_and_wait("occupant").await;
    for student in ["ada", "bob", "eve"] {
        client.start(student).await;
    }
    let names = vec![name_of("eve")];
    let mut watch = Watch::open(&client, pb::WatchWorkspacesRequest { names, ..Default::default() }).await;
    let stands_at = |position: i32| {
        move |change: &pb::WorkspaceChange| {
            let progress = change.workspace.as_ref().and_then(|w| w.progress);
            progress.is_some_and(|progress| progress.queue_position == position)
        }
    };
    let told = watch.until("eve", stands_at(3)).await.workspace.unwrap();
    assert!(told.status_message.contains("workspaces: 0 of 1 nodes take one more"), "{told:?}");
    // The first leaves the line; nothing happens to eve's own desk but that.
    client.try_stop("ada").await.unwrap();
    let moved = watch.until("eve", stands_at(2)).await.workspace.unwrap();
    assert_eq!((moved.version, moved.etag), (told.version, told.etag), "it is told, not written");
    client.try_stop("occupant").await.unwrap();
    // Once bob runs, it is known when he would be idle.
    let is_told_when = |change: &pb::WorkspaceChange| {
        let progress = change.workspace.as_ref().and_then(|w| w.progress);
        stands_at(1)(change) && progress.is_some_and(|progress| progress.estimated_ready_time.is_some())
    };
    watch.until("eve", is_told_when).await;
}

/// The deadline that a change tells, with its version.
fn deadline(change: &pb::WorkspaceChange) -> Option<(prost_types::Timestamp, i64)> {
    let idle = change.workspace.as_ref()?.idle.as_ref()?;
    Some((idle.deadline_time?, idle.deadline_version))
}

#[tokio::test]
async fn a_deadline_that_activity_moved_is_told() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    client.start_and_wait("bob").await;
    let names = vec![name_of("ada")];
    let of_ada = pb::WatchWorkspacesRequest { names, ..Default::default() };
    let states = vec![State::Running.into()];
    let filter = Some(pb::WorkspaceFilter { states, ..Default::default() });
    let of_all = pb::WatchWorkspacesRequest { filter, ..Default::default() };
    let mut watches = Vec::new();
    for request in [of_ada, of_all] {
        let mut watch = Watch::open(&client, request.clone()).await;
        let token = watch.snapshot().await.1;
        watches.push(watch);
        // One that is resumed does not know what its reader knows.
        let resumed = Watch::open(&client, pb::WatchWorkspacesRequest { resume_token: token, ..request });
        let mut resumed = resumed.await;
        resumed.until("ada", |change| deadline(change).is_some()).await;
        watches.push(resumed);
    }
    let beat = pb::RecordHeartbeatRequest { name: name_of("ada"), ..Default::default() };
    let before = client.get("ada").await.version;
    let answer = client.workspaces.clone().record_heartbeat(beat).await.unwrap().into_inner().idle.unwrap();
    let moved = (answer.deadline_time.unwrap(), answer.deadline_version);
    for watch in &mut watches {
        let told = watch.until("ada", |change| deadline(change) == Some(moved)).await;
        assert_eq!(told.kind(), Kind::Changed);
        assert_eq!(told.workspace.unwrap().version, before, "it is told, not written");
    }
}

#[tokio::test]
async fn a_quiet_window_is_told_when_it_begins_and_when_it_ends_and_a_policy_when_it_moves_a_deadline() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    let names = vec![name_of("ada")];
    let mut watch = Watch::open(&client, pb::WatchWorkspacesRequest { names, ..Default::default() }).await;
    watch.snapshot().await;
    let first = client.get("ada").await.idle.unwrap().deadline_time.unwrap();
    let set = async |policy: pb::Policy| {
        let request = pb::SetPolicyRequest { policy: Some(policy), ..Default::default() };
        client.policies.clone().set_policy(request).await.unwrap();
    };
    let name = "policies/student-ada".to_owned();
    let idle_timeout = Some(prost_types::Duration { seconds: 1800, nanos: 0 });
    set(pb::Policy { name: name.clone(), idle_timeout, ..Default::default() }).await;
    watch.until("ada", |change| deadline(change).is_some_and(|(at, _)| at.seconds > first.seconds)).await;

    // Of an exam that is far away nothing is to be told but its beginning and its end.
    let now = std::time::SystemTime::now();
    let after = |seconds| Some(prost_types::Timestamp::from(now + Duration::from_secs(seconds)));
    let exam = pb::QuietWindow { start_time: after(3), end_time: after(6), ..Default::default() };
    set(pb::Policy { name, idle_timeout, quiet_windows: vec![exam], ..Default::default() }).await;
    use pb::idle::Clock;
    let clock_is = |clock: Clock| {
        move |change: &pb::WorkspaceChange| {
            change.workspace.as_ref().and_then(|w| w.idle.as_ref()).is_some_and(|idle| idle.clock() == clock)
        }
    };
    watch.until("ada", clock_is(Clock::PausedQuiet)).await;
    watch.until("ada", clock_is(Clock::Running)).await;
}

/// Several clients write at once, so that transactions commit in another order than they began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_event_is_missed_and_none_is_told_twice() {
    const WRITERS: usize = 6;
    const ROUNDS: usize = 25;
    // One place, taken: the others wait in line, so that this is about events and not about containers.
    let cluster = Cluster::start(Options::new().agent_flag("max-workspaces", "1")).await;
    let client = cluster.client();
    client.start_and_wait("occupant").await;
    client.start("first").await;
    let watching = client.events.clone().watch_events(pb::WatchEventsRequest::default()).await;
    let mut watching = watching.expect("a watch").into_inner();
    // A watch is from now on: wait until its first event is there.
    let mut seen: Vec<pb::Event> = Vec::new();
    while seen.is_empty() {
        client.try_stop("first").await.unwrap();
        client.start("first").await;
        if let Ok(message) = tokio::time::timeout(Duration::from_millis(500), watching.message()).await {
            seen.extend(message.expect("no error").expect("no end").event);
        }
    }

    let writers = (0..WRITERS).map(|writer| {
        let client = cluster.client();
        tokio::spawn(async move {
            for round in 0..ROUNDS {
                let student = format!("s{writer}-{round}");
                client.start(&student).await;
                client.try_stop(&student).await.expect("stopped");
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("no panic");
    }
    client.try_delete("first", "", false).await.unwrap();
    // A reconnecting reader goes on with the token.
    let mut token = String::new();
    while seen.last().is_none_or(|event| event.r#type != "workspace.deleted") {
        if seen.len() % 50 == 49 && !token.is_empty() {
            let request = pb::WatchEventsRequest { resume_token: token.clone(), ..Default::default() };
            watching = client.events.clone().watch_events(request).await.expect("a watch").into_inner();
        }
        let message = tokio::time::timeout(Duration::from_secs(20), watching.message()).await;
        let response = message.expect("in time").expect("no error").expect("no end");
        token = response.resume_token;
        seen.extend(response.event);
    }

    let all = client.list_events(pb::EventFilter::default()).await;
    let from = all
        .iter()
        .position(|event| event.position == seen[0].position)
        .expect("the first one seen is listed");
    let positions = |events: &[pb::Event]| events.iter().map(|event| event.position).collect::<Vec<_>>();
    assert_eq!(positions(&seen), positions(&all[from..]), "the same events in the same order");
    assert!(seen.len() >= WRITERS * ROUNDS * 2, "{} events", seen.len());
}
