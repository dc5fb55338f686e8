//! Why no node takes a workspace, in words.

use carrel_common::id::NodeId;
use carrel_common::model::{Resources, StatusReason};

/// What the nodes are short of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// Memory.
    Memory,
    /// Processors.
    Cpu,
    /// Workspaces that they may hold.
    Places,
}

/// A container of a student that no order names and that still runs: a second one would write beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldContainer {
    /// Where.
    pub node: NodeId,
    /// As people call that node.
    pub hostname: String,
    /// Docker's id.
    pub container_id: String,
}

/// Nodes that take nothing, each counted for the first that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OutOfService {
    /// Being emptied, or emptied.
    pub draining: usize,
    /// Cordoned.
    pub cordoned: usize,
    /// Their Docker or storage is not healthy.
    pub unhealthy: usize,
    /// Not heard of.
    pub silent: usize,
}

impl OutOfService {
    /// Whether one that asks for a place may wait until a node is back: there are nodes, and nothing has to be mended first.
    pub fn may_pass(&self) -> bool {
        self.unhealthy == 0 && *self != Self::default()
    }

    fn told(&self) -> String {
        let parts = [
            (self.draining, "being emptied"),
            (self.cordoned, "out of service (cordoned)"),
            (self.unhealthy, "not healthy"),
            (self.silent, "not connected"),
        ];
        let said: Vec<_> =
            parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        if said.is_empty() { "none is connected".to_owned() } else { said.join(", ") }
    }
}

/// Why no node took it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoPlace {
    /// No node is connected, healthy and not cordoned.
    NoneReady(OutOfService),
    /// Nodes are ready, but this start has failed on every one of them.
    FailedOnAll,
    /// Every node that may take it is full.
    Full {
        /// What most of them are short of.
        lack: Lack,
        /// How many have enough of that; still, none has enough of everything.
        with_room: usize,
        /// How many there are.
        of: usize,
        /// What it needs.
        need: Resources,
    },
    /// No node, ready or not, is large enough even when empty.
    TooLarge,
    /// Others wait for longer, and there may be a place for one of them; or others are being placed at this moment.
    NotItsTurn,
    /// Whatever is free: something of the student may still write.
    ContainerHeld(HeldContainer),
}

impl NoPlace {
    /// The reason shown while the workspace waits, and a sentence. It may lack nothing but its turn, which is no reason.
    pub fn explain(self) -> (Option<StatusReason>, String) {
        let (reason, message) = match self {
            Self::NotItsTurn => return (None, "Waits for its turn.".to_owned()),
            Self::NoneReady(out) => (StatusReason::NoNodeReady, format!("Waits for a host: {}.", out.told())),
            Self::FailedOnAll => (
                StatusReason::NoNodeReady,
                "Waits for another host: it could not be started on those that are there.".to_owned(),
            ),
            Self::Full { lack, with_room, of, need } => {
                let short = match lack {
                    Lack::Memory => {
                        format!("memory: {with_room} of {of} nodes have {} free", bytes(need.memory_bytes))
                    }
                    Lack::Cpu => {
                        format!("cpu: {with_room} of {of} nodes have {} free", cores(need.cpu_millicores))
                    }
                    Lack::Places => format!("workspaces: {with_room} of {of} nodes take one more"),
                };
                (StatusReason::NoCapacity, format!("Waits for a free place ({short})."))
            }
            Self::TooLarge => (
                StatusReason::NoCapacity,
                "Waits for a larger host: its limits are beyond every host there is.".to_owned(),
            ),
            Self::ContainerHeld(HeldContainer { node, hostname, container_id }) => (
                StatusReason::ContainerHeld,
                format!(
                    "Waits until another container of this student is gone from host {hostname} (nodes/{node}, container \
                     {container_id}); an operator can resolve it (ListOrphans, ResolveOrphan)."
                ),
            ),
        };
        (Some(reason), message)
    }
}

/// `n` units of `unit` with at most one decimal.
fn tenths(n: i64, unit: i64) -> String {
    let tenths = n.saturating_mul(10).checked_div(unit).unwrap_or_default();
    if tenths % 10 == 0 { format!("{}", tenths / 10) } else { format!("{}.{}", tenths / 10, tenths % 10) }
}

fn bytes(n: i64) -> String {
    const MIB: i64 = 1 << 20;
    const GIB: i64 = 1 << 30;
    if n >= GIB { format!("{} GiB", tenths(n, GIB)) } else { format!("{} MiB", tenths(n, MIB)) }
}

fn cores(millicores: i64) -> String {
    let plural = if millicores == 1000 { "" } else { "s" };
    format!("{} core{plural}", tenths(millicores, 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_the_nodes_are_short_of() {
        let need = Resources { cpu_millicores: 500, memory_bytes: 1 << 30, pids: 512 };
        let full = |lack, with_room| NoPlace::Full { lack, with_room, of: 3, need }.explain().1;
        assert_eq!(full(Lack::Memory, 0), "Waits for a free place (memory: 0 of 3 nodes have 1 GiB free).");
        assert_eq!(full(Lack::Cpu, 1), "Waits for a free place (cpu: 1 of 3 nodes have 0.5 cores free).");
        assert_eq!(full(Lack::Places, 0), "Waits for a free place (workspaces: 0 of 3 nodes take one more).");
    }

    #[test]
    fn says_why_no_host_is_in_service() {
        let told = |out: OutOfService| NoPlace::NoneReady(out).explain().1;
        let out = OutOfService { draining: 1, cordoned: 2, silent: 3, ..OutOfService::default() };
        assert_eq!(
            told(out),
            "Waits for a host: 1 being emptied, 2 out of service (cordoned), 3 not connected."
        );
        assert_eq!(told(OutOfService::default()), "Waits for a host: none is connected.");
        assert!(out.may_pass() && !OutOfService::default().may_pass());
        assert!(!OutOfService { unhealthy: 1, ..out }.may_pass(), "a share wants to be mended first");
    }

    #[test]
    fn names_the_host_and_the_container_that_is_waited_for() {
        let node = NodeId(uuid::Uuid::from_u128(7));
        let held = HeldContainer { node, hostname: "desk-host-1".into(), container_id: "c0ffee".into() };
        let told = "Waits until another container of this student is gone from host desk-host-1 \
                    (nodes/00000000-0000-0000-0000-000000000007, container c0ffee); an operator can resolve it \
                    (ListOrphans, ResolveOrphan).";
        assert_eq!(
            NoPlace::ContainerHeld(held).explain(),
            (Some(StatusReason::ContainerHeld), told.to_owned())
        );
    }

    #[test]
    fn sizes_are_told_as_people_say_them() {
        assert_eq!([bytes(1 << 30), bytes(1536 << 20), bytes(64 << 20)], ["1 GiB", "1.5 GiB", "64 MiB"]);
        assert_eq!([cores(1000), cores(2000), cores(250)], ["1 core", "2 cores", "0.2 cores"]);
    }
}
