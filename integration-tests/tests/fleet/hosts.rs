//! Rows about hosts and their Docker: frozen, restarted, rebooted, too talkative, and desks that misbehave.

use std::process::Command;
use std::time::{Duration, Instant};

use carrel_proto::v1::stop::Reason;
use carrel_proto::v1::workspace::State;
use integration_tests::chance::Chance;
use integration_tests::process::{Signal, run};
use integration_tests::rig::{Rig, Shape};
use integration_tests::settings::tiny_image;

use crate::{BUSY, assert_undisturbed, until};

/// What the failure table gives a host to tell the truth again.
const TRUTH: Duration = Duration::from_secs(15);

/// Docker and the control plane say the same of a student: one container, which runs, of the present generation.
async fn is_true(rig: &Rig, student: &str) -> bool {
    let told = rig.client().get(student).await;
    let found = rig.containers_of(student).await;
    told.state() == State::Running
        && matches!(&found[..], [(_, container)] if container.running && container.generation == told.generation)
}

#[tokio::test]
async fn row_13_a_frozen_docker_degrades_its_node_and_kills_nothing() {
    let mut chance = Chance::of("row 13, frozen");
    let mut rig = Rig::start(Shape::new(2, 1).agent_flag("docker-timeout", "2s").writers()).await;
    let client = rig.client();
    // Spread: two on each host, so that the one that is asked to stop has a neighbour whom nobody asked.
    for student in ["ada", "bob", "cyd", "dan"] {
        client.start_and_wait(student).await;
    }
    let frozen = rig.desk("ada").await.host;
    let others = ["bob", "cyd", "dan"];
    let before = [rig.desk("bob").await, rig.desk("cyd").await, rig.desk("dan").await];
    assert_eq!(before.iter().filter(|desk| desk.host == frozen).count(), 1, "{before:#?}");
    tokio::time::sleep(chance.millis(0..700)).await;
    rig.host(frozen).dockerd().signal(Signal::STOP);
    until("degraded", TRUTH, async || rig.state_of(frozen).await == "DEGRADED").await;
    // The other host takes what starts; what is on this one is not decided about.
    client.start_and_wait("eve").await;
    client.try_stop("ada").await.unwrap();
    tokio::time::sleep(chance.millis(0..2000)).await;
    for student in ["ada", "bob", "cyd", "dan"] {
        let lines = rig.share().writes(student).lines();
        let writes_on = async || rig.share().writes(student).lines() > lines;
        until("nothing was killed: it writes on", BUSY, writes_on).await;
    }
    rig.host(frozen).dockerd().signal(Signal::CONT);
    let back = Instant::now();
    client.wait_within(TRUTH, "ada", "stopped as it was asked", |w| w.state() == State::Stopped).await;
    until("ready", TRUTH, async || rig.state_of(frozen).await == "READY").await;
    eprintln!("truth after {:?}", back.elapsed());
    client.start_and_wait("ada").await;
    assert_ne!(rig.desk("eve").await.host, frozen);
    assert_eq!([rig.desk("bob").await, rig.desk("cyd").await, rig.desk("dan").await], before);
    for student in others {
        let told = client.get(student).await;
        assert_eq!((told.state(), told.generation), (State::Running, 1), "{student}");
    }
    assert_undisturbed(&rig, &others);
}

#[tokio::test]
async fn row_14_a_rebooted_host_tells_the_truth_soon() {
    let mut chance = Chance::of("row 14");
    let mut rig = Rig::start(Shape::new(1, 1).writers()).await;
    let client = rig.client();
    for student in ["ada", "bob"] {
        client.start_and_wait(student).await;
    }
    // Amid a start, so that all that can be half done is.
    client.start("eve").await;
    tokio::time::sleep(chance.millis(0..400)).await;
    let sessions = rig.sessions_of(0).await;
    rig.host(0).switch_off();
    tokio::time::sleep(chance.millis(0..4000)).await;
    rig.host(0).switch_on().await;
    rig.host(0).spawn_fence();
    rig.host(0).spawn_agent();
    rig.wait_for_agent(0, sessions).await;
    let back = Instant::now();
    for student in ["ada", "bob", "eve"] {
        until("the truth", TRUTH, async || is_true(&rig, student).await).await;
    }
    eprintln!("truth after {:?}", back.elapsed());
    for student in ["ada", "bob", "eve"] {
        rig.share().writes(student);
        client.stop_and_wait(student).await;
    }
    assert_eq!(rig.containers().await, []);
}

