//! Takes containers away: stop, keep the log's end, remove, and look whether they are gone.

use std::collections::BTreeSet;
use std::time::Duration;

use carrel_common::id::{Pair, WorkspaceUid};
use carrel_common::model::{Container, DesiredItem, Observed, Run};

use super::failure::{self, Failure};
use super::host::Host;
use crate::reconcile::{Cause, Settled};
use crate::reports::Report;
use crate::runtime::{Inspected, Runtime, RuntimeError};
use crate::storage::fence_file::Token;

/// Between SIGTERM and SIGKILL where no order says how long: time enough to save a file.
pub(super) const GRACE: Duration = Duration::from_secs(10);

/// Before another attempt at something that did not work.
const PAUSE: Duration = Duration::from_secs(2);

/// Carries out an order to stop: no container of this or a lower pair exists afterwards, and the control plane is told so.
pub(super) async fn stop<R: Runtime>(host: &Host<R>, item: &DesiredItem) -> Settled {
    let Run::Stopped { reason, grace, purge_files } = &item.run else {
        return retry(host);
    };
    tracing::info!(?reason, "stopping");
    let mut last = None;
    match take_away_up_to(host, item, *grace, &mut last).await {
        Ok(true) => {}
        Ok(false) => {
            tracing::warn!("a container of a higher pair is here; nothing is reported gone");
            return retry(host);
        }
        Err(error) => {
            tracing::warn!(%error, "the stop did not work; trying again");
            return retry(host);
        }
    }
    host.clear_desk(item.workspace).await;
    let purge = if *purge_files { purge(host, item).await } else { Ok(false) };
    host.exits().forget(item.workspace);
    tracing::info!(purged = ?purge, "gone");
    host.reports.report(
        item.workspace,
        item.pair(),
        Report {
            exit_code: last.as_ref().and_then(|end: &Inspected| end.exit_code),
            oom_killed: last.as_ref().is_some_and(|end| end.oom_killed),
            traceparent: item.traceparent.clone(),
            ..Report::of(Observed::Gone { purge })
        },
    );
    Settled::Gone
}

/// `Ok(false)`: a container of a later time is here, and the workspace is left alone.
async fn take_away_up_to<R: Runtime>(
    host: &Host<R>,
    item: &DesiredItem,
    grace: Duration,
    last: &mut Option<Inspected>,
) -> Result<bool, RuntimeError> {
    let beyond = |container: &Container| container.pair() > item.pair();
    let listed = host.runtime.list(host.scope.cluster, Some(item.workspace)).await?;
    if listed.iter().any(|found| beyond(&found.container)) {
        return Ok(false);
    }
    if listed.is_empty() {
        return Ok(true);
    }
    for found in listed {
        let port = item.spec.probe_port;
        *last = take_away(host, &found.container, grace, port).await?.or(last.take());
        host.metrics.stopped("ordered");
    }
    confirm(host, item.workspace, |container| !beyond(container)).await?;
    Ok(true)
}

/// Containers without an order that names them: superseded, or over by the control plane's word.
pub(super) async fn clear<R: Runtime>(
    host: &Host<R>,
    workspace: WorkspaceUid,
    cause: Cause,
    containers: &[Container],
) -> Settled {
    let which = |container: &Container| containers.iter().any(|c| c.container_id == container.container_id);
    for container in containers {
        tracing::info!(generation = %container.generation, container = container.container_id, ?cause, "removing");
        if let Err(error) = take_away(host, container, GRACE, 0).await {
            tracing::warn!(%error, "the removal did not work; trying again");
            return retry(host);
        }
        host.metrics.stopped(match cause {
            Cause::Superseded => "superseded",
            Cause::Orphan => "orphan",
            Cause::Fenced => "fenced",
        });
    }
    if let Err(error) = confirm(host, workspace, which).await {
        tracing::warn!(%error, "the removal is not confirmed; trying again");
        return retry(host);
    }
    match cause {
        Cause::Superseded => {}
        Cause::Orphan => {
            let left = host.runtime.list(host.scope.cluster, Some(workspace)).await;
            if left.is_ok_and(|left| left.is_empty()) {
                host.clear_desk(workspace).await;
            }
        }
        Cause::Fenced => host.desks.release(workspace),
    }
    let (told, settled) = match cause {
        Cause::Orphan => (None, again_now(host)),
        Cause::Superseded => (Some(Observed::Gone { purge: Ok(false) }), again_now(host)),
        // Never again as this pair: the control plane may be giving it to another host at this moment.
        Cause::Fenced => (Some(Observed::Fenced), Settled::Gone),
    };
    let pairs: BTreeSet<Pair> = containers.iter().map(Container::pair).collect();
    for (state, pair) in told.iter().cycle().zip(pairs) {
        host.reports.report(workspace, pair, Report::of(state.clone()));
    }
    settled
}

