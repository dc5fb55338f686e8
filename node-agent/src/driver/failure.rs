//! Why a start was given up, in a sentence a student understands. Pure.

use std::time::Duration;

use carrel_common::model::{DesiredItem, StatusReason};

use crate::reconcile::crash::Budget;
use crate::runtime::{Inspected, RuntimeError};
use crate::storage::fence_file::Token;

/// A start that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) reason: StatusReason,
    pub(super) message: String,
    pub(super) exit_code: Option<i32>,
    pub(super) oom_killed: bool,
    /// What the share says is the latest, when that is why.
    pub(super) share: Option<Token>,
}

impl Failure {
    pub(super) fn of(reason: StatusReason, message: String) -> Self {
        Self { reason, message, exit_code: None, oom_killed: false, share: None }
    }
}

pub(super) fn image_unavailable(error: &RuntimeError) -> Failure {
    Failure::of(StatusReason::ImageUnavailable, format!("The workspace's {error}. Please tell your teacher."))
}

pub(super) fn storage(message: String) -> Failure {
    Failure::of(StatusReason::StorageUnavailable, format!("Your files cannot be reached: {message}"))
}

pub(super) fn lease(error: &std::io::Error) -> Failure {
    Failure::of(
        StatusReason::RuntimeError,
        format!("The workspace could not be started: its host cannot write its own files ({error})."),
    )
}

/// `later`: the container that was started later.
pub(super) fn fenced(later: Token) -> Failure {
    let message =
        "A newer session of yours has your files, so this one does not run. Press Start to go on here.";
    Failure { share: Some(later), ..Failure::of(StatusReason::StorageFenced, message.into()) }
}

pub(super) fn desk(problem: &str) -> Failure {
    Failure::of(
        StatusReason::RuntimeError,
        format!("The host cannot keep what the workspace needs in its state directory: {problem}"),
    )
}

pub(super) fn refused(error: &RuntimeError) -> Failure {
    Failure::of(StatusReason::RuntimeError, format!("The workspace could not be started: {error}"))
}

pub(super) fn start_timeout(after: Duration) -> Failure {
    let after = humantime::format_duration(after);
    Failure::of(
        StatusReason::StartTimeout,
        format!("The editor did not answer within {after}. Please start it again."),
    )
}

pub(super) fn crashed(end: &Inspected, item: &DesiredItem, budget: Budget) -> Failure {
    let times = budget.restarts + 1;
    let window = humantime::format_duration(budget.window);
    let (reason, message) = if end.oom_killed {
        let mib = item.spec.resources.memory_bytes >> 20;
        (
            StatusReason::OutOfMemory,
            format!(
                "The workspace ran out of its {mib} MiB of memory {times} times within {window}. Start it again and close what you do not need."
            ),
        )
    } else {
        let code = end.exit_code.map_or_else(|| "unknown".to_owned(), |code| code.to_string());
        (
            StatusReason::CrashLoop,
            format!(
                "The editor ended by itself {times} times within {window} (exit code {code}). Start it again; if it keeps ending, look at its log."
            ),
        )
    };
    Failure { exit_code: end.exit_code, oom_killed: end.oom_killed, ..Failure::of(reason, message) }
}

pub(super) fn restarting(end: &Inspected) -> String {
    if end.oom_killed {
        return "The workspace ran out of memory and is being restarted.".into();
    }
    match end.exit_code {
        Some(code) => format!("The editor ended by itself (exit code {code}) and is being restarted."),
        None => "The editor ended by itself and is being restarted.".into(),
    }
}

/// A reason as the value of a metric's label.
pub(super) fn label(reason: StatusReason) -> &'static str {
    match reason {
        StatusReason::StartTimeout => "start_timeout",
        StatusReason::ImageUnavailable => "image_unavailable",
        StatusReason::StorageUnavailable => "storage_unavailable",
        StatusReason::CrashLoop => "crash_loop",
        StatusReason::OutOfMemory => "out_of_memory",
        StatusReason::RuntimeError => "runtime_error",
        StatusReason::StorageFenced => "storage_fenced",
        StatusReason::NoNodeReady
        | StatusReason::NoCapacity
        | StatusReason::PreviousStopping
        | StatusReason::PreviousHostUnreachable
        | StatusReason::QueueTimeout
        | StatusReason::StopTimeout
        | StatusReason::Restarting
        | StatusReason::NodeUnreachable
        | StatusReason::Deleting
        | StatusReason::ContainerHeld => "other",
    }
}
