//! Errors as callers see them: the only place that chooses a code.
//!
//! Every variant has a stable reason; the table of all of them is a snapshot test below, and is what clients program
//! against.

use std::collections::HashMap;
use std::time::Duration;

use carrel_common::id::RequestId;
use carrel_common::wire::WireError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::app::AppError;
use crate::app::StoreError;
use crate::domain::workspace::IllegalTransition;

const DOMAIN: &str = "carrel";
/// Names in one error at most: it has to fit into a header.
const NAMED: usize = 20;

/// Code, stable reason, and when trying again may help.
fn classify(error: &AppError) -> (Code, String, Option<Duration>) {
    const SOON: Option<Duration> = Some(Duration::from_secs(1));
    let plain = |code, reason: &str| (code, reason.to_owned(), None);
    let retry = |code, reason: &str| (code, reason.to_owned(), SOON);
    match error {
        AppError::WorkspaceNotFound(_) => plain(Code::NotFound, "WORKSPACE_NOT_FOUND"),
        AppError::DiffersInCase { .. } => plain(Code::AlreadyExists, "STUDENT_DIFFERS_IN_CASE"),
        AppError::PolicyNotFound(_) => plain(Code::NotFound, "POLICY_NOT_FOUND"),
        AppError::PolicyContradiction { .. } => plain(Code::InvalidArgument, "POLICY_CONTRADICTION"),
        AppError::StaleEtag { .. } => plain(Code::Aborted, "ETAG_STALE"),
        AppError::RequestIdReused => plain(Code::InvalidArgument, "REQUEST_ID_REUSED"),
        AppError::NotRunning { .. } | AppError::GenerationOver { .. } => {
            plain(Code::FailedPrecondition, "WORKSPACE_NOT_RUNNING")
        }
        AppError::Illegal(IllegalTransition::Deleting) => {
            retry(Code::FailedPrecondition, "WORKSPACE_DELETING")
        }
        AppError::Illegal(IllegalTransition::NotInThisState { .. }) => plain(Code::Internal, "INTERNAL"),
        AppError::NoHealthyNode { reason, passing: true, .. } => {
            (Code::Unavailable, reason.clone(), Some(Duration::from_secs(5)))
        }
        AppError::NoHealthyNode { reason, passing: false, .. } => plain(Code::FailedPrecondition, reason),
        AppError::LimitsBeyondNodes { .. } => plain(Code::FailedPrecondition, "LIMITS_BEYOND_NODES"),
        AppError::AccessNeedsDev => plain(Code::FailedPrecondition, "ACCESS_NEEDS_DEV"),
        AppError::EnrollNeedsDev => plain(Code::FailedPrecondition, "ENROLL_NEEDS_DEV"),
        AppError::NoAuthority => plain(Code::FailedPrecondition, "NO_AUTHORITY"),
        AppError::JoinTokenNeeded => plain(Code::FailedPrecondition, "JOIN_TOKEN_NEEDED"),
        AppError::JoinTokenInvalid => plain(Code::Unauthenticated, "JOIN_TOKEN_INVALID"),
        AppError::JoinTokenShown => plain(Code::AlreadyExists, "JOIN_TOKEN_SHOWN"),
        AppError::HostHasContainers { .. } => {
            plain(Code::FailedPrecondition, "HOST_HAS_CONTAINERS_OF_ANOTHER_NODE")
        }
        AppError::RequestForCertificate => plain(Code::InvalidArgument, "INVALID_ARGUMENT"),
        AppError::CertificateMissing => plain(Code::Unauthenticated, "CERTIFICATE_MISSING"),
        AppError::CertificateRefused { .. } => plain(Code::Unauthenticated, "CERTIFICATE_REFUSED"),
        AppError::NodeBanned(_) => plain(Code::PermissionDenied, "NODE_BANNED"),
        AppError::NodeNotFound(_) => plain(Code::NotFound, "NODE_NOT_FOUND"),
        AppError::Authority(_) => plain(Code::Internal, "INTERNAL"),
        AppError::NodeUnknown(_) => plain(Code::Unauthenticated, "NODE_UNKNOWN"),
        AppError::NodeStillHeard(_) => plain(Code::FailedPrecondition, "NODE_STILL_HEARD"),
        AppError::NodeIdentityChanged { .. } => plain(Code::FailedPrecondition, "NODE_IDENTITY_CHANGED"),
        AppError::NodeRemoved(_) => plain(Code::FailedPrecondition, "NODE_REMOVED"),
        AppError::NodeNotEmpty { .. } => plain(Code::FailedPrecondition, "NODE_NOT_EMPTY"),
        AppError::DrainTooShort { .. } => plain(Code::InvalidArgument, "DRAIN_TOO_SHORT"),
        AppError::DrainInQuietWindow { .. } => plain(Code::FailedPrecondition, "DRAIN_IN_QUIET_WINDOW"),
        AppError::OrphanNotFound { .. } => plain(Code::NotFound, "ORPHAN_NOT_FOUND"),
        AppError::OrphanCannotBeAdopted { .. } => plain(Code::FailedPrecondition, "ORPHAN_CANNOT_BE_ADOPTED"),
        AppError::NodeHeld(_) => retry(Code::Aborted, "NODE_HELD"),
        AppError::StoreBehind { .. } => plain(Code::FailedPrecondition, "STORE_BEHIND"),
        AppError::InventoryAwaited(_) => retry(Code::Unavailable, "INVENTORY_AWAITED"),
        AppError::SessionSuperseded(_) => plain(Code::Aborted, "SESSION_SUPERSEDED"),
        AppError::NodeAway => retry(Code::Unavailable, "NODE_AWAY"),
        AppError::LogBroken { .. } => retry(Code::Unavailable, "LOG_BROKEN"),
        AppError::ExtensionPast { .. } => plain(Code::InvalidArgument, "INVALID_ARGUMENT"),
        AppError::HeartbeatsMissed => plain(Code::DeadlineExceeded, "HEARTBEATS_MISSED"),
        AppError::BackFromSilence => plain(Code::Aborted, "BACK_FROM_SILENCE"),
        AppError::DockerIsBack => plain(Code::Aborted, "DOCKER_IS_BACK"),
        AppError::NeverRan => plain(Code::FailedPrecondition, "NEVER_RAN"),
        AppError::ResumeTokenTooOld => plain(Code::OutOfRange, "RESUME_TOKEN_TOO_OLD"),
        AppError::ShuttingDown => retry(Code::Unavailable, "SHUTTING_DOWN"),
        AppError::Store(store) => match store.as_ref() {
            StoreError::Unavailable { .. } => retry(Code::Unavailable, "DATABASE_UNAVAILABLE"),
            StoreError::Conflict { .. } => retry(Code::Aborted, "CONCURRENT_CHANGE"),
            StoreError::Refused { .. } | StoreError::Corrupt { .. } => plain(Code::Internal, "INTERNAL"),
        },
    }
}

