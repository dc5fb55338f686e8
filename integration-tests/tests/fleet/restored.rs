//! Row 6: the database is restored from an old copy, or lost: nothing is stopped, and all is adopted once an operator says so.

use std::process::Command;
use std::time::Duration;

use carrel_proto::v1::workspace::{State, StatusReason};
use control_plane::store::check_address;
use integration_tests::chance::Chance;
use integration_tests::client::{Client, reason};
use integration_tests::http;
use integration_tests::printed;
use integration_tests::rig::{Rig, Shape};
use integration_tests::settings;

use crate::until;

/// Half a minute is what the operators' guide promises for the adoption; a machine of two cores needs some of it.
const ADOPTED: Duration = Duration::from_secs(30);

/// The runbook, with what an operator has at hand.
struct Runbook {
    text: String,
    settings: Vec<(&'static str, String)>,
}

impl Runbook {
    async fn of(rig: &mut Rig) -> Self {
        let (control_plane, programs) = (settings::binary("control-plane"), rig.postgres().programs());
        let path = std::env::var("PATH").unwrap();
        let settings = vec![
            ("PATH", format!("{}:{}:{path}", control_plane.parent().unwrap().display(), programs.display())),
            ("CARREL_DATABASE_URL", rig.database().url()),
            ("SERVER_URL", rig.postgres().url()),
            ("DATABASE", rig.database().text("SELECT current_database()::text").await),
            ("COPY", rig.dir().join("copy.dump").display().to_string()),
            (
                "CLUSTER_ID",
                std::fs::read_to_string(rig.share().path().join(".carrel/cluster-id")).unwrap().trim().into(),
            ),
            ("CARREL_ENDPOINT", rig.replicas()[0].address()),
        ];
        Self { text: printed::document("docs/restore.md"), settings }
    }

