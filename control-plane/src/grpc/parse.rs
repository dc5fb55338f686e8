//! Requests to values: every field is parsed once, here, and a bad one is named.

use std::time::Duration;

use carrel_common::id::{CourseId, Generation, NodeId, RequestId, StudentId};
use carrel_common::model::Signal;
use carrel_common::wire::{self, WireError};
use carrel_proto::v1 as pb;
use sha2::{Digest as _, Sha256};

use crate::app::{Beat, EventQuery, Position, WorkspaceQuery};
use crate::app::{Call, Extent, Resolution};
use crate::domain::workspace::State;

type Parsed<T> = Result<T, WireError>;

const DEFAULT_PAGE: usize = 50;
const LARGEST_PAGE: usize = 500;
/// A join token is for a host that is being set up now.
const JOIN_TOKEN_TTL: Duration = Duration::from_secs(3600);
/// A secret that lies about for longer is found by somebody.
const LONGEST_JOIN_TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);
/// A report older than this counts as this old.
const OLDEST_AGE: Duration = Duration::from_secs(5 * 60);
/// A year is beyond every budget, and still a time that can be added.
const LONGEST_SPAN: Duration = Duration::from_secs(366 * 24 * 3600);
const LONGEST_REASON: usize = 200;
/// A lesson, so that most move between two.
const DEFAULT_DRAIN: Duration = Duration::from_secs(60 * 60);
const LONGEST_DRAIN: Duration = Duration::from_secs(30 * 24 * 60 * 60);
const DEFAULT_LINES: i32 = 100;
const MOST_LINES: i32 = 5_000;
/// Heartbeats in one call, and names in one watch.
pub(super) const MOST_AT_ONCE: usize = 1_000;

pub(super) fn student(field: &'static str, text: &str) -> Parsed<StudentId> {
    text.parse().map_err(|e: carrel_common::id::InvalidId| WireError::new(field, e.0))
}

pub(super) fn course(text: &str) -> Parsed<Option<CourseId>> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|e: carrel_common::id::InvalidId| WireError::new("course_id", e.0))
}

/// `workspaces/{student_id}`.
pub(super) fn workspace_name(field: &'static str, name: &str) -> Parsed<StudentId> {
    let student_id = name.strip_prefix("workspaces/").ok_or_else(|| {
        WireError::new(field, format!("{name:?} must have the form workspaces/{{student_id}}"))
    })?;
    student(field, student_id)
}

/// `nodes/{id}`.
pub(super) fn node(field: &'static str, name: &str) -> Parsed<NodeId> {
    name.strip_prefix("nodes/").and_then(|id| id.parse().ok()).ok_or_else(|| {
        WireError::new(field, format!("{name:?} must have the form nodes/{{id}}, the id a UUID"))
    })
}

/// As [`node`]; empty is none.
pub(super) fn node_name(field: &'static str, name: &str) -> Parsed<Option<NodeId>> {
    if name.is_empty() { Ok(None) } else { node(field, name).map(Some) }
}

/// The call's identity; `content` are the fields that make it what it is.
pub(super) fn call(rpc: &'static str, request_id: &str, content: &[&str]) -> Parsed<Call> {
    let request_id = match request_id {
        "" => None,
        id => Some(id.parse::<RequestId>().map_err(|e| WireError::new("request_id", e.0))?),
    };
    let mut hash = Sha256::new();
    for field in content {
        hash.update(field.len().to_be_bytes());
        hash.update(field.as_bytes());
    }
    Ok(Call { rpc, request_id, fingerprint: carrel_common::id::hex(&hash.finalize()) })
}

/// Free text. Postgres takes every character but one.
pub(super) fn text<'a>(field: &'static str, text: &'a str) -> Parsed<&'a str> {
    if text.contains('\0') { Err(WireError::new(field, "must not contain NUL")) } else { Ok(text) }
}

pub(super) fn reason(words: &str) -> Parsed<&str> {
    if words.chars().count() > LONGEST_REASON {
        return Err(WireError::new("reason", format!("must be at most {LONGEST_REASON} characters")));
    }
    text("reason", words)
}

/// A reason that must be given.
pub(super) fn needed_reason(text: &str) -> Parsed<&str> {
    if text.trim().is_empty() {
        return Err(WireError::new("reason", "must be set: it goes into the event log"));
    }
    reason(text)
}

/// How long a drain may take.
pub(super) fn within(span: Option<&prost_types::Duration>) -> Parsed<Duration> {
    let span = span.map(|span| wire::span_of("within", span)).transpose()?.unwrap_or(DEFAULT_DRAIN);
    if span > LONGEST_DRAIN {
        return Err(WireError::new("within", "must be at most 30 days"));
    }
    Ok(span)
}

/// What is to be done with an orphan.
pub(super) fn resolution(number: i32) -> Parsed<Resolution> {
    use pb::resolve_orphan_request::Resolution as P;
    match P::try_from(number) {
        Ok(P::Stop) => Ok(Resolution::Stop),
        Ok(P::Adopt) => Ok(Resolution::Adopt),
        Ok(P::Unspecified) => Err(WireError::new("resolution", "must be set")),
        Err(_) => Err(WireError::new("resolution", format!("{number} is not a resolution"))),
    }
}

