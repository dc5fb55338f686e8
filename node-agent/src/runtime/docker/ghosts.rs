//! What is left of a container that Docker has forgotten.
//!
//! A daemon that is killed amid a start leaves the container's first process behind (`runc init`, waiting to become the
//! program): Docker removes the container, and the process stays, in its cgroup and with its address on the bridge, which
//! the next container is then given as well. It is found by the container's id in its cgroup and ended.

use std::fs;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Length of Docker's full id, in hexadecimal digits. A shorter text could be part of somebody else's path.
const ID_LENGTH: usize = 64;

/// Ends every process in the cgroup of a container that Docker has just removed; how many there were. Blocking.
pub(super) fn end(id: &str) -> usize {
    if id.len() != ID_LENGTH {
        return 0;
    }
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter_map(Pid::from_raw).filter(|pid| end_if_in(*pid, id)).count()
}

fn end_if_in(pid: Pid, id: &str) -> bool {
    // The descriptor first: what is looked at next and ended is then one process, whoever gets its number later.
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    is_in(&cgroups, id) && pidfd_send_signal(process, Signal::KILL).is_ok()
}

/// Whether a process with these cgroups is the container's: its own cgroup, or one below it, under either driver and version.
fn is_in(cgroups: &str, id: &str) -> bool {
    let scope = format!("docker-{id}.scope");
    cgroups
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .any(|path| path.split('/').any(|part| part == id || part == scope))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "e550a2dcde3e6385de8fa71daf8e655cdcf9747ed132dab60acfdcc924753059";

    #[test]
    fn a_process_is_known_by_its_cgroup_under_either_driver_and_version() {
        for (cgroups, expected) in [
            (format!("9:name=systemd:/docker/{ID}\n8:pids:/docker/{ID}\n"), true),
            (format!("0::/system.slice/docker-{ID}.scope\n"), true),
            (format!("0::/docker/0123/docker/{ID}/init\n"), true),
            (format!("0::/docker/{}\n", ID.replace('e', "f")), false),
            ("0::/\n".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(is_in(&cgroups, ID), expected, "{cgroups}");
        }
    }

    #[test]
    fn nothing_is_ended_for_a_text_that_is_no_full_id() {
        assert_eq!((end(""), end("docker"), end("/")), (0, 0, 0));
    }
}