fn metadata(error: &AppError) -> HashMap<String, String> {
    let mut told = HashMap::new();
    match error {
        AppError::DiffersInCase { existing, .. } => {
            told.insert("existing_student_id".to_owned(), existing.to_string());
        }
        AppError::StaleEtag { present, .. } => {
            told.insert("etag".to_owned(), present.clone());
        }
        AppError::GenerationOver { present } => {
            told.insert("generation".to_owned(), present.to_string());
        }
        AppError::NotRunning { state, stop } => {
            if let Some(state) = state {
                told.insert("state".to_owned(), state.as_str().to_owned());
            }
            if let Some(stop) = stop {
                let reason = serde_json::to_value(stop.reason).ok();
                told.insert(
                    "stop_reason".to_owned(),
                    reason.as_ref().and_then(|r| r.as_str()).unwrap_or_default().to_owned(),
                );
                told.insert("stop_message".to_owned(), stop.message.clone());
                let at = stop.at.format(&time::format_description::well_known::Rfc3339);
                told.insert("stop_time".to_owned(), at.unwrap_or_default());
            }
        }
        AppError::HostHasContainers { node: Some(node), .. } => {
            told.insert("node_id".to_owned(), node.to_string());
        }
        AppError::NodeNotEmpty { remaining, .. } => {
            told.insert("remaining".to_owned(), remaining.to_string());
        }
        AppError::DrainInQuietWindow { students } => {
            let names: Vec<_> =
                students.iter().take(NAMED).map(|student| format!("workspaces/{student}")).collect();
            told.insert("workspaces".to_owned(), names.join(","));
            told.insert("count".to_owned(), students.len().to_string());
        }
        _ => {}
    }
    told
}

/// What the caller of a use case is told.
pub(crate) fn to_status(error: AppError) -> Status {
    let (code, reason, retry) = classify(&error);
    let mut details = ErrorDetails::new();
    let message = if code == Code::Internal {
        // Our bug: the caller gets a number to report, the log gets the rest.
        let correlation = RequestId::new();
        tracing::error!(%correlation, error = ?error, "internal error");
        format!("an internal error; report the number {correlation}")
    } else {
        error.to_string()
    };
    details.set_error_info(reason, DOMAIN, metadata(&error));
    if let AppError::PolicyContradiction { contradiction, field } = &error {
        details.add_bad_request_violation(*field, contradiction.to_string());
    }
    if matches!(error, AppError::DrainTooShort { .. }) {
        details.add_bad_request_violation("within", error.to_string());
    }
    if matches!(error, AppError::ExtensionPast { .. }) {
        details.add_bad_request_violation("until_time", "must be later than now");
    }
    if matches!(error, AppError::RequestIdReused) {
        details.add_bad_request_violation("request_id", "was used for another request");
    }
    if matches!(error, AppError::RequestForCertificate) {
        details
            .add_bad_request_violation("csr_pem", "must be a request signed by its own key, PKCS #10 in PEM");
    }
    if let Some(after) = retry {
        details.set_retry_info(Some(after));
    }
    Status::with_error_details(code, message, details)
}

