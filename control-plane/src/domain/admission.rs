//! Whether an agent that says Hello speaks for the node that it names. Pure.
//!
//! A copy of a host's disk has the host's identity. What tells it from the host is checked in this order:
//!
//! 1. The machine id, the machine's own number and the Docker daemon id that the node enrolled with. Another one is another host, or
//!    another daemon whose empty list proves nothing about the first: refused for good.
//! 2. The agent process. The one that holds the session may always reconnect; another one of the same boot of the same kernel has
//!    taken its place once the stream of the first broke: the agent was restarted.
//! 3. Signs of life. While the process that holds the session gives them, any other is held off. A host that was rebooted has given
//!    none for longer than that.

use std::time::Duration;

use carrel_common::model::NodeFacts;
use time::OffsetDateTime;

use super::node::Node;

/// An agent that missed so many heartbeats gives no signs of life: two, and half of one for its jitter.
fn silent_after(heartbeat_interval: Duration) -> Duration {
    heartbeat_interval * 5 / 2
}

/// What becomes of a Hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It is the node.
    Admit,
    /// The node enrolled with another one of these.
    Changed(&'static str),
    /// Another process of this node is alive.
    Held {
        /// Both have given signs of life since the newcomer first came: they are two.
        both_alive: bool,
    },
}

/// Whether the agent process `process` on a host with these facts is the node.
pub fn admit(
    node: &Node,
    facts: &NodeFacts,
    process: &str,
    heartbeat_interval: Duration,
    now: OffsetDateTime,
) -> Admission {
    let differs = |known: &str, told: &str| !known.is_empty() && !told.is_empty() && known != told;
    let known = &node.facts;
    if known.machine_id != facts.machine_id {
        return Admission::Changed("machine id");
    }
    if differs(&known.hardware_id, &facts.hardware_id) {
        return Admission::Changed("hardware id");
    }
    if differs(&known.docker_id, &facts.docker_id) {
        return Admission::Changed("Docker daemon id");
    }
    let Some(heard_at) = node.last_heartbeat_at else { return Admission::Admit };
    // A clock that was set back says nothing; the next heartbeat mends it.
    let alive = Duration::try_from(now - heard_at).is_ok_and(|ago| ago < silent_after(heartbeat_interval));
    let same_process = process.is_empty() || node.holder.process.is_empty() || node.holder.process == process;
    let restarted = known.boot_id == facts.boot_id && !node.holder.connected;
    if !alive || same_process || restarted {
        return Admission::Admit;
    }
    let challenge = node.challenge.as_ref().filter(|challenge| challenge.process == process);
    Admission::Held { both_alive: challenge.is_some_and(|challenge| heard_at > challenge.since) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::node::tests::{self, T0};
    use crate::domain::node::{Challenge, Holder};

    const INTERVAL: Duration = Duration::from_secs(10);

    fn facts() -> NodeFacts {
        node().facts
    }

    /// A node whose agent, process `first`, gave a sign of life at T0.
    fn node() -> Node {
        let holder = Holder { process: "first".into(), connected: true };
        Node { heartbeats: 1, holder, ..tests::node() }
    }

    fn at(seconds: i64) -> OffsetDateTime {
        T0 + time::Duration::seconds(seconds)
    }

    #[test]
    fn another_machine_or_daemon_is_another_host_for_good() {
        let other = |change: fn(&mut NodeFacts)| {
            let mut facts = facts();
            change(&mut facts);
            admit(&node(), &facts, "first", INTERVAL, at(9000))
        };
        assert_eq!(other(|facts| facts.machine_id = "x".into()), Admission::Changed("machine id"));
        assert_eq!(other(|facts| facts.hardware_id = "x".into()), Admission::Changed("hardware id"));
        assert_eq!(other(|facts| facts.docker_id = "x".into()), Admission::Changed("Docker daemon id"));
        // Not known is not another.
        assert_eq!(other(|facts| facts.docker_id.clear()), Admission::Admit);
        assert_eq!(other(|facts| facts.hardware_id.clear()), Admission::Admit);
    }

    #[test]
    fn the_process_that_holds_the_session_may_always_reconnect() {
        assert_eq!(admit(&node(), &facts(), "first", INTERVAL, at(1)), Admission::Admit);
    }

    #[test]
    fn an_agent_that_was_restarted_takes_its_place_once_the_stream_of_the_first_broke() {
        let mut node = node();
        assert_eq!(admit(&node, &facts(), "second", INTERVAL, at(1)), Admission::Held { both_alive: false });
        node.holder.connected = false;
        assert_eq!(admit(&node, &facts(), "second", INTERVAL, at(1)), Admission::Admit);
    }

    #[test]
    fn a_copy_of_the_host_is_held_off_while_the_host_gives_signs_of_life_even_when_its_stream_broke() {
        let (mut node, copy) = (node(), NodeFacts { boot_id: "another".into(), ..facts() });
        node.holder.connected = false;
        for ago in [0, 24] {
            let held = admit(&node, &copy, "copy", INTERVAL, at(ago));
            assert_eq!(held, Admission::Held { both_alive: false }, "{ago} s");
        }
        node.challenge = Some(Challenge { process: "copy".into(), since: at(1), told: false });
        assert_eq!(admit(&node, &copy, "copy", INTERVAL, at(9)), Admission::Held { both_alive: false });
        node.last_heartbeat_at = Some(at(10));
        assert_eq!(admit(&node, &copy, "copy", INTERVAL, at(11)), Admission::Held { both_alive: true });
    }

    #[test]
    fn a_host_that_was_rebooted_is_admitted_when_its_old_agent_has_been_silent() {
        let rebooted = NodeFacts { boot_id: "another".into(), ..facts() };
        assert_eq!(admit(&node(), &rebooted, "new", INTERVAL, at(25)), Admission::Admit);
    }

    #[test]
    fn a_clock_that_was_set_back_locks_nobody_out() {
        assert_eq!(admit(&node(), &facts(), "second", INTERVAL, at(-3600)), Admission::Admit);
    }
}
