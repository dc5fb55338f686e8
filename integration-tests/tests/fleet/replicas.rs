//! Rows about replicas and Postgres: killed, restarted, rolled, cut off, and two of them asked at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use carrel_proto::v1::workspace::State;
use carrel_proto::v1::{self as pb};
use integration_tests::callers::Callers;
use integration_tests::chance::Chance;
use integration_tests::client::{Client, millis, reason};
use integration_tests::rig::{Rig, Shape};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::Code;

use crate::{assert_undisturbed, until};

/// What the failure table promises an agent whose replica died.
const RECONNECT: Duration = Duration::from_secs(10);

/// Every agent is in a session that is heard.
async fn all_connected(rig: &Rig) -> bool {
    let heard = "SELECT count(*)::text FROM nodes WHERE state = 'READY' AND last_heartbeat_at > clock_timestamp() - interval '1500 ms'";
    rig.database().text(heard).await == rig.hosts().len().to_string()
}

/// Acknowledged activity of a desk must stand: each ack is looked after before the next heartbeat would cover its loss.
async fn beat(callers: Callers, student: &'static str, over: Arc<AtomicBool>) {
    while !over.load(Ordering::Relaxed) {
        match callers.heartbeat(student).await {
            Ok(idle) => {
                let acked = millis(idle.last_active_time);
                let known = millis(callers.get(student).await.idle.unwrap().last_active_time);
                assert!(known >= acked, "a heartbeat of {student} that was acked is lost: {known} < {acked}");
            }
            Err(status) => assert_eq!(status.code(), Code::FailedPrecondition, "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_03_a_replica_that_is_killed_during_a_burst_of_starts_costs_nothing() {
    const BURST: usize = 16;
    const EARLY: [&str; 4] = ["ada", "bob", "cyd", "dan"];
    let mut chance = Chance::of("row 3");
    let mut rig = Rig::start(Shape::new(2, 2)).await;
    let victim = chance.below(2);
    // So that calls are under way when it is killed.
    let callers = rig.callers().beginning_with(victim);
    let over = Arc::new(AtomicBool::new(false));
    let mut beats = JoinSet::new();
    for student in EARLY {
        callers.start_and_wait(student).await;
        beats.spawn(beat(callers.clone(), student, over.clone()));
    }

    let burst = (0..BURST).map(|n| {
        let (callers, delay) = (callers.clone(), chance.millis(0..800));
        async move {
            tokio::time::sleep(delay).await;
            callers.start(&format!("s{n}")).await.uid
        }
    });
    let burst = tokio::spawn(futures_util::future::join_all(burst.collect::<Vec<_>>()));
    tokio::time::sleep(chance.millis(100..1500)).await;
    rig.replica(victim).kill();
    let killed = Instant::now();
    let uids = burst.await.unwrap();
    until("all agents are heard by the other replica", RECONNECT, async || all_connected(&rig).await).await;
    eprintln!("replica {victim} killed; all agents back after {:?}", killed.elapsed());

    for (n, uid) in uids.into_iter().enumerate() {
        let student = format!("s{n}");
        let running = callers.wait_for(&student, State::Running).await;
        assert_eq!((running.uid, running.generation), (uid, 1), "{student} was started once");
        assert_eq!(rig.desk(&student).await.generation, 1);
    }
    over.store(true, Ordering::Relaxed);
    beats.join_all().await;
    assert_eq!(rig.containers().await.len(), BURST + EARLY.len());

    rig.replica(victim).start().await;
    let client = rig.replica(victim).client();
    assert_eq!(client.get("ada").await.generation, 1, "the replica that is back knows as much");
}

#[tokio::test]
async fn row_04_without_any_replica_nothing_stops_and_all_resumes() {
    let mut chance = Chance::of("row 4");
    let mut rig = Rig::start(Shape::new(2, 2).writers()).await;
    let callers = rig.callers();
    for student in ["ada", "bob"] {
        callers.start_and_wait(student).await;
    }
    let before = [rig.desk("ada").await, rig.desk("bob").await];
    for victim in [0, 1] {
        rig.replica(victim).kill();
        tokio::time::sleep(chance.millis(0..500)).await;
    }
    // Longer than a silent node is given.
    tokio::time::sleep(chance.millis(3500..5000)).await;
    for back in [0, 1] {
        rig.replica(back).start().await;
    }
    until("all agents are back", RECONNECT, async || all_connected(&rig).await).await;
    for student in ["ada", "bob"] {
        assert_eq!(callers.wait_for(student, State::Running).await.generation, 1);
    }
    assert_eq!([rig.desk("ada").await, rig.desk("bob").await], before);
    assert_undisturbed(&rig, &["ada", "bob"]);
    callers.start_and_wait("eve").await;
    callers.stop("ada").await;
    callers.wait_for("ada", State::Stopped).await;
}

#[tokio::test]
async fn row_05_postgres_is_killed_frozen_and_restarted_and_nothing_stops() {
    let mut chance = Chance::of("row 5");
    let mut rig = Rig::start(Shape::new(2, 2).writers()).await;
    let callers = rig.callers();
    for student in ["ada", "bob"] {
        callers.start_and_wait(student).await;
    }
    let before = [rig.desk("ada").await, rig.desk("bob").await];
    for (round, how) in ["killed", "restarted", "frozen"].into_iter().enumerate() {
        let student = format!("s{round}");
        callers.start(&student).await;
        tokio::time::sleep(chance.millis(0..300)).await;
        let away = chance.millis(500..4500);
        match how {
            "killed" => rig.postgres().kill(),
            "restarted" => rig.postgres().stop().await,
            _ => rig.postgres().freeze(),
        }
        tokio::time::sleep(away).await;
        match how {
            "frozen" => rig.postgres().thaw(),
            _ => rig.postgres().start_again().await,
        }
        let back = Instant::now();
        until("all agents are back", RECONNECT * 2, async || all_connected(&rig).await).await;
        for student in ["ada", "bob", &student] {
            assert_eq!(callers.wait_for(student, State::Running).await.generation, 1, "{how}");
        }
        eprintln!("Postgres {how}, away for {away:?}; all right after {:?}", back.elapsed());
        assert_eq!([rig.desk("ada").await, rig.desk("bob").await], before, "{how}");
    }
    assert_undisturbed(&rig, &["ada", "bob", "s0", "s1", "s2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_19_a_start_on_two_replicas_at_once_makes_one_container() {
    let rig = Rig::start(Shape::new(2, 2)).await;
    let clients = [rig.replicas()[0].client(), rig.replicas()[1].client()];
    for round in 0..12 {
        let student = format!("s{round}");
        let (one, other) = tokio::join!(clients[0].start(&student), clients[1].start(&student));
        assert_eq!((one.uid, one.generation), (other.uid.clone(), 1), "{other:?}");
        assert_eq!(other.generation, 1);
    }
    for round in 0..12 {
        let student = format!("s{round}");
        clients[round % 2].wait_for(&student, State::Running).await;
        rig.desk(&student).await;
        let placed =
            clients[1].events_of(&student).await.iter().filter(|e| e.r#type == "workspace.placed").count();
        assert_eq!(placed, 1, "{student}");
    }
    let placements = "SELECT count(*)::text FROM placements";
    assert_eq!(rig.database().text(placements).await, "12");
}

#[tokio::test]
async fn a_replica_that_cannot_reach_postgres_says_so_and_the_others_serve() {
    let rig = Rig::start(Shape::new(1, 2).writers()).await;
    let client = rig.replicas()[1].client();
    client.start_and_wait("ada").await;
    let before = rig.desk("ada").await;
    for swallow in [false, true] {
        let cut = &rig.replicas()[0];
        if swallow {
            cut.swallow_database()
        } else {
            cut.cut_database()
        }
        let noticed = until("NOT_SERVING", Duration::from_secs(10), async || {
            cut.health().await == Some(false) && !cut.is_ready().await
        });
        eprintln!("noticed after {:?} (black hole: {swallow})", noticed.await);
        let status = cut.client().try_get("ada").await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        // The agent finds the replica that serves, wherever its session was.
        until("the agent is heard", RECONNECT * 2, async || all_connected(&rig).await).await;
        client.start_and_wait("bob").await;
        client.stop_and_wait("bob").await;
        cut.mend_database();
        until("SERVING", Duration::from_secs(10), async || {
            cut.health().await == Some(true) && cut.is_ready().await
        })
        .await;
        assert_eq!(cut.client().get("ada").await.state(), State::Running);
    }
    assert_eq!(rig.desk("ada").await, before);
    assert_undisturbed(&rig, &["ada"]);
}

/// Asks a replica, or reports to it, over and over until it says that it cannot.
async fn ask_until_refused(client: Client, student: &'static str, reports: bool) {
    loop {
        let answer = if reports {
            client.try_heartbeat(student).await.map(|_| ())
        } else {
            client.try_get(student).await.map(|_| ())
        };
        if let Err(status) = answer {
            assert_eq!(status.code(), Code::Unavailable, "{status}");
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_postgres_was_lost_without_a_word_answers_says_so_and_serves_again() {
    /// More than a replica has connections, so that each of them is in the middle of something.
    const CALLERS: usize = 24;
    /// What a replica gives a statement, and what comes before and after it.
    const ANSWERED: Duration = Duration::from_secs(45);
    let mut rig = Rig::start(Shape::new(1, 2).writers()).await;
    let client = rig.replicas()[1].client();
    client.start_and_wait("ada").await;
    let before = rig.desk("ada").await;

    let lost = &rig.replicas()[0];
    let callers = (0..CALLERS).map(|n| tokio::spawn(ask_until_refused(lost.client(), "ada", n % 2 == 0)));
    let callers: Vec<_> = callers.collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    lost.lose_database();
    let began = Instant::now();
    let noticed = until("NOT_SERVING", Duration::from_secs(10), async || {
        lost.health().await == Some(false) && !lost.is_ready().await
    });
    eprintln!("noticed after {:?}", noticed.await);
    // The other does all the work meanwhile.
    until("the agent is heard", RECONNECT * 2, async || all_connected(&rig).await).await;
    client.start_and_wait("bob").await;
    client.stop_and_wait("bob").await;
    for caller in callers {
        let left = ANSWERED.saturating_sub(began.elapsed());
        tokio::time::timeout(left, caller).await.expect("every caller is answered").unwrap();
    }
    eprintln!("all callers answered after {:?}", began.elapsed());

    lost.mend_database();
    let back = until("SERVING", Duration::from_secs(10), async || {
        lost.health().await == Some(true) && lost.is_ready().await
    });
    eprintln!("back after {:?}", back.await);
    // Alone, with all of its loops.
    rig.replica(1).kill();
    until("the agent is heard", RECONNECT * 2, async || all_connected(&rig).await).await;
    let alone = rig.replicas()[0].client();
    alone.start_and_wait("bob").await;
    alone.stop_and_wait("bob").await;
    assert_eq!(rig.desk("ada").await, before);
    assert_undisturbed(&rig, &["ada"]);
}

/// Follows a log to its end, and tells on the way all of it that has come.
async fn follow_log(client: Client, told: watch::Sender<String>) -> Result<(), tonic::Status> {
    let name = integration_tests::client::name_of("ada");
    let request = pb::TailWorkspaceLogsRequest { name, lines: 10, follow: true };
    let mut stream = client.workspaces.clone().tail_workspace_logs(request).await?.into_inner();
    while let Some(piece) = stream.message().await? {
        told.send_modify(|text| *text += &piece.chunk.unwrap().text);
    }
    Ok(())
}

#[tokio::test]
async fn a_log_is_told_by_any_replica_wherever_the_session_is() {
    // A log breaks off with its session, and a session with heartbeats of half a second ends when the machine stands still for
    // one and a half: here nobody is to be silent.
    let calm = Shape::new(1, 3)
        .flag("heartbeat-interval", "5s")
        .flag("unreachable-after", "20s")
        .flag("fence-after", "60s");
    let mut rig = Rig::start(calm).await;
    let clients = [0, 1, 2].map(|index| rig.replicas()[index].client());
    clients[0].start_and_wait("ada").await;
    // Docker writes what a container says into the log's file when it gets to it.
    until("the first line is there", Duration::from_secs(20), async || {
        let lines = clients[0].try_logs("ada", 10).await.unwrap();
        lines.first().is_some_and(|(_, line)| line.contains("tiny: test, generation 1"))
    })
    .await;
    let expected = clients[0].try_logs("ada", 10).await.unwrap();
    for client in &clients {
        assert_eq!(client.try_logs("ada", 10).await.unwrap(), expected);
    }
    // Followed from everywhere, to the end of the container.
    let followers = clients.clone().map(|client| {
        let (told, text) = watch::channel(String::new());
        (tokio::spawn(follow_log(client, told)), text)
    });
    let all_have = async |line: &str| {
        until(line, Duration::from_secs(20), async || {
            followers.iter().all(|(_, text)| text.borrow().contains(line))
        })
        .await;
    };
    all_have("tiny: test, generation 1").await;
    let desk = rig.desk("ada").await;
    rig.hosts()[0].run("sh", &["-c", &format!("echo said later >/proc/$({})/fd/1", pid_of(&rig, &desk.id))]);
    all_have("said later").await;
    clients[1].stop_and_wait("ada").await;
    for (follower, _) in followers {
        follower.await.unwrap().expect("the log ended with the container");
    }
    let left = "SELECT (SELECT count(*) FROM log_tails) || ' ' || (SELECT count(*) FROM log_pieces)";
    until("nothing is left", Duration::from_secs(20), async || rig.database().text(left).await == "0 0")
        .await;
    // Without any session there is nobody to ask.
    rig.host(0).kill_agent();
    for client in &clients {
        let status = client.try_logs("ada", 10).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "NODE_AWAY"), "{status}");
    }
}

/// A command that prints the process id of a container's program.
fn pid_of(rig: &Rig, container: &str) -> String {
    format!(
        "docker --host {} inspect --format '{{{{.State.Pid}}}}' {container}",
        rig.hosts()[0].docker_host()
    )
}

/// A student who starts and stops a desk over and over: each call counts once, or its generation would tell.
async fn come_and_go(callers: Callers, student: String, over: Arc<AtomicBool>, rounds: Arc<AtomicI64>) {
    let mut generation = 0;
    while !over.load(Ordering::Relaxed) {
        generation += 1;
        let started = callers.start(&student).await;
        assert_eq!(started.generation, generation, "{started:#?}");
        assert_eq!(callers.wait_for(&student, State::Running).await.generation, generation);
        callers.heartbeat(&student).await.expect("it runs");
        callers.stop(&student).await;
        assert_eq!(callers.wait_for(&student, State::Stopped).await.generation, generation);
        rounds.store(generation, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_rolled_killed_and_added_under_load_and_nobody_notices() {
    let mut chance = Chance::of("rolling replicas");
    let mut rig = Rig::start(Shape::new(2, 3).writers()).await;
    // The third is one that is added later.
    rig.replica(2).kill();
    let callers = rig.callers();
    for student in ["ada", "bob"] {
        callers.start_and_wait(student).await;
    }
    let before = [rig.desk("ada").await, rig.desk("bob").await];
    let over = Arc::new(AtomicBool::new(false));
    let rounds = [(); 3].map(|()| Arc::new(AtomicI64::new(0)));
    let students = ["s0", "s1", "s2"].iter().zip(&rounds).map(|(student, rounds)| {
        tokio::spawn(come_and_go(callers.clone(), (*student).to_owned(), over.clone(), rounds.clone()))
    });
    let students: Vec<_> = students.collect();
    let beats = tokio::spawn(beat(callers.clone(), "ada", over.clone()));
    let (from, follower) = (token_of_now(&rig).await, rig.callers());
    let told = tokio::spawn(async move {
        follower
            .follow_events(from, |event| {
                event.r#type == "workspace.stopped" && event.workspace == "workspaces/last"
            })
            .await
    });

    tokio::time::sleep(chance.millis(500..1500)).await;
    rig.replica(2).start().await;
    // As many as it takes that there was load, however quick the machine; at least each in order, then each killed.
    let loaded = || rounds.iter().all(|rounds| rounds.load(Ordering::Relaxed) >= 3);
    for step in (0..60).take_while(|step| *step < 6 || !loaded()) {
        let replica = step % 3;
        if step / 3 % 2 == 0 {
            rig.replica(replica).stop().await;
        } else {
            rig.replica(replica).kill();
        }
        tokio::time::sleep(chance.millis(0..1500)).await;
        rig.replica(replica).start().await;
        until("all agents are heard", RECONNECT, async || all_connected(&rig).await).await;
    }
    over.store(true, Ordering::Relaxed);
    for student in students {
        student.await.expect("every call counted once");
    }
    beats.await.unwrap();
    eprintln!("{rounds:?} starts and stops meanwhile");
    assert!(loaded(), "there was load");

    callers.start("last").await;
    callers.stop("last").await;
    let told: Vec<_> = told.await.unwrap().into_iter().map(|event| event.position).collect();
    let all = rig.replicas()[0].client().list_events(pb::EventFilter::default()).await;
    let begin = all.iter().position(|event| event.position == told[0]).unwrap();
    let kept: Vec<_> = all[begin..].iter().map(|event| event.position).take(told.len()).collect();
    assert_eq!(told, kept, "the watcher was told every event once, in order");
    assert_eq!([rig.desk("ada").await, rig.desk("bob").await], before);
    assert_undisturbed(&rig, &["ada", "bob"]);
}

/// A resume token that stands at the end of the event log.
async fn token_of_now(rig: &Rig) -> String {
    let request = pb::WatchEventsRequest { begin_with_token: true, ..Default::default() };
    let client = rig.replicas()[0].client();
    let mut stream = client.events.clone().watch_events(request).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap().resume_token
}