    /// Follows a step of it; what is said.
    fn follow(&self, step: &str) -> String {
        let script = printed::commands(printed::section(&self.text, step)).join("\n");
        assert!(!script.is_empty(), "{step}");
        let settings = self.settings.iter().map(|(name, value)| (name, value));
        let output = Command::new("bash").args(["-euc", &script]).envs(settings).output().unwrap();
        let told = [output.stdout, output.stderr].map(|told| String::from_utf8_lossy(&told).into_owned());
        assert!(output.status.success(), "{step}: {script}\n{}{}", told[0], told[1]);
        let [said, _] = told;
        said
    }
}

#[test]
fn the_runbook_reaches_databases_only_in_ways_that_carrel_itself_would() {
    let runbook = printed::document("docs/restore.md");
    let urls: Vec<_> = runbook.split("postgres://").skip(1).collect();
    assert_eq!(urls.len(), 2, "the database, and the server as another role");
    for url in urls {
        let (url, _) = url.split_once(['\'', ' ']).unwrap();
        assert_eq!(check_address(&format!("postgres://{url}")), Ok(()), "{url}");
    }
}

fn stop_replicas(rig: &mut Rig) {
    for replica in 0..rig.replicas().len() {
        rig.replica(replica).kill();
    }
}

async fn start_replicas(rig: &mut Rig) {
    for replica in 0..rig.replicas().len() {
        rig.replica(replica).start().await;
    }
}

/// Everything is where it was, in the same containers, the store knows it, and its hosts take more.
async fn is_adopted(rig: &Rig, students: &[String]) -> bool {
    let ready = rig.database().text("SELECT count(*)::text FROM nodes WHERE state = 'READY'").await;
    if ready != rig.hosts().len().to_string() {
        return false;
    }
    for student in students {
        let Ok(told) = rig.client().try_get(student).await else { return false };
        let found = rig.containers_of(student).await;
        let [(_, container)] = &found[..] else { panic!("{student} has {} containers", found.len()) };
        if told.state() != State::Running || told.generation != container.generation {
            return false;
        }
    }
    true
}

/// On a busy machine a host may miss the few heartbeats that it needs here to be READY, and a start is asked for again.
async fn start(client: &Client, student: &str) {
    until("started", ADOPTED, async || client.try_start(student).await.is_ok()).await;
}

/// It is noticed, told, and nothing is ordered.
async fn nobody_knew(rig: &Rig, chance: &mut Chance) {
    until("noticed", ADOPTED, async || !rig.database().behind().await.is_empty()).await;
    let refused = rig.client().try_start("newcomer").await.unwrap_err();
    assert_eq!(reason(&refused), "STORE_BEHIND");
    let page = format!("http://{}/readyz", rig.replicas()[0].address());
    until("told", ADOPTED, async || {
        http::get(&page).await.is_some_and(|(code, text)| code == 200 && text.contains("the store is behind"))
    })
    .await;
    tokio::time::sleep(chance.millis(500..2500)).await;
}

#[tokio::test]
async fn row_06_a_database_restored_from_an_old_copy_stops_nothing() {
    let mut chance = Chance::of("row 6, an old copy");
    // However slow the machine: who waits after a restore does so until it is said that nobody has to.
    let mut rig = Rig::start(Shape::new(1, 1).flag("replace-after", "10m")).await;
    let client = rig.client();
    let runbook = Runbook::of(&mut rig).await;
    let mut students: Vec<String> = Vec::new();
    for (round, total) in [1, 3, 30].into_iter().enumerate() {
        // Half of the new ones are in the copy; the first round has one that the copy does not know.
        let known = students.len() + (total - students.len()) / 2;
        while students.len() < known {
            students.push(format!("s{}", students.len()));
            start(&client, students.last().unwrap()).await;
        }
        for student in &students {
            client.wait_for(student, State::Running).await;
        }
        runbook.follow("back up");
        while students.len() < total {
            students.push(format!("s{}", students.len()));
            start(&client, students.last().unwrap()).await;
        }
        for student in &students {
            client.wait_for(student, State::Running).await;
        }
        // And one is another container by now than the copy has.
        let restarted = students[chance.below(students.len())].clone();
        client.stop_and_wait(&restarted).await;
        start(&client, &restarted).await;
        client.wait_for(&restarted, State::Running).await;
        let mut before = Vec::new();
        for student in &students {
            before.push(rig.desk(student).await);
        }

        stop_replicas(&mut rig);
        for step in ["make", "fill", "schema"] {
            runbook.follow(step);
        }
        // Each round declares twice.
        let incarnation = format!("incarnation {} -> {}", 2 * round + 1, 2 * round + 2);
        // What was restored on purpose is declared before anything stands on it. In the other rounds nobody knows of it.
        let on_purpose = total == 3;
        if on_purpose {
            assert!(runbook.follow("declare").contains(&incarnation));
        }
        start_replicas(&mut rig).await;
        if !on_purpose {
            nobody_knew(&rig, &mut chance).await;
            let said = runbook.follow("declare");
            assert!(said.contains(&incarnation) && said.contains("DRY RUN"), "{said}");
        }
        let took = until("adopted", ADOPTED, async || is_adopted(&rig, &students).await).await;
        eprintln!("{total} workspaces adopted after {took:?}");
        for (student, before) in students.iter().zip(&before) {
            assert_eq!(rig.desk(student).await, *before, "{student} was not touched");
        }
        // Others wait, as a host may be away that the copy does not know, until it is said that none is.
        let newcomer = format!("newcomer-{total}");
        start(&client, &newcomer).await;
        let waits = client.get(&newcomer).await;
        assert_eq!(waits.status_reason(), StatusReason::PreviousHostUnreachable, "{waits:?}");
        runbook.follow("all are back");
        client.wait_for(&newcomer, State::Running).await;
        assert!(is_adopted(&rig, &students).await, "all was taken in once more");
        client.stop_and_wait(&newcomer).await;
    }
    // And all goes on.
    start(&client, "newcomer").await;
    client.wait_for("newcomer", State::Running).await;
    client.stop_and_wait("s0").await;
    start(&client, "s0").await;
    client.wait_for("s0", State::Running).await;
}

#[tokio::test]
async fn row_06_an_empty_database_takes_on_what_runs() {
    let mut chance = Chance::of("row 6, an empty database");
    let mut rig = Rig::start(Shape::new(2, 2)).await;
    let students: Vec<_> = (0..3).map(|n| format!("s{n}")).collect();
    for student in &students {
        rig.callers().start(student).await;
        rig.callers().wait_for(student, State::Running).await;
    }
    let mut before = Vec::new();
    for student in &students {
        before.push(rig.desk(student).await);
    }
    let runbook = Runbook::of(&mut rig).await;
    stop_replicas(&mut rig);
    for step in ["make", "schema"] {
        runbook.follow(step);
    }
    start_replicas(&mut rig).await;
    until("noticed", ADOPTED, async || !rig.database().behind().await.is_empty()).await;
    tokio::time::sleep(chance.millis(500..2500)).await;
    let said = runbook.follow("declare empty");
    assert!(said.contains(rig.cluster_id()) && said.contains("incarnation 1 -> 2"), "{said}");
    let took = until("adopted", ADOPTED, async || is_adopted(&rig, &students).await).await;
    eprintln!("adopted by an empty database after {took:?}");
    for (student, before) in students.iter().zip(&before) {
        assert_eq!(rig.desk(student).await, *before, "{student} was not touched");
    }
    until("told", ADOPTED, async || runbook.follow("look").matches("\"node.adopted\"").count() == 2).await;
    rig.client().stop_and_wait("s0").await;
    rig.client().start_and_wait("s0").await;
}
