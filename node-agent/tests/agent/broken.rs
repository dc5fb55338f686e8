//! A bug: what panics does not leave an agent behind that looks well.

use std::time::Duration;

use crate::rig::Rig;

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_ends_with_a_part_that_panics() {
    // No time is so long after another: whoever looks when the fence files are due again panics.
    let rig = Rig::stopped(|config| config.fence_file_interval = Duration::MAX).await;
    let error = rig.end_of_an_agent().await.expect_err("it has lost a part");
    // Of that one, or of one that ends with it.
    assert!(error.to_string().starts_with("a part of the agent "), "{error:#}");
}