fn again_now<R: Runtime>(host: &Host<R>) -> Settled {
    Settled::Retry { not_before: host.clock.monotonic() }
}

/// How the container ended, when it could still be looked at.
pub(super) async fn take_away<R: Runtime>(
    host: &Host<R>,
    container: &Container,
    grace: Duration,
    port: u16,
) -> Result<Option<Inspected>, RuntimeError> {
    let id = &container.container_id;
    match host.runtime.ensure_stopped(id, grace).await {
        Ok(()) => {}
        // Docker may not have seen it end; the removal kills it again, and the listing tells.
        Err(error @ RuntimeError::Refused { .. }) => {
            tracing::warn!(%error, "the stop was refused; removing all the same")
        }
        Err(error) => return Err(error),
    }
    let end = match host.runtime.inspect(id, port).await {
        Ok(end) => end,
        // Docker removes what it cannot look at, as a container whose layer is lost.
        Err(error) => {
            tracing::warn!(%error, "how it ended is not known; removing all the same");
            None
        }
    };
    if end.is_some() {
        host.keep_log(id, container.workspace, container.generation).await;
    }
    host.removed(id).await?;
    Ok(end)
}

/// That no container of `which` is left.
async fn confirm<R: Runtime>(
    host: &Host<R>,
    workspace: WorkspaceUid,
    which: impl Fn(&Container) -> bool,
) -> Result<(), RuntimeError> {
    let left = host.runtime.list(host.scope.cluster, Some(workspace)).await?;
    match left.into_iter().find(|found| which(&found.container)) {
        None => Ok(()),
        Some(found) => Err(RuntimeError::Refused {
            operation: "remove",
            problem: format!("container {} is still there", found.container.container_id),
        }),
    }
}

async fn purge<R: Runtime>(host: &Host<R>, item: &DesiredItem) -> Result<bool, String> {
    host.storage.move_to_trash(&item.student, item.workspace, item.pair()).await.map(|()| true)
}

/// Stops a container at once, as the share knows of a later one, and says so; it is removed when it is ordered. No grace: two that
/// write are worse than what one of them had not saved.
pub(super) async fn fence<R: Runtime>(host: &Host<R>, container: &Container, later: Token) -> Settled {
    tracing::error!(
        generation = %container.generation, incarnation = container.incarnation, container = container.container_id,
        later = ?later.pair, "the share knows a later container of this student; this one is stopped"
    );
    if let Err(error) = host.runtime.ensure_stopped(&container.container_id, Duration::ZERO).await {
        tracing::warn!(%error, "the stop did not work; trying again");
        return retry(host);
    }
    host.metrics.fenced("running");
    let Failure { reason, message, share, .. } = failure::fenced(later);
    host.reports.report(
        container.workspace,
        container.pair(),
        Report { message, share, ..Report::of(Observed::Failed(reason)) },
    );
    Settled::Failed
}

pub(super) fn retry<R: Runtime>(host: &Host<R>) -> Settled {
    Settled::Retry { not_before: host.clock.monotonic() + PAUSE }
}

#[cfg(test)]
mod tests;
