//! Flags and environment, parsed and checked once.

mod ca;
mod database_url;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use carrel_common::id::ClusterId;
use carrel_common::model::{Resources, WorkspaceSpec};
use carrel_common::telemetry::LogFormat;
use clap::{Args, Parser, Subcommand};

pub use self::ca::{CaCommand, CaDir};
pub use self::database_url::DatabaseUrl;
use crate::app::Settings;
use crate::domain::activity::BySignal;
use crate::domain::idle::IdlePolicy;
use crate::domain::lease::LeaseTerms;
use crate::domain::placement::Strategy;
use crate::domain::policy::{Defaults, LONGEST_TIME, MOST_PIDS};
use crate::domain::reconcile::OrderTimes;
use crate::domain::workspace::Stays;
use crate::store::CandidateLimits;

/// Carrel's control plane: decides which workspaces run where, and keeps all state in Postgres.
#[derive(Debug, Parser)]
#[command(name = "control-plane", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the API, HTTP and the node agents until told to stop.
    Serve(Box<ServeArgs>),
    /// Bring the database's schema up to date; safe when several start at once.
    Migrate(MigrateArgs),
    /// Say that the database was restored from a copy, or is new: adopts what runs, and stops nothing.
    DeclareRestored(DeclareRestoredArgs),
    /// The authority that vouches for nodes.
    #[command(subcommand)]
    Ca(CaCommand),
}

/// A stolen certificate is good for a day at most; a node that is off for a night comes back by itself.
const NODE_CERTIFICATE_TTL: &str = "24h";

/// Flags of `migrate`.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// Where Postgres is: postgres://user@host/database, or with ?host=/socket/directory; on another machine with
    /// ?sslmode=verify-full&sslrootcert=FILE.
    #[arg(long, env = "CARREL_DATABASE_URL", hide_env_values = true)]
    pub database_url: DatabaseUrl,
}

/// Flags of `declare-restored`.
#[derive(Debug, Args)]
pub struct DeclareRestoredArgs {
    /// Where Postgres is: postgres://user@host/database, or with ?host=/socket/directory; on another machine with
    /// ?sslmode=verify-full&sslrootcert=FILE.
    #[arg(long, env = "CARREL_DATABASE_URL", hide_env_values = true)]
    pub database_url: DatabaseUrl,
    /// Say what it would do, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// For an empty database: the name of the Carrel that was lost. It is in the agents' logs, in the label `carrel.cluster` of
    /// each container, and in <base>/.carrel/cluster-id on the share.
    #[arg(long)]
    pub cluster_id: Option<ClusterId>,
    /// Start at once what may run on a host that has not come back: every host has, known to the copy or not, or is dead. Ends a wait, too.
    #[arg(long)]
    pub no_wait: bool,
}

