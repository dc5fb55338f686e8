//! What every container engine has to do. One suite, run against Docker and against the fake, so that a test that uses the fake
//! says something about Docker.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use carrel_common::clock::SystemClock;
use carrel_common::id::{ClusterId, Generation, NodeId, PlacementId, WorkspaceUid};
use carrel_common::model::{DesiredItem, Resources, Run, WorkspaceSpec};
use futures_util::StreamExt as _;

use super::docker::Docker;
use super::fake::Fake;
use super::{Hint, LogOptions, Phase, Plan, Runtime, RuntimeError, Scope};
use crate::metrics::Metrics;

const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(60);

/// An engine with the containers of a cluster of its own.
struct Bench<R: Runtime> {
    engine: R,
    scope: Scope,
    dir: tempfile::TempDir,
}

impl<R: Runtime> Bench<R> {
    async fn new(engine: R) -> Self {
        let scope = Scope { cluster: ClusterId::new(), node: NodeId::new() };
        engine.ensure_network(scope).await.expect("network");
        engine.ensure_network(scope).await.expect("network again");
        Self { engine, scope, dir: tempfile::tempdir().expect("tempdir") }
    }

    fn plan(&self, mode: &str) -> Plan {
        plan(self.scope, mode, self.dir.path())
    }

    async fn made(&self, plan: &Plan) -> String {
        self.engine.ensure_created(plan).await.expect("created").id
    }

    async fn started(&self, plan: &Plan) -> String {
        let id = self.made(plan).await;
        match self.engine.ensure_started(&id).await {
            Ok(()) => id,
            // A daemon that may not set a limit says so once.
            Err(RuntimeError::Remake { .. }) => {
                self.engine.ensure_removed(&id).await.expect("removed");
                let id = self.made(plan).await;
                self.engine.ensure_started(&id).await.expect("started");
                id
            }
            Err(other) => panic!("{other}"),
        }
    }

