//! What the agent knows of its host.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;

use carrel_common::model::NodeFacts;

use crate::runtime::EngineFacts;

/// The parts that do not change while the agent runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// Host name, for people.
    pub hostname: String,
    /// Contents of /etc/machine-id, or what stands for it.
    pub machine_id: String,
    /// The firmware's number of this machine; empty when it has none, or it is not ours to read.
    pub hardware_id: String,
    /// The kernel's id of this boot.
    pub boot_id: String,
    /// Processors, in thousandths.
    pub cpu_millicores: i64,
    /// Memory, in bytes.
    pub memory_bytes: i64,
}

/// What the operator says of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Workspaces at most.
    pub max_workspaces: u16,
    /// Availability zone; may be empty.
    pub zone: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// This host's address, to be shown.
    pub advertise_address: IpAddr,
}

/// Reads them. Blocking, from `/proc` and `/etc` only.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn gather() -> io::Result<HostFacts> {
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned();
    // A container or a minimal host may have none; the host name is all there is to tell it from others then.
    let machine_id = ["/etc/machine-id", "/var/lib/dbus/machine-id"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .map(|id| id.trim().to_owned())
        .find(|id| !id.is_empty())
        .unwrap_or_else(|| format!("hostname:{hostname}"));
    let hardware_id =
        fs::read_to_string("/sys/class/dmi/id/product_uuid").unwrap_or_default().trim().to_owned();
    let boot_id = boot_id()?;
    let processors = std::thread::available_parallelism()?.get();
    let memory_bytes = memory_total(&fs::read_to_string("/proc/meminfo")?)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/meminfo does not say MemTotal"))?;
    let cpu_millicores = i64::try_from(processors).unwrap_or(1).saturating_mul(1000);
    Ok(HostFacts { hostname, machine_id, hardware_id, boot_id, cpu_millicores, memory_bytes })
}

/// The kernel's id of this boot.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

fn memory_total(meminfo: &str) -> Option<i64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<i64>().ok()?.checked_mul(1024)
}

/// Everything the control plane is told. The engine's word on processors and memory counts where there is one: it is what
/// containers can have.
pub fn of_node(host: &HostFacts, engine: Option<&EngineFacts>, told: &Told) -> NodeFacts {
    let said = |number: Option<i64>| number.filter(|number| *number > 0);
    let cpus = said(engine.map(|engine| engine.cpus)).map(|cpus| cpus.saturating_mul(1000));
    NodeFacts {
        hostname: host.hostname.clone(),
        machine_id: host.machine_id.clone(),
        boot_id: host.boot_id.clone(),
        docker_id: engine.map(|engine| engine.id.clone()).unwrap_or_default(),
        docker_version: engine.map(|engine| engine.version.clone()).unwrap_or_default(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        cpu_millicores: cpus.unwrap_or(host.cpu_millicores),
        memory_bytes: said(engine.map(|engine| engine.memory_bytes)).unwrap_or(host.memory_bytes),
        max_workspaces: i64::from(told.max_workspaces),
        advertise_address: told.advertise_address.to_string(),
        zone: told.zone.clone(),
        labels: told.labels.clone(),
        hardware_id: host.hardware_id.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_this_host() {
        let facts = gather().expect("a Linux host");
        assert!(!facts.machine_id.is_empty() && facts.boot_id.len() == 36);
        assert!(facts.cpu_millicores >= 1000 && facts.memory_bytes > 1 << 20);
    }

    #[test]
    fn memory_is_in_kibibytes() {
        assert_eq!(memory_total("MemTotal:       2048 kB\nMemFree: 1 kB\n"), Some(2 << 20));
        assert_eq!(memory_total("MemFree: 1 kB\n"), None);
    }
}