/// Flags of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Where Postgres is: postgres://user@host/database, or with ?host=/socket/directory; on another machine with
    /// ?sslmode=verify-full&sslrootcert=FILE.
    #[arg(long, env = "CARREL_DATABASE_URL", hide_env_values = true)]
    pub database_url: DatabaseUrl,
    /// Connections to Postgres at most.
    #[arg(long, env = "CARREL_DATABASE_CONNECTIONS", default_value_t = 16)]
    pub database_connections: u32,
    /// Address of the API (gRPC and HTTP on one port).
    #[arg(long, env = "CARREL_LISTEN", default_value = "127.0.0.1:7300")]
    pub listen: SocketAddr,
    /// Address for node agents.
    #[arg(long, env = "CARREL_AGENT_LISTEN", default_value = "127.0.0.1:7301")]
    pub agent_listen: SocketAddr,
    /// Directory of the authority that vouches for nodes (`control-plane ca init`): with it agents speak TLS, on any address.
    #[arg(long, env = "CARREL_CA_DIR")]
    pub ca_dir: Option<PathBuf>,
    /// Life of a node's certificate; nodes renew it after 50 to 80 % of that.
    #[arg(long, env = "CARREL_NODE_CERTIFICATE_TTL", default_value = NODE_CERTIFICATE_TTL, value_parser = humantime::parse_duration)]
    pub node_certificate_ttl: Duration,
    /// The API in plaintext, on loopback only; without --ca-dir the agents' listener too, where any node may enrol. The
    /// editor's loopback address is given out.
    #[arg(long, env = "CARREL_DEV")]
    pub dev: bool,
    /// Image of a workspace.
    #[arg(long, env = "CARREL_WORKSPACE_IMAGE", default_value = "carrel/workspace:dev")]
    pub workspace_image: String,
    /// Processors of a workspace, in thousandths.
    #[arg(long, env = "CARREL_CPU_MILLICORES", default_value_t = 1000)]
    pub cpu_millicores: i64,
    /// Memory of a workspace: bytes, or with KiB, MiB, GiB; no swap comes on top.
    #[arg(long, env = "CARREL_MEMORY", default_value = "1GiB", value_parser = parse_bytes)]
    pub memory: i64,
    /// Processes and threads of a workspace at most.
    #[arg(long, env = "CARREL_PIDS", default_value_t = 512, value_parser = clap::value_parser!(i64).range(1..=MOST_PIDS))]
    pub pids: i64,
    /// Port the editor listens on inside the container.
    #[arg(long, env = "CARREL_PROBE_PORT", default_value_t = 8080)]
    pub probe_port: u16,
    /// Path that answers 200 when the editor is ready.
    #[arg(long, env = "CARREL_PROBE_PATH", default_value = "/healthz")]
    pub probe_path: String,
    /// Stop a workspace after this long without activity (15 minutes: what the LMS tells students).
    #[arg(long, env = "CARREL_IDLE_TIMEOUT", default_value = "15m", value_parser = humantime::parse_duration)]
    pub idle_timeout: Duration,
    /// Warn this long before an idle stop.
    #[arg(long, env = "CARREL_WARNING_LEAD", default_value = "2m", value_parser = humantime::parse_duration)]
    pub warning_lead: Duration,
    /// Look through all running workspaces this often; the net under exact deadlines.
    #[arg(long, env = "CARREL_IDLE_SWEEP", default_value = "1m", value_parser = humantime::parse_duration)]
    pub idle_sweep: Duration,
    /// ExtendWorkspace reaches at most this far from now.
    #[arg(long, env = "CARREL_EXTENSION_BUDGET", default_value = "4h", value_parser = humantime::parse_duration)]
    pub extension_budget: Duration,
    /// Declared jobs keep a workspace awake for at most this long in all, in one generation.
    #[arg(long, env = "CARREL_KEEP_AWAKE_BUDGET", default_value = "2h", value_parser = humantime::parse_duration)]
    pub keep_awake_budget: Duration,
    /// Stop a workspace this long after it was ready whatever happens, with a warning before; 0s: never.
    #[arg(long, env = "CARREL_MAX_LIFETIME", default_value = "0s", value_parser = humantime::parse_duration)]
    pub max_lifetime: Duration,
    /// Longest wait for a place.
    #[arg(long, env = "CARREL_LONGEST_PENDING", default_value = "30m", value_parser = humantime::parse_duration)]
    pub longest_pending: Duration,
    /// Longest pull of an image. An agent gives up after 15 minutes and says why; this is the net for one that does not.
    #[arg(long, env = "CARREL_LONGEST_PULLING", default_value = "16m", value_parser = humantime::parse_duration)]
    pub longest_pulling: Duration,
    /// Longest start, not counting the pull of an image and the wait for the node's turn.
    #[arg(long, env = "CARREL_LONGEST_STARTING", default_value = "120s", value_parser = humantime::parse_duration)]
    pub longest_starting: Duration,
    /// Longest stop.
    #[arg(long, env = "CARREL_LONGEST_STOPPING", default_value = "60s", value_parser = humantime::parse_duration)]
    pub longest_stopping: Duration,
    /// Time between SIGTERM and SIGKILL.
    #[arg(long, env = "CARREL_STOP_GRACE", default_value = "10s", value_parser = humantime::parse_duration)]
    pub stop_grace: Duration,
    /// Which node a workspace gets, of those that suit equally well otherwise: spread (the emptiest) or pack (the fullest).
    #[arg(long, env = "CARREL_PLACEMENT", default_value = "spread", value_parser = parse_strategy)]
    pub placement: Strategy,
    /// Processors promised for each one a node has: most students read most of the time.
    #[arg(long, env = "CARREL_CPU_OVERCOMMIT", default_value_t = 16.0)]
    pub cpu_overcommit: f64,
    /// Bytes of memory promised for each one a node has.
    #[arg(long, env = "CARREL_MEMORY_OVERCOMMIT", default_value_t = 1.5)]
    pub memory_overcommit: f64,
    /// Time between an agent's heartbeats.
    #[arg(long, env = "CARREL_HEARTBEAT_INTERVAL", default_value = "10s", value_parser = humantime::parse_duration)]
    pub heartbeat_interval: Duration,
    /// A node that has been silent for this long is UNREACHABLE; at least three heartbeat intervals.
    #[arg(long, env = "CARREL_UNREACHABLE_AFTER", default_value = "30s", value_parser = humantime::parse_duration)]
    pub unreachable_after: Duration,
    /// A workspace leaves a node that is being drained when it had no input for this long (long enough to read a page,
    /// short enough to empty a host within a lesson).
    #[arg(long, env = "CARREL_DRAIN_IDLE_MOMENT", default_value = "2m", value_parser = humantime::parse_duration)]
    pub drain_idle_moment: Duration,
    /// F: a node ends all its workspaces by itself this long after it sent the last heartbeat that was acked.
    #[arg(long, env = "CARREL_FENCE_AFTER", default_value = "10m", value_parser = humantime::parse_duration)]
    pub fence_after: Duration,
    /// S: how long that may take.
    #[arg(long, env = "CARREL_STOP_BUDGET", default_value = "30s", value_parser = humantime::parse_duration)]
    pub stop_budget: Duration,
    /// M: what is waited on top before workspaces are moved, for clocks that differ and hosts that are slow.
    #[arg(long, env = "CARREL_LEASE_MARGIN", default_value = "1m", value_parser = humantime::parse_duration)]
    pub lease_margin: Duration,
    /// A silent node's workspaces are moved after this long; never less than F + S + M, which is the default.
    #[arg(long, env = "CARREL_REPLACE_AFTER", value_parser = humantime::parse_duration)]
    pub replace_after: Option<Duration>,
    /// Events are kept this long.
    #[arg(long, env = "CARREL_EVENTS_KEPT", default_value = "90days", value_parser = humantime::parse_duration)]
    pub events_kept: Duration,
    /// Form of the log: text or json.
    #[arg(long, env = "CARREL_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// What is logged, as in RUST_LOG.
    #[arg(long, env = "CARREL_LOG", default_value = "info")]
    pub log: String,
    /// Where traces go (OTLP over gRPC); nowhere by default.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
}

