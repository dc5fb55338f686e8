//! Carries connections to a Postgres of a test's own, until the test says otherwise. Each replica reaches it through one of its
//! own, so that it alone can be cut off.

use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use crate::own_postgres::{OwnPostgres, SOCKET};

/// What becomes of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Carry,
    /// They end, and new ones end at once.
    Refuse,
    /// They stay, and nothing moves: a black hole.
    Swallow,
    /// They stay, and what is said on them is lost; one that has lost something says nothing any more. As when the host at the
    /// other end is gone.
    Lose,
}

/// A socket that leads to that of a Postgres. Ends when dropped.
#[derive(Debug)]
pub struct Relay {
    mode: watch::Sender<Mode>,
    url: String,
}

impl Relay {
    /// In an empty directory, on a thread of its own: what holds a test up, and be it a command that it waits for, cuts nobody off.
    pub fn new(dir: &Path, postgres: &OwnPostgres) -> Self {
        let listener = StdListener::bind(dir.join(SOCKET)).expect("a free path");
        let to = postgres.socket();
        listener.set_nonblocking(true).expect("a socket of ours");
        let (mode, seen) = watch::channel(Mode::Carry);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(serve(listener, to, seen));
        });
        Self { mode, url: format!("postgres://carrel@localhost/postgres?host={}", dir.display()) }
    }

    /// Where the server is by this way.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Ends all connections, and new ones at once.
    pub fn refuse(&self) {
        self.mode.send_replace(Mode::Refuse);
    }

    /// Keeps all connections, and lets nothing through.
    pub fn swallow(&self) {
        self.mode.send_replace(Mode::Swallow);
    }

    /// Keeps all connections, and loses what is said on them; one that has lost something stays silent.
    pub fn lose(&self) {
        self.mode.send_replace(Mode::Lose);
    }

    /// Carries again.
    pub fn mend(&self) {
        self.mode.send_replace(Mode::Carry);
    }
}

/// Until the relay is dropped; its connections end with its thread's runtime.
async fn serve(listener: StdListener, to: PathBuf, mode: watch::Receiver<Mode>) {
    let listener = UnixListener::from_std(listener).expect("a socket of ours");
    let mut dropped = mode.clone();
    let accept = async {
        while let Ok((near, _)) = listener.accept().await {
            tokio::spawn(carry(near, UnixStream::connect(to.clone()), mode.clone()));
        }
    };
    tokio::select! {
        () = accept => {}
        _ = dropped.wait_for(|_| false) => {}
    }
}

async fn carry(
    near: UnixStream,
    far: impl Future<Output = std::io::Result<UnixStream>>,
    mode: watch::Receiver<Mode>,
) {
    let mut ended = mode.clone();
    let both = async {
        let far = far.await.ok()?;
        let ((near_in, near_out), (far_in, far_out)) = (tokio::io::split(near), tokio::io::split(far));
        // Either end closing ends both.
        tokio::select! {
            () = one_way(near_in, far_out, mode.clone()) => {}
            () = one_way(far_in, near_out, mode) => {}
        }
        Some(())
    };
    tokio::select! {
        _ = both => {}
        _ = ended.wait_for(|mode| *mode == Mode::Refuse) => {}
    }
}

async fn one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut mode: watch::Receiver<Mode>,
) {
    let (mut buffer, mut lost) = (vec![0; 16 << 10], false);
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let Ok(mode) = mode.wait_for(|mode| *mode != Mode::Swallow).await.map(|mode| *mode) else { return };
        lost |= mode == Mode::Lose;
        if !lost && to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
