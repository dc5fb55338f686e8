//! A clock of a process's own, which a test may set: libfaketime reads from a file how far it is off.
//!
//! Only the time of day: what counts from the start of the process or of the machine is left as it is, as on a host whose
//! clock an operator or NTP sets.

use std::path::{Path, PathBuf};

/// What libfaketime leaves in shared memory of each process, by its id; one that is killed leaves it for ever.
const TRACES: [&str; 2] = ["faketime_shm_", "sem.faketime_sem_"];

/// The clock of one process, and of those it starts.
#[derive(Clone, Debug)]
pub struct OwnClock {
    file: PathBuf,
}

impl OwnClock {
    /// One that is right, in a directory that the process can read.
    pub fn new(dir: &Path, name: &str) -> Self {
        clear_up();
        let clock = Self { file: dir.join(format!("{name}.clock")) };
        clock.set(0);
        clock
    }

    /// It is off by so many seconds from now on.
    pub fn set(&self, off_by: i64) {
        // Whole at any moment.
        let whole = self.file.with_extension("clock-new");
        std::fs::write(&whole, format!("{off_by:+}\n")).expect("writable");
        std::fs::rename(&whole, &self.file).expect("writable");
    }

    /// What a process is started with to have this clock.
    pub fn environment(&self) -> Vec<(String, String)> {
        let library = library().to_string_lossy().into_owned();
        let file = self.file.to_string_lossy().into_owned();
        [
            ("LD_PRELOAD", library.as_str()),
            ("FAKETIME_TIMESTAMP_FILE", &file),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            // Else the processes of a Postgres would see a step at moments up to a second apart.
            ("FAKETIME_NO_CACHE", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }
}

/// Debian's package faketime has it below the machine's architecture.
fn library() -> PathBuf {
    let places = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let libraries = places.map(|place| place.path().join("faketime/libfaketimeMT.so.1"));
    libraries.into_iter().find(|path| path.exists()).expect("libfaketime: install the package faketime")
}

fn clear_up() {
    for entry in std::fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = TRACES.iter().find_map(|trace| name.strip_prefix(trace)?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
