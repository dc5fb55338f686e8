//! Stands in for a file server that fails: passes a directory through to a mount point, every operation through a gate.
//!
//! ```text
//! gated-share <directory> <mount point> <unix socket>
//! ```
//!
//! A line to the socket says what happens at the gate from then on: `pass`; `hang`: whoever touches the share sleeps and cannot
//! be killed, until another line comes; `slow <milliseconds>`; `error <number>`: every operation fails with this errno. `waiting`
//! asks how many operations hang. Each line is answered with one. Runs until the share is unmounted; when it is killed, the kernel
//! answers whoever hangs with an error.
#![expect(
    clippy::disallowed_methods,
    reason = "a stand-in reads the real time, and is told where to look by its arguments"
)]

mod files;
mod fuse;
mod gate;

use std::path::PathBuf;
use std::sync::Arc;

use fuser::MountOption;

fn main() -> std::io::Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [directory, mount_point, socket] = &arguments[..] else {
        return Err(std::io::Error::other("usage: gated-share <directory> <mount point> <unix socket>"));
    };
    let gate = Arc::new(gate::Gate::default());
    gate::listen(Arc::clone(&gate), socket)?;
    let share = fuse::Share::new(files::Files::of(directory)?, gate);
    let options = [
        MountOption::FSName("gated-share".into()),
        MountOption::DefaultPermissions,
        MountOption::AllowOther,
        MountOption::NoDev,
        MountOption::NoSuid,
    ];
    fuser::mount2(share, mount_point, &options)
}
