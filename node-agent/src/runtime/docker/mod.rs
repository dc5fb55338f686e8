//! Docker through bollard: the only folder that names it. `body` says what is asked of Docker at a creation, `reply` what its
//! answers mean; this file makes the calls, each under a deadline.
//!
//! A client is made anew from the socket's path for every call: bollard refuses to make one while the socket is missing, and
//! keeps no connection open between calls anyway.

mod body;
mod pull;
mod reply;

use std::cmp::Ordering;
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering as Atomic};
use std::time::Duration;

use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, EventsOptionsBuilder,
    ListContainersOptionsBuilder, ListImagesOptions, ListNetworksOptionsBuilder, LogsOptionsBuilder,
    RemoveContainerOptionsBuilder, StopContainerOptionsBuilder,
};
use bytes::Bytes;
use carrel_common::clock::Clock;
use carrel_common::id::{ClusterId, WorkspaceUid};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};

use self::body::{OPEN_FILES, container_body, network_body};
use super::{
    Created, EngineFacts, Found, Hint, Inspected, LogOptions, Phase, Plan, Runtime, RuntimeError, Scope,
    labels,
};
use crate::fence::cgroup;
use crate::metrics::Metrics;

/// A pull may take long and has no other end than this.
const LONGEST_PULL: Duration = Duration::from_secs(900);

/// So long after the grace of a stop Docker has killed what did not end by itself: what is left then may lack the CPU time to die.
const KILLED_AFTER: Duration = Duration::from_secs(1);

/// Events are asked for from so long ago, so that none falls between two subscriptions.
const HINTS_FROM_BEFORE: Duration = Duration::from_secs(5);

/// Whether a container that has ended is there is asked for so long. A healthy daemon answers within milliseconds; it answers nothing
/// about one whose start hangs.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(1);

/// And of so many at once: of all the desks of a full host within a few seconds, whatever hangs.
const ASKED_AT_ONCE: usize = 64;

/// bollard's own deadline; ours are shorter, but for streams.
const BOLLARD_TIMEOUT_SECS: u64 = 24 * 3600;

/// A Docker daemon.
#[derive(Clone)]
pub struct Docker {
    inner: Arc<Inner>,
}

struct Inner {
    host: String,
    timeout: Duration,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    /// False once it is known that the daemon may not raise the limit of open files.
    sets_open_files: AtomicBool,
}

impl std::fmt::Debug for Docker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Docker").field("host", &self.inner.host).finish_non_exhaustive()
    }
}

impl Docker {
    /// The daemon at `host` (`unix://…`); each call may take `timeout`. Connects to nothing yet.
    pub fn new(host: String, timeout: Duration, clock: Arc<dyn Clock>, metrics: Metrics) -> Self {
        // A daemon on a host whose hard limit is lower cannot raise it, and says so only when a container is started.
        let own = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        let allowed = own.is_none_or(|limit| limit >= OPEN_FILES.unsigned_abs());
        let sets_open_files = AtomicBool::new(allowed);
        Self { inner: Arc::new(Inner { host, timeout, clock, metrics, sets_open_files }) }
    }

    fn client(&self) -> Result<bollard::Docker, bollard::errors::Error> {
        bollard::Docker::connect_with_unix(
            &self.inner.host,
            BOLLARD_TIMEOUT_SECS,
            bollard::API_DEFAULT_VERSION,
        )
    }

    async fn call<T, F>(
        &self,
        verb: &'static str,
        deadline: Duration,
        ask: impl FnOnce(bollard::Docker) -> F,
    ) -> Result<T, RuntimeError>
    where
        F: Future<Output = Result<T, bollard::errors::Error>>,
    {
        let started = self.inner.clock.monotonic();
        let result = match self.client() {
            Err(error) => Err(reply::error(verb, &error)),
            Ok(client) => match tokio::time::timeout(deadline, ask(client)).await {
                Err(_) => Err(RuntimeError::TimedOut { operation: verb, after: deadline }),
                Ok(result) => result.map_err(|error| reply::error(verb, &error)),
            },
        };
        let took = self.inner.clock.monotonic().saturating_sub(started);
        self.inner.metrics.docker_call(verb, took, result.as_ref().err());
        result
    }

    async fn has_image(&self, image: &str) -> Result<bool, RuntimeError> {
        let look = async |client: bollard::Docker| client.inspect_image(image).await;
        match self.call("inspect_image", self.inner.timeout, look).await {
            Err(RuntimeError::NotFound { .. }) => Ok(false),
            other => other.map(|_| true),
        }
    }

