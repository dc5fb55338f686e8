//! Rows about the share: it fails, and two hosts are sure that a student is theirs.

use std::time::{Duration, Instant};

use carrel_proto::v1::workspace::State;
use integration_tests::chance::Chance;
use integration_tests::client::reason;
use integration_tests::gated_share::ESTALE;
use integration_tests::rig::{Rig, Shape};

use crate::until;

const SOON: Duration = Duration::from_secs(40);

/// Both hosts are in this state.
async fn both_are(rig: &Rig, state: &str) {
    until(state, SOON, async || rig.state_of(0).await == state && rig.state_of(1).await == state).await;
}

mod full {
    use super::*;

    #[tokio::test]
    async fn row_17_a_share_that_hangs_goes_stale_or_is_not_mounted_degrades_its_hosts_only() {
        let mut chance = Chance::of("row 17");
        let shape = Shape::new(2, 1).gated_share().agent_flag("storage-timeout", "1s");
        let rig = Rig::start(shape.agent_flag("fence-file-interval", "1s")).await;
        let client = rig.client();
        for student in ["ada", "bob"] {
            client.start_and_wait(student).await;
        }
        let before = [rig.desk("ada").await, rig.desk("bob").await];
        assert_ne!(before[0].host, before[1].host);

        for (how, why) in [("hangs", "STORAGE_TIMEOUT"), ("stale", "STORAGE_NOT_WRITABLE")] {
            match how {
                "hangs" => rig.share().gate().hang(),
                _ => rig.share().gate().fail(ESTALE),
            }
            both_are(&rig, "DEGRADED").await;
            let asked = Instant::now();
            let refused = client.try_start("eve").await.unwrap_err();
            assert_eq!(reason(&refused), why, "{refused}");
            assert_eq!(client.get("ada").await.state(), State::Running);
            assert!(asked.elapsed() < Duration::from_secs(10), "the API answers: {:?}", asked.elapsed());
            // Longer than a node may be silent.
            tokio::time::sleep(Duration::from_secs(4) + chance.millis(0..2000)).await;
            both_are(&rig, "DEGRADED").await;
            rig.share().gate().pass();
            both_are(&rig, "READY").await;
        }
        client.start_and_wait("eve").await;
        client.stop_and_wait("eve").await;

        // Not mounted any more, on one host.
        let bare = before[0].host;
        let host = &rig.hosts()[bare];
        host.run("umount", &["--lazy", rig.share().gate().path().to_str().unwrap()]);
        until("degraded", SOON, async || rig.state_of(bare).await == "DEGRADED").await;
        client.start_and_wait("fay").await;
        assert_eq!(rig.desk("fay").await.host, before[1].host);
        let below = host.run("find", &[rig.share().path().to_str().unwrap(), "-mindepth", "1"]);
        assert_eq!(below, "", "nothing is written to the disk below");
        assert_eq!([rig.desk("ada").await, rig.desk("bob").await], before);
    }

    #[tokio::test]
    async fn row_23_of_two_agents_that_race_for_a_student_one_gives_way_whatever_the_order_of_writes() {
        /// Between two looks at the fence files.
        const LOOK: Duration = Duration::from_secs(1);
        let mut chance = Chance::of("row 23");
        let mut rig = Rig::start(Shape::new(2, 2).agent_flag("fence-file-interval", "1s")).await;
        let second = rig.split().await;
        let silent = |host: usize| {
            let name = rig.hosts()[host].name();
            format!("SELECT state FROM nodes WHERE facts->>'hostname' = '{name}'")
        };
        until("each knows its own host only", SOON, async || {
            let [first, other] = [0, 1].map(silent);
            rig.database().text(&other).await == "UNREACHABLE"
                && second.text(&first).await == "UNREACHABLE"
                && rig.database().text(&first).await == "READY"
                && second.text(&other).await == "READY"
        })
        .await;
        let clients = [rig.replicas()[0].client(), rig.replicas()[1].client()];
        for round in 0..4 {
            // The same generation of the same student, on two hosts.
            let student = format!("s{round}");
            let delays = [chance.millis(0..400), chance.millis(0..400)];
            let start = async |index: usize| {
                tokio::time::sleep(delays[index]).await;
                clients[index].start(&student).await
            };
            let (one, other) = tokio::join!(start(0), start(1));
            assert_eq!((one.generation, other.generation), (1, 1));
            let begun = Instant::now();
            let (mut both_since, mut ran) = (None, false);
            while begun.elapsed() < Duration::from_secs(12) {
                let all = rig.containers_of(&student).await;
                let running = all.iter().filter(|(_, found)| found.running).count();
                ran |= running > 0;
                both_since = (running == 2).then(|| both_since.unwrap_or_else(Instant::now));
                let twins = both_since.map_or(Duration::ZERO, |since: Instant| since.elapsed());
                assert!(twins < 3 * LOOK + Duration::from_secs(4), "both run on: {all:#?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert!(ran, "one of them started");
            for client in &clients {
                client.try_stop(&student).await.ok();
            }
            // Each store sees in time that the other went on, and would wait for an operator to say which of them is the true one.
            for database in [rig.database(), &second] {
                let forget =
                    "UPDATE restoration SET behind_since = NULL, behind_evidence = '', awaited_nodes = '{}'";
                database.execute(forget).await;
            }
        }
        second.drop_now().await;
    }
}
