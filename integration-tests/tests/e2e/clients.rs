//! The example clients run as their README prints them, and show errors as it says.

use std::process::Command;
use std::time::{Duration, Instant};

use integration_tests::cluster::{Cluster, Options};
use integration_tests::process::Process;
use integration_tests::{printed, settings};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The lines of the README that run a client: Node's, then Python's.
fn run_lines() -> Vec<String> {
    let lines = printed::commands(&printed::document("docs/clients/README.md"));
    let lines: Vec<_> =
        lines.into_iter().filter(|l| l.starts_with("node ") || l.starts_with("python ")).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    lines
}

/// Runs such a line, in a shell where the virtual environment is active.
fn run(line: &str, cluster: &Cluster) -> Process {
    let path = format!("{}/bin:{}", settings::clients_venv(), std::env::var("PATH").unwrap());
    let mut command = Command::new("bash");
    command.args(["-c", line]).current_dir(printed::root());
    command.env("PATH", path).env("CARREL_ENDPOINT", cluster.address());
    let (program, _) = line.split_once(' ').unwrap();
    Process::spawn(program, &mut command, &cluster.dir().join(format!("{program}.log")))
}

async fn wait_until_it_says(client: &mut Process, text: &str) {
    let start = Instant::now();
    while !client.log_tail(100).contains(text) {
        assert!(client.ended().is_none(), "{} ended before it said {text}", client.name());
        assert!(start.elapsed() < Duration::from_secs(30), "{} does not say {text}", client.name());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn clients_start_a_desk_as_soon_as_there_is_a_node() {
    let mut cluster = Cluster::start_without_agent(Options::new()).await;
    let mut clients: Vec<_> = run_lines().iter().map(|line| run(line, &cluster)).collect();
    for client in &mut clients {
        wait_until_it_says(client, "UNAVAILABLE NO_NODE_READY: ").await;
    }
    cluster.start_agent().await;
    for client in &mut clients {
        let status = client.wait(Duration::from_secs(60)).await;
        let said = client.log_tail(100);
        assert!(status.success(), "{said}");
        for told in
            ["asked for generation 1 of workspaces/", "\nSTATE_RUNNING", "\neditor: http://127.0.0.1:"]
        {
            assert!(said.contains(told), "no {told} in:\n{said}");
        }
        let deadline = said.lines().find_map(|line| line.strip_prefix("deadline: ")).expect("a deadline");
        let left = OffsetDateTime::parse(deadline, &Rfc3339).unwrap() - OffsetDateTime::now_utc();
        assert!((14.0..=15.0).contains(&(left.as_seconds_f64() / 60.0)), "{left}");
    }
}

#[tokio::test]
async fn clients_name_the_field_that_is_wrong_and_do_not_try_again() {
    let cluster = Cluster::start_without_agent(Options::new()).await;
    for line in run_lines() {
        let (line, _course) = line.rsplit_once(' ').unwrap();
        let mut client = run(&format!("{line} not/a/course"), &cluster);
        let status = client.wait(Duration::from_secs(30)).await;
        let said = client.log_tail(100);
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.starts_with("INVALID_ARGUMENT INVALID_ARGUMENT: "), "{said}");
        assert!(said.contains("\n  course_id: "), "{said}");
    }
}