    async fn clean(self) {
        for found in self.engine.list(self.scope.cluster, None).await.expect("list") {
            self.engine.ensure_removed(&found.container.container_id).await.expect("removed");
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "where a test runs is said by its environment")]
fn surroundings(key: &str, default: &str) -> String {
    std::env::var(key).unwrap_or_else(|_| default.to_owned())
}

pub(super) fn plan(scope: Scope, mode: &str, dir: &Path) -> Plan {
    let image = surroundings("CARREL_TINY_IMAGE", "carrel/tiny:test");
    let name = image.rsplit_once(':').map_or(image.as_str(), |(name, _)| name);
    Plan {
        scope,
        item: DesiredItem {
            workspace: WorkspaceUid::new(),
            student: "ada".parse().expect("valid"),
            generation: Generation(3),
            incarnation: 4,
            placement: PlacementId::new(),
            spec: WorkspaceSpec {
                image: format!("{name}:{mode}"),
                resources: Resources { cpu_millicores: 1000, memory_bytes: 1 << 30, pids: 512 },
                probe_port: PORT,
                probe_path: "/healthz".into(),
            },
            run: Run::Running { start_timeout: Duration::from_secs(30) },
            traceparent: String::new(),
            idle_basis_age: None,
        },
        project_dir: dir.to_owned(),
        desk_dir: dir.to_owned(),
    }
}

async fn makes_one_container_and_takes_it_again<R: Runtime>(bench: &Bench<R>) {
    let plan = bench.plan("test");
    let first = bench.engine.ensure_created(&plan).await.expect("created");
    let second = bench.engine.ensure_created(&plan).await.expect("there");
    assert_eq!((first.new, second.new, &first.id), (true, false, &second.id));
    let listed = bench.engine.list(bench.scope.cluster, None).await.expect("list");
    let found = listed.first().expect("one");
    assert_eq!((listed.len(), found.phase, found.container.running), (1, Phase::Created, false));
    let container = &found.container;
    assert_eq!(
        (
            container.workspace,
            &container.student,
            container.generation,
            container.incarnation,
            container.node
        ),
        (plan.item.workspace, &plan.item.student, Generation(3), 4, bench.scope.node)
    );
    assert_eq!(found.spec_digest, plan.item.spec.digest());
}

async fn a_started_program_runs_at_an_address_of_this_host<R: Runtime>(bench: &Bench<R>) {
    let id = bench.started(&bench.plan("test")).await;
    bench.engine.ensure_started(&id).await.expect("again");
    let look = bench.engine.inspect(&id, PORT).await.expect("inspect").expect("there");
    assert_eq!((look.phase, look.exit_code, look.finished_at.as_str()), (Phase::Running, None, ""));
    assert!(look.endpoint.expect("an address").starts_with("127.0.0.1:"));
    assert!(look.image_id.starts_with("sha256:") && look.started_at.is_some());
}

async fn a_stopped_program_has_an_exit_and_can_be_started_again<R: Runtime>(bench: &Bench<R>) {
    let id = bench.started(&bench.plan("test")).await;
    for _ in 0..2 {
        bench.engine.ensure_stopped(&id, Duration::from_secs(5)).await.expect("stopped");
    }
    let look = bench.engine.inspect(&id, PORT).await.expect("inspect").expect("there");
    assert_eq!((look.phase, look.exit_code, look.endpoint), (Phase::Exited, Some(0), None));
    let first_exit = look.finished_at;
    assert!(!first_exit.is_empty());
    bench.engine.ensure_started(&id).await.expect("again");
    bench.engine.ensure_stopped(&id, Duration::from_secs(5)).await.expect("stopped");
    let look = bench.engine.inspect(&id, PORT).await.expect("inspect").expect("there");
    assert_ne!(look.finished_at, first_exit, "another exit has another name");
}

async fn a_program_that_ends_by_itself_gives_a_hint_and_its_exit_code<R: Runtime>(bench: &Bench<R>) {
    let mut hints = bench.engine.hints(bench.scope.cluster);
    let id = bench.started(&bench.plan("crash")).await;
    let died = async {
        while let Some(hint) = hints.next().await {
            if hint.expect("hint") == Hint::Died(id.clone()) {
                return;
            }
        }
        panic!("the hints ended");
    };
    tokio::time::timeout(PATIENCE, died).await.expect("a hint");
    let look = bench.engine.inspect(&id, PORT).await.expect("inspect").expect("there");
    assert_eq!((look.phase, look.exit_code, look.oom_killed), (Phase::Exited, Some(3), false));
}

async fn a_removed_container_is_gone_and_may_be_removed_again<R: Runtime>(bench: &Bench<R>) {
    let id = bench.started(&bench.plan("test")).await;
    for _ in 0..2 {
        bench.engine.ensure_removed(&id).await.expect("removed");
    }
    bench.engine.ensure_stopped(&id, Duration::ZERO).await.expect("stopping what is not there is fine");
    assert_eq!(bench.engine.inspect(&id, PORT).await.expect("inspect"), None);
    let start = bench.engine.ensure_started(&id).await;
    assert_eq!(start, Err(RuntimeError::NotFound { operation: "start" }));
}

async fn a_missing_image_is_told_and_nothing_is_made<R: Runtime>(bench: &Bench<R>) {
    let mut plan = bench.plan("test");
    plan.item.spec.image = "carrel.invalid/none:1".into();
    let created = bench.engine.ensure_created(&plan).await;
    assert!(matches!(created, Err(RuntimeError::ImageMissing { .. })), "{created:?}");
    let pulled = bench.engine.ensure_image("carrel.invalid/none:1", &|_| {}).await;
    assert!(matches!(pulled, Err(RuntimeError::ImageMissing { .. })), "{pulled:?}");
    bench.engine.ensure_image(&bench.plan("test").item.spec.image, &|_| {}).await.expect("that one is here");
    assert_eq!(bench.engine.list(bench.scope.cluster, None).await, Ok(vec![]));
}

async fn the_images_of_a_host_are_listed_by_their_names<R: Runtime>(bench: &Bench<R>) {
    let listed = bench.engine.images().await.expect("images");
    assert!(listed.is_sorted(), "{listed:?}");
    let image = bench.plan("test").item.spec.image;
    assert!(listed.contains(&image), "{image} is not in {listed:?}");
}

async fn a_listing_is_of_one_cluster_and_on_demand_of_one_workspace<R: Runtime>(bench: &Bench<R>) {
    let (one, two) = (bench.plan("test"), bench.plan("test"));
    let (first, second) = (bench.made(&one).await, bench.made(&two).await);
    let ids =
        |found: Vec<super::Found>| found.into_iter().map(|f| f.container.container_id).collect::<Vec<_>>();
    let mut both = vec![first.clone(), second];
    both.sort();
    assert_eq!(ids(bench.engine.list(bench.scope.cluster, None).await.expect("list")), both);
    let of_one = bench.engine.list(bench.scope.cluster, Some(one.item.workspace)).await.expect("list");
    assert_eq!(ids(of_one), [first]);
    assert_eq!(bench.engine.list(ClusterId::new(), None).await, Ok(vec![]));
}

async fn the_labels_decide_who_keeps_a_name<R: Runtime>(bench: &Bench<R>) {
    let plan = bench.plan("test");
    let held = bench.started(&plan).await;
    let of = |incarnation| {
        let mut plan = plan.clone();
        plan.item.incarnation = incarnation;
        plan
    };
    let earlier = bench.engine.ensure_created(&of(3)).await;
    assert_eq!(earlier, Err(RuntimeError::Beyond { name: plan.container_name(), holder: held.clone() }));
    let look = bench.engine.inspect(&held, PORT).await.expect("inspect").expect("there");
    assert_eq!(look.phase, Phase::Running, "the later one is left alone");
    let later = bench.engine.ensure_created(&of(5)).await.expect("made");
    assert!(later.new && later.id != held);
    assert_eq!(bench.engine.inspect(&held, PORT).await, Ok(None), "the earlier one is superseded");
}

async fn a_log_tells_what_the_program_wrote<R: Runtime>(bench: &Bench<R>) {
    let id = bench.started(&bench.plan("test")).await;
    let read = async {
        loop {
            let options = LogOptions { lines: Some(10), follow: false };
            let chunks: Vec<_> = bench.engine.logs(&id, options).collect().await;
            let text: Vec<u8> = chunks.into_iter().flat_map(|chunk| chunk.expect("log")).collect();
            if String::from_utf8_lossy(&text).contains("generation 3") {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("it says which generation it is");
}

fn docker() -> Docker {
    let host = surroundings("DOCKER_HOST", "unix:///var/run/docker.sock");
    Docker::new(host, Duration::from_secs(60), Arc::new(SystemClock::new()), Metrics::new())
}

macro_rules! contract {
    ($($name:ident),+ $(,)?) => {
        mod on_docker {
            $(#[tokio::test]
            async fn $name() {
                let bench = super::Bench::new(super::docker()).await;
                let network = bench.scope.network();
                super::$name(&bench).await;
                bench.clean().await;
                let _ = std::process::Command::new("docker").args(["network", "rm", &network]).output();
            })+
        }
        mod on_the_fake {
            $(#[tokio::test]
            async fn $name() {
                let bench = super::Bench::new(super::Fake::new()).await;
                super::$name(&bench).await;
                bench.clean().await;
            })+
        }
    };
}

contract!(
    makes_one_container_and_takes_it_again,
    a_started_program_runs_at_an_address_of_this_host,
    a_stopped_program_has_an_exit_and_can_be_started_again,
    a_program_that_ends_by_itself_gives_a_hint_and_its_exit_code,
    a_removed_container_is_gone_and_may_be_removed_again,
    a_missing_image_is_told_and_nothing_is_made,
    the_images_of_a_host_are_listed_by_their_names,
    a_listing_is_of_one_cluster_and_on_demand_of_one_workspace,
    the_labels_decide_who_keeps_a_name,
    a_log_tells_what_the_program_wrote,
);

#[tokio::test]
async fn a_name_that_somebody_else_has_is_not_taken_from_them() {
    let bench = Bench::new(docker()).await;
    let plan = bench.plan("test");
    let foreign = Bench::new(docker()).await;
    let theirs = Plan { scope: foreign.scope, ..plan.clone() };
    let holder = foreign.made(&theirs).await;
    let error = bench.engine.ensure_created(&plan).await.expect_err("taken");
    assert_eq!(error, RuntimeError::NameTaken { name: plan.container_name(), holder: holder.clone() });
    assert!(foreign.engine.inspect(&holder, PORT).await.expect("inspect").is_some());
    for bench in [bench, foreign] {
        let network = bench.scope.network();
        bench.clean().await;
        let _ = std::process::Command::new("docker").args(["network", "rm", &network]).output();
    }
}

#[tokio::test]
async fn of_networks_made_at_the_same_time_one_is_left() {
    let (docker, scope) = (docker(), Scope { cluster: ClusterId::new(), node: NodeId::new() });
    let make = || docker.ensure_network(scope);
    let (a, b, c) = tokio::join!(make(), make(), make());
    assert_eq!((a, b, c), (Ok(()), Ok(()), Ok(())));
    docker.ensure_network(scope).await.expect("once more");
    let name = scope.network();
    let list = ["network", "ls", "-q", "--filter", &format!("name={name}")];
    let listed = std::process::Command::new("docker").args(list).output().expect("docker runs");
    assert_eq!(String::from_utf8_lossy(&listed.stdout).lines().count(), 1);
    let _ = std::process::Command::new("docker").args(["network", "rm", &name]).output();
}

#[tokio::test]
async fn a_daemon_that_is_not_there_leaves_the_result_unknown() {
    let nowhere = "unix:///nowhere/docker.sock".to_owned();
    let docker = Docker::new(nowhere, Duration::from_secs(5), Arc::new(SystemClock::new()), Metrics::new());
    let error = docker.facts().await.expect_err("nobody there");
    assert!(error.result_unknown(), "{error}");
}

#[tokio::test]
async fn a_daemon_that_does_not_answer_is_given_up_at_the_deadline() {
    let dir = tempfile::tempdir().expect("tempdir");
    let socket = dir.path().join("docker.sock");
    let _listener = tokio::net::UnixListener::bind(&socket).expect("bind");
    let host = format!("unix://{}", socket.display());
    let deadline = Duration::from_millis(50);
    let docker = Docker::new(host, deadline, Arc::new(SystemClock::new()), Metrics::new());
    assert_eq!(docker.facts().await, Err(RuntimeError::TimedOut { operation: "info", after: deadline }));
}

/// A daemon that gives these answers, each on a connection of its own.
fn answering(dir: &Path, answers: Vec<String>) -> Docker {
    let socket = dir.join("docker.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("bind");
    std::thread::spawn(move || {
        for answer in answers {
            let mut connection = listener.accept().expect("a call").0;
            assert_ne!(connection.read(&mut [0; 4096]).expect("a request"), 0);
            connection.write_all(answer.as_bytes()).expect("it is read");
        }
    });
    let host = format!("unix://{}", socket.display());
    Docker::new(host, Duration::from_secs(60), Arc::new(SystemClock::new()), Metrics::new())
}

#[tokio::test]
async fn a_pull_that_seems_to_break_off_has_ended_well_when_the_image_is_here() {
    let whole = |status: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let absent = whole("404 Not Found", r#"{"message":"No such image"}"#);
    let line = r#"{"status":"Downloaded newer image"}"#;
    // The end of the line comes by itself.
    let pull = format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{line}\r\n2\r\n\r\n\r\n0\r\n\r\n",
        line.len()
    );
    for (here, ended_well) in [(whole("200 OK", "{}"), true), (absent.clone(), false)] {
        let dir = tempfile::tempdir().expect("tempdir");
        let docker = answering(dir.path(), vec![absent.clone(), pull.clone(), here]);
        let pulled = docker.ensure_image("desk:1", &|_| {}).await;
        let unknown = pulled.as_ref().is_err_and(RuntimeError::result_unknown);
        assert_eq!((pulled.is_ok(), unknown), (ended_well, !ended_well), "{pulled:?}");
    }
}
