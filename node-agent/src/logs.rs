//! A workspace's output: cut into pieces of whole lines, and the tail of it kept after the container is gone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use carrel_common::id::{Generation, WorkspaceUid};
use futures_util::StreamExt as _;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::runtime::{LogOptions, Runtime, RuntimeError};

/// At most so much in one piece, in bytes.
pub const LONGEST_PIECE: usize = 64 * 1024;

/// So much of a log is kept, in bytes: enough for the last words of a program.
const KEPT_BYTES: usize = 256 * 1024;

/// So many of the last lines are asked for to fill that.
const KEPT_LINES: u32 = 8192;

/// So many incarnations keep their log.
const KEPT_GENERATIONS: usize = 2;

/// And for so long: whoever asks why a desk ended asks within days, and what students' programs said is nobody's for ever.
const KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

/// What is older goes when it goes: there is no hurry.
const TIDY_EVERY: Duration = Duration::from_secs(3600);

/// Collects output and gives it back in whole lines.
#[derive(Debug, Default)]
pub struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Takes output in; pieces of whole lines come out. A line longer than a piece is cut.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        self.rest.extend_from_slice(bytes);
        let mut pieces = Vec::new();
        while let Some(end) = self.piece_end() {
            let piece: Vec<u8> = self.rest.drain(..end).collect();
            pieces.push(String::from_utf8_lossy(&piece).into_owned());
        }
        pieces
    }

    /// What is left: the last line, when it had no end.
    pub fn finish(self) -> Option<String> {
        (!self.rest.is_empty()).then(|| String::from_utf8_lossy(&self.rest).into_owned())
    }

    /// Where the next piece ends: after the last whole line that fits, or amid a line that is too long for one piece.
    fn piece_end(&self) -> Option<usize> {
        let window = &self.rest[..self.rest.len().min(LONGEST_PIECE)];
        if let Some(newline) = window.iter().rposition(|byte| *byte == b'\n') {
            return Some(newline + 1);
        }
        // Not amid a character: a byte of the form 10xxxxxx goes on with one.
        let full = self.rest.len() > LONGEST_PIECE;
        full.then(|| {
            (1..=LONGEST_PIECE).rev().find(|at| self.rest[*at] & 0xC0 != 0x80).unwrap_or(LONGEST_PIECE)
        })
    }
}

/// Logs of containers that are gone: `<dir>/<workspace uid>/g<generation>.log`.
#[derive(Debug, Clone)]
pub struct SavedLogs {
    dir: PathBuf,
}

impl SavedLogs {
    /// Logs below `dir`, which is made when needed.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Keeps the end of `text` and forgets older incarnations but one. Blocking.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, workspace: WorkspaceUid, generation: Generation, text: &[u8]) -> io::Result<()> {
        let dir = self.dir.join(workspace.to_string());
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(format!("g{generation}.log")), tail(text))?;
        for (_, path) in self.generations(workspace).into_iter().skip(KEPT_GENERATIONS) {
            fs::remove_file(path)?;
        }
        Ok(())
    }

    /// The newest log kept of a workspace. Blocking.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn newest(&self, workspace: WorkspaceUid) -> io::Result<Option<(Generation, Vec<u8>)>> {
        let Some((generation, path)) = self.generations(workspace).into_iter().next() else {
            return Ok(None);
        };
        Ok(Some((generation, fs::read(path)?)))
    }

    /// Removes what was saved longer than [`KEPT_FOR`] before `now`, and with its last log a workspace's directory. Blocking.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn tidy(&self, now: OffsetDateTime) -> io::Result<()> {
        let oldest = SystemTime::from(now) - KEPT_FOR;
        for workspace in entries(&self.dir) {
            for log in entries(&workspace.path()) {
                if log.metadata()?.modified()? < oldest {
                    fs::remove_file(log.path())?;
                }
            }
            match fs::remove_dir(workspace.path()) {
                Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Tidies up each hour until `stop`.
    pub async fn keep_tidy(self, now: impl Fn() -> OffsetDateTime, stop: CancellationToken) {
        loop {
            let (logs, now) = (self.clone(), now());
            if let Ok(Err(error)) = tokio::task::spawn_blocking(move || logs.tidy(now)).await {
                tracing::warn!(%error, "old logs of containers that are gone are still there");
            }
            if stop.run_until_cancelled(tokio::time::sleep(TIDY_EVERY)).await.is_none() {
                return;
            }
        }
    }

    /// Kept generations, the one written last first: after a restore of the database a lower generation may be the newer one.
    fn generations(&self, workspace: WorkspaceUid) -> Vec<(Generation, PathBuf)> {
        let mut found: Vec<_> = entries(&self.dir.join(workspace.to_string()))
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let number = name.strip_prefix('g')?.strip_suffix(".log")?.parse().ok()?;
                let written_at = entry.metadata().ok()?.modified().ok()?;
                Some((written_at, Generation(number), entry.path()))
            })
            .collect();
        found.sort_by_key(|(written_at, generation, _)| std::cmp::Reverse((*written_at, *generation)));
        found.into_iter().map(|(_, generation, path)| (generation, path)).collect()
    }
}

