//! The control groups of a host's containers: its Docker puts them below one of the host's name.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const ROOT: &str = "/sys/fs/cgroup";

/// Kills whatever runs in the groups with such names, and removes them.
pub(crate) fn clear_up(ours: impl Fn(&str) -> bool) {
    let start = Instant::now();
    loop {
        let groups = found(&ours);
        for pid in groups.iter().flat_map(|group| processes(group)) {
            let _ = kill_process(pid, Signal::KILL);
        }
        // Deepest first; one that still has a dying process stays for the next round.
        groups.iter().for_each(|group| _ = std::fs::remove_dir(group));
        if groups.is_empty() || start.elapsed() > Duration::from_secs(5) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// How often a container's processes could begin no other, as there were too many.
pub(crate) fn refused_forks(container: &str) -> u64 {
    let files = found(|name| name == container).into_iter().map(|group| group.join("pids.events"));
    let told = files.filter_map(|file| std::fs::read_to_string(file).ok());
    let counts = told.filter_map(|text| text.trim().strip_prefix("max ")?.parse::<u64>().ok());
    counts.sum()
}

/// Deepest first, in every hierarchy (version 1 has several).
fn found(ours: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let hierarchies = directories(Path::new(ROOT)).into_iter().chain([PathBuf::from(ROOT)]);
    let named = |dir: &PathBuf| dir.file_name().is_some_and(|name| ours(&name.to_string_lossy()));
    let mut found: Vec<_> = hierarchies.flat_map(|root| directories(&root)).filter(named).collect();
    let mut next = 0;
    while let Some(group) = found.get(next) {
        let deeper = directories(group);
        found.extend(deeper);
        next += 1;
    }
    found.sort();
    found.dedup();
    found.reverse();
    found
}

fn directories(of: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(of).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn processes(group: &Path) -> Vec<Pid> {
    let list = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    list.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()
}