    /// Docker lists a container for ever that ended while it was being removed (its end puts it back into the list), and knows
    /// nothing of it otherwise: it can be neither stopped nor removed, and is not there. Only Docker's word that it does not know it
    /// says so: a container whose layer is lost, or whose start hangs, is there, though nobody can look at it.
    async fn is_forgotten(&self, id: &str) -> bool {
        let look = async |client: bollard::Docker| client.inspect_container(id, None).await;
        let Err(RuntimeError::NotFound { .. }) = self.call("inspect", FORGOTTEN_WITHIN, look).await else {
            return false;
        };
        tracing::debug!(container = id, "Docker lists what it does not know");
        end_what_is_left(id).await;
        true
    }

    /// Ids of the cluster's networks, the oldest first. Docker allows two of one name, and then refuses to use the name.
    async fn networks(&self, scope: Scope) -> Result<Vec<String>, RuntimeError> {
        let name = scope.network();
        let filters = HashMap::from([("name".to_owned(), vec![name.clone()])]);
        let options = ListNetworksOptionsBuilder::default().filters(&filters).build();
        let ask = async |client: bollard::Docker| client.list_networks(Some(options)).await;
        let found = self.call("list_networks", self.inner.timeout, ask).await?;
        // The filter also finds names that only contain it.
        let mut named: Vec<_> =
            found.into_iter().filter(|network| network.name.as_ref() == Some(&name)).collect();
        named.sort_by(|a, b| (&a.created, &a.id).cmp(&(&b.created, &b.id)));
        Ok(named.into_iter().filter_map(|network| network.id).collect())
    }

    /// Removes all but the first; one that is in use stays, and the next attempt tries again.
    async fn keep_one(&self, networks: Vec<String>) -> Result<(), RuntimeError> {
        for id in networks.iter().skip(1) {
            let remove = async |client: bollard::Docker| client.remove_network(id).await;
            if let Err(error) = self.call("remove_network", self.inner.timeout, remove).await {
                tracing::warn!(%error, network = id, "a second network of the same name cannot be removed");
            }
        }
        Ok(())
    }

    /// Who sits on the container's name, and whether a container of `plan` may take it: `Ok(Some)` is the very pair, `Ok(None)`
    /// says that the name is free again.
    async fn settle_name(&self, plan: &Plan) -> Result<Option<Created>, RuntimeError> {
        let name = plan.container_name();
        let look = async |client: bollard::Docker| client.inspect_container(&name, None).await;
        let holder = match self.call("inspect", self.inner.timeout, look).await {
            Err(RuntimeError::NotFound { .. }) => return Ok(None),
            other => other?,
        };
        let id = holder.id.clone().unwrap_or_default();
        let found = holder
            .config
            .as_ref()
            .and_then(|config| config.labels.as_ref())
            .filter(|labels| labels.get(labels::CLUSTER) == Some(&plan.scope.cluster.to_string()))
            .and_then(|labels| labels::parse(&id, labels, reply::phase(holder.state.as_ref())));
        let Some(found) = found.filter(|found| found.container.workspace == plan.item.workspace) else {
            return Err(RuntimeError::NameTaken { name, holder: id });
        };
        match found.container.pair().cmp(&plan.item.pair()) {
            Ordering::Equal => Ok(Some(Created { id, new: false })),
            Ordering::Greater => Err(RuntimeError::Beyond { name, holder: id }),
            Ordering::Less => {
                self.ensure_removed(&id).await?;
                Ok(None)
            }
        }
    }
}

impl Runtime for Docker {
    async fn facts(&self) -> Result<EngineFacts, RuntimeError> {
        let info = self.call("info", self.inner.timeout, async |client| client.info().await).await?;
        Ok(EngineFacts {
            id: info.id.unwrap_or_default(),
            version: info.server_version.unwrap_or_default(),
            cpus: info.ncpu.unwrap_or_default(),
            memory_bytes: info.mem_total.unwrap_or_default(),
        })
    }

    async fn ensure_network(&self, scope: Scope) -> Result<(), RuntimeError> {
        let named = self.networks(scope).await?;
        if named.is_empty() {
            let make = async |client: bollard::Docker| client.create_network(network_body(scope)).await;
            let made = self.call("create_network", self.inner.timeout, make).await;
            // One that timed out may be made all the same, and an agent that was killed may have asked as well.
            return match made {
                Ok(_) => self.keep_one(self.networks(scope).await?).await,
                Err(error) => Err(error),
            };
        }
        self.keep_one(named).await
    }

