//! Carrel as an operator installs it, under a real systemd: what is printed is typed, then what happens to hosts happens.
//!
//! In `full`, as machines take a while to boot and certificates to be renewed.

mod full;

use std::time::Duration;

use integration_tests::machine::{Machine, Machines};
use integration_tests::printed;
use integration_tests::settings;

const SOON: Duration = Duration::from_secs(30);
/// Of the mount unit, as EFS is mounted.
const FSTAB: &str = "file-server:/ /mnt/efs nfs4 nfsvers=4.1,hard,noresvport,bg,_netdev 0 0";
/// A lease that a test can outlast, yet longer than a boot on a busy machine: what runs is over when its lease is. And certificates that
/// are renewed within a test: after 15 to 24 s.
const TIMES: &str = "--set CARREL_HEARTBEAT_INTERVAL=1s --set CARREL_UNREACHABLE_AFTER=5s --set CARREL_FENCE_AFTER=30s \
                     --set CARREL_STOP_BUDGET=3s --set CARREL_LEASE_MARGIN=3s --set CARREL_NODE_CERTIFICATE_TTL=30s";

/// A machine with Postgres and, installed beside it, a control plane that reaches it by its name and TLS alone.
fn control_plane(machines: &Machines) -> Machine {
    let plane = machines.boot("plane", &["carrel.example", "db.example"]);
    plane.sh(include_str!("postgres.sh"));
    let url = "postgres://carrel:p%40ss%2Fw%25rd@db.example/carrel?sslmode=verify-full&sslrootcert=/etc/carrel/rds.pem";
    let image = settings::tiny_image_that_is("writer");
    let said = plane.sh(&format!(
        "deploy/install control-plane --database-url '{url}' --ca-dir /etc/carrel/ca --new-authority \
         --agent-listen 0.0.0.0:7301 --set CARREL_WORKSPACE_IMAGE={image} {TIMES}"
    ));
    assert!(said.contains("carrel-control-plane: active"), "{said}");
    plane
}

/// A machine that has the workspace image and mounts the share as EFS is mounted.
fn host(machines: &Machines, name: &str) -> Machine {
    let host = machines.boot(name, &[]);
    host.sh(include_str!("efs.sh"));
    host.load(&settings::tiny_image_that_is("writer"));
    host
}

/// What the API of a control plane says of the only node.
fn node(plane: &Machine) -> serde_json::Value {
    plane.call("NodeService/ListNodes", "{}")["nodes"][0].clone()
}

fn wait_for_node(plane: &Machine, state: &str) {
    plane.wait_until(&format!("the node is {state}"), SOON, || node(plane)["state"] == state);
}

/// The container of a student and when it was started; both stay as long as nobody stops it.
fn container(host: &Machine, student: &str) -> String {
    host.sh(&format!(
        "docker inspect --format '{{{{.Id}}}} {{{{.State.StartedAt}}}}' $(docker ps -q --filter label=carrel.student={student})"
    ))
}

/// Waits until a student's desk runs, and its editor answers. What is shown is behind for a moment where the host has just come back.
fn wait_for_desk(plane: &Machine, host: &Machine, student: &str) -> String {
    let request = format!(r#"{{"name":"workspaces/{student}"}}"#);
    plane.wait_until("the desk runs, and its editor answers", SOON, || {
        let access = plane.try_call("WorkspaceService/CreateAccess", &request);
        let url = access.as_ref().and_then(|access| access["url"].as_str());
        url.is_some_and(|url| host.try_sh(&format!("curl -sf {url}healthz")).status.success())
    });
    container(host, student)
}

/// The lines of the README between the marks.
fn second_host() -> Vec<String> {
    printed::commands(printed::section(&printed::document("README.md"), "second host"))
}
