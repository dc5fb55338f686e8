//! One caller's watch of workspaces: who changed is read from the log, and shown as it is now.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use carrel_common::id::{StudentId, WorkspaceUid};
use carrel_proto::v1 as pb;
use carrel_proto::v1::workspace_change::Kind;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::held::Held;
use super::moves::{self, Moves, Told};
use super::{BUFFER, Following, Message, news, same_log, token};
use crate::app::{
    App, AppError, EventQuery, LinePlace, Position, StoredEvent, WorkspaceQuery, WorkspaceView,
};
use crate::domain::workspace::State;
use crate::grpc::{convert, to_status};

/// Workspaces of a snapshot read at a time.
const PAGE: usize = 500;
/// The line moves with each workspace that leaves it; those who wait are told no more often than this.
const LINE_EVERY: Duration = Duration::from_secs(2);
/// An estimate that has moved by less is no news: it is one.
const WORTH_TELLING: time::Duration = time::Duration::seconds(15);

/// Why a stream ended: the reader went away, or is told this.
enum End {
    Gone,
    Told(AppError),
}

impl From<AppError> for End {
    fn from(error: AppError) -> Self {
        Self::Told(error)
    }
}

/// One caller's watch of workspaces.
pub(in crate::grpc) struct WorkspaceWatch {
    app: App,
    incarnation: i64,
    query: WorkspaceQuery,
    /// What the log tells up to here has been told, all of it.
    stand: Position,
    snapshot: bool,
    held: Held,
    /// Where those who wait stood when last told.
    waiting: HashMap<WorkspaceUid, LinePlace>,
    line_told: Instant,
    moves: Moves,
    /// The deadlines as they were last told.
    deadlines: BTreeMap<WorkspaceUid, Told>,
    /// Version of the rules that they were derived from.
    rules: i64,
    /// When it was last looked whether any has moved, by this process and by the database.
    moves_told: Instant,
    looked_at: OffsetDateTime,
    /// Who was the last to be told that its deadline has moved.
    turn: Option<WorkspaceUid>,
}

impl WorkspaceWatch {
    pub(in crate::grpc) fn new(
        app: App,
        moves: Moves,
        query: WorkspaceQuery,
        stand: Position,
        snapshot: bool,
    ) -> Self {
        let held = if snapshot { Held::Only(HashSet::new()) } else { Held::AllBut(HashSet::new()) };
        let incarnation = app.state.incarnation();
        let (line_told, moves_told) = (Instant::now(), Instant::now());
        let (deadlines, rules, looked_at) = (BTreeMap::new(), 0, OffsetDateTime::UNIX_EPOCH);
        Self {
            app,
            incarnation,
            query,
            stand,
            snapshot,
            held,
            waiting: HashMap::new(),
            line_told,
            moves,
            deadlines,
            rules,
            moves_told,
            looked_at,
            turn: None,
        }
    }

    pub(in crate::grpc) fn stream(
        mut self,
        following: &Following,
        tasks: &TaskTracker,
    ) -> ReceiverStream<Message<pb::WatchWorkspacesResponse>> {
        let (to, stream) = mpsc::channel(BUFFER);
        let stop = following.stop.clone();
        tasks.spawn(async move {
            if let Err(End::Told(error)) = self.run(&to, &stop).await {
                to.send(Err(to_status(error))).await.ok();
            }
        });
        ReceiverStream::new(stream)
    }

    async fn run(
        &mut self,
        to: &mpsc::Sender<Message<pb::WatchWorkspacesResponse>>,
        stop: &CancellationToken,
    ) -> Result<(), End> {
        let mut bell = self.app.nudge.events();
        (self.rules, self.looked_at) =
            (self.app.rules.get().book.version, self.app.store.now().await.map_err(AppError::from)?);
        if self.snapshot {
            let mut query = self.query.clone();
            loop {
                let (page, next) = self.app.list(&query, PAGE).await?;
                for view in page {
                    self.held.insert(view.workspace.uid);
                    let told = self.shown(view, Kind::Snapshot);
                    self.tell(to, told).await?;
                }
                match next {
                    Some(key) => query.after_key = Some(key),
                    None => break,
                }
            }
            self.tell(to, message(Kind::Synced, None)).await?;
        } else {
            // Deadlines may have moved since the token without an event, and what the reader knows of them is not known here.
            while self.catch_up(to).await? {}
            self.tell_deadlines(to).await?;
        }
        loop {
            same_log(&self.app, self.incarnation)?;
            while self.catch_up(to).await? {}
            self.tell_line(to).await?;
            self.tell_moves(to).await?;
            if !news(&mut bell, to, stop).await {
                return Err(if stop.is_cancelled() { End::Told(AppError::ShuttingDown) } else { End::Gone });
            }
        }
    }

