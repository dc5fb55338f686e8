//! What happens to an operation before it is done.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Pass,
    Hang,
    Slow(Duration),
    Error(i32),
}

/// The gate.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    mode: Mode,
    waiting: usize,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the operation may be done; an errno when it is to fail.
    pub(crate) fn pass(&self) -> Result<(), i32> {
        let mut state = self.state();
        state.waiting += 1;
        let mut state = self
            .changed
            .wait_while(state, |state| state.mode == Mode::Hang)
            .unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        let mode = state.mode;
        drop(state);
        match mode {
            Mode::Pass | Mode::Hang => Ok(()),
            Mode::Slow(by) => {
                std::thread::sleep(by);
                Ok(())
            }
            Mode::Error(errno) => Err(errno),
        }
    }

    /// The answer to a line.
    fn told(&self, line: &str) -> String {
        let mode = match line.split_once(' ').unwrap_or((line, "")) {
            ("waiting", _) => return self.state().waiting.to_string(),
            ("pass", _) => Mode::Pass,
            ("hang", _) => Mode::Hang,
            ("slow", millis) => match millis.parse() {
                Ok(millis) => Mode::Slow(Duration::from_millis(millis)),
                Err(_) => return format!("{millis:?} is no number of milliseconds"),
            },
            ("error", errno) => match errno.parse() {
                Ok(errno) => Mode::Error(errno),
                Err(_) => return format!("{errno:?} is no errno"),
            },
            _ => return format!("{line:?} means nothing"),
        };
        self.state().mode = mode;
        self.changed.notify_all();
        "ok".to_owned()
    }
}

/// Takes lines from whoever connects, on a thread of its own.
pub(crate) fn listen(gate: Arc<Gate>, socket: &Path) -> io::Result<()> {
    let listener = UnixListener::bind(socket)?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let gate = Arc::clone(&gate);
            std::thread::spawn(move || serve(&gate, &stream));
        }
    });
    Ok(())
}

fn serve(gate: &Gate, mut stream: &UnixStream) {
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        if writeln!(stream, "{}", gate.told(&line)).is_err() {
            return;
        }
    }
}
