//! The newest authority of a running replica, and how a newer one is noticed.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use carrel_common::certificate::NodeUri;
use carrel_common::clock::Clock;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_rustls::rustls::ServerConfig;

use super::files::{self, Found};
use super::{Authority, AuthorityError, Issued, Request, ShownCertificate};

/// The listener's certificate lives a week; made anew each day, it is always good for days.
const LISTENER_ANEW: time::Duration = time::Duration::days(1);

/// The authority that signs now, and the listener's configuration made from it. Cheap to clone.
///
/// Its time is that of this machine: rustls here checks by the same clock what was signed here.
#[derive(Clone)]
pub struct Authorities {
    authority: watch::Receiver<Arc<Authority>>,
    listener: watch::Receiver<Arc<ServerConfig>>,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Authorities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorities").field("authority", &self.now()).finish_non_exhaustive()
    }
}

impl Authorities {
    /// Those of a directory, and what keeps them the newest. Blocking.
    ///
    /// # Errors
    /// When the directory holds no authority that can be used.
    pub fn open(dir: PathBuf, clock: Arc<dyn Clock>) -> Result<(Self, Renewal), AuthorityError> {
        let found = files::read(&dir)?;
        let (authority, now) = (Authority::from_files(&found)?, clock.now());
        let listener = Arc::new(authority.listener(now)?);
        let (put_listener, listener) = watch::channel(listener);
        let (put_authority, authority) = watch::channel(Arc::new(authority));
        let renewal = Renewal {
            dir,
            clock: Arc::clone(&clock),
            last: Mutex::new((found, now)),
            authority: put_authority,
            listener: put_listener,
        };
        Ok((Self { authority, listener, clock }, renewal))
    }

    /// The one that signs now.
    pub fn now(&self) -> Arc<Authority> {
        Arc::clone(&self.authority.borrow())
    }

    /// What the agents' listener accepts connections with, always the newest.
    pub fn listener(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.listener.clone()
    }

    /// A certificate for a node with the key of `request`.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn issue_node(
        &self,
        uri: NodeUri,
        request: &Request,
        ttl: Duration,
    ) -> Result<Issued, AuthorityError> {
        self.now().issue_node(uri, request, self.clock.now(), ttl)
    }

    /// Whether the one in force vouches for what a connection began with, which may have ended since.
    pub fn vouch_for(&self, shown: &mut ShownCertificate) -> bool {
        shown.is_vouched_for(&self.now(), self.clock.now())
    }

    /// Whether what counts until then still does.
    pub fn is_over(&self, until: OffsetDateTime) -> bool {
        self.clock.now() > until
    }
}

/// Keeps the authority the newest.
pub struct Renewal {
    dir: PathBuf,
    clock: Arc<dyn Clock>,
    /// What the files held, and when the listener's certificate was made.
    last: Mutex<(Found, OffsetDateTime)>,
    authority: watch::Sender<Arc<Authority>>,
    listener: watch::Sender<Arc<ServerConfig>>,
}

impl std::fmt::Debug for Renewal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renewal").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Renewal {
    /// Looks at the files: when they have changed, the authority they hold is in force from now on; and each day the
    /// listener gets a new certificate. What was done, if anything. Blocking.
    ///
    /// # Errors
    /// When the files cannot be used; then the authority before stays in force.
    pub fn once(&self) -> Result<Option<&'static str>, AuthorityError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (found, now) = (files::read(&self.dir)?, self.clock.now());
        let changed = found != last.0;
        if !changed && now - last.1 < LISTENER_ANEW {
            return Ok(None);
        }
        let authority = Authority::from_files(&found)?;
        self.listener.send_replace(Arc::new(authority.listener(now)?));
        self.authority.send_replace(Arc::new(authority));
        *last = (found, now);
        Ok(Some(if changed { "another authority is in force" } else { "the listener has a new certificate" }))
    }
}
