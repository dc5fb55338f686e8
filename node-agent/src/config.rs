//! What can be set, from flags and the environment. Parsed once, validated once, logged as it took effect.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use carrel_common::join::{InvalidToken, JoinToken};
use carrel_common::telemetry::LogFormat;
use clap::Args;

use crate::enroll::Entry;
use crate::facts::Told;
use crate::storage::check::Kind;

/// `node-agent run`
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// Where the control plane's replicas listen for agents, https://<host>:<port>; more than one separated by commas. With
    /// --dev in plaintext: http:// and an address of loopback.
    #[arg(
        long,
        env = "CARREL_CONTROL_PLANE",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:7301"
    )]
    pub control_plane: Vec<String>,
    /// Directory that holds a directory for each student. Must exist; never made by the agent.
    #[arg(long, env = "WORKSPACE_BASE_PATH")]
    pub workspace_base_path: PathBuf,
    /// What that directory has to be: any directory, or one on a mount such as EFS.
    #[arg(long, env = "CARREL_STORAGE", default_value = "directory")]
    pub storage: Kind,
    /// A touch of the share that takes longer than this is given up: a healthy share answers within milliseconds.
    #[arg(long, env = "CARREL_STORAGE_TIMEOUT", default_value = "10s", value_parser = humantime::parse_duration)]
    pub storage_timeout: Duration,
    /// The agent's own memory: its identity, and the logs of removed containers.
    #[arg(long, env = "CARREL_STATE_DIR", default_value = "/var/lib/carrel-agent")]
    pub state_dir: PathBuf,
    /// The Docker daemon, by its unix socket.
    #[arg(long, env = "DOCKER_HOST", default_value = "unix:///var/run/docker.sock")]
    pub docker_host: String,
    /// How long one Docker call may take. A pull may take 15 minutes, a stop its grace on top.
    #[arg(long, env = "CARREL_DOCKER_TIMEOUT", default_value = "30s", value_parser = humantime::parse_duration)]
    pub docker_timeout: Duration,
    /// Where /metrics and /healthz are served.
    #[arg(long, env = "CARREL_METRICS_LISTEN", default_value = "127.0.0.1:7302")]
    pub metrics_listen: String,
    /// What CreateJoinToken gave, to enrol with; used only while this host has no identity that counts. Other users of the
    /// host can see a command line: better in a file.
    #[arg(long, env = "CARREL_JOIN_TOKEN", hide_env_values = true, conflicts_with = "join_token_file")]
    pub join_token: Option<GivenToken>,
    /// File that holds it.
    #[arg(long, env = "CARREL_JOIN_TOKEN_FILE")]
    pub join_token_file: Option<PathBuf>,
    /// To enrol, stop and remove containers that another node of this Carrel has left on this host.
    #[arg(long, env = "CARREL_STOP_EXISTING", default_value_t = false)]
    pub stop_existing: bool,
    /// Plaintext to a control plane on loopback; refused for any other address.
    #[arg(long, env = "CARREL_DEV", default_value_t = false)]
    pub dev: bool,
    /// Workspaces at most. A bridge network slows down beyond some 250.
    #[arg(long, env = "CARREL_MAX_WORKSPACES", default_value_t = 250, value_parser = clap::value_parser!(u16).range(1..))]
    pub max_workspaces: u16,
    /// Availability zone of this host, for people and for placement; may be empty.
    #[arg(long, env = "CARREL_ZONE", default_value = "")]
    pub zone: String,
    /// A label of this host, key=value, for people: the flag again for another, or separated by commas.
    #[arg(long = "label", env = "CARREL_LABELS", value_delimiter = ',', value_parser = parse_label)]
    pub labels: Vec<(String, String)>,
    /// This host's address, to be shown with the node. Nothing else uses it: until there is an ingress, editors' ports are on the
    /// host's loopback, whatever it says.
    #[arg(long, env = "CARREL_ADVERTISE_ADDRESS", default_value = "127.0.0.1")]
    pub advertise_address: IpAddr,
    /// Creations and starts of containers at once; more of them only wait inside the daemon.
    #[arg(long, env = "CARREL_START_CONCURRENCY", default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..))]
    pub start_concurrency: u16,
    /// Time between two looks at all containers when nothing happens.
    #[arg(long, env = "CARREL_RECONCILE_INTERVAL", default_value = "30s", value_parser = humantime::parse_duration)]
    pub reconcile_interval: Duration,
    /// Time between two looks at the fence files of what runs: a container that is not the student's latest is stopped then.
    #[arg(long, env = "CARREL_FENCE_FILE_INTERVAL", default_value = "10s", value_parser = humantime::parse_duration)]
    pub fence_file_interval: Duration,
    /// How many times a workspace whose program ends by itself is restarted within the crash window.
    #[arg(long, env = "CARREL_CRASH_BUDGET", default_value_t = 3)]
    pub crash_budget: u16,
    /// See the crash budget.
    #[arg(long, env = "CARREL_CRASH_WINDOW", default_value = "10m", value_parser = humantime::parse_duration)]
    pub crash_window: Duration,
    /// How a log line looks: text or json.
    #[arg(long, env = "CARREL_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Which log lines there are, in the form of RUST_LOG.
    #[arg(long = "log", env = "CARREL_LOG", default_value = "info")]
    pub log_filter: String,
    /// Where traces are sent by OTLP over gRPC; nowhere when unset.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// The program that probers are started from, for tests whose own program is another; the agent's own when unset.
    #[arg(skip)]
    pub prober: Option<PathBuf>,
}

