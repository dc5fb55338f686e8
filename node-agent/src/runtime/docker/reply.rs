//! What Docker's answers mean. Pure.

use bollard::errors::Error;
use bollard::models::{
    ContainerInspectResponse, ContainerState, ContainerStateStatusEnum, ContainerSummary,
    ContainerSummaryStateEnum, EventMessage, ImageSummary,
};
use bollard::query_parameters::{CreateImageOptions, CreateImageOptionsBuilder};
use carrel_common::image::canonical;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::runtime::{Found, Hint, Inspected, Phase, RuntimeError, labels};

/// An error in our words. Anything but an answer of the daemon leaves the result unknown.
pub(super) fn error(operation: &'static str, error: &Error) -> RuntimeError {
    match error {
        Error::DockerResponseServerError { status_code: 404, message }
            if names_what_was_asked(operation, message) =>
        {
            RuntimeError::NotFound { operation }
        }
        Error::DockerResponseServerError { message, .. } => {
            RuntimeError::Refused { operation, problem: message.trim().to_owned() }
        }
        Error::DockerStreamError { error } => RuntimeError::Refused { operation, problem: error.clone() },
        other => RuntimeError::Unreachable { operation, problem: in_full(other) },
    }
}

/// A 404 also says that something *else* is missing: a network when a container is created or started, for one.
fn names_what_was_asked(operation: &str, message: &str) -> bool {
    match operation {
        "inspect_network" | "inspect_image" | "pull" => true,
        "create" => message.contains("No such image"),
        _ => message.contains("No such container"),
    }
}

/// An error with its sources; hyper's own text says only "client error".
fn in_full(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

pub(super) fn is_name_conflict(problem: &str) -> bool {
    problem.contains("is already in use by container")
}

pub(super) fn is_rlimit_refusal(problem: &str) -> bool {
    problem.contains("rlimit")
}

pub(super) fn is_not_running(problem: &str) -> bool {
    problem.contains("is not running")
}

pub(super) fn is_removal_in_progress(problem: &str) -> bool {
    problem.contains("is already in progress")
}

/// The reference split as the API wants it: without a tag Docker would pull every tag.
pub(super) fn pull_options(builder: CreateImageOptionsBuilder, image: &str) -> CreateImageOptions {
    let last = image.rsplit('/').next().unwrap_or(image);
    if image.contains('@') || last.contains(':') {
        return builder.from_image(image).build();
    }
    builder.from_image(image).tag("latest").build()
}

/// What the images of a listing are called, canonical and sorted: a policy may name an image by tag or by digest.
pub(super) fn references(images: Vec<ImageSummary>) -> Vec<String> {
    let named = images.into_iter().flat_map(|image| image.repo_tags.into_iter().chain(image.repo_digests));
    // What lost its name to a newer image is called so.
    let mut references: Vec<_> =
        named.filter(|name| !name.contains("<none>")).map(|name| canonical(&name)).collect();
    references.sort();
    references.dedup();
    references
}

pub(super) fn found(summary: ContainerSummary) -> Option<Found> {
    let phase = match summary.state {
        Some(ContainerSummaryStateEnum::CREATED) => Phase::Created,
        // A paused program still has its files open; treat it as what it is meant to be.
        Some(
            ContainerSummaryStateEnum::RUNNING
            | ContainerSummaryStateEnum::PAUSED
            | ContainerSummaryStateEnum::RESTARTING
            | ContainerSummaryStateEnum::STOPPING,
        ) => Phase::Running,
        _ => Phase::Exited,
    };
    labels::parse(summary.id.as_deref()?, summary.labels.as_ref()?, phase)
}

pub(super) fn phase(state: Option<&ContainerState>) -> Phase {
    match state.and_then(|state| state.status) {
        Some(ContainerStateStatusEnum::CREATED) => Phase::Created,
        Some(
            ContainerStateStatusEnum::RUNNING
            | ContainerStateStatusEnum::PAUSED
            | ContainerStateStatusEnum::RESTARTING
            | ContainerStateStatusEnum::STOPPING,
        ) => Phase::Running,
        _ => Phase::Exited,
    }
}

/// A time of Docker's; its zero time is "never".
fn moment(text: Option<&str>) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text?, &Rfc3339).ok().filter(|at| at.year() > 1)
}