/// X.509 counts in whole seconds; below this a renewal has no time to be tried twice.
const SHORTEST_TTL: Duration = Duration::from_secs(5);
/// A month: nothing but its end takes a stolen certificate from whoever holds it, unless its node is removed.
const LONGEST_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

/// A configuration that means nothing, or is not safe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{flag}: {problem}")]
pub struct BadConfig {
    flag: &'static str,
    problem: String,
}

fn parse_strategy(text: &str) -> Result<Strategy, String> {
    match text {
        "spread" => Ok(Strategy::Spread),
        "pack" => Ok(Strategy::Pack),
        _ => Err("must be spread or pack".into()),
    }
}

/// `1073741824`, `1GiB`, `512MiB`, `64KiB`.
fn parse_bytes(text: &str) -> Result<i64, String> {
    let units = [("KiB", 1_i64 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
    let (number, unit) = units
        .iter()
        .find_map(|(name, size)| text.strip_suffix(name).map(|number| (number, *size)))
        .unwrap_or((text, 1));
    number
        .trim()
        .parse::<i64>()
        .ok()
        .and_then(|n| n.checked_mul(unit))
        .filter(|n| *n > 0)
        .ok_or_else(|| format!("{text:?} is not a size; write bytes, or a number with KiB, MiB or GiB"))
}

impl ServeArgs {
    /// Refuses what means nothing or is not safe.
    ///
    /// # Errors
    /// [`BadConfig`] names the flag.
    pub fn check(&self) -> Result<(), BadConfig> {
        let bad = |flag, problem: &str| Err(BadConfig { flag, problem: problem.to_owned() });
        self.database_url.check()?;
        if !self.dev {
            return bad(
                "--dev",
                "callers' tokens and TLS are not there yet, so it serves with --dev only, on loopback",
            );
        }
        if !self.listen.ip().is_loopback() {
            return bad(
                "--listen",
                "with --dev everything is plaintext, so the address must be a loopback address",
            );
        }
        if self.ca_dir.is_none() && !self.agent_listen.ip().is_loopback() {
            return bad(
                "--agent-listen",
                "without --ca-dir agents speak plaintext, so the address must be a loopback address",
            );
        }
        if self.node_certificate_ttl < SHORTEST_TTL || self.node_certificate_ttl > LONGEST_TTL {
            return bad("--node-certificate-ttl", "must be from 5s to 30days");
        }
        if self.warning_lead >= self.idle_timeout {
            return bad("--warning-lead", "must be shorter than --idle-timeout");
        }
        for (flag, span) in [
            ("--idle-timeout", self.idle_timeout),
            ("--extension-budget", self.extension_budget),
            ("--keep-awake-budget", self.keep_awake_budget),
            ("--max-lifetime", self.max_lifetime),
            ("--unreachable-after", self.unreachable_after),
            ("--longest-pending", self.longest_pending),
            ("--longest-pulling", self.longest_pulling),
            ("--longest-starting", self.longest_starting),
            ("--longest-stopping", self.longest_stopping),
        ] {
            if span > LONGEST_TIME {
                return bad(flag, "must be at most 366days");
            }
        }
        if self.unreachable_after < self.heartbeat_interval * 3 {
            return bad("--unreachable-after", "must be at least three times --heartbeat-interval");
        }
        if self.cpu_millicores <= 0 {
            return bad("--cpu-millicores", "must be positive");
        }
        if self.memory < 6 << 20 {
            return bad("--memory", "Docker starts nothing below 6MiB");
        }
        if !(self.cpu_overcommit > 0.0 && self.memory_overcommit > 0.0) {
            return bad("--cpu-overcommit, --memory-overcommit", "must be positive");
        }
        for (flag, span) in [
            ("--warning-lead", self.warning_lead),
            ("--idle-sweep", self.idle_sweep),
            ("--longest-pending", self.longest_pending),
            ("--longest-pulling", self.longest_pulling),
            ("--longest-starting", self.longest_starting),
            ("--longest-stopping", self.longest_stopping),
            ("--heartbeat-interval", self.heartbeat_interval),
            ("--stop-budget", self.stop_budget),
            ("--lease-margin", self.lease_margin),
        ] {
            if span < Duration::from_millis(100) {
                return bad(flag, "must be at least 100ms");
            }
        }
        if self.fence_after <= self.unreachable_after {
            return bad("--fence-after", "must be longer than --unreachable-after");
        }
        if self.lease().replace_after < self.lease().shortest_replace_after() {
            return bad(
                "--replace-after",
                "must be at least --fence-after, --stop-budget and --lease-margin together: a workspace must not start elsewhere \
                 while the old one may still write",
            );
        }
        if self.longest_stopping <= self.stop_grace {
            return bad("--longest-stopping", "must be longer than --stop-grace");
        }
        if !self.probe_path.starts_with('/') {
            return bad("--probe-path", "must begin with /");
        }
        Ok(())
    }

    /// How long nodes may run without an ack, and how long they are waited for.
    fn lease(&self) -> LeaseTerms {
        let (fence_after, stop_budget, margin) = (self.fence_after, self.stop_budget, self.lease_margin);
        let terms = LeaseTerms { fence_after, stop_budget, margin, replace_after: Duration::ZERO };
        LeaseTerms { replace_after: self.replace_after.unwrap_or(terms.shortest_replace_after()), ..terms }
    }

    /// What the use cases work with.
    pub fn settings(&self) -> Settings {
        Settings {
            dev: self.dev,
            defaults: Defaults {
                spec: WorkspaceSpec {
                    image: self.workspace_image.clone(),
                    resources: Resources {
                        cpu_millicores: self.cpu_millicores,
                        memory_bytes: self.memory,
                        pids: self.pids,
                    },
                    probe_port: self.probe_port,
                    probe_path: self.probe_path.clone(),
                },
                idle: IdlePolicy {
                    idle_timeout: self.idle_timeout,
                    warning_lead: self.warning_lead,
                    max_lifetime: self.max_lifetime,
                    extension_budget: self.extension_budget,
                    keep_awake_budget: self.keep_awake_budget,
                    counts: BySignal::of(|_| true),
                    // Silent for longer, a node is unreachable, and nothing is decided about what it runs.
                    ack_within: self.unreachable_after,
                    quiet: vec![],
                    drain: None,
                },
            },
            stays: Stays {
                pending: self.longest_pending,
                pulling: self.longest_pulling,
                // The agent gives up at `longest_starting` and says why; this is the net for an agent that does not.
                starting: self.longest_starting + Duration::from_secs(5),
                stopping: self.longest_stopping,
            },
            orders: OrderTimes { start_timeout: self.longest_starting, stop_grace: self.stop_grace },
            placement: self.placement,
            limits: CandidateLimits {
                cpu_overcommit: self.cpu_overcommit,
                memory_overcommit: self.memory_overcommit,
            },
            heartbeat_interval: self.heartbeat_interval,
            unreachable_after: self.unreachable_after,
            node_certificate_ttl: self.node_certificate_ttl,
            drain_idle_moment: self.drain_idle_moment,
            lease: self.lease(),
            events_kept: self.events_kept,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: &[&str]) -> ServeArgs {
        let database = ["--database-url", "postgres:///x"].into_iter();
        let database = database.filter(|_| !flags.contains(&"--database-url"));
        let line = ["control-plane", "serve"].into_iter().chain(database).chain(flags.iter().copied());
        match Cli::try_parse_from(line).expect("parses").command {
            Command::Serve(args) => *args,
            Command::Migrate(_) | Command::DeclareRestored(_) | Command::Ca(_) => {
                panic!("serve was asked for")
            }
        }
    }

    #[test]
    fn plaintext_is_refused_beyond_loopback() {
        assert!(parse(&["--dev"]).check().is_ok());
        assert!(parse(&[]).check().is_err());
        assert!(parse(&["--dev", "--listen", "0.0.0.0:7300"]).check().is_err());
        assert!(parse(&["--dev", "--agent-listen", "10.0.0.1:7301"]).check().is_err());
        let tls = ["--dev", "--ca-dir", "/etc/carrel/ca", "--agent-listen", "10.0.0.1:7301"];
        assert!(parse(&tls).check().is_ok());
        assert!(parse(&[&tls[..], &["--listen", "10.0.0.1:7300"]].concat()).check().is_err());
    }

    #[test]
    fn a_database_on_another_machine_is_refused_in_plaintext_also_with_dev() {
        let refused = parse(&["--dev", "--database-url", "postgres://carrel:word@db.example/carrel"]).check();
        let refused = refused.expect_err("plaintext").to_string();
        assert!(refused.starts_with("--database-url: ") && !refused.contains("word"), "{refused}");
    }

    #[test]
    fn times_that_contradict_each_other_are_refused() {
        assert!(parse(&["--dev", "--warning-lead", "20m"]).check().is_err());
        assert!(parse(&["--dev", "--unreachable-after", "10s"]).check().is_err());
        assert!(parse(&["--dev", "--max-lifetime", "366days"]).check().is_ok());
        assert!(parse(&["--dev", "--max-lifetime", "367days"]).check().is_err());
        assert!(parse(&["--dev", "--idle-timeout", "367days"]).check().is_err());
        assert!(
            parse(&["--dev", "--idle-timeout", "4s", "--warning-lead", "1s", "--idle-sweep", "1s"])
                .check()
                .is_ok()
        );
    }

    #[test]
    fn nothing_is_moved_before_the_old_host_has_ended_it() {
        let with = |flags: &[&str]| {
            let args = parse(&[&["--dev"], flags].concat());
            args.check().map(|()| args.lease().replace_after)
        };
        assert_eq!(with(&[]), Ok(Duration::from_secs(690)));
        let short = [
            "--heartbeat-interval=500ms",
            "--unreachable-after=2s",
            "--fence-after=6s",
            "--stop-budget=1s",
            "--lease-margin=1s",
        ];
        assert_eq!(with(&short), Ok(Duration::from_secs(8)));
        assert_eq!(with(&[&short[..], &["--replace-after=20s"]].concat()), Ok(Duration::from_secs(20)));
        assert!(with(&[&short[..], &["--replace-after=7s"]].concat()).is_err());
        assert!(with(&["--replace-after=689s"]).is_err());
        assert!(with(&["--fence-after=30s"]).is_err(), "no longer than until a node is unreachable");
    }

    #[test]
    fn reads_sizes() {
        assert_eq!(
            [parse_bytes("1GiB"), parse_bytes("512MiB"), parse_bytes("77")],
            [Ok(1 << 30), Ok(512 << 20), Ok(77)]
        );
        assert!(parse_bytes("a lot").is_err() && parse_bytes("-1").is_err());
    }

    #[test]
    fn a_password_is_never_printed() {
        assert!(!format!("{:?}", parse(&["--dev"])).contains("postgres:///x"));
    }
}
