//! The images of this host: what is here, and one pull of an image at a time however many starts wait for it.
//!
//! Starts ask for the image they lack and follow its pull; what the control plane wants ready ahead comes when no start waits for
//! anything. A start that is cancelled leaves its pull alone: others may wait for it, and the next one will.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use carrel_common::image::canonical;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::host::Host;
use crate::runtime::{Runtime, RuntimeError};

/// An image that could not be had ahead is tried again after so long; doubled each time up to the second. A start tries at once.
const AHEAD_AGAIN: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));

/// How far a pull is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pull {
    /// So much of it has been fetched, 0 to 100.
    Percent(u8),
    /// It ended.
    Done(Result<(), RuntimeError>),
}

/// References of images, canonical and sorted.
pub type References = Arc<[String]>;

/// What the rest of the agent sees of the images.
#[derive(Debug)]
pub struct Images {
    wants: mpsc::UnboundedSender<Want>,
    ordered: watch::Sender<References>,
    here: watch::Sender<Option<References>>,
}

#[derive(Debug)]
struct Want {
    image: String,
    follow: tokio::sync::oneshot::Sender<watch::Receiver<Pull>>,
}

/// The other end: what `run` works from.
#[derive(Debug)]
pub struct Inbox {
    wants: mpsc::UnboundedReceiver<Want>,
    ordered: watch::Receiver<References>,
}

impl Images {
    /// Nothing known yet, nothing wanted.
    pub fn new() -> (Self, Inbox) {
        let (wants, from_starts) = mpsc::unbounded_channel();
        let (ordered, from_control_plane) = watch::channel(References::from([]));
        let images = Self { wants, ordered, here: watch::Sender::new(None) };
        (images, Inbox { wants: from_starts, ordered: from_control_plane })
    }

    /// These are to be ready ahead; the latest word counts.
    pub fn order(&self, references: impl IntoIterator<Item = String>) {
        let mut wanted: Vec<_> = references.into_iter().map(|image| canonical(&image)).collect();
        wanted.sort();
        wanted.dedup();
        self.ordered.send_if_modified(|ordered| {
            let changed = **ordered != *wanted;
            *ordered = wanted.into();
            changed
        });
    }

    /// What is on this host; `None` until it was looked for.
    pub fn here(&self) -> watch::Receiver<Option<References>> {
        self.here.subscribe()
    }

    /// Follows the pull of an image, which begins now unless it is under way. `None`: the agent stops.
    pub(super) async fn want(&self, image: &str) -> Option<watch::Receiver<Pull>> {
        let (follow, followed) = tokio::sync::oneshot::channel();
        self.wants.send(Want { image: canonical(image), follow }).ok()?;
        followed.await.ok()
    }
}

/// For whom a pull is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Start,
    Ahead,
}

enum Done {
    Pulled { image: String, whose: Whose, result: Result<(), RuntimeError> },
    Listed(Result<Vec<String>, RuntimeError>),
}

/// An image that could not be had ahead.
struct PutOff {
    until: Duration,
    pause: Duration,
}

struct Puller<R> {
    host: Arc<Host<R>>,
    ordered: References,
    tasks: JoinSet<Done>,
    under_way: BTreeMap<String, watch::Receiver<Pull>>,
    put_off: BTreeMap<String, PutOff>,
    listing: bool,
    list_again: bool,
    list_at: Duration,
}

/// Pulls and lists until `stop`. A pull that is under way then goes on in the daemon or not, as the daemon likes.
pub async fn run<R: Runtime>(host: Arc<Host<R>>, mut inbox: Inbox, stop: CancellationToken) {
    let now = host.clock.monotonic();
    let mut puller = Puller {
        ordered: inbox.ordered.borrow_and_update().clone(),
        host,
        tasks: JoinSet::new(),
        under_way: BTreeMap::new(),
        put_off: BTreeMap::new(),
        listing: false,
        list_again: false,
        list_at: now,
    };
    loop {
        puller.look();
        let next_in = puller.next_in();
        // Cancel-safe, all of them: channels, watches and join sets lose nothing.
        tokio::select! {
            () = stop.cancelled() => return,
            Some(want) = inbox.wants.recv() => puller.wanted(want),
            Ok(()) = inbox.ordered.changed() => {
                puller.ordered = inbox.ordered.borrow_and_update().clone();
                puller.put_off.clear();
            }
            Some(done) = puller.tasks.join_next() => match done {
                Ok(done) => puller.done(done),
                Err(error) => {
                    tracing::error!(%error, "a pull or a listing died; this is a defect of the agent");
                    puller.listing = false;
                    puller.under_way.retain(|_, pull| pull.has_changed().is_ok());
                }
            },
            () = tokio::time::sleep(next_in) => {}
        }
    }
}

