//! How a rig is to be.

use crate::cluster::Options;
use crate::settings;

/// How a rig is to be.
#[derive(Clone, Debug)]
pub struct Shape {
    pub(super) hosts: u8,
    pub(super) replicas: usize,
    pub(super) options: Options,
    pub(super) images: Vec<String>,
    pub(super) live_restore: bool,
    pub(super) own_clocks: bool,
    pub(super) gated_share: bool,
}

impl Shape {
    /// So many hosts and replicas, with the tiny image and quick timers. UNREACHABLE after 3 s; a lease of F 30 s, S 2 s, M 4 s, so
    /// that what lasts less than a lease does so on a slow machine, too.
    pub fn new(hosts: u8, replicas: usize) -> Self {
        let options =
            Options::new().flag("fence-after", "30s").flag("stop-budget", "2s").flag("lease-margin", "4s");
        Self::with(hosts, replicas, options)
    }

    /// So many hosts and replicas with the tiny image; everything else as both binaries have it by default.
    pub fn production(hosts: u8, replicas: usize) -> Self {
        Self::with(hosts, replicas, Options::production().image(&settings::tiny_image()))
    }

    fn with(hosts: u8, replicas: usize, options: Options) -> Self {
        let images = vec![settings::tiny_image()];
        Self { hosts, replicas, options, images, live_restore: true, own_clocks: false, gated_share: false }
    }

    /// Leases of F 8 s: what a silent host held is elsewhere after some 14 s.
    #[must_use]
    pub fn short_leases(self) -> Self {
        self.flag("fence-after", "8s")
    }

    /// A flag of `control-plane serve`, the same for every replica.
    #[must_use]
    pub fn flag(mut self, name: &str, value: &str) -> Self {
        self.options = self.options.flag(name, value);
        self
    }

    /// A flag of `node-agent run`, the same on every host.
    #[must_use]
    pub fn agent_flag(mut self, name: &str, value: &str) -> Self {
        self.options = self.options.agent_flag(name, value);
        self
    }

    /// The image of the workspaces.
    #[must_use]
    pub fn image(mut self, image: &str) -> Self {
        self.images.push(image.to_owned());
        self.flag("workspace-image", image)
    }

    /// The workspaces write all the time; see [`crate::writes`].
    #[must_use]
    pub fn writers(self) -> Self {
        self.image(&settings::tiny_image_that_is("writer"))
    }

    /// Every agent, every replica and Postgres have clocks of their own, which can be set.
    #[must_use]
    pub fn own_clocks(mut self) -> Self {
        self.own_clocks = true;
        self
    }

    /// The share is one that can be made to fail; see [`super::Share::gate`].
    #[must_use]
    pub fn gated_share(mut self) -> Self {
        self.gated_share = true;
        self.agent_flag("storage", "mount")
    }

    /// Containers end with their Docker.
    #[must_use]
    pub fn without_live_restore(mut self) -> Self {
        self.live_restore = false;
        self
    }
}
