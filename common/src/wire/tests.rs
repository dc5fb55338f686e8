//! What crosses the wire comes back as it went.

use proptest::prelude::*;

use super::*;
use crate::id::{PlacementId, WorkspaceUid};

fn spec() -> WorkspaceSpec {
    WorkspaceSpec {
        image: "carrel/workspace:dev".into(),
        resources: Resources { cpu_millicores: 1000, memory_bytes: 1 << 30, pids: 512 },
        probe_port: 8080,
        probe_path: "/healthz".into(),
    }
}

proptest! {
    #[test]
    fn times_come_back_as_they_went(nanos in -62_135_596_800_000_000_000_i128..253_402_300_799_999_999_999) {
        let at = OffsetDateTime::from_unix_timestamp_nanos(nanos).expect("in range");
        prop_assert_eq!(time_of("t", &timestamp(at)), Ok(at));
    }

    #[test]
    fn spans_come_back_as_they_went(seconds in 0..i64::MAX as u64, nanos in 0..1_000_000_000_u32) {
        let span = Duration::new(seconds, nanos);
        prop_assert_eq!(span_of("d", &duration(span)), Ok(span));
    }
}

fn item(run: Run) -> DesiredItem {
    DesiredItem {
        workspace: WorkspaceUid(uuid::Uuid::nil()),
        student: "ada".parse().expect("valid"),
        generation: Generation(3),
        incarnation: 1,
        placement: PlacementId(uuid::Uuid::nil()),
        spec: spec(),
        run,
        traceparent: "00-1-2-01".into(),
        idle_basis_age: None,
    }
}

fn run(seconds: u64) -> Run {
    Run::Running { start_timeout: Duration::from_secs(seconds) }
}

fn stop(reason: StopReason, seconds: u64, purge_files: bool) -> Run {
    Run::Stopped { reason, grace: Duration::from_secs(seconds), purge_files }
}

const PAIR: DesiredPair = DesiredPair { incarnation: 1, generation: 9 };

#[test]
fn a_desired_set_comes_back_as_it_went() {
    let set = DesiredSet::new(PAIR, vec![item(run(120)), item(stop(StopReason::Idle, 10, true))]);
    assert_eq!(DesiredSet::try_from(pb::Desired::from(set.clone())), Ok(set));
}

#[test]
fn a_digest_is_of_what_the_store_says_and_of_no_setting() {
    let digest = |item| DesiredSet::new(PAIR, vec![item]).digest;
    let stopped = stop(StopReason::User, 10, false);
    assert_eq!(digest(item(run(120))), digest(item(run(180))));
    assert_eq!(digest(item(stopped.clone())), digest(item(stop(StopReason::User, 30, false))));
    let others = [
        item(run(120)),
        item(stop(StopReason::Idle, 10, false)),
        item(stop(StopReason::User, 10, true)),
        DesiredItem { generation: Generation(4), ..item(stopped.clone()) },
        DesiredItem { incarnation: 2, ..item(stopped.clone()) },
        DesiredItem { placement: PlacementId::new(), ..item(stopped.clone()) },
    ];
    for other in others {
        assert_ne!(digest(item(stopped.clone())), digest(other.clone()), "{other:?}");
    }
}

#[test]
fn an_unknown_enum_value_is_an_error_that_names_the_field() {
    let message = pb::Observation { state: 99, ..Default::default() };
    let error = Observation::try_from(message).expect_err("99 is no state");
    assert_eq!(error, WireError::new("observation.state", "99 is not a known value"));
}

#[test]
fn what_the_share_says_comes_back_as_it_went() {
    let seen = Observation {
        workspace: WorkspaceUid::new(),
        generation: Generation(3),
        incarnation: 2,
        sequence: 7,
        state: Observed::Failed(StatusReason::StorageFenced),
        exit_code: None,
        oom_killed: false,
        message: "Another session of yours began later.".into(),
        image_digest: String::new(),
        traceparent: String::new(),
        pull_percent: 0,
        share_pair: Some(Pair { incarnation: 2, generation: Generation(9) }),
        share_placement: Some(PlacementId::new()),
    };
    assert_eq!(Observation::try_from(pb::Observation::from(seen.clone())), Ok(seen));
}