impl<R: Runtime> Puller<R> {
    fn now(&self) -> Duration {
        self.host.clock.monotonic()
    }

    /// Until something is due by itself.
    fn next_in(&self) -> Duration {
        let list_at = if self.listing { Duration::MAX } else { self.list_at };
        let ahead_at = self.missing().into_iter().map(|(_, at)| at).min();
        ahead_at.map_or(list_at, |at| at.min(list_at)).saturating_sub(self.now())
    }

    /// What is ordered ahead and is not here, and when each may be tried. Nothing while a pull or a listing goes on, whose end is
    /// waited for anyway.
    fn missing(&self) -> Vec<(String, Duration)> {
        let here = self.host.images.here.borrow().clone();
        // Before the first listing nobody knows what is missing; after a pull its listing tells.
        let Some(here) = here.filter(|_| self.under_way.is_empty() && !self.listing) else { return vec![] };
        let may_be_tried =
            |image: &String| self.put_off.get(image).map_or(Duration::ZERO, |put_off| put_off.until);
        let missing = self.ordered.iter().filter(|image| here.binary_search(image).is_err());
        missing.map(|image| (image.clone(), may_be_tried(image))).collect()
    }

    fn wanted(&mut self, want: Want) {
        let pull = match self.under_way.get(&want.image) {
            Some(pull) => pull.clone(),
            None => self.pull(want.image, Whose::Start),
        };
        // A start that went away meanwhile wants nothing.
        want.follow.send(pull).ok();
    }

    fn pull(&mut self, image: String, whose: Whose) -> watch::Receiver<Pull> {
        let (tell, told) = watch::channel(Pull::Percent(0));
        self.under_way.insert(image.clone(), told.clone());
        let host = Arc::clone(&self.host);
        let span = tracing::info_span!("image.pull", otel.kind = "client", image, ?whose);
        let task = async move {
            let percent = |percent: u8| {
                tell.send_if_modified(|pull| {
                    let before = std::mem::replace(pull, Pull::Percent(percent));
                    before != Pull::Percent(percent)
                });
            };
            let result = host.runtime.ensure_image(&image, &percent).await;
            tell.send_replace(Pull::Done(result.clone()));
            Done::Pulled { image, whose, result }
        };
        self.tasks.spawn(task.instrument(span));
        told
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Listed(result) => {
                self.listing = false;
                match result {
                    Ok(here) => {
                        self.host.images.here.send_if_modified(|known| {
                            let changed = known.as_deref() != Some(&here[..]);
                            *known = Some(here.into());
                            changed
                        });
                    }
                    // The driver says that Docker is away; what was here is here still, as far as anybody knows.
                    Err(error) => tracing::debug!(%error, "the images are not known at present"),
                }
            }
            Done::Pulled { image, whose, result } => {
                self.under_way.remove(&image);
                self.list_again = true;
                let outcome = match &result {
                    Ok(()) => "pulled",
                    Err(error) if error.result_unknown() => "unknown",
                    Err(_) => "refused",
                };
                self.host.metrics.pulled(outcome);
                match result {
                    Ok(()) => {
                        self.put_off.remove(&image);
                        tracing::info!(image, ?whose, "the image is here");
                    }
                    Err(error) => {
                        tracing::warn!(image, ?whose, %error, "the image could not be had");
                        if self.ordered.contains(&image) {
                            self.put_off(image);
                        }
                    }
                }
            }
        }
    }

    fn put_off(&mut self, image: String) {
        let now = self.now();
        let pause =
            self.put_off.get(&image).map_or(AHEAD_AGAIN.0, |before| (before.pause * 2).min(AHEAD_AGAIN.1));
        self.put_off.insert(image, PutOff { until: now + pause, pause });
    }

    /// Lists when it is time, and begins the next pull ahead when nothing else goes on.
    fn look(&mut self) {
        let now = self.now();
        if !self.listing && (self.list_again || self.list_at <= now) {
            (self.listing, self.list_again) = (true, false);
            self.list_at = now + self.host.limits.reconcile_interval;
            let host = Arc::clone(&self.host);
            self.tasks.spawn(async move { Done::Listed(host.runtime.images().await) });
        }
        if let Some((image, _)) = self.missing().into_iter().find(|(_, at)| *at <= now) {
            self.pull(image, Whose::Ahead);
        }
    }
}

#[cfg(test)]
mod tests;
