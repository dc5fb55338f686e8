//! What `integration-tests/run` hands over in the environment, and where the binaries are.

use std::path::PathBuf;

/// Value of an environment variable.
pub fn optional(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn required(name: &str) -> String {
    optional(name).unwrap_or_else(|| panic!("{name} is not set; run the tests with integration-tests/run"))
}

/// Number in an environment variable, for tests that run longer when asked to.
pub fn number(name: &str, default: u64) -> u64 {
    optional(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number: {text}")))
}

/// A Postgres in which databases may be made.
pub fn database_url() -> String {
    required("CARREL_TEST_DATABASE_URL")
}

/// The Docker daemon that tests share.
pub fn docker_host() -> String {
    optional("DOCKER_HOST").unwrap_or_else(|| "unix:///var/run/docker.sock".into())
}

/// An image that starts in milliseconds.
pub fn tiny_image() -> String {
    optional("CARREL_TINY_IMAGE").unwrap_or_else(|| "carrel/tiny:test".into())
}

/// The tiny image that misbehaves in this way: `crash`, `deaf`, `stubborn`, `oom`, `writer`.
pub fn tiny_image_that_is(behaviour: &str) -> String {
    let image = tiny_image();
    let (name, _) = image.rsplit_once(':').unwrap_or((&image, ""));
    format!("{name}:{behaviour}")
}

/// The real code-server image.
pub fn workspace_image() -> String {
    required("CARREL_WORKSPACE_IMAGE")
}

/// Debian's image registry.
pub fn registry_binary() -> String {
    required("CARREL_REGISTRY_BINARY")
}

/// A Chromium.
pub fn chromium() -> String {
    required("CHROMIUM")
}

/// A directory whose `node_modules` has playwright-core.
pub fn browser_dir() -> String {
    required("CARREL_BROWSER_DIR")
}

/// A Python virtual environment with what the example client needs.
pub fn clients_venv() -> String {
    required("CARREL_CLIENTS_VENV")
}

/// One of the workspace's binaries: built beside the test that asks.
pub fn binary(name: &str) -> PathBuf {
    let dir = optional("CARREL_BIN_DIR").map_or_else(
        || {
            let own = std::env::current_exe().expect("the test has a path");
            // target/<profile>/deps/e2e-… or target/<profile>/start-latency
            let dir = own.parent().expect("a file is in a directory");
            if dir.ends_with("deps") {
                dir.parent().expect("deps is in a directory").into()
            } else {
                dir.into()
            }
        },
        PathBuf::from,
    );
    let binary = dir.join(name);
    assert!(binary.exists(), "{} is not built; build with --workspace --all-targets", binary.display());
    binary
}

/// A TCP port of 127.0.0.1 that nobody listens on. Below the range the kernel takes ports of outgoing connections
/// from, else one of them could be given away between here and its use.
pub fn free_port() -> u16 {
    loop {
        let port = rand::random_range(10_000..32_000);
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
