//! The processes of a container, found and ended without Docker: by the container's id in their cgroup.
//!
//! A process stays in its container's cgroup whatever it does, and so do its children. The id is a component of the cgroup's path
//! under either driver (`cgroupfs`, `systemd`) and either version.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Length of Docker's full id, in hexadecimal digits. A shorter text could be part of somebody else's path.
const ID_LENGTH: usize = 64;

/// A process of a container.
#[derive(Debug)]
pub struct Member {
    pid: Pid,
    /// What is looked at and ended is one process, whoever gets its number later.
    process: OwnedFd,
    /// `/proc/<pid>/cgroup`
    cgroups: String,
}

impl Member {
    /// Its number.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends a signal; whether there was anybody to receive it.
    pub fn signal(&self, signal: Signal) -> bool {
        pidfd_send_signal(&self.process, signal).is_ok()
    }
}

/// All processes in the cgroups of these containers, or below them, that have not ended. Blocking.
pub fn members(ids: &BTreeSet<String>) -> Vec<Member> {
    let ids: BTreeSet<&str> = ids.iter().map(String::as_str).filter(|id| id.len() == ID_LENGTH).collect();
    if ids.is_empty() {
        return Vec::new();
    }
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter_map(Pid::from_raw).filter_map(|pid| member(pid, &ids)).collect()
}

fn member(pid: Pid, ids: &BTreeSet<&str>) -> Option<Member> {
    let cgroups = || fs::read_to_string(format!("/proc/{pid}/cgroup")).ok().filter(|text| is_in(text, ids));
    cgroups()?;
    let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    // Once more: now it is the process that the descriptor names.
    let cgroups = cgroups()?;
    (!has_ended(pid)).then_some(Member { pid, process, cgroups })
}

/// A process that its parent has not taken note of yet is listed until then; one whose other threads run on is not that.
fn has_ended(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The command's name may hold blanks and brackets.
    let ended = stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']));
    let threads = || fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    ended && threads() < 2
}

/// Kills them: the whole cgroup at once where the kernel can, and each of them. In a frozen cgroup a process ends only once it is
/// thawed; it does so without running on. And in one that is beyond its limit of CPU time it ends only once that is lifted, or as slowly
/// as it allows: twenty processes that had filled their memory took up to 20 s under a tenth of a CPU, and a tenth of a second without.
pub fn kill(members: &[Member], ids: &BTreeSet<String>) {
    let ids: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
    let hierarchies = Hierarchies::of_this_host();
    let of = |controller: Option<&str>| -> BTreeSet<PathBuf> {
        members.iter().filter_map(|member| hierarchies.cgroup_of(&member.cgroups, controller, &ids)).collect()
    };
    for cgroup in of(None) {
        let _ = fs::write(cgroup.join("cgroup.kill"), "1");
    }
    for member in members {
        member.signal(Signal::KILL);
    }
    for cgroup in of(Some("freezer")) {
        let _ = fs::write(cgroup.join("freezer.state"), "THAWED");
    }
    lift(of);
}

/// Lifts the limit of CPU time of a container that was killed: see [`kill`]. Blocking.
pub fn free(id: &str) {
    let ids = BTreeSet::from([id.to_owned()]);
    let members = members(&ids);
    let ids = BTreeSet::from([id]);
    let hierarchies = Hierarchies::of_this_host();
    lift(|controller| {
        members.iter().filter_map(|member| hierarchies.cgroup_of(&member.cgroups, controller, &ids)).collect()
    });
}

fn lift(of: impl Fn(Option<&str>) -> BTreeSet<PathBuf>) {
    for cgroup in of(None) {
        let _ = fs::write(cgroup.join("cpu.max"), "max");
    }
    for cgroup in of(Some("cpu")) {
        let _ = fs::write(cgroup.join("cpu.cfs_quota_us"), "-1");
    }
}

/// Ends what is left of a container that Docker has just removed; how many processes there were. Blocking.
///
/// A daemon that is killed amid a start leaves the container's first process behind (`runc init`, waiting to become the program):
/// Docker removes the container, and the process stays, in its cgroup and with its address on the bridge, which the next container is
/// then given as well.
pub fn end(id: &str) -> usize {
    let ids = BTreeSet::from([id.to_owned()]);
    let left = members(&ids);
    if !left.is_empty() {
        kill(&left, &ids);
    }
    left.len()
}

