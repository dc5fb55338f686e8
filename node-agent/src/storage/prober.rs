//! Runs errands in processes of their own. A process that touches a share that hangs cannot be killed, and cannot end; a thread
//! that does so keeps its whole process from ending. So the agent never touches the share itself: it asks a prober, waits as long
//! as a healthy share could need, and abandons one that does not answer. Abandoned ones end by themselves when the share is back;
//! only so many may be left, then every errand is refused at once.

use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::errand::{self, Errand, Place, Told};

/// The subcommand that a prober is started with.
pub const COMMAND: &str = "prober";

/// What runs now, also when the file on the disk has been replaced.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// Abandoned probers at most. One would do to know that the share hangs; a few more, so that a single file that hangs does not
/// stop everything.
const MOST_STUCK: usize = 4;

/// Probers kept for the next errands: as many as the starts that usually go on at once, and the two that look.
const MOST_IDLE: usize = 8;

/// Why an errand has no answer. Whether it had its effect is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// It took longer than a healthy share could need.
    #[error("the share did not answer within {}", humantime::format_duration(*.0))]
    Slow(Duration),
    /// Too many earlier ones have not come back.
    #[error("the share does not answer; {0} touches of it have not come back")]
    Crowded(usize),
    /// The process could not be started, or ended.
    #[error("the process that touches the share was lost: {0}")]
    Lost(String),
}

/// The processes.
#[derive(Debug)]
pub struct Prober {
    program: PathBuf,
    pool: Mutex<Pool>,
    /// On threads of this process: tests of the library have no program to start.
    #[cfg(test)]
    here: bool,
}

#[derive(Debug, Default)]
struct Pool {
    idle: Vec<Worker>,
    stuck: Vec<Child>,
}

#[derive(Debug)]
struct Worker {
    child: Child,
    to: ChildStdin,
    from: Lines<BufReader<ChildStdout>>,
}

impl Prober {
    /// Probers that run `program`; the one that runs now when it is `None`. Starts nothing yet.
    pub fn new(program: Option<PathBuf>) -> Self {
        let program = program.unwrap_or_else(|| OWN_PROGRAM.into());
        Self {
            program,
            pool: Mutex::default(),
            #[cfg(test)]
            here: false,
        }
    }

    /// Does errands on threads of this process.
    #[cfg(test)]
    pub(crate) fn here() -> Self {
        Self { here: true, ..Self::new(None) }
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends an errand and waits for what came of it, for `within` at most. A prober that is late, or whose future is dropped, is killed:
    /// at once, or when the share lets it go. What it had begun may have been done.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub async fn run(&self, place: &Place, errand: Errand, within: Duration) -> Result<Told, Trouble> {
        #[cfg(test)]
        if self.here {
            let place = place.clone();
            let done = tokio::task::spawn_blocking(move || errand::run(&place, errand));
            let done = tokio::time::timeout(within, done).await.map_err(|_| Trouble::Slow(within))?;
            return done.map_err(|error| Trouble::Lost(error.to_string()));
        }
        let lost = |error: io::Error| Trouble::Lost(error.to_string());
        let mut loan = Loan { prober: self, worker: Some(self.take()?) };
        match tokio::time::timeout(within, loan.ask(place, &errand)).await {
            Ok(told) => {
                let told = told.map_err(lost)?;
                loan.give_back();
                Ok(told)
            }
            Err(_) => Err(Trouble::Slow(within)),
        }
    }

    /// How many have been abandoned and not ended yet.
    pub fn stuck(&self) -> usize {
        let mut pool = self.pool();
        pool.stuck.retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
        pool.stuck.len()
    }

    fn take(&self) -> Result<Worker, Trouble> {
        let stuck = self.stuck();
        if stuck >= MOST_STUCK {
            return Err(Trouble::Crowded(stuck));
        }
        loop {
            let Some(mut worker) = self.pool().idle.pop() else { break };
            // Somebody may have killed it meanwhile.
            if matches!(worker.child.try_wait(), Ok(None)) {
                return Ok(worker);
            }
        }
        Worker::start(&self.program).map_err(|error| Trouble::Lost(error.to_string()))
    }
}

impl Worker {
    fn start(program: &Path) -> io::Result<Self> {
        let mut child = Command::new(program)
            .arg(COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        Ok(Self { child, to, from: BufReader::new(from).lines() })
    }

    async fn ask(&mut self, place: &Place, errand: &Errand) -> io::Result<Told> {
        let mut line = serde_json::to_vec(&(place, errand))?;
        line.push(b'\n');
        self.to.write_all(&line).await?;
        let told = self.from.next_line().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(serde_json::from_str(&told)?)
    }
}

/// A prober that is out on an errand. One that does not come back is abandoned: what it says later is nobody's answer.
struct Loan<'a> {
    prober: &'a Prober,
    worker: Option<Worker>,
}

impl Loan<'_> {
    async fn ask(&mut self, place: &Place, errand: &Errand) -> io::Result<Told> {
        match &mut self.worker {
            Some(worker) => worker.ask(place, errand).await,
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn give_back(mut self) {
        if let Some(worker) = self.worker.take() {
            let mut pool = self.prober.pool();
            if pool.idle.len() < MOST_IDLE {
                pool.idle.push(worker);
            }
        }
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        if let Some(mut worker) = self.worker.take() {
            // Takes effect when the share lets it go.
            let _ = worker.child.start_kill();
            self.prober.pool().stuck.push(worker.child);
        }
    }
}

/// What a prober does: an errand a line, an answer a line, until its agent is gone.
///
/// # Errors
/// When the agent cannot be told, or is not understood.
pub fn serve(asked: impl BufRead, mut told: impl Write) -> io::Result<()> {
    for line in asked.lines() {
        let (place, errand): (Place, Errand) = serde_json::from_str(&line?)?;
        let mut answer = serde_json::to_vec(&errand::run(&place, errand))?;
        answer.push(b'\n');
        told.write_all(&answer)?;
        told.flush()?;
    }
    Ok(())
}