    /// Tells what changed since; whether there was anything.
    async fn catch_up(
        &mut self,
        to: &mpsc::Sender<Message<pb::WatchWorkspacesResponse>>,
    ) -> Result<bool, End> {
        let events = self.app.events_after(&EventQuery::default(), self.stand).await?;
        let Some(last) = events.last().map(|event| event.position) else { return Ok(false) };
        let mut changed: Vec<WorkspaceUid> = Vec::new();
        for uid in events.iter().filter_map(|event| event.workspace) {
            if !changed.contains(&uid) {
                changed.push(uid);
            }
        }
        let views = self.app.workspaces_now(changed).await?;
        // The first start after a deletion takes the row of the deleted one away: its event is then all there is to tell of it.
        let rowless = events.iter().filter(|event| {
            event.kind == "workspace.deleted"
                && views.iter().all(|view| Some(view.workspace.uid) != event.workspace)
        });
        let deletion =
            |event: &StoredEvent| self.deletion(event.workspace?, &event.student.as_deref()?.parse().ok()?);
        let mut changes: Vec<_> = rowless.filter_map(deletion).collect();
        changes.extend(views.into_iter().filter_map(|view| self.change(view)));
        // A watch that breaks off before the last of them is told all of them when it is resumed, rather than miss any.
        let last_change = changes.pop();
        for change in changes {
            self.tell(to, change).await?;
        }
        self.stand = last;
        if let Some(change) = last_change {
            self.tell(to, change).await?;
        }
        if events.iter().any(|event| event.kind == "policy.changed") {
            self.tell_deadlines(to).await?;
        }
        Ok(true)
    }

    /// Tells these as they are now.
    async fn tell_now(
        &mut self,
        to: &mpsc::Sender<Message<pb::WatchWorkspacesResponse>>,
        uids: &[WorkspaceUid],
    ) -> Result<(), End> {
        for page in uids.chunks(PAGE) {
            for view in self.app.workspaces_now(page.to_vec()).await? {
                if let Some(change) = self.change(view) {
                    self.tell(to, change).await?;
                }
            }
        }
        Ok(())
    }

    /// Those who wait move up without a change of their workspaces: they are told where they stand now and then.
    async fn tell_line(
        &mut self,
        to: &mpsc::Sender<Message<pb::WatchWorkspacesResponse>>,
    ) -> Result<(), End> {
        if self.waiting.is_empty() || self.line_told.elapsed() < LINE_EVERY {
            return Ok(());
        }
        self.line_told = Instant::now();
        let line = self.app.board.line();
        // Who is not in line any more has been placed, and an event tells so.
        let moved =
            self.waiting.iter().filter(|(uid, told)| line.get(uid).is_some_and(|now| is_news(told, now)));
        let moved: Vec<_> = moved.map(|(uid, _)| *uid).collect();
        self.tell_now(to, &moved).await
    }

    /// Activity moves deadlines without an event, and so does time where a quiet window begins or ends: what moved is told.
    async fn tell_moves(
        &mut self,
        to: &mpsc::Sender<Message<pb::WatchWorkspacesResponse>>,
    ) -> Result<(), End> {
        if self.deadlines.is_empty() || self.moves_told.elapsed() < moves::EVERY {
            return Ok(());
        }
        self.moves_told = Instant::now();
        let seen = self.moves.seen(&self.app).await?;
        let rules = self.app.rules.get();
        if rules.book.version != self.rules || rules.book.quiet_turns(self.looked_at, seen.at) {
            self.tell_deadlines(to).await?;
        }
        self.looked_at = seen.at;
        let moved = moves::moved(&self.deadlines, &seen, self.turn);
        self.turn = moved.last().copied();
        self.tell_now(to, &moved).await
    }