/// The path in one line of `/proc/<pid>/cgroup`.
fn path_in(line: &str) -> Option<&str> {
    line.splitn(3, ':').nth(2)
}

/// The container that a component of a cgroup's path names.
fn id_of(component: &str) -> &str {
    component.strip_prefix("docker-").and_then(|rest| rest.strip_suffix(".scope")).unwrap_or(component)
}

/// Whether a process with these cgroups is one of the containers': in their cgroup, or in one below it.
fn is_in(cgroups: &str, ids: &BTreeSet<&str>) -> bool {
    cgroups.lines().filter_map(path_in).any(|path| path.split('/').any(|part| ids.contains(id_of(part))))
}

/// Where this host's cgroups are mounted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Hierarchies {
    /// By controller; `""` is version 2.
    mounts: BTreeMap<String, PathBuf>,
}

impl Hierarchies {
    fn of_this_host() -> Self {
        Self::parse(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
    }

    /// From `/proc/self/mountinfo`. A mount of a part only is left out: paths in `/proc` are not below it.
    fn parse(mountinfo: &str) -> Self {
        let mut mounts = BTreeMap::new();
        for line in mountinfo.lines() {
            let Some((mount, kind)) = line.split_once(" - ") else { continue };
            let mut fields = mount.split(' ').skip(3);
            let (Some("/"), Some(path)) = (fields.next(), fields.next()) else { continue };
            let mut kind = kind.split(' ');
            match (kind.next(), kind.nth(1)) {
                (Some("cgroup2"), _) => {
                    mounts.insert(String::new(), path.into());
                }
                (Some("cgroup"), Some(options)) => {
                    mounts.extend(options.split(',').map(|option| (option.to_owned(), PathBuf::from(path))));
                }
                _ => {}
            }
        }
        Self { mounts }
    }

    /// The container's own cgroup, of which a process with these cgroups is a part; in version 2, or in a controller's hierarchy of
    /// version 1.
    fn cgroup_of(&self, cgroups: &str, controller: Option<&str>, ids: &BTreeSet<&str>) -> Option<PathBuf> {
        let named = |line: &&str| {
            let mut controllers = line.split(':').nth(1).unwrap_or_default().split(',');
            controllers.any(|name| name == controller.unwrap_or_default())
        };
        let path = cgroups.lines().find(named).and_then(path_in)?;
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let last = parts.iter().position(|part| ids.contains(id_of(part)))?;
        let mount: &Path = self.mounts.get(controller.unwrap_or_default())?;
        Some(mount.join(parts[..=last].join("/")))
    }
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
            assert_eq!(is_in(&cgroups, &BTreeSet::from([ID])), expected, "{cgroups}");
        }
    }

    #[test]
    fn nothing_is_ended_for_a_text_that_is_no_full_id() {
        assert_eq!((end(""), end("docker"), end("/")), (0, 0, 0));
    }

    #[test]
    fn the_cgroup_to_kill_is_the_containers_own_and_not_one_below_or_above() {
        let unified = Hierarchies::parse(
            "25 20 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n\
             99 20 0:22 /docker /mnt/part rw - cgroup2 cgroup2 rw\n",
        );
        let hybrid = Hierarchies::parse(
            "37 31 0:34 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n\
             33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
        );
        let ids = BTreeSet::from([ID]);
        let of_scope = format!("0::/system.slice/docker-{ID}.scope/init\n");
        let of_both = format!("6:freezer:/docker/{ID}\n1:cpu,cpuacct:/docker/{ID}\n0::/docker/{ID}/a/b\n");
        let path = |text: String| Some(PathBuf::from(text));
        for (hierarchies, cgroups, controller, expected) in [
            (&unified, &of_scope, None, path(format!("/sys/fs/cgroup/system.slice/docker-{ID}.scope"))),
            (&unified, &of_scope, Some("freezer"), None),
            (&hybrid, &of_both, None, path(format!("/sys/fs/cgroup/unified/docker/{ID}"))),
            (&hybrid, &of_both, Some("freezer"), path(format!("/sys/fs/cgroup/freezer/docker/{ID}"))),
            (&Hierarchies::default(), &of_both, None, None),
        ] {
            assert_eq!(
                hierarchies.cgroup_of(cgroups, controller, &ids),
                expected,
                "{cgroups} {controller:?}"
            );
        }
    }
}