/// A join token as it was given: a secret, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct GivenToken(pub String);

impl std::fmt::Debug for GivenToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl std::str::FromStr for GivenToken {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

/// Why the agent does not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Plaintext is for development.
    #[error(
        "--control-plane {0} is plaintext, which is for development on one machine: use https://, or --dev"
    )]
    NeedsDev(String),
    /// TLS and plaintext are two ways to have an identity.
    #[error("--control-plane names addresses with https:// and with http://; they must be all the same")]
    MixedSchemes,
    /// The join token means nothing.
    #[error("--join-token: {0}")]
    Token(#[from] InvalidToken),
    /// The join token cannot be read.
    #[error("--join-token-file {0}: {1}")]
    TokenFile(String, String),
    /// `--dev` is for loopback.
    #[error(
        "--dev talks in plaintext, which is for loopback addresses only, not {0}: use http://127.0.0.1:<port> or http://[::1]:<port>"
    )]
    NotLoopback(String),
    /// An address of the control plane cannot be used.
    #[error("--control-plane {0:?} is not of the form https://<host>:<port>")]
    Endpoint(String),
    /// Docker is used through its socket only.
    #[error(
        "--docker-host {0:?} is not of the form unix:///path/to/docker.sock; the agent runs on the Docker host itself"
    )]
    DockerHost(String),
    /// A time of nothing.
    #[error("--{0} must be longer than nothing")]
    Zero(&'static str),
}

/// `key=value`.
fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
        _ => Err(format!("{text:?} is not of the form key=value")),
    }
}

impl Config {
    /// What it says of the host.
    pub fn told(&self) -> Told {
        Told {
            max_workspaces: self.max_workspaces,
            zone: self.zone.clone(),
            labels: self.labels.iter().cloned().collect(),
            advertise_address: self.advertise_address,
        }
    }

    /// Refuses what cannot work or is not safe.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.control_plane.is_empty() {
            return Err(ConfigError::Endpoint(String::new()));
        }
        for endpoint in &self.control_plane {
            check_endpoint(endpoint, self.dev)?;
        }
        if self.control_plane.iter().any(|endpoint| is_tls(endpoint) != self.over_tls()) {
            return Err(ConfigError::MixedSchemes);
        }
        if !self.docker_host.starts_with("unix:///") {
            return Err(ConfigError::DockerHost(self.docker_host.clone()));
        }
        for (name, span) in [
            ("docker-timeout", self.docker_timeout),
            ("storage-timeout", self.storage_timeout),
            ("reconcile-interval", self.reconcile_interval),
            ("crash-window", self.crash_window),
            ("fence-file-interval", self.fence_file_interval),
        ] {
            if span.is_zero() {
                return Err(ConfigError::Zero(name));
            }
        }
        Ok(())
    }

    fn over_tls(&self) -> bool {
        self.control_plane.iter().any(|endpoint| is_tls(endpoint))
    }

    /// How this host enrols, if it has to. Reads the token's file.
    ///
    /// # Errors
    /// When the token cannot be read, or is none.
    pub fn entry(&self) -> Result<Entry, ConfigError> {
        if !self.over_tls() {
            return Ok(Entry::Dev);
        }
        let given = match (&self.join_token, &self.join_token_file) {
            (Some(given), _) => Some(given.0.clone()),
            (None, Some(path)) => match std::fs::read_to_string(path) {
                Ok(text) => Some(text),
                // Who has enrolled may remove the token: it is used up.
                Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => {
                    return Err(ConfigError::TokenFile(path.display().to_string(), error.to_string()));
                }
            },
            (None, None) => None,
        };
        // An empty one is how a configuration file says that there is none.
        let given = given.filter(|text| !text.trim().is_empty());
        let token = given.map(|text| text.parse::<JoinToken>()).transpose()?;
        Ok(Entry::Tls { token, stop_existing: self.stop_existing })
    }
}

fn is_tls(endpoint: &str) -> bool {
    endpoint.starts_with("https://")
}

