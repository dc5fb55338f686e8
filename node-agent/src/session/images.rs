//! Which images have been told in a session.

use carrel_proto::v1 as pb;

use crate::driver::images::References;

/// What the control plane knows of the images: told with a heartbeat when it is news, and known once that is acked.
#[derive(Default)]
pub(super) struct ImagesTold {
    acked: Option<References>,
    sent: Option<(i64, References)>,
}

impl ImagesTold {
    /// What a heartbeat has to tell; `None` while nothing is known, or nothing has changed since what was acked.
    pub(super) fn news(&mut self, sequence: i64, here: Option<&References>) -> Option<pb::ImageList> {
        let here = here.filter(|here| self.acked.as_ref() != Some(here))?;
        self.sent = Some((sequence, here.clone()));
        Some(pb::ImageList { references: here.to_vec() })
    }

    pub(super) fn ack(&mut self, sequence: i64) {
        if let Some((_, here)) = self.sent.take_if(|(sent, _)| *sent <= sequence) {
            self.acked = Some(here);
        }
    }
}
