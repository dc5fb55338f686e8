//! How a cluster is to be.

use crate::settings;

/// How a cluster is to be. Flags are given without `--`; a later one of the same name replaces an earlier one.
#[derive(Clone, Debug)]
pub struct Options {
    pub(crate) control_plane: Vec<(String, String)>,
    pub(crate) agent: Vec<(String, String)>,
    pub(super) docker_host: String,
    pub(super) database_server: String,
    pub(crate) environment: Vec<(String, String)>,
    pub(super) make_base: bool,
    pub(super) agents_host: String,
    pub(super) tls: bool,
    pub(super) gated_share: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

impl Options {
    /// Everything as both binaries have it by default.
    pub fn production() -> Self {
        Self {
            control_plane: Vec::new(),
            agent: Vec::new(),
            docker_host: settings::docker_host(),
            database_server: settings::database_url(),
            environment: Vec::new(),
            make_base: true,
            agents_host: "127.0.0.1".into(),
            tls: false,
            gated_share: false,
        }
    }

    /// The tiny image; idle stops as far away as in production; everything else quick.
    pub fn new() -> Self {
        Self::production()
            .image(&settings::tiny_image())
            .flag("idle-sweep", "1s")
            .flag("longest-starting", "30s")
            .flag("longest-stopping", "15s")
            .flag("stop-grace", "2s")
            .flag("heartbeat-interval", "500ms")
            .flag("unreachable-after", "3s")
            // A tiny desk needs little; so a machine of two cores has room for as many as a test wants.
            .flag("cpu-millicores", "100")
            .flag("memory", "67108864")
            .agent_flag("reconcile-interval", "1s")
            .agent_flag("storage", "directory")
    }

    /// A flag of `control-plane serve`.
    #[must_use]
    pub fn flag(mut self, name: &str, value: &str) -> Self {
        self.control_plane.retain(|(known, _)| known != name);
        self.control_plane.push((name.into(), value.into()));
        self
    }

    /// A flag of `node-agent run`.
    #[must_use]
    pub fn agent_flag(mut self, name: &str, value: &str) -> Self {
        self.agent.retain(|(known, _)| known != name);
        self.agent.push((name.into(), value.into()));
        self
    }

    /// The image of the workspaces.
    #[must_use]
    pub fn image(self, image: &str) -> Self {
        self.flag("workspace-image", image)
    }

    /// Idle timeout and warning lead.
    #[must_use]
    pub fn idle(self, timeout: &str, lead: &str) -> Self {
        self.flag("idle-timeout", timeout).flag("warning-lead", lead)
    }

    /// Another Docker daemon.
    #[must_use]
    pub fn docker(mut self, host: &str) -> Self {
        self.docker_host = host.into();
        self
    }

    /// Another Postgres.
    #[must_use]
    pub fn postgres(mut self, url: &str) -> Self {
        self.database_server = url.into();
        self
    }

    /// Both binaries send their spans there.
    #[must_use]
    pub fn otlp(mut self, endpoint: &str) -> Self {
        self.environment.push(("OTEL_BSP_SCHEDULE_DELAY".into(), "200".into()));
        self.flag("otlp-endpoint", endpoint).agent_flag("otlp-endpoint", endpoint)
    }

    /// Agents speak TLS, enrol with a join token and have certificates.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Where agents dial, an IP address of this machine; beyond loopback for TLS only.
    #[must_use]
    pub fn agents_host(mut self, host: &str) -> Self {
        self.agents_host = host.into();
        self
    }

    /// The base path does not exist.
    #[must_use]
    pub fn without_base(mut self) -> Self {
        self.make_base = false;
        self
    }

    /// The base lies on a share that can be made to fail.
    #[must_use]
    pub fn gated_share(mut self) -> Self {
        self.gated_share = true;
        self.agent_flag("storage", "mount")
    }
}