/// What a peer is told whose metadata name nobody.
pub(super) fn bad_metadata(problem: String) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info("METADATA_INVALID", DOMAIN, HashMap::new());
    Status::with_error_details(Code::Unauthenticated, problem, details)
}

/// What the sender of a bad field is told.
pub(crate) fn bad_field(error: WireError) -> Status {
    let mut details = ErrorDetails::with_bad_request_violation(error.field, error.problem.as_str());
    details.set_error_info("INVALID_ARGUMENT", DOMAIN, HashMap::new());
    Status::with_error_details(Code::InvalidArgument, error.to_string(), details)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use carrel_common::id::NodeId;

    use super::*;
    use crate::domain::workspace::State;

    #[test]
    fn every_error_has_its_code_and_reason() {
        let student = || "ada".parse().expect("valid");
        let node = NodeId(uuid::Uuid::nil());
        let refused = || sea_orm::DbErr::Custom("no".into());
        let healthy = |passing, reason: &str| AppError::NoHealthyNode {
            reason: reason.into(),
            message: String::new(),
            passing,
        };
        let all = [
            AppError::WorkspaceNotFound(student()),
            AppError::DiffersInCase { given: student(), existing: student() },
            AppError::PolicyNotFound(crate::domain::policy::Scope::Site),
            AppError::StaleEtag { given: String::new(), present: String::new() },
            AppError::RequestIdReused,
            AppError::NotRunning { state: Some(State::Stopped), stop: None },
            AppError::GenerationOver { present: carrel_common::id::Generation(2) },
            AppError::Illegal(IllegalTransition::Deleting),
            AppError::Illegal(IllegalTransition::NotInThisState { state: State::Stopped, event: "Place" }),
            healthy(true, "DOCKER_UNREACHABLE"),
            healthy(false, "STORAGE_BASE_MISSING"),
            AppError::LimitsBeyondNodes { cpu_millicores: 1, memory_bytes: 1 },
            AppError::AccessNeedsDev,
            AppError::EnrollNeedsDev,
            AppError::NoAuthority,
            AppError::JoinTokenNeeded,
            AppError::JoinTokenInvalid,
            AppError::JoinTokenShown,
            AppError::HostHasContainers { others: 1, node: None },
            AppError::RequestForCertificate,
            AppError::CertificateMissing,
            AppError::CertificateRefused { why: "" },
            AppError::NodeBanned(node),
            AppError::NodeNotFound(node),
            AppError::Authority(crate::authority::AuthorityError::KeyOfNone),
            AppError::NodeUnknown(node),
            AppError::NodeStillHeard(node),
            AppError::NodeIdentityChanged { node, what: "machine id" },
            AppError::NodeRemoved(node),
            AppError::NodeNotEmpty { node, remaining: 1 },
            AppError::DrainTooShort { longest_lead: Duration::ZERO },
            AppError::DrainInQuietWindow { students: vec![student()] },
            AppError::OrphanNotFound { node, container_id: String::new() },
            AppError::OrphanCannotBeAdopted { why: "" },
            AppError::NodeHeld(node),
            AppError::StoreBehind { since: time::OffsetDateTime::UNIX_EPOCH, evidence: String::new() },
            AppError::InventoryAwaited(node),
            AppError::SessionSuperseded(node),
            AppError::NodeAway,
            AppError::LogBroken { why: String::new() },
            AppError::ExtensionPast {
                until: time::OffsetDateTime::UNIX_EPOCH,
                now: time::OffsetDateTime::UNIX_EPOCH,
            },
            AppError::HeartbeatsMissed,
            AppError::BackFromSilence,
            AppError::DockerIsBack,
            AppError::NeverRan,
            AppError::ResumeTokenTooOld,
            AppError::ShuttingDown,
            AppError::Store(Arc::new(StoreError::Unavailable { operation: "x", source: refused() })),
            AppError::Store(Arc::new(StoreError::Conflict { operation: "x" })),
            AppError::Store(Arc::new(StoreError::Refused { operation: "x", source: refused() })),
            AppError::Store(Arc::new(StoreError::Corrupt { table: "x", problem: String::new() })),
        ];
        let table: Vec<String> = all
            .iter()
            .map(|error| {
                let (code, reason, retry) = classify(error);
                format!("{code:?} {reason}{}", if retry.is_some() { " (retry)" } else { "" })
            })
            .collect();
        insta::assert_snapshot!(table.join("\n"));
    }
}
