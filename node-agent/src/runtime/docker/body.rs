//! The body of a container's creation. Pure: what is asked of Docker can be read and tested in one place.

use std::collections::HashMap;
use std::path::Path;

use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount, MountBindOptions,
    MountBindOptionsPropagationEnum, MountType, NetworkCreateRequest, PortBinding, ResourcesUlimits,
    RestartPolicy, RestartPolicyNameEnum,
};

use crate::runtime::{Plan, Scope, labels};

/// Where the student's directory appears in the container.
const PROJECT: &str = "/home/coder/project";

/// Where the workspace's small directory appears in the container.
const DESK: &str = "/run/carrel";

/// The user that code-server runs as, and that owns the student's files.
const USER: &str = "1000:1000";

/// What VS Code asks for; a daemon whose own limit is lower refuses to start a container with it.
pub(super) const OPEN_FILES: i64 = 65_536;

/// No limit on POSIX message queues: the kernel counts those of all desks together, as they have one uid, and the default is nine queues.
/// Without it each desk has the 256 of its own IPC namespace.
const MESSAGE_QUEUES: i64 = -1;

/// What is asked of Docker for `plan`. `open_files`: the limit to set, `None` where the daemon may raise no limits.
pub(super) fn container_body(plan: &Plan, open_files: Option<i64>) -> ContainerCreateBody {
    let spec = &plan.item.spec;
    let port = format!("{}/tcp", spec.probe_port);
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        user: Some(USER.into()),
        env: Some(vec![
            format!("CARREL_STUDENT={}", plan.item.student),
            format!("CARREL_INCARNATION={}", plan.item.incarnation),
            format!("CARREL_GENERATION={}", plan.item.generation),
        ]),
        labels: Some(labels::of_plan(plan)),
        exposed_ports: Some(vec![port.clone()]),
        host_config: Some(HostConfig {
            nano_cpus: Some(spec.resources.cpu_millicores.saturating_mul(1_000_000)),
            memory: Some(spec.resources.memory_bytes),
            // Equal to memory: no swap on top.
            memory_swap: Some(spec.resources.memory_bytes),
            pids_limit: Some(spec.resources.pids),
            mounts: Some(vec![bind(&plan.project_dir, PROJECT), bind(&plan.desk_dir, DESK)]),
            // Only the agent restarts, after it has looked at generation and budget.
            restart_policy: Some(RestartPolicy {
                name: Some(RestartPolicyNameEnum::NO),
                maximum_retry_count: None,
            }),
            auto_remove: Some(false),
            cap_drop: Some(vec!["ALL".into()]),
            security_opt: Some(vec!["no-new-privileges".into()]),
            init: Some(true),
            log_config: Some(HostConfigLogConfig {
                typ: Some("json-file".into()),
                config: Some(HashMap::from([
                    ("max-size".into(), "10m".into()),
                    ("max-file".into(), "2".into()),
                ])),
            }),
            ulimits: open_files
                .map(|files| vec![ulimit("nofile", files), ulimit("msgqueue", MESSAGE_QUEUES)]),
            tmpfs: Some(HashMap::from([("/tmp".into(), temporary(spec.resources.memory_bytes))])),
            network_mode: Some(plan.scope.network()),
            port_bindings: Some(HashMap::from([(
                port,
                // No host port: the kernel picks a free one.
                Some(vec![PortBinding { host_ip: Some("127.0.0.1".into()), host_port: None }]),
            )])),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

fn ulimit(name: &str, limit: i64) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(name.into()), soft: Some(limit), hard: Some(limit) }
}

/// `/tmp` is a part of the workspace's memory, and full at half of that: a program that fills it is told so, before the kernel has to
/// end one.
fn temporary(memory_bytes: i64) -> String {
    format!("rw,exec,nosuid,nodev,mode=1777,size={}", memory_bytes / 2)
}

/// `Mounts`, never `Binds`: those make a missing source on the root disk.
fn bind(source: &Path, target: &str) -> Mount {
    Mount {
        target: Some(target.into()),
        source: Some(source.to_string_lossy().into_owned()),
        typ: Some(MountType::BIND),
        read_only: Some(false),
        bind_options: Some(MountBindOptions {
            propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
            ..MountBindOptions::default()
        }),
        ..Mount::default()
    }
}

/// One bridge a cluster and host; workspaces cannot talk to each other over it.
pub(super) fn network_body(scope: Scope) -> NetworkCreateRequest {
    NetworkCreateRequest {
        name: scope.network(),
        driver: Some("bridge".into()),
        options: Some(HashMap::from([("com.docker.network.bridge.enable_icc".into(), "false".into())])),
        labels: Some(HashMap::from([(labels::CLUSTER.into(), scope.cluster.to_string())])),
        ..NetworkCreateRequest::default()
    }
}

#[cfg(test)]
mod tests {
    use carrel_common::id::{Generation, PlacementId};
    use carrel_common::model::{DesiredItem, Resources, Run, WorkspaceSpec};
    use serde_json::json;

    use super::*;

    fn plan() -> Plan {
        let uid = |n: u8| format!("0f0e0d0c-0000-4000-8000-0000000000{n:02}");
        Plan {
            scope: Scope { cluster: uid(1).parse().expect("uuid"), node: uid(2).parse().expect("uuid") },
            item: DesiredItem {
                workspace: uid(3).parse().expect("uuid"),
                student: "ada@school".parse().expect("valid"),
                generation: Generation(7),
                incarnation: 4,
                placement: PlacementId::new(),
                spec: WorkspaceSpec {
                    image: "carrel/workspace:dev".into(),
                    resources: Resources { cpu_millicores: 1500, memory_bytes: 1 << 30, pids: 512 },
                    probe_port: 8080,
                    probe_path: "/healthz".into(),
                },
                run: Run::Running { start_timeout: std::time::Duration::from_secs(120) },
                traceparent: "00-1-2-01".into(),
                idle_basis_age: None,
            },
            project_dir: "/srv/base/ada@school".into(),
            desk_dir: "/var/lib/carrel-agent/desks/ada".into(),
        }
    }

    #[test]
    fn all_that_is_asked_for_a_container() {
        let plan = plan();
        let body = serde_json::to_value(container_body(&plan, Some(OPEN_FILES))).expect("json");
        let expected = json!({
            "Image": "carrel/workspace:dev",
            "User": "1000:1000",
            "Env": ["CARREL_STUDENT=ada@school", "CARREL_INCARNATION=4", "CARREL_GENERATION=7"],
            "Labels": {
                "carrel.cluster": "0f0e0d0c-0000-4000-8000-000000000001",
                "carrel.incarnation": "4",
                "carrel.node": "0f0e0d0c-0000-4000-8000-000000000002",
                "carrel.workspace": "0f0e0d0c-0000-4000-8000-000000000003",
                "carrel.student": "ada@school",
                "carrel.generation": "7",
                "carrel.placement": plan.item.placement.to_string(),
                "carrel.spec": plan.item.spec.digest(),
                "carrel.made_of": serde_json::to_string(&plan.item.spec).expect("json"),
            },
            "ExposedPorts": { "8080/tcp": {} },
            "HostConfig": {
                "NanoCpus": 1_500_000_000,
                "Memory": 1 << 30,
                "MemorySwap": 1 << 30,
                "PidsLimit": 512,
                "Mounts": [{
                    "Type": "bind",
                    "Source": "/srv/base/ada@school",
                    "Target": "/home/coder/project",
                    "ReadOnly": false,
                    "BindOptions": { "Propagation": "rprivate" },
                }, {
                    "Type": "bind",
                    "Source": "/var/lib/carrel-agent/desks/ada",
                    "Target": "/run/carrel",
                    "ReadOnly": false,
                    "BindOptions": { "Propagation": "rprivate" },
                }],
                "RestartPolicy": { "Name": "no" },
                "AutoRemove": false,
                "CapDrop": ["ALL"],
                "SecurityOpt": ["no-new-privileges"],
                "Init": true,
                "LogConfig": { "Type": "json-file", "Config": { "max-size": "10m", "max-file": "2" } },
                "Ulimits": [
                    { "Name": "nofile", "Soft": 65536, "Hard": 65536 },
                    { "Name": "msgqueue", "Soft": -1, "Hard": -1 },
                ],
                "Tmpfs": { "/tmp": "rw,exec,nosuid,nodev,mode=1777,size=536870912" },
                "NetworkMode": "carrel-0f0e0d0c",
                "PortBindings": { "8080/tcp": [{ "HostIp": "127.0.0.1" }] },
            },
        });
        assert_eq!(body, expected);
        assert_eq!(plan.container_name(), "carrel-0f0e0d0c-0000-4000-8000-000000000003-g7");
    }

    #[test]
    fn a_daemon_that_may_not_set_the_limit_of_open_files_is_not_asked_to() {
        let body = serde_json::to_value(container_body(&plan(), None)).expect("json");
        assert_eq!(body["HostConfig"].get("Ulimits"), None);
    }

    #[test]
    fn workspaces_cannot_talk_to_each_other_over_the_network() {
        let expected = json!({
            "Name": "carrel-0f0e0d0c",
            "Driver": "bridge",
            "Options": { "com.docker.network.bridge.enable_icc": "false" },
            "Labels": { "carrel.cluster": "0f0e0d0c-0000-4000-8000-000000000001" },
        });
        assert_eq!(serde_json::to_value(network_body(plan().scope)).expect("json"), expected);
    }
}
