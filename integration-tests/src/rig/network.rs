//! The rig's wire: a bridge in this machine's network with an address of its own, and a pair of interfaces for each host.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use crate::process::run;

/// A bridge of the rig's own. Gone, with its rule, when dropped.
#[derive(Debug)]
pub(crate) struct Network {
    /// The addresses are 198.18.<this>.0/24: of the range for benchmarks (RFC 2544), which no real network uses.
    subnet: u8,
}

impl Network {
    /// Makes it, in a range that no other rig has now.
    pub(crate) fn new() -> Self {
        let subnet = std::iter::repeat_with(|| rand::random_range(1..=254))
            .take(100)
            .find(|subnet| quietly("ip", &["link", "add", "name", &bridge_of(*subnet), "type", "bridge"]));
        let network = Self { subnet: subnet.expect("a bridge can be made; are the tests run as root?") };
        let bridge = network.bridge();
        run("ip", &["addr", "add", &format!("{}/24", network.hub()), "dev", &bridge]);
        run("ip", &["link", "set", &bridge, "up"]);
        // The machine's Docker drops what is forwarded, and where the kernel shows bridged frames to the packet filter, hosts
        // could not reach each other.
        run("iptables", &rule("-I", &bridge));
        network
    }

    /// Its name; what a rig makes outside its directory is called after it.
    pub(crate) fn bridge(&self) -> String {
        bridge_of(self.subnet)
    }

    /// Where the replicas are, as the hosts see it.
    pub(crate) fn hub(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.subnet, 1)
    }

    /// All its addresses.
    pub(crate) fn range(&self) -> String {
        format!("198.18.{}.0/24", self.subnet)
    }

    /// Of a host.
    pub(crate) fn address_of(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.subnet, 10 + host)
    }

    /// Plugs a host in: `eth0` in the network of process `pid`.
    pub(crate) fn plug(&self, host: u8, pid: u32) {
        let (bridge, ours, pid) = (self.bridge(), self.interface_of(host), pid.to_string());
        // A host that was switched off took its end with it; ours may go a moment later.
        quietly("ip", &["link", "del", &ours]);
        run("ip", &["link", "add", &ours, "type", "veth", "peer", "name", "eth0", "netns", &pid]);
        run("ip", &["link", "set", &ours, "master", &bridge, "up"]);
        let address = format!("{}/24", self.address_of(host));
        let inside =
            |arguments: &[&str]| run("nsenter", &[&["--target", &pid, "--net", "ip"], arguments].concat());
        inside(&["addr", "add", &address, "dev", "eth0"]);
        inside(&["link", "set", "eth0", "up"]);
    }

    /// Pulls a host's plug, or puts it back.
    pub(crate) fn set_link(&self, host: u8, up: bool) {
        run("ip", &["link", "set", &self.interface_of(host), if up { "up" } else { "down" }]);
    }

    fn interface_of(&self, host: u8) -> String {
        format!("{}-{host}", self.bridge())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        clear_up(&self.bridge());
    }
}

/// Removes a bridge, its rule, and what is plugged in. The hosts' ends would not always go with the hosts: a connection
/// that a cut-off host could not close keeps its network for minutes.
pub(crate) fn clear_up(bridge: &str) {
    while quietly("iptables", &rule("-D", bridge)) {}
    let plugged = format!("{bridge}-");
    let interfaces = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let names = interfaces.map(|entry| entry.file_name().to_string_lossy().into_owned());
    for name in names.filter(|name| name == bridge || name.starts_with(&plugged)) {
        quietly("ip", &["link", "del", &name]);
    }
}

fn bridge_of(subnet: u8) -> String {
    format!("cr-{subnet}")
}

fn rule<'a>(verb: &'a str, bridge: &'a str) -> [&'a str; 10] {
    ["--wait", "10", verb, "FORWARD", "-i", bridge, "-o", bridge, "-j", "ACCEPT"]
}

/// Whether a command succeeds.
fn quietly(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|done| done.success())
}