    /// A change of the rules moves deadlines without a change of the workspaces: those of what runs that are not as they were told
    /// are told anew.
    async fn tell_deadlines(
        &mut self,
        to: &mpsc::Sender<Message<pb::WatchWorkspacesResponse>>,
    ) -> Result<(), End> {
        self.app.refresh_rules().await?;
        self.rules = self.app.rules.get().book.version;
        let mut query = self.query.clone();
        if query.states.is_empty() {
            query.states = vec![State::Running];
        }
        loop {
            let (page, next) = self.app.list(&query, PAGE).await?;
            for view in page.into_iter().filter(|view| view.workspace.state == State::Running) {
                if self.deadlines.get(&view.workspace.uid).copied() == Told::of(&view) {
                    continue;
                }
                if let Some(change) = self.change(view) {
                    self.tell(to, change).await?;
                }
            }
            match next {
                Some(key) => query.after_key = Some(key),
                None => return Ok(()),
            }
        }
    }

    /// What is told of a workspace as it is now; nothing, when it is none of the reader's.
    fn change(&mut self, view: WorkspaceView) -> Option<pb::WorkspaceChange> {
        let (w, q) = (&view.workspace, &self.query);
        if w.deleted_at.is_some() {
            return self.deletion(w.uid, &w.student);
        }
        if !self.follows(&w.student) {
            return None;
        }
        let passes = (q.states.is_empty() || q.states.contains(&w.state))
            && q.node.is_none_or(|node| w.node == Some(node))
            && q.course.as_ref().is_none_or(|course| w.course.as_ref() == Some(course));
        if passes {
            self.held.insert(w.uid);
            return Some(self.shown(view, Kind::Changed));
        }
        self.held.remove(w.uid).then(|| self.shown(view, Kind::Left))
    }

    /// Whether the watch is of this student, among others.
    fn follows(&self, student: &StudentId) -> bool {
        self.query.keys.is_empty() || self.query.keys.contains(&student.key())
    }

    /// What is told of a workspace that was deleted, if the reader may hold it.
    fn deletion(&mut self, uid: WorkspaceUid, student: &StudentId) -> Option<pb::WorkspaceChange> {
        if !self.follows(student) || !self.held.remove(uid) {
            return None;
        }
        self.forget(uid);
        let workspace = pb::Workspace {
            name: format!("workspaces/{student}"),
            uid: uid.to_string(),
            student_id: student.to_string(),
            ..pb::Workspace::default()
        };
        Some(message(Kind::Deleted, Some(workspace)))
    }

    /// Neither its place in line nor its deadline is watched any more.
    fn forget(&mut self, uid: WorkspaceUid) {
        self.waiting.remove(&uid);
        self.deadlines.remove(&uid);
    }

    /// The message that shows a workspace; what it tells of line and deadline is remembered.
    fn shown(&mut self, view: WorkspaceView, kind: Kind) -> pb::WorkspaceChange {
        let uid = view.workspace.uid;
        self.forget(uid);
        if kind != Kind::Left {
            if view.queue_position > 0 {
                let place = LinePlace { position: view.queue_position, ready_at: view.ready_at };
                self.waiting.insert(uid, place);
            }
            self.deadlines.extend(Told::of(&view).map(|told| (uid, told)));
        }
        message(kind, Some(convert::workspace(view)))
    }

    async fn tell(
        &self,
        to: &mpsc::Sender<Message<pb::WatchWorkspacesResponse>>,
        change: pb::WorkspaceChange,
    ) -> Result<(), End> {
        let resume_token = match change.kind() {
            Kind::Snapshot => String::new(),
            _ => token(self.incarnation, self.stand),
        };
        let change = pb::WorkspaceChange { resume_token, ..change };
        to.send(Ok(pb::WatchWorkspacesResponse { change: Some(change) })).await.map_err(|_| End::Gone)
    }
}

/// A message that has yet to get its token.
fn message(kind: Kind, workspace: Option<pb::Workspace>) -> pb::WorkspaceChange {
    pb::WorkspaceChange { workspace, kind: kind.into(), resume_token: String::new() }
}

/// Whether one who waits is to be told where it stands now.
fn is_news(told: &LinePlace, now: &LinePlace) -> bool {
    let moved = match (told.ready_at, now.ready_at) {
        (Some(told), Some(now)) => (now - told).abs() >= WORTH_TELLING,
        (told, now) => told.is_some() != now.is_some(),
    };
    told.position != now.position || moved
}
