//! The lease runs out: what ran under it ends, with the agent or without, and is told before anything else.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use carrel_common::clock::{Clock as _, SystemClock};
use carrel_common::id::WorkspaceUid;
use node_agent::facts::boot_id;
use node_agent::fence::files::FenceFiles;
use node_agent::fence::{Deadline, Terms, cgroup};

use crate::rig::{Rig, desk, docker, image, later};

/// Long enough that a busy machine renews it in time, with a heartbeat each half second.
const TERMS: Terms = Terms { fence_after: Duration::from_secs(4), stop_budget: Duration::from_secs(2) };

/// `node-agent fence`, ended when dropped.
struct Fence(Child);

impl Fence {
    fn watch(state_dir: &std::path::Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_node-agent"));
        Self(command.arg("fence").arg("--state-dir").arg(state_dir).spawn().expect("it starts"))
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn now() -> Duration {
    SystemClock::new().boot()
}

fn runs(id: &str) -> bool {
    docker(&["inspect", "--format", "{{.State.Running}}", id]) == "true"
}

/// Whether Docker says that it could.
fn docker_starts(id: &str) -> bool {
    Command::new("docker").args(["start", id]).output().expect("docker runs").status.success()
}

/// When it had ended, by the boot-time clock.
async fn ended(id: &str) -> Duration {
    let begun = now();
    while runs(id) {
        assert!(now() < begun + Duration::from_secs(30), "{id} runs on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    now()
}

async fn nothing_ends_before(at: Duration, ids: &[String]) {
    while now() + Duration::from_millis(300) < at {
        let all = ids.iter().all(|id| runs(id));
        assert!(all || now() >= at, "ended {:?} before its time", at - now());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn deadline_of(rig: &Rig) -> Deadline {
    let files = FenceFiles::open(&rig.dir.path().join("state")).expect("the agent's files");
    files.deadline(&boot_id().expect("a boot id")).expect("readable").expect("leased")
}

async fn leased() -> Rig {
    let mut rig = Rig::stopped(|_| {}).await;
    rig.control_plane.lease_for(TERMS);
    rig.start_agent().await;
    rig
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_agent_the_fence_process_ends_everything_at_the_deadline() {
    let mut rig = leased().await;
    let _fence = Fence::watch(&rig.dir.path().join("state"));
    let (ada, bob) = (desk("ada", "test"), desk("bob", "stubborn"));
    rig.control_plane.want(vec![ada.clone(), bob.clone()]);
    for item in [&ada, &bob] {
        rig.running(item).await;
    }
    let ids = rig.containers();
    rig.kill_agent();
    let deadline = deadline_of(&rig);
    nothing_ends_before(deadline.stop_at, &ids).await;
    for id in &ids {
        let at = ended(id).await;
        assert!(at >= deadline.stop_at, "{:?} too early", deadline.stop_at - at);
        let late = at.saturating_sub(deadline.stop_at + TERMS.stop_budget);
        assert!(late < Duration::from_secs(3), "{late:?} too late, on a busy machine too");
    }
    // It goes on watching: what is started behind everybody's back ends as well, once it runs or before: then Docker says that it
    // could not start it. One of some starts comes through between two looks.
    assert!((0..20).any(|_| docker_starts(&ids[0])), "none came through");
    ended(&ids[0]).await;

    rig.start_agent().await;
    rig.fenced(&ada).await;
    rig.fenced(&bob).await;
    assert_eq!(rig.containers(), Vec::<String>::new());
    let again = later(&ada, 1);
    rig.control_plane.want(vec![again.clone(), bob.clone()]);
    rig.running(&again).await;
    assert_eq!(rig.containers().len(), 1, "never again in the generation that was fenced");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_heartbeats_are_not_acked_ends_everything_by_itself_and_tells_it_in_a_new_session() {
    let rig = leased().await;
    let (ada, bob) = (desk("ada", "test"), desk("bob", "stubborn"));
    rig.control_plane.want(vec![ada.clone(), bob.clone()]);
    for item in [&ada, &bob] {
        rig.running(item).await;
    }
    let ids = rig.containers();
    rig.control_plane.ack_heartbeats(false);
    let deadline = deadline_of(&rig);
    nothing_ends_before(deadline.stop_at, &ids).await;
    // Told by whatever session stands then, acked heartbeats or not.
    rig.fenced(&ada).await;
    rig.fenced(&bob).await;
    assert!(now() >= deadline.stop_at);
    assert_eq!(rig.containers(), Vec::<String>::new());
    let carol = desk("carol", "test");
    rig.control_plane.want(vec![carol.clone()]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(rig.containers(), Vec::<String>::new(), "nothing is started without a lease");
    rig.control_plane.ack_heartbeats(true);
    rig.running(&carol).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_is_away_for_less_than_the_lease_stops_nothing() {
    let rig = leased().await;
    let ada = desk("ada", "test");
    rig.control_plane.want(vec![ada.clone()]);
    rig.running(&ada).await;
    let ids = rig.containers();
    for _ in 0..3 {
        rig.control_plane.ack_heartbeats(false);
        tokio::time::sleep(TERMS.fence_after / 2).await;
        rig.control_plane.ack_heartbeats(true);
        let beats = rig.control_plane.heard(|heard| heard.heartbeats.len());
        rig.control_plane
            .hear("heartbeats", |heard| (heard.heartbeats.len() > beats + 2).then_some(()))
            .await;
    }
    assert_eq!(rig.containers(), ids);
    assert!(runs(&ids[0]));
}

/// A container that the fence process has to end, in a state directory of its own.
struct Condemned {
    dir: tempfile::TempDir,
    id: String,
    _fence: Fence,
}

impl Condemned {
    /// With a deadline in a second, and SIGTERM a second long.
    fn after(prepare: impl FnOnce(&str), command: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let tiny = image("test");
        let base =
            ["run", "-d", "--network", "none", "--pids-limit", "100", "--entrypoint", command[0], &tiny];
        let id = docker(&[&base, &command[1..]].concat());
        prepare(&id);
        let files = FenceFiles::open(dir.path()).expect("made");
        files.record(&id).expect("recorded");
        let (stop_at, second) = (now() + Duration::from_secs(1), Duration::from_secs(1));
        let boot_id = boot_id().expect("a boot id");
        files.set_deadline(&boot_id, Deadline { stop_at, kill_at: stop_at + second }).expect("set");
        let _fence = Fence::watch(dir.path());
        Self { dir, id, _fence }
    }
}

impl Drop for Condemned {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rm", "-f", &self.id]).output();
        assert!(self.dir.path().exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_multiplies_is_ended_as_well() {
    let bomb = "trap '' TERM; f() { sleep 0.01; f & f & wait; }; f";
    let condemned = Condemned::after(|_| {}, &["/bin/sh", "-c", bomb]);
    ended(&condemned.id).await;
}

/// A cgroup of our own, with a limit of CPU time.
struct Group(PathBuf);

impl Group {
    fn limited(name: &str) -> Self {
        let (root, limit) = match Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            true => ("/sys/fs/cgroup", "cpu.max"),
            false => ("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us"),
        };
        let path = Path::new(root).join(name);
        std::fs::create_dir(&path).expect("a cgroup");
        let group = Self(path.join(limit));
        std::fs::write(&group.0, "10000").expect("a tenth of a CPU");
        group
    }

    fn take(&self, process: u32) {
        std::fs::write(self.0.with_file_name("cgroup.procs"), process.to_string()).expect("it is in it");
    }

    fn limit(&self) -> String {
        let limit = std::fs::read_to_string(&self.0).expect("readable");
        limit.split_whitespace().next().unwrap_or_default().to_owned()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.0.parent().map(std::fs::remove_dir);
    }
}

#[test]
fn what_is_ended_may_use_all_the_cpu_time_that_it_takes_to_end() {
    let id = format!("{}{}", WorkspaceUid::new().0.simple(), WorkspaceUid::new().0.simple());
    let group = Group::limited(&id);
    let mut process = Command::new("sleep").arg("86400").spawn().expect("it starts");
    group.take(process.id());
    assert_eq!(group.limit(), "10000");
    assert_eq!(cgroup::end(&id), 1);
    assert!(!process.wait().expect("it ends").success());
    assert!(["-1", "max"].contains(&&*group.limit()), "{}", group.limit());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_container_is_ended_as_well() {
    let condemned = Condemned::after(
        |id| {
            docker(&["pause", id]);
        },
        &["/bin/sleep", "86400"],
    );
    ended(&condemned.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_fence_process_a_host_is_enough() {
    let dir = tempfile::tempdir().expect("tempdir");
    let _first = Fence::watch(dir.path());
    while !dir.path().join("fence/lock").exists() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut second = Fence::watch(dir.path());
    let status = second.0.wait().expect("it ends");
    assert_eq!(status.code(), Some(1));
}