    async fn list(
        &self,
        cluster: ClusterId,
        workspace: Option<WorkspaceUid>,
    ) -> Result<Vec<Found>, RuntimeError> {
        let mut wanted = vec![format!("{}={cluster}", labels::CLUSTER)];
        wanted.extend(workspace.map(|uid| format!("{}={uid}", labels::WORKSPACE)));
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&HashMap::from([("label".to_owned(), wanted)]))
            .build();
        let ask = async |client: bollard::Docker| client.list_containers(Some(options)).await;
        let summaries = self.call("list", self.inner.timeout, ask).await?;
        let listed = futures_util::stream::iter(summaries.into_iter().filter_map(reply::found));
        let there = listed.map(|found| async move {
            let ended = found.phase == Phase::Exited;
            let forgotten = ended && self.is_forgotten(&found.container.container_id).await;
            (!forgotten).then_some(found)
        });
        let mut found: Vec<Found> =
            there.buffer_unordered(ASKED_AT_ONCE).filter_map(std::future::ready).collect().await;
        found.sort_by(|a, b| a.container.container_id.cmp(&b.container.container_id));
        Ok(found)
    }

    async fn ensure_created(&self, plan: &Plan) -> Result<Created, RuntimeError> {
        // Twice at most: once more after an older container was taken off the name.
        for attempt in 0..2 {
            let open_files = self.inner.sets_open_files.load(Atomic::Relaxed).then_some(OPEN_FILES);
            let options = CreateContainerOptionsBuilder::default().name(&plan.container_name()).build();
            let body = container_body(plan, open_files);
            let make = async |client: bollard::Docker| client.create_container(Some(options), body).await;
            let problem = match self.call("create", self.inner.timeout, make).await {
                Ok(reply) => return Ok(Created { id: reply.id, new: true }),
                Err(RuntimeError::NotFound { .. }) => {
                    let image = plan.item.spec.image.clone();
                    return Err(RuntimeError::ImageMissing {
                        image,
                        problem: "it is not on this host".into(),
                    });
                }
                // The name is taken, or the result is unknown: look who has the name.
                Err(RuntimeError::Refused { problem, .. }) if !reply::is_name_conflict(&problem) => {
                    return Err(RuntimeError::Refused { operation: "create", problem });
                }
                Err(problem) => problem,
            };
            match self.settle_name(plan).await? {
                Some(created) => return Ok(created),
                None if attempt == 0 && !problem.result_unknown() => {}
                None => return Err(problem),
            }
        }
        Err(RuntimeError::Refused { operation: "create", problem: "the container's name stays taken".into() })
    }

    async fn images(&self) -> Result<Vec<String>, RuntimeError> {
        let ask = async |client: bollard::Docker| client.list_images(None::<ListImagesOptions>).await;
        let listed = self.call("list_images", self.inner.timeout, ask).await?;
        Ok(reply::references(listed))
    }

    async fn ensure_image(
        &self,
        image: &str,
        percent: &(dyn Fn(u8) + Send + Sync),
    ) -> Result<(), RuntimeError> {
        let missing = |problem: String| RuntimeError::ImageMissing { image: image.to_owned(), problem };
        match self.has_image(image).await {
            Ok(false) => {}
            Err(RuntimeError::Refused { problem, .. }) => return Err(missing(problem)),
            other => return other.map(|_| ()),
        }
        let options = reply::pull_options(CreateImageOptionsBuilder::default(), image);
        let pull = async |client: bollard::Docker| {
            let mut progress = pull::Progress::default();
            let lines = client.create_image(Some(options), None, None);
            lines
                .try_for_each(|line| {
                    percent(progress.note(&line));
                    std::future::ready(Ok(()))
                })
                .await
        };
        match self.call("pull", LONGEST_PULL, pull).await {
            Ok(()) => Ok(()),
            Err(RuntimeError::NotFound { .. }) => Err(missing("the registry does not have it".into())),
            Err(RuntimeError::Refused { problem, .. }) => Err(missing(problem)),
            Err(RuntimeError::TimedOut { .. }) => Err(missing("the pull took too long".into())),
            // Docker names an image last of all, so whether it is here says how the pull ended. The client also takes a whole
            // stream for a broken one, when the end of its last line comes by itself.
            Err(broken) => {
                if self.has_image(image).await? {
                    Ok(())
                } else {
                    Err(broken)
                }
            }
        }
    }

    async fn ensure_started(&self, id: &str) -> Result<(), RuntimeError> {
        let start = async |client: bollard::Docker| client.start_container(id, None).await;
        let result = self.call("start", self.inner.timeout, start).await;
        if let Err(RuntimeError::Refused { problem, .. }) = &result
            && reply::is_rlimit_refusal(problem)
            && self.inner.sets_open_files.swap(false, Atomic::Relaxed)
        {
            tracing::warn!(%problem, "the daemon may not set the limit of open files; containers get its own");
            return Err(RuntimeError::Remake { problem: problem.clone() });
        }
        result
    }

    async fn inspect(&self, id: &str, port: u16) -> Result<Option<Inspected>, RuntimeError> {
        let look = async |client: bollard::Docker| client.inspect_container(id, None).await;
        match self.call("inspect", self.inner.timeout, look).await {
            Err(RuntimeError::NotFound { .. }) => Ok(None),
            other => Ok(Some(reply::inspected(other?, port))),
        }
    }

    async fn ensure_stopped(&self, id: &str, grace: Duration) -> Result<(), RuntimeError> {
        let seconds = i32::try_from(grace.as_millis().div_ceil(1000)).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::default().t(seconds).build();
        let deadline = self.inner.timeout + Duration::from_secs(u64::from(seconds.unsigned_abs()));
        let stop = async |client: bollard::Docker| client.stop_container(id, Some(options)).await;
        let mut stopping = Box::pin(self.call("stop", deadline, stop));
        let done = match tokio::time::timeout(grace + KILLED_AFTER, &mut stopping).await {
            Ok(done) => done,
            Err(_) => {
                let id = id.to_owned();
                // It fails only when the agent ends.
                let _ = tokio::task::spawn_blocking(move || cgroup::free(&id)).await;
                stopping.await
            }
        };
        match done {
            // 304: it had ended before.
            Ok(()) | Err(RuntimeError::NotFound { .. }) => Ok(()),
            Err(RuntimeError::Refused { problem, .. }) if reply::is_not_running(&problem) => Ok(()),
            Err(other) => Err(other),
        }
    }

    async fn ensure_removed(&self, id: &str) -> Result<(), RuntimeError> {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        let remove = async |client: bollard::Docker| client.remove_container(id, Some(options)).await;
        match self.call("remove", self.inner.timeout, remove).await {
            Ok(()) | Err(RuntimeError::NotFound { .. }) => {}
            // Somebody else removes it at this moment; the caller's listing shows when it is gone.
            Err(RuntimeError::Refused { problem, .. }) if reply::is_removal_in_progress(&problem) => {
                return Ok(());
            }
            Err(other) => return Err(other),
        }
        end_what_is_left(id).await;
        Ok(())
    }

    fn logs(&self, id: &str, options: LogOptions) -> BoxStream<'static, Result<Bytes, RuntimeError>> {
        let query = LogsOptionsBuilder::default()
            .stdout(true)
            .stderr(true)
            .follow(options.follow)
            .tail(&options.lines.map_or_else(|| "all".to_owned(), |lines| lines.to_string()))
            .build();
        match self.client() {
            Err(error) => futures_util::stream::iter([Err(reply::error("logs", &error))]).boxed(),
            Ok(client) => {
                let id = id.to_owned();
                let stream = client.logs(&id, Some(query));
                stream
                    .map(|item| item.map(|out| out.into_bytes()).map_err(|e| reply::error("logs", &e)))
                    .boxed()
            }
        }
    }

    fn hints(&self, cluster: ClusterId) -> BoxStream<'static, Result<Hint, RuntimeError>> {
        let since = (self.inner.clock.now() - HINTS_FROM_BEFORE).unix_timestamp();
        let filters = HashMap::from([
            ("type".to_owned(), vec!["container".to_owned()]),
            ("label".to_owned(), vec![format!("{}={cluster}", labels::CLUSTER)]),
            ("event".to_owned(), ["start", "die", "destroy"].map(str::to_owned).to_vec()),
        ]);
        let options = EventsOptionsBuilder::default().since(&since.to_string()).filters(&filters).build();
        match self.client() {
            Err(error) => futures_util::stream::iter([Err(reply::error("events", &error))]).boxed(),
            Ok(client) => client
                .events(Some(options))
                .map_err(|error| reply::error("events", &error))
                .try_filter_map(|event| async move { Ok(reply::hint(event)) })
                .boxed(),
        }
    }
}

/// Ends the processes of a container that Docker does not know any more.
async fn end_what_is_left(id: &str) {
    let removed = id.to_owned();
    if let Ok(ended @ 1..) = tokio::task::spawn_blocking(move || cgroup::end(&removed)).await {
        tracing::warn!(
            container = id,
            processes = ended,
            "ended what Docker had forgotten of a removed container"
        );
    }
}

#[cfg(test)]
mod tests;