pub(super) fn page_size(asked: i32) -> Parsed<usize> {
    match usize::try_from(asked) {
        Err(_) => Err(WireError::new("page_size", "must not be negative")),
        Ok(0) => Ok(DEFAULT_PAGE),
        Ok(size) => Ok(size.min(LARGEST_PAGE)),
    }
}

pub(super) fn lines(asked: i32) -> Parsed<i32> {
    match asked {
        ..0 => Err(WireError::new("lines", "must not be negative")),
        0 => Ok(DEFAULT_LINES),
        lines => Ok(lines.min(MOST_LINES)),
    }
}

fn state(number: i32) -> Parsed<State> {
    use pb::workspace::State as P;
    match P::try_from(number) {
        Ok(P::Stopped) => Ok(State::Stopped),
        Ok(P::Pending) => Ok(State::Pending),
        Ok(P::Starting) => Ok(State::Starting),
        Ok(P::Running) => Ok(State::Running),
        Ok(P::Stopping) => Ok(State::Stopping),
        Ok(P::Failed) => Ok(State::Failed),
        Ok(P::Unreachable) => Ok(State::Unreachable),
        Ok(P::Unspecified) | Err(_) => {
            Err(WireError::new("filter.states", format!("{number} is not a state")))
        }
    }
}

pub(super) fn filter(filter: Option<pb::WorkspaceFilter>) -> Parsed<WorkspaceQuery> {
    let filter = filter.unwrap_or_default();
    let idle = filter.idle_longer_than.as_ref().map(|span| wire::span_of("filter.idle_longer_than", span));
    Ok(WorkspaceQuery {
        states: filter.states.iter().map(|n| state(*n)).collect::<Parsed<_>>()?,
        node: node_name("filter.node", &filter.node)?,
        course: course(&filter.course_id).map_err(|e| WireError::new("filter.course_id", e.problem))?,
        idle_longer_than: idle.transpose()?,
        keys: vec![],
        after_key: None,
    })
}

/// A page token names the filter it was made for, so that it cannot be used with another.
pub(super) fn page_token(mark: &str, filter: &str) -> String {
    format!("{mark}~{}", token_check(filter))
}

fn token_check(filter: &str) -> String {
    carrel_common::id::hex(&Sha256::digest(filter.as_bytes())).chars().take(8).collect()
}

/// The mark of a page token, if it is one of ours for this filter.
pub(super) fn page_mark<'a>(token: &'a str, filter: &str) -> Parsed<Option<&'a str>> {
    if token.is_empty() {
        return Ok(None);
    }
    match token.rsplit_once('~') {
        Some((mark, check)) if check == token_check(filter) => text("page_token", mark).map(Some),
        _ => Err(WireError::new(
            "page_token",
            "is not a token of this list with this filter; begin again with an empty one",
        )),
    }
}

/// `{incarnation}.{position}`.
pub(super) fn resume_token(token: &str) -> Parsed<Option<(i64, Position)>> {
    if token.is_empty() {
        return Ok(None);
    }
    token
        .split_once('.')
        .and_then(|(incarnation, position)| Some((incarnation.parse().ok()?, position.parse().ok()?)))
        .map(Some)
        .ok_or_else(|| {
            WireError::new("resume_token", "is not a token of a watch; begin again with an empty one")
        })
}

pub(super) fn event_filter(filter: Option<pb::EventFilter>) -> Parsed<EventQuery> {
    let filter = filter.unwrap_or_default();
    let student_key = match filter.workspace.as_str() {
        "" => None,
        name => Some(workspace_name("filter.workspace", name)?.key()),
    };
    for kind in &filter.types {
        text("filter.types", kind)?;
    }
    Ok(EventQuery {
        kinds: filter.types,
        student_key,
        node: node_name("filter.node", &filter.node)?,
        newest_first: false,
        after: None,
    })
}

pub(super) fn beat(request: &pb::RecordHeartbeatRequest) -> Parsed<Beat> {
    let signal = match pb::Signal::try_from(request.signal) {
        Ok(pb::Signal::Unspecified) => Signal::LmsInput,
        Ok(signal) => signal.try_into()?,
        Err(_) => return Err(WireError::new("signal", format!("{} is not a signal", request.signal))),
    };
    let age = request.age.as_ref().map(|age| wire::span_of("age", age)).transpose()?.unwrap_or_default();
    let generation = match request.generation {
        ..0 => return Err(WireError::new("generation", "must not be negative")),
        0 => None,
        generation => Some(Generation(generation)),
    };
    let keep_awake = request.keep_awake.as_ref().map(|span| wire::span_of("keep_awake", span)).transpose()?;
    let keep_awake = match (signal, keep_awake.unwrap_or_default()) {
        (Signal::Job, Duration::ZERO) => {
            return Err(WireError::new("keep_awake", "must be positive with SIGNAL_JOB"));
        }
        (Signal::Job, span) => span.min(LONGEST_SPAN),
        (_, Duration::ZERO) => Duration::ZERO,
        _ => return Err(WireError::new("keep_awake", "goes with SIGNAL_JOB alone")),
    };
    let student = workspace_name("name", &request.name)?;
    Ok(Beat { student, generation, signal, age: age.min(OLDEST_AGE), keep_awake })
}

