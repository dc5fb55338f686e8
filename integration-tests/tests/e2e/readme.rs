//! The first calls of the README work as they are printed.

use std::process::Command;

use carrel_proto::v1::workspace::State;
use integration_tests::cluster::{Cluster, Options};
use integration_tests::printed;

#[tokio::test]
async fn the_first_calls_work_as_printed() {
    let cluster = Cluster::start(Options::new()).await;
    let readme = printed::document("README.md");
    let commands = printed::commands(printed::section(&readme, "first calls"));
    assert!(commands.len() > 5, "{commands:?}");
    let mut said = String::new();
    for command in commands {
        let output = Command::new("bash")
            .args(["-c", &command])
            .current_dir(printed::root())
            .env("CARREL_ENDPOINT", cluster.address())
            .output()
            .expect("bash starts");
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}\n{}\n{answer}\n{error}", output.status);
        assert!(!answer.is_empty(), "{command} says nothing");
        said += &answer;
    }
    // What their comments promise: the desk came up, has an address and a deadline, and was stopped.
    for told in ["STATE_RUNNING", "http://127.0.0.1:", "deadlineTime", "workspace.ready"] {
        assert!(said.contains(told), "no {told} in:\n{said}");
    }
    cluster.client().wait_for("ada", State::Stopped).await;
}

#[tokio::test]
async fn the_calls_of_operators_work_as_printed() {
    let cluster = Cluster::start(Options::new()).await;
    let readme = printed::document("README.md");
    // One script: later lines use what earlier ones have found.
    let script = printed::commands(printed::section(&readme, "operators")).join("\n");
    let output = Command::new("bash")
        .args(["-euc", &script])
        .env("CARREL_ENDPOINT", cluster.address())
        .output()
        .expect("bash starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{error}");
    for told in ["STATE_READY", "a disk makes noises", "deadlineTime", "STATE_DRAINED", "maxWorkspaces"] {
        assert!(said.contains(told), "no {told} in:\n{said}");
    }
}
