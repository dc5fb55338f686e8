//! What operators are told to have their hosts do about what a desk can reach.

use std::process::Command;

use integration_tests::printed;

#[test]
fn the_rules_for_hosts_keep_a_desk_from_what_is_not_its_business_and_leave_it_the_web_and_its_editor() {
    let operating = printed::document("docs/operating.md");
    let rules = printed::commands(printed::section(&operating, "reach")).join("\n");
    let script = include_str!("reach.sh").replace("RULES", &rules);
    // In a network of its own: the machine's is left alone.
    let output = Command::new("unshare")
        .args(["--net", "--mount", "bash", "-euc", &script])
        .output()
        .expect("unshare starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let reached = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        reached, "share metadata host agents web editor\nweb editor\n",
        "before and behind them\n{error}"
    );
}
