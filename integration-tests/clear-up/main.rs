//! Removes what tests that were killed left behind: hosts, daemons, mounts, containers, databases. Tests that run are left alone.

#[tokio::main(flavor = "current_thread")]
async fn main() {
    integration_tests::clear_up().await;
}
