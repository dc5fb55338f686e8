//! The whole life of a host, and one that installs itself.

use integration_tests::writes;

use super::*;

/// Types the five lines of the README, of which the first and the last are for the control plane's host.
fn type_what_is_printed(plane: &Machine, host: &Machine) {
    let lines = second_host();
    let [first, between @ .., last] = &lines[..] else { panic!("five lines: {lines:?}") };
    assert_eq!(between.len(), 3, "{lines:?}");
    let token: serde_json::Value = serde_json::from_str(&plane.from_outside(first)).expect("JSON");
    for line in between {
        host.sh(&line.replace("TOKEN", token["token"].as_str().expect("a token")));
    }
    plane.wait_until("it is there, STATE_READY", SOON, || plane.from_outside(last).contains("STATE_READY"));
}

#[test]
fn a_second_host_in_five_lines_outlives_what_happens_to_hosts() {
    let machines = Machines::new();
    let plane = control_plane(&machines);
    let host = host(&machines, "second");
    host.sh(&format!("install -d /mnt/efs && echo '{FSTAB}' >>/etc/fstab && systemctl daemon-reload && systemctl start mnt-efs.mount"));
    type_what_is_printed(&plane, &host);
    plane.call("WorkspaceService/StartWorkspace", r#"{"student_id":"ada","course_id":"cs101"}"#);
    let desk = wait_for_desk(&plane, &host, "ada");

    // An operator rotates as root what the service reads as its own user. The agent takes its next certificate from the new authority,
    // and keeps it where the unit may write.
    plane.sh("control-plane ca rotate --ca-dir /etc/carrel/ca");
    let both = "test \"$(grep -c BEGIN /var/lib/carrel-agent/ca.pem)\" = 2";
    host.wait_for("the new authority is known", SOON, both);
    // Installed again, it keeps what it is not told.
    plane.sh("deploy/install control-plane --set CARREL_NODE_CERTIFICATE_TTL=24h");
    let for_a_day = "openssl x509 -in /var/lib/carrel-agent/node.pem -noout -checkend 40000";
    host.wait_for("the certificate is good for a day", SOON, for_a_day);

    // Restarts and crashes: nobody notices.
    for unit in ["carrel-node-agent", "carrel-node-fence", "docker"] {
        host.sh(&format!("systemctl restart {unit}"));
    }
    plane.sh("systemctl restart carrel-control-plane");
    host.sh("systemctl kill --signal KILL --kill-who main carrel-node-agent carrel-node-fence docker");
    plane.sh("systemctl kill --signal KILL --kill-who main carrel-control-plane");
    host.wait_for("they are back", SOON, "systemctl is-active carrel-node-agent carrel-node-fence docker");
    plane.wait_for("it is back", SOON, "systemctl is-active carrel-control-plane");
    plane.wait_for("it serves", SOON, "curl -sf http://127.0.0.1:7300/readyz");
    wait_for_node(&plane, "STATE_READY");
    assert_eq!(wait_for_desk(&plane, &host, "ada"), desk, "it ran on");

    // The agent sees the share go and come.
    host.sh("systemctl stop mnt-efs.mount");
    wait_for_node(&plane, "STATE_DEGRADED");
    host.sh("systemctl start mnt-efs.mount");
    wait_for_node(&plane, "STATE_READY");
    assert_eq!(container(&host, "ada"), desk, "what runs has its files");

    // Without an agent the fence ends all of it, on time; with one again it is back.
    host.sh("systemctl stop carrel-node-agent");
    // Within F and S, 33 s after its last heartbeat, and what a busy machine adds.
    let gone = "test -z \"$(docker ps -q --filter label=carrel.student)\"";
    host.wait_for("the fence ends everything", Duration::from_secs(40), gone);
    host.sh("systemctl start carrel-node-agent");
    wait_for_desk(&plane, &host, "ada");

    // Reboots, one in order, one not, in which the file server comes last.
    host.reboot();
    wait_for_desk(&plane, &host, "ada");
    host.switch_off();
    plane.switch_off();
    std::fs::write(machines.export().join("away"), "").expect("writable");
    plane.switch_on();
    host.switch_on();
    plane.wait_for_boot();
    host.wait_for("the fence runs", SOON, "systemctl is-active carrel-node-fence docker");
    let agent = host.try_sh("systemctl is-active carrel-node-agent");
    assert!(!agent.status.success(), "the agent waits for the share");
    std::fs::remove_file(machines.export().join("away")).expect("it was there");
    wait_for_node(&plane, "STATE_READY");
    wait_for_desk(&plane, &host, "ada");
    host.wait_for_boot();

    let log = machines.export().join("workspace-data/ada").join(writes::FILE);
    let written = std::fs::read_to_string(log).expect("the desk wrote");
    writes::check(&written).expect("never two writers");
}

#[test]
fn an_instance_installs_itself_from_its_user_data() {
    let machines = Machines::new();
    let plane = control_plane(&machines);
    let token =
        plane.call("NodeService/CreateJoinToken", "{}")["token"].as_str().expect("a token").to_owned();
    let user_data = printed::document("deploy/aws/user-data.sh");
    let user_data = user_data
        .replace("https://carrel.internal:7301", "https://carrel.example:7301")
        .replace("join_token=carrel-join…", &format!("join_token={token}"))
        .replace("https://your-bucket.s3.eu-central-1.amazonaws.com", "file:///opt");
    let filled_in = [&token, "https://carrel.example:7301", "file:///opt/carrel.tar"];
    assert!(filled_in.iter().all(|value| user_data.contains(value)), "{user_data}");

    let instance = host(&machines, "instance");
    // What the comment in the user data packs.
    instance.sh("mkdir -p /opt/release/target/release && cp -r deploy README.md /opt/release
         cp target/release/{control-plane,node-agent} /opt/release/target/release
         tar -cf /opt/carrel.tar -C /opt/release .");
    instance.sh(include_str!("cloud.sh"));
    instance.sh(&format!("cat >/root/user-data <<'END'\n{user_data}\nEND"));
    // As cloud-init runs it: root, and next to nothing in the environment.
    let said = instance.sh("cd / && chmod +x /root/user-data && env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /root/user-data 2>&1");
    assert!(
        said.contains("Could not get lock /var/lib/apt/lists"),
        "it came amid the updates of the first boot: {said}"
    );
    instance.sh("node-agent mark-share --workspace-base-path /mnt/efs/workspace-data --storage mount");
    wait_for_node(&plane, "STATE_READY");
    assert_eq!(node(&plane)["zone"], "eu-central-1b");
    plane.call("WorkspaceService/StartWorkspace", r#"{"student_id":"bob","course_id":"cs101"}"#);
    wait_for_desk(&plane, &instance, "bob");

    // Its file server is away when it is stopped and started for the night.
    std::fs::write(machines.export().join("away"), "").expect("writable");
    instance.switch_off();
    instance.switch_on();
    std::fs::remove_file(machines.export().join("away")).expect("it was there");
    instance.wait_for_boot();
    wait_for_desk(&plane, &instance, "bob");
}