/// How long the token is good for, and which node may come back with it.
pub(super) fn join_token(request: &pb::CreateJoinTokenRequest) -> Parsed<(Duration, Option<NodeId>)> {
    let ttl = request.ttl.as_ref().map(|ttl| wire::span_of("ttl", ttl)).transpose()?;
    let ttl = ttl.unwrap_or(JOIN_TOKEN_TTL);
    if ttl.is_zero() || ttl > LONGEST_JOIN_TOKEN_TTL {
        return Err(WireError::new("ttl", "must be positive, and at most 24 hours"));
    }
    Ok((ttl, node_name("node", &request.node)?))
}

pub(super) fn extent(extent: Option<pb::extend_workspace_request::Extent>) -> Parsed<Extent> {
    use pb::extend_workspace_request::Extent as P;
    match extent {
        None => Err(WireError::new("until_time", "until_time or by must be set")),
        Some(P::UntilTime(at)) => Ok(Extent::Until(wire::time_of("until_time", &at)?)),
        Some(P::By(span)) => match wire::span_of("by", &span)? {
            Duration::ZERO => Err(WireError::new("by", "must be positive")),
            span => Ok(Extent::By(span.min(LONGEST_SPAN))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_field_that_is_wrong() {
        let field = |error: WireError| error.field;
        assert_eq!(workspace_name("name", "ada").map_err(field), Err("name"));
        assert_eq!(workspace_name("name", "workspaces/../etc").map_err(field), Err("name"));
        assert_eq!(page_size(-1).map_err(field), Err("page_size"));
        assert_eq!(lines(-1).map_err(field), Err("lines"));
        assert_eq!(call("X", "not-a-uuid", &[]).map_err(field), Err("request_id"));
        assert_eq!(resume_token("zzz").map_err(field), Err("resume_token"));
        assert_eq!(reason("a\0b").map_err(field), Err("reason"));
        assert_eq!(needed_reason("a\0b").map_err(field), Err("reason"));
        assert_eq!(reason("two\nlines").map_err(field), Ok("two\nlines"));
        let types = pb::EventFilter { types: vec!["a\0b".into()], ..pb::EventFilter::default() };
        assert_eq!(event_filter(Some(types)).map_err(field), Err("filter.types"));
        let token = page_token("a\0b", "filter");
        assert_eq!(page_mark(&token, "filter").map_err(field), Err("page_token"));
        let ttl = |seconds| pb::CreateJoinTokenRequest {
            ttl: Some(wire::duration(Duration::from_secs(seconds))),
            ..pb::CreateJoinTokenRequest::default()
        };
        assert_eq!(
            [0, 86_401].map(|seconds| join_token(&ttl(seconds)).map_err(field)),
            [Err("ttl"), Err("ttl")]
        );
        assert_eq!(join_token(&ttl(86_400)), Ok((LONGEST_JOIN_TOKEN_TTL, None)));
        assert_eq!(join_token(&pb::CreateJoinTokenRequest::default()), Ok((JOIN_TOKEN_TTL, None)));
    }

    #[test]
    fn a_page_token_is_good_for_its_own_filter_only() {
        let token = page_token("ada@x", "filter one");
        assert_eq!(page_mark(&token, "filter one"), Ok(Some("ada@x")));
        assert!(page_mark(&token, "filter two").is_err());
        assert!(page_mark("garbage", "filter one").is_err());
    }

    #[test]
    fn clamps_page_sizes_and_ages() {
        assert_eq!([page_size(0), page_size(7), page_size(9999)], [Ok(50), Ok(7), Ok(500)]);
        let old = pb::RecordHeartbeatRequest {
            name: "workspaces/ada".into(),
            signal: 0,
            age: Some(wire::duration(Duration::from_secs(3600))),
            ..pb::RecordHeartbeatRequest::default()
        };
        assert_eq!(beat(&old).map(|b| b.age), Ok(OLDEST_AGE));
    }

    #[test]
    fn a_job_says_for_how_long_and_nothing_else_does() {
        let field = |signal: pb::Signal, seconds: Option<u64>, generation| {
            let request = pb::RecordHeartbeatRequest {
                name: "workspaces/ada".into(),
                signal: signal.into(),
                keep_awake: seconds.map(|seconds| wire::duration(Duration::from_secs(seconds))),
                generation,
                ..pb::RecordHeartbeatRequest::default()
            };
            beat(&request).map(|beat| beat.keep_awake.as_secs()).map_err(|error| error.field)
        };
        assert_eq!(field(pb::Signal::Job, Some(60), 3), Ok(60));
        assert_eq!(field(pb::Signal::Job, None, 0), Err("keep_awake"));
        assert_eq!(field(pb::Signal::EditorInput, Some(60), 0), Err("keep_awake"));
        assert_eq!(field(pb::Signal::EditorInput, None, -1), Err("generation"));
    }
}