/// Names are not resolved: what `localhost` means is somebody else's configuration, but for that one name.
fn check_endpoint(endpoint: &str, dev: bool) -> Result<(), ConfigError> {
    let bad = || ConfigError::Endpoint(endpoint.to_owned());
    let plain = endpoint.strip_prefix("http://");
    let authority =
        plain.or_else(|| endpoint.strip_prefix("https://")).ok_or_else(bad)?.trim_end_matches('/');
    let (host, port) = authority.rsplit_once(':').ok_or_else(bad)?;
    if port.parse::<u16>().is_err() || host.is_empty() || host.contains('/') {
        return Err(bad());
    }
    if plain.is_none() {
        return Ok(());
    }
    if !dev {
        return Err(ConfigError::NeedsDev(endpoint.to_owned()));
    }
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let loopback = address == "localhost" || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if loopback { Ok(()) } else { Err(ConfigError::NotLoopback(host.to_owned())) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        config: Config,
    }

    fn config(more: &[&str]) -> Config {
        let line = ["node-agent", "--workspace-base-path", "/srv/w"].iter().chain(more);
        Line::try_parse_from(line).expect("parses").config
    }

    #[test]
    fn plaintext_needs_dev() {
        let plain = "http://127.0.0.1:7301";
        assert_eq!(config(&[]).validate(), Err(ConfigError::NeedsDev(plain.into())));
    }

    #[test]
    fn plaintext_is_for_loopback_only() {
        for (endpoint, expected) in [
            ("http://127.0.0.1:7301", Ok(())),
            ("http://127.8.0.1:7301", Ok(())),
            ("http://[::1]:7301", Ok(())),
            ("http://localhost:7301", Ok(())),
            ("http://10.0.0.1:7301", Err(ConfigError::NotLoopback("10.0.0.1".into()))),
            ("http://127.0.0.1.evil.org:7301", Err(ConfigError::NotLoopback("127.0.0.1.evil.org".into()))),
            ("http://127.0.0.1", Err(ConfigError::Endpoint("http://127.0.0.1".into()))),
            ("ftp://127.0.0.1:7301", Err(ConfigError::Endpoint("ftp://127.0.0.1:7301".into()))),
        ] {
            assert_eq!(config(&["--dev", "--control-plane", endpoint]).validate(), expected, "{endpoint}");
        }
    }

    #[test]
    fn tls_is_for_any_address() {
        for endpoint in ["https://carrel.example.edu:7301", "https://10.0.0.1:7301", "https://[fd00::1]:7301"]
        {
            assert_eq!(config(&["--control-plane", endpoint]).validate(), Ok(()), "{endpoint}");
        }
        for endpoint in ["https://10.0.0.1", "https://:7301", "https://a/b:7301"] {
            let refused = Err(ConfigError::Endpoint(endpoint.into()));
            assert_eq!(config(&["--control-plane", endpoint]).validate(), refused, "{endpoint}");
        }
        let both = config(&["--dev", "--control-plane", "https://127.0.0.1:1,http://127.0.0.1:2"]);
        assert_eq!(both.validate(), Err(ConfigError::MixedSchemes));
    }

    #[test]
    fn a_join_token_comes_from_a_file_that_may_be_gone_or_empty_and_is_never_printed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("token");
        let path = file.to_str().expect("UTF-8");
        let config = config(&["--control-plane", "https://10.0.0.1:1", "--join-token-file", path]);
        assert!(matches!(config.entry(), Ok(Entry::Tls { token: None, .. })));
        std::fs::write(&file, "\n").expect("write");
        assert!(matches!(config.entry(), Ok(Entry::Tls { token: None, .. })));
        std::fs::write(&file, "nonsense").expect("write");
        assert!(matches!(config.entry(), Err(ConfigError::Token(_))));
        let secret = carrel_common::id::new_secret();
        let cluster = carrel_common::id::ClusterId::new();
        let token = JoinToken { cluster, secret: secret.clone(), authorities: vec![vec![1]] };
        std::fs::write(&file, format!("{token}\n")).expect("write");
        let entry = config.entry().expect("a token");
        assert!(matches!(&entry, Entry::Tls { token: Some(read), .. } if *read == token));
        let given = GivenToken(token.to_string());
        assert!(!format!("{entry:?}{given:?}").contains(&secret));
    }

    #[test]
    fn labels_are_pairs_from_flags_or_one_list() {
        let told = |labels: &[(&str, &str)]| {
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Vec<_>>()
        };
        let two = told(&[("disk", "ssd"), ("row", "7")]);
        assert_eq!(config(&["--label", "disk=ssd", "--label", "row=7"]).labels, two);
        assert_eq!(config(&["--label", "disk=ssd,row=7"]).labels, two);
        assert!(parse_label("ssd").is_err() && parse_label("=ssd").is_err());
    }

    #[test]
    fn one_address_of_many_that_is_not_loopback_is_refused() {
        let many = config(&["--dev", "--control-plane", "http://127.0.0.1:1,http://10.0.0.1:1"]);
        assert_eq!(many.validate(), Err(ConfigError::NotLoopback("10.0.0.1".into())));
    }
}
