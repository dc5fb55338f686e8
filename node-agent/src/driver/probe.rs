//! Waits for a started editor: until it answers, its program ends, its time is over, or it is not wanted any more.

use std::time::Duration;

use carrel_common::model::Run;
use tokio::sync::broadcast;

use super::bring::{Bring, End, Step};
use super::failure;
use super::ready::{Pauses, answers};
use crate::reconcile::From;
use crate::runtime::{Hint, Phase, Runtime};

/// A hint can be lost; so often the container is looked at while the editor does not answer.
const LOOK_EVERY: Duration = Duration::from_secs(2);

impl<R: Runtime> Bring<'_, R> {
    /// Asks the editor until it answers, its program ends, or the time is over.
    pub(super) async fn probe(
        &self,
        id: String,
        endpoint: String,
        image: String,
        left: Duration,
        hints: &mut broadcast::Receiver<Hint>,
    ) -> Result<Step, End> {
        let begun = self.host.clock.monotonic();
        let ask = async {
            let mut pauses = Pauses::new();
            while !answers(&endpoint, &self.item.spec.probe_path).await {
                tokio::time::sleep(pauses.next()).await;
            }
        };
        // Cancel-safe, all four: a request that is cut off changes nothing, and the watch only reads.
        let step = tokio::select! {
            () = self.cancel.cancelled() => Err(End::Cancelled),
            () = ask => Ok(Step::Ready { id: id.clone(), endpoint: endpoint.clone(), image }),
            () = tokio::time::sleep(left) => {
                let Run::Running { start_timeout } = self.item.run else { return Err(End::Cancelled) };
                Err(failure::start_timeout(start_timeout).into())
            }
            ended = self.ended(&id, hints) => ended.map(|()| Step::Go(From::Exited(id.clone()))),
        };
        self.phase("probe", begun);
        step
    }

    /// Completes when the container's program has ended.
    async fn ended(&self, id: &str, hints: &mut broadcast::Receiver<Hint>) -> Result<(), End> {
        loop {
            let hint = tokio::time::timeout(LOOK_EVERY, hints.recv()).await;
            let about_it = match hint {
                Ok(Ok(Hint::Died(died) | Hint::Removed(died))) => died == id,
                Ok(Ok(Hint::Started(_))) => false,
                // Hints were lost, or none came for a while: look. `Closed` cannot be, the host holds the sender.
                Ok(Err(_)) | Err(_) => true,
            };
            if !about_it {
                continue;
            }
            match self.host.runtime.inspect(id, self.item.spec.probe_port).await {
                Ok(Some(look)) if look.phase == Phase::Running => {}
                Ok(_) => return Ok(()),
                Err(error) if error.result_unknown() => return Err(End::Unknown(error)),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
