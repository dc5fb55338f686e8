//! The rig itself: what it says it does to hosts and replicas, it does.

use std::net::SocketAddr;
use std::time::Duration;

use integration_tests::http;
use integration_tests::rig::{Loss, Rig, Shape};
use tokio::net::TcpListener;

use crate::until;

const SOON: Duration = Duration::from_millis(400);

#[tokio::test]
async fn hosts_are_hosts_of_their_own() {
    let mut rig = Rig::start(Shape::new(2, 1).writers()).await;
    let client = rig.client();
    for student in ["ada", "bob"] {
        client.start_and_wait(student).await;
    }
    let (ada, bob) = (rig.desk("ada").await, rig.desk("bob").await);
    assert_ne!(ada.host, bob.host, "each host has one");
    // The editor's address is one of its host, where it answers; here it does not.
    let url = client.access("ada").await;
    let healthz = format!("{}healthz", url.split('?').next().unwrap());
    assert!(matches!(rig.host(ada.host).get(&healthz).await, Some((200, _))), "{healthz}");
    for file in ["/etc/machine-id", "/proc/sys/kernel/random/boot_id", "/proc/sys/kernel/hostname"] {
        let [one, other] = [0, 1].map(|host| rig.hosts()[host].run("cat", &[file]));
        assert_ne!(one, other, "{file}");
    }
    // What they share is the share.
    until("both write", Duration::from_secs(5), async || {
        ["ada", "bob"].iter().all(|student| rig.share().writes(student).lines() > 5)
    })
    .await;

    // Power cut and boot: another boot, nothing runs.
    let boot_id = |rig: &Rig| rig.hosts()[ada.host].run("cat", &["/proc/sys/kernel/random/boot_id"]);
    let before = boot_id(&rig);
    rig.host(ada.host).switch_off();
    let written = rig.share().writes("ada").lines();
    tokio::time::sleep(SOON).await;
    assert_eq!(rig.share().writes("ada").lines(), written, "the dead do not write");
    rig.host(ada.host).switch_on().await;
    assert_ne!(boot_id(&rig), before);
    assert!(rig.containers_of("ada").await.iter().all(|(_, found)| !found.running));
}

#[tokio::test]
async fn cuts_are_cuts() {
    let mut rig = Rig::start_without_agents(Shape::new(1, 1)).await;
    let listener = TcpListener::bind((rig.hub(), 0)).await.unwrap();
    let hub = listener.local_addr().unwrap();
    let guest = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let reaches = async |rig: &Rig, address: SocketAddr| rig.hosts()[0].reaches(address, SOON).await;
    assert!(reaches(&rig, hub).await);
    assert!(!reaches(&rig, guest.local_addr().unwrap()).await, "its loopback is its own");

    rig.host(0).cut();
    assert!(!reaches(&rig, hub).await, "both ways");
    rig.host(0).mend();
    until("mended", Duration::from_secs(5), async || reaches(&rig, hub).await).await;
    for loss in [Loss::Incoming, Loss::Outgoing] {
        rig.host(0).lose(loss);
        assert!(!reaches(&rig, hub).await, "{loss:?}");
        rig.host(0).regain(loss);
        until("mended", Duration::from_secs(5), async || reaches(&rig, hub).await).await;
    }

    let ready = format!("http://{}/readyz", rig.replica(0).address());
    for cut in
        [integration_tests::rig::Replica::cut_database, integration_tests::rig::Replica::swallow_database]
    {
        cut(rig.replica(0));
        until("not ready", Duration::from_secs(15), async || !http::is_ok(&ready).await).await;
        rig.replica(0).mend_database();
        until("ready again", Duration::from_secs(15), async || http::is_ok(&ready).await).await;
    }
}
