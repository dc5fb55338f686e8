//! `deploy/install` puts the right files in the right place, keeps what it is not told, and systemd understands the units.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use integration_tests::settings;
use tempfile::TempDir;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository").to_owned()
}

fn install(root: &TempDir, arguments: &[&str]) -> Output {
    let binaries = settings::binary("node-agent");
    Command::new(repository().join("deploy/install"))
        .args(arguments)
        .arg("--root")
        .arg(root.path())
        .arg("--binaries")
        .arg(binaries.parent().expect("a directory"))
        .output()
        .expect("deploy/install runs")
}

fn installed(root: &TempDir, arguments: &[&str]) {
    let output = install(root, arguments);
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

fn text(root: &TempDir, path: &str) -> String {
    std::fs::read_to_string(root.path().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn mode(root: &TempDir, path: &str) -> u32 {
    std::fs::metadata(root.path().join(path)).expect(path).permissions().mode() & 0o777
}

/// What systemd itself says of the units; nothing when it is content.
fn verify(root: &TempDir, units: &[&str]) -> String {
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no", "--root"])
        .arg(root.path())
        .args(units)
        .output()
        .expect("systemd-analyze runs");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_node_is_installed_and_an_upgrade_keeps_its_settings() {
    let root = tempfile::tempdir().expect("a directory");
    let node =
        ["node", "--control-plane", "https://carrel.example:7301", "--base", "/mnt/efs/workspace-data"];
    installed(&root, &[&node[..], &["--join-token", "secret-token", "--zone", "a"]].concat());
    let settings = text(&root, "etc/carrel/node-agent.env");
    for line in [
        "CARREL_CONTROL_PLANE=https://carrel.example:7301",
        "WORKSPACE_BASE_PATH=/mnt/efs/workspace-data",
        "CARREL_STORAGE=mount",
        "CARREL_ZONE=a",
        "CARREL_JOIN_TOKEN_FILE=/etc/carrel/join-token",
    ] {
        assert!(settings.lines().any(|found| found == line), "{line} is missing:\n{settings}");
    }
    assert!(!settings.contains("secret-token"), "the token is in a file of its own");
    assert_eq!(
        (mode(&root, "etc/carrel/node-agent.env"), mode(&root, "etc/carrel/join-token")),
        (0o640, 0o600)
    );
    let drop_in = text(&root, "etc/systemd/system/carrel-node-agent.service.d/share.conf");
    let mounts = r"mnt-efs-workspace\x2ddata.mount mnt-efs.mount mnt.mount";
    assert!(drop_in.contains(&format!("Wants={mounts}\nAfter={mounts}\n")), "{drop_in}");
    assert_eq!(mode(&root, "usr/local/bin/node-agent"), 0o755);
    let limits = text(&root, "etc/sysctl.d/60-carrel.conf");
    assert!(limits.contains("\nfs.inotify.max_user_instances = 2147483647\n"), "{limits}");

    installed(&root, &["node", "--zone", "b"]);
    let upgraded = text(&root, "etc/carrel/node-agent.env");
    assert!(upgraded.contains("CARREL_ZONE=b") && !upgraded.contains("CARREL_ZONE=a"), "{upgraded}");
    assert!(upgraded.contains("CARREL_CONTROL_PLANE=https://carrel.example:7301"), "{upgraded}");
    assert_eq!(verify(&root, &["carrel-node-agent.service", "carrel-node-fence.service"]), "");
}

#[test]
fn a_control_plane_is_installed_and_systemd_understands_its_unit() {
    let root = tempfile::tempdir().expect("a directory");
    let url = "postgres://carrel:p%40ss@db.example/carrel?sslmode=verify-full";
    installed(&root, &["control-plane", "--database-url", url, "--ca-dir", "/etc/carrel/ca"]);
    let settings = text(&root, "etc/carrel/control-plane.env");
    assert!(settings.contains(&format!("CARREL_DATABASE_URL={url}")), "{settings}");
    assert_eq!(mode(&root, "etc/carrel/control-plane.env"), 0o640);
    assert_eq!(verify(&root, &["carrel-control-plane.service"]), "");
}

#[test]
fn what_is_missing_is_named() {
    let root = tempfile::tempdir().expect("a directory");
    let said = |arguments: &[&str]| String::from_utf8_lossy(&install(&root, arguments).stderr).into_owned();
    assert!(said(&["node", "--base", "/srv"]).contains("CARREL_CONTROL_PLANE is not set"));
    assert!(said(&["control-plane", "--ca-dir", "/x"]).contains("CARREL_DATABASE_URL is not set"));
    let empty = said(&["node", "--control-plane", "https://c:7301", "--base", "/srv", "--join-token", ""]);
    assert!(empty.contains("--join-token wants a value"), "{empty}");
    let relative = said(&["node", "--control-plane", "https://c:7301", "--base", "srv"]);
    assert!(relative.contains("--base must be an absolute path"), "{relative}");
    assert!(
        said(&["node", "--set", "lower=1", "--control-plane", "https://c:7301", "--base", "/srv"])
            .contains("NAME=VALUE")
    );
}

/// The fence's unit writes to its `StateDirectory` and nowhere else.
#[test]
fn a_state_directory_that_the_fence_could_not_write_to_is_refused() {
    let root = tempfile::tempdir().expect("a directory");
    let node = ["node", "--control-plane", "https://c:7301", "--base", "/srv"];
    let with = |dir: &'static str| [&node[..], &["--set", dir]].concat();
    let refused = install(&root, &with("CARREL_STATE_DIR=/data/carrel"));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("mount that at /var/lib/carrel-agent"), "{said}");
    assert!(!root.path().join("etc").exists(), "nothing is installed");
    installed(&root, &with("CARREL_STATE_DIR=/var/lib/carrel-agent"));
    // Nor is one that an earlier installation took.
    let file = root.path().join("etc/carrel/node-agent.env");
    let settings = text(&root, "etc/carrel/node-agent.env").replace("/var/lib/carrel-agent", "/data/carrel");
    std::fs::write(&file, settings).expect("written");
    assert!(!install(&root, &["node", "--zone", "a"]).status.success());
    installed(&root, &["node", "--set", "CARREL_STATE_DIR=/var/lib/carrel-agent"]);
}