/// What is in a directory; nothing when it is not there.
fn entries(dir: &Path) -> impl Iterator<Item = fs::DirEntry> {
    fs::read_dir(dir).into_iter().flatten().flatten()
}

/// The last lines of `text`, at most [`KEPT_BYTES`].
fn tail(text: &[u8]) -> &[u8] {
    if text.len() <= KEPT_BYTES {
        return text;
    }
    let end = &text[text.len() - KEPT_BYTES..];
    let line = end.iter().position(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    &end[line..]
}

/// The last `lines` lines of `text`.
pub fn last_lines(text: &[u8], lines: usize) -> &[u8] {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let start =
        body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').nth(lines.saturating_sub(1));
    match start {
        _ if lines == 0 => &[],
        Some((newline, _)) => &text[newline + 1..],
        None => text,
    }
}

/// Keeps the end of a container's log before it is removed: what can be read of it `within` that time.
///
/// # Errors
/// When Docker refuses or does not tell it to its end; nothing depends on it.
pub async fn keep<R: Runtime>(
    runtime: &R,
    saved: &SavedLogs,
    container_id: &str,
    workspace: WorkspaceUid,
    generation: Generation,
    within: Duration,
) -> Result<(), RuntimeError> {
    let mut text = Vec::new();
    let read = tokio::time::timeout(within, read_end(runtime, container_id, &mut text)).await;
    let read = read.unwrap_or(Err(RuntimeError::TimedOut { operation: "logs", after: within }));
    if read.is_err() && text.is_empty() {
        // An attempt before this one may have kept more.
        return read;
    }
    let saved = saved.clone();
    let written = tokio::task::spawn_blocking(move || saved.save(workspace, generation, &text)).await;
    if let Ok(Err(error)) = written {
        tracing::warn!(workspace.id = %workspace, %generation, %error, "the log of a removed container was not kept");
    }
    read
}

/// Reads the end of a container's log into `text`.
async fn read_end<R: Runtime>(
    runtime: &R,
    container_id: &str,
    text: &mut Vec<u8>,
) -> Result<(), RuntimeError> {
    let mut stream = runtime.logs(container_id, LogOptions { lines: Some(KEPT_LINES), follow: false });
    while let Some(chunk) = stream.next().await {
        text.extend_from_slice(&chunk?);
        if text.len() > 2 * KEPT_BYTES {
            text.drain(..text.len() - KEPT_BYTES);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::fake::Fake;

    #[test]
    fn pieces_are_whole_lines_however_the_output_arrives() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"one\ntw"), ["one\n"]);
        assert_eq!(lines.push(b"o\nthree\nfo"), ["two\nthree\n"]);
        assert_eq!(lines.finish().as_deref(), Some("fo"));
    }

    #[test]
    fn a_line_longer_than_a_piece_is_cut_between_characters() {
        let mut lines = Lines::default();
        let text = format!("x{}\n", "ä".repeat(LONGEST_PIECE));
        let pieces = lines.push(text.as_bytes());
        assert!(pieces.iter().all(|piece| piece.len() <= LONGEST_PIECE && !piece.contains('\u{fffd}')));
        assert_eq!(pieces.concat(), text);
    }

    #[test]
    fn the_last_lines_are_counted_with_or_without_a_final_newline() {
        assert_eq!(last_lines(b"a\nb\nc\n", 2), b"b\nc\n");
        assert_eq!(last_lines(b"a\nb\nc", 2), b"b\nc");
        assert_eq!(last_lines(b"a\nb", 9), b"a\nb");
        assert_eq!(last_lines(b"a\nb", 0), b"");
    }

    #[test]
    fn keeps_the_two_newest_incarnations() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (saved, workspace) = (SavedLogs::new(dir.path().to_owned()), WorkspaceUid::new());
        for generation in [1, 2, 10] {
            saved
                .save(workspace, Generation(generation), format!("{generation}\n").as_bytes())
                .expect("save");
        }
        let kept: Vec<_> =
            saved.generations(workspace).into_iter().map(|(generation, _)| generation.0).collect();
        assert_eq!(kept, [10, 2]);
        assert_eq!(saved.newest(workspace).expect("read"), Some((Generation(10), b"10\n".to_vec())));
    }

    #[test]
    fn forgets_what_is_older_than_a_week_and_with_its_last_log_a_workspace() {
        let dir = tempfile::tempdir().expect("tempdir");
        let saved = SavedLogs::new(dir.path().join("logs"));
        let now = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(1 << 30);
        saved.tidy(now).expect("nothing was saved yet");
        let [gone, back] = [WorkspaceUid::new(), WorkspaceUid::new()];
        for (workspace, generation, days) in [(gone, 1, 9), (gone, 2, 8), (back, 1, 8), (back, 2, 6)] {
            saved.save(workspace, Generation(generation), b"bye\n").expect("save");
            let log = saved.dir.join(workspace.to_string()).join(format!("g{generation}.log"));
            let log = fs::File::options().write(true).open(log).expect("it is there");
            log.set_modified((now - Duration::from_secs(days * 24 * 3600)).into()).expect("set");
        }
        saved.tidy(now).expect("tidied");
        assert_eq!(
            entries(&saved.dir).map(|left| left.file_name()).collect::<Vec<_>>(),
            [&*back.to_string()]
        );
        let left: Vec<_> = saved.generations(back).into_iter().map(|(generation, _)| generation.0).collect();
        assert_eq!(left, [2]);
    }

    #[tokio::test]
    async fn an_attempt_that_reads_nothing_leaves_what_an_earlier_one_kept() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (saved, workspace, generation) =
            (SavedLogs::new(dir.path().to_owned()), WorkspaceUid::new(), Generation(1));
        saved.save(workspace, generation, b"bye\n").expect("save");
        let read = keep(&Fake::new(), &saved, "gone", workspace, generation, Duration::from_secs(60)).await;
        assert_eq!(read, Err(RuntimeError::NotFound { operation: "logs" }));
        assert_eq!(saved.newest(workspace).expect("read"), Some((generation, b"bye\n".to_vec())));
    }

    #[test]
    fn keeps_whole_lines_of_a_long_log() {
        let line = format!("{}\n", "x".repeat(99));
        let kept = tail(line.repeat(10_000).as_bytes()).to_vec();
        assert!(kept.len() <= KEPT_BYTES && kept.len().is_multiple_of(100) && kept.len() > KEPT_BYTES - 100);
    }
}