#[tokio::test]
async fn row_16_a_desk_that_runs_wild_hurts_nobody_else() {
    let rig = Rig::start(Shape::new(1, 1).writers().flag("pids", "64")).await;
    let client = rig.client();
    for student in ["ada", "bob"] {
        client.start_and_wait(student).await;
    }
    let [ada, bob] = [rig.desk("ada").await, rig.desk("bob").await];
    let host = rig.hosts()[0].docker_host();
    let inside = |script: &str| {
        let mut command = Command::new("docker");
        command.args(["--host", &host, "exec", "--detach", &ada.id, "sh", "-c", script]);
        assert!(command.status().expect("the docker client").success());
    };
    // A file as large as its own temporary directory takes, then a fork bomb, beside which nothing else can be begun.
    inside("dd if=/dev/zero of=/tmp/full bs=1M 2>dd.txt; bomb() { bomb | bomb & }; bomb");
    let told = rig.share().student("ada").join("dd.txt");
    let is_full =
        async || std::fs::read_to_string(&told).is_ok_and(|s| s.contains("No space left on device"));
    until("its temporary directory is full", TRUTH, is_full).await;
    // Nothing can be begun any more, not by her own program either: it ends by that, and the bomb with it, sooner or later.
    let went_off = async || {
        let ended = client.events_of("ada").await.iter().any(|event| event.r#type == "workspace.restarting");
        ended || rig.hosts()[0].refused_forks(&ada.id) > 100
    };
    until("the bomb went off", TRUTH, went_off).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(rig.desk("bob").await, bob);
    let url = client.access("bob").await;
    assert!(matches!(rig.hosts()[0].get(&url).await, Some((200, _))), "bob's editor answers");
    client.start_and_wait("eve").await;
    // Its processes may have used up the CPU time that they need to die: the agent lifts their limit.
    client.stop_and_wait("ada").await;
    assert_undisturbed(&rig, &["bob"]);
    let stopped = client.get("ada").await;
    assert_eq!((stopped.generation, stopped.stop.unwrap().reason()), (1, Reason::User));
}

mod full {
    use super::*;

    #[tokio::test]
    async fn row_13_a_restarted_docker_is_believed_again_at_once() {
        let mut chance = Chance::of("row 13, restarted");
        for live_restore in [true, false] {
            let mut shape = Shape::new(1, 1).writers();
            if !live_restore {
                shape = shape.without_live_restore();
            }
            let mut rig = Rig::start(shape).await;
            let client = rig.client();
            client.start_and_wait("ada").await;
            let before = rig.desk("ada").await;
            tokio::time::sleep(chance.millis(0..700)).await;
            if chance.coin() {
                rig.host(0).kill_docker()
            } else {
                rig.host(0).stop_docker()
            }
            tokio::time::sleep(chance.millis(0..4000)).await;
            rig.host(0).start_docker().await;
            let took = until("the truth", TRUTH, async || is_true(&rig, "ada").await).await;
            eprintln!("live restore {live_restore}: truth after {took:?}");
            assert_eq!(client.get("ada").await.generation, 1);
            if live_restore {
                assert_eq!(rig.desk("ada").await, before, "it outlived its Docker");
                assert_undisturbed(&rig, &["ada"]);
            } else {
                assert_eq!(rig.desk("ada").await.id, before.id, "the same container, started again");
            }
            rig.share().writes("ada");
        }
    }

    #[tokio::test]
    async fn row_15_what_events_did_not_tell_the_next_listing_does() {
        let rig = &mut Rig::start(Shape::new(1, 1)).await;
        let client = rig.client();
        for student in ["ada", "bob"] {
            client.start_and_wait(student).await;
        }
        let [ada, bob] = [rig.desk("ada").await, rig.desk("bob").await];
        let docker = rig.hosts()[0].docker();
        rig.host(0).agent().signal(Signal::STOP);
        docker.kill(&ada.id).await;
        // Docker keeps 256; a slow reader is dropped before.
        let host = rig.hosts()[0].docker_host();
        run("docker", &["--host", &host, "create", "--name", "spare-0", &tiny_image()]);
        let socket = host.strip_prefix("unix://").unwrap();
        let renames: Vec<_> = (1..=400)
            .map(|n| format!("http://docker/containers/spare-{}/rename?name=spare-{n}", n - 1))
            .collect();
        let post = ["--silent", "--show-error", "--fail", "--unix-socket", socket, "--request", "POST"];
        let urls: Vec<_> = renames.iter().map(String::as_str).collect();
        run("curl", &[&post[..], &urls].concat());
        rig.host(0).agent().signal(Signal::CONT);
        let took = until("ada runs again", TRUTH, async || is_true(rig, "ada").await).await;
        eprintln!("repaired after {took:?}");
        assert_eq!(client.get("ada").await.generation, 1, "restarted, within its budget");
        assert_eq!(rig.desk("bob").await, bob);
    }
}