pub(super) fn inspected(container: ContainerInspectResponse, port: u16) -> Inspected {
    let phase = phase(container.state.as_ref());
    let endpoint = container
        .network_settings
        .and_then(|network| network.ports)
        .and_then(|mut ports| ports.remove(&format!("{port}/tcp")).flatten())
        .and_then(|bindings| bindings.into_iter().next())
        .and_then(|binding| Some(format!("{}:{}", binding.host_ip?, binding.host_port?)))
        .filter(|_| phase == Phase::Running);
    let state = container.state.unwrap_or_default();
    let finished_at = moment(state.finished_at.as_deref()).and(state.finished_at).unwrap_or_default();
    let ended = phase == Phase::Exited;
    Inspected {
        id: container.id.unwrap_or_default(),
        phase,
        endpoint,
        exit_code: state.exit_code.filter(|_| ended).and_then(|code| i32::try_from(code).ok()),
        oom_killed: state.oom_killed.unwrap_or_default(),
        started_at: moment(state.started_at.as_deref()),
        finished_at,
        image_id: container.image.unwrap_or_default(),
        error: state.error.unwrap_or_default(),
    }
}

pub(super) fn hint(event: EventMessage) -> Option<Hint> {
    let id = event.actor?.id?;
    match event.action?.as_str() {
        "start" => Some(Hint::Started(id)),
        "die" => Some(Hint::Died(id)),
        "destroy" => Some(Hint::Removed(id)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(status_code: u16, message: &str) -> Error {
        Error::DockerResponseServerError { status_code, message: message.into() }
    }

    #[test]
    fn a_404_is_about_what_was_asked_or_about_something_else() {
        for (operation, message, missing) in [
            ("create", "No such image: x:1", true),
            ("create", "network carrel-1 not found", false),
            ("start", "No such container: abc", true),
            ("start", "network carrel-1 not found", false),
            ("inspect_network", "network carrel-1 not found", true),
            ("pull", "manifest unknown", true),
        ] {
            let told = error(operation, &server(404, message));
            let problem = message.to_owned();
            let expected = if missing {
                RuntimeError::NotFound { operation }
            } else {
                RuntimeError::Refused { operation, problem }
            };
            assert_eq!(told, expected, "{operation}: {message}");
        }
    }

    #[test]
    fn images_are_listed_by_tag_and_by_digest_without_those_that_lost_their_name() {
        let image = |tags: &[&str], digests: &[&str]| ImageSummary {
            repo_tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            repo_digests: digests.iter().map(|digest| (*digest).to_owned()).collect(),
            ..ImageSummary::default()
        };
        let listed = vec![
            image(&["r:5000/desk:v1", "desk:v1"], &["r:5000/desk@sha256:1"]),
            image(&["<none>:<none>"], &["<none>@<none>"]),
            image(&["debian:12"], &[]),
        ];
        assert_eq!(references(listed), ["debian:12", "desk:v1", "r:5000/desk:v1", "r:5000/desk@sha256:1"]);
    }

    #[test]
    fn a_broken_connection_leaves_the_result_unknown_and_an_answer_does_not() {
        let broken = Error::IOError { err: std::io::Error::other("reset") };
        assert!(error("start", &broken).result_unknown());
        assert!(!error("start", &server(500, "no")).result_unknown());
    }

    #[test]
    fn a_reference_without_a_tag_is_pulled_as_latest_and_not_as_every_tag() {
        for (image, tag) in
            [("a", "latest"), ("h:5000/a", "latest"), ("a:1", ""), ("h:5000/a:1", ""), ("a@sha256:1", "")]
        {
            let options = pull_options(CreateImageOptionsBuilder::default(), image);
            assert_eq!(options.tag.unwrap_or_default(), tag, "{image}");
        }
    }
}
