//! The settings of `carat serve`: flags over the environment over `carat.toml` over defaults.
//!
//! One type is all three: clap reads it from flags, toml from the file's `[serve]`, and the environment fills it by
//! the names below. [`ServeSettings::resolved`] is what runs, and what `--print-config` shows.
//!
//! | variable | flag |
//! |---|---|
//! | `CARAT_HOST`, `CARAT_PORT` | `--host`, `--port` |
//! | `CARAT_API_KEY` | `--api-key`; several are separated by commas |
//! | `CARAT_CTX`, `CARAT_PARALLEL` | `--ctx`, `--parallel` |
//! | `CARAT_MODELS` | the models, separated by commas |
//! | `CARAT_LOG` | `--log` |
//! | `OTEL_EXPORTER_OTLP_ENDPOINT` | `--traces`; more of OpenTelemetry's are in `carat_traces` |

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::failure::Hinted;

/// Largest settings file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Requests that can be answered at once: each has a row of a pass of 512, and one is left for prompts.
const MOST_PARALLEL: u32 = 511;
/// Characters of a key below which a server that other machines reach warns of it.
const LEAST_KEY: usize = 16;

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogLevel {
    /// Nothing
    Off,
    /// What went wrong
    Error,
    /// What may go wrong
    Warn,
    /// A line for each request
    Info,
    /// All
    Debug,
}

/// Which addresses are asked for images and sounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum MediaAddresses {
    /// None: they must come as data
    None,
    /// Those that everybody can reach
    Public,
    /// All, also of this machine and its network
    Any,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people
    Text,
    /// For programs
    Json,
}

/// An address to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "IpAddr", try_from = "String")]
pub(crate) struct Host(pub(crate) IpAddr);

impl Host {
    pub(crate) const LOCAL: Host = Host(IpAddr::V4(Ipv4Addr::LOCALHOST));
}

impl From<Host> for IpAddr {
    fn from(host: Host) -> IpAddr {
        host.0
    }
}

impl std::str::FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Host, String> {
        if text.eq_ignore_ascii_case("localhost") {
            return Ok(Host::LOCAL);
        }
        let address = text.parse().map(Host);
        address.map_err(|_| {
            format!("`{text}` is no IP address; 127.0.0.1 is this machine alone, 0.0.0.0 all its networks")
        })
    }
}

impl TryFrom<String> for Host {
    type Error = String;

    fn try_from(text: String) -> Result<Host, String> {
        text.parse()
    }
}

/// What can be set; `None` and empty lists leave it to what comes next.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
#[command(next_help_heading = "Serving")]
pub(crate) struct ServeSettings {
    /// Models to serve; without one all that are on this machine, each loaded when it is asked for
    #[arg(value_name = "MODEL", help_heading = None)]
    pub(crate) model: Vec<String>,
    /// IP address to listen on, or localhost; beyond this machine a key is needed [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) host: Option<Host>,
    /// Port to listen on; 0 takes a free one [default: 8080]
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// Key that clients must send; may be given several times
    // What is written is printed, and what is printed may be read by others.
    #[serde(skip_serializing)]
    #[arg(long, value_name = "KEY")]
    pub(crate) api_key: Vec<String>,
    /// Share of whoever brings a key, KEY=N, where others have 1; may be given several times
    #[serde(skip_serializing)]
    #[arg(long, value_name = "KEY=N")]
    pub(crate) key_weight: Vec<String>,
    /// Serve https with this certificate chain (PEM); needs --tls-key
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Tokens that prompt and answer of one request may have together [default: the model's context, or what memory has room for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub(crate) ctx: Option<u32>,
    /// Requests that are answered at the same time, up to 511 [default: 32]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) parallel: Option<u32>,
    /// Requests that may wait beyond these; more are refused with 429 [default: 256]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(crate) queue: Option<u32>,
    /// Memory for the caches of all requests and of earlier prompts, such as 4GB [default: half of what is left]
    #[arg(long, value_name = "SIZE")]
    pub(crate) cache_memory: Option<String>,
    /// Folder for the caches of prompts that memory has no room for; they survive a restart
    #[arg(long, value_name = "FOLDER")]
    pub(crate) cache_dir: Option<PathBuf>,
    /// Largest size of that folder; what was used longest ago goes first [default: 20GB]
    #[arg(long, value_name = "SIZE")]
    pub(crate) cache_disk: Option<String>,
    /// Another name of the first model, or NAME=MODEL; may be given several times
    #[arg(long, value_name = "NAME")]
    pub(crate) alias: Vec<String>,
    /// How long a model stays loaded that nobody uses, such as 5m or 1h; -1 for ever [default: 5m, with one MODEL for ever]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub(crate) keep_alive: Option<String>,
    /// Models that may be loaded at once; fewer where memory has no room [default: 3, with one MODEL 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) max_loaded: Option<u32>,
    /// Refuse requests for other models instead of answering them with the first one
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) strict_model: Option<bool>,
    /// Origin whose web pages may use the server, `*` for any; pages of this machine always may
    #[arg(long, value_name = "ORIGIN")]
    pub(crate) cors: Vec<String>,
    /// Longest time that a request may take, in seconds [default: no limit]
    #[arg(long, value_name = "S")]
    pub(crate) request_timeout: Option<u64>,
    /// Largest body of a request, in megabytes [default: 32]
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) max_body: Option<u32>,
    /// Addresses that are asked for images and sounds which requests name [default: public]
    #[arg(long, value_name = "WHICH")]
    pub(crate) media_urls: Option<MediaAddresses>,
    /// How long answers may go on after the order to stop, in seconds [default: 30]
    #[arg(long, value_name = "S")]
    pub(crate) drain: Option<u64>,
    /// OpenTelemetry collector that is told of requests, such as http://127.0.0.1:4318; nothing of what is said
    #[arg(long, value_name = "URL")]
    pub(crate) traces: Option<String>,
    /// What is logged, to stderr; prompts never are [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log: Option<LogLevel>,
    /// How log lines look [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
}

/// `carat.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    serve: ServeSettings,
}

impl ServeSettings {
    /// What the file at `path` says; nothing if there is no file and none was asked for by name.
    pub(crate) fn of_file(path: &Path, is_required: bool) -> Result<Self> {
        if !is_required && !path.exists() {
            return Ok(Self::default());
        }
        let bytes = carat_format::read_limited(path, MAX_FILE_BYTES)?;
        let text = String::from_utf8(bytes).with_context(|| format!("`{}` is not UTF-8", path.display()))?;
        let file: File =
            toml::from_str(&text).with_context(|| format!("cannot understand `{}`", path.display()))?;
        Ok(file.serve)
    }

    /// What the environment says.
    pub(crate) fn of_env(env: &dyn Fn(&str) -> Option<String>) -> Result<Self, Hinted> {
        let listed = |name: &str| -> Vec<String> {
            let text = env(name).unwrap_or_default();
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            parts.map(ToString::to_string).collect()
        };
        Ok(Self {
            model: listed("CARAT_MODELS"),
            host: parsed(env, "CARAT_HOST", "an IP address or localhost")?,
            port: parsed(env, "CARAT_PORT", "a port")?,
            api_key: listed("CARAT_API_KEY"),
            ctx: parsed(env, "CARAT_CTX", "a number of tokens")?,
            parallel: parsed(env, "CARAT_PARALLEL", "a number of requests")?,
            log: match env("CARAT_LOG") {
                None => None,
                Some(text) => Some(LogLevel::from_str(&text, true).map_err(|_| {
                    Hinted::new(
                        format!("CARAT_LOG is `{text}`, which is no level"),
                        "set it to off, error, warn, info or debug",
                    )
                })?),
            },
            ..Self::default()
        })
    }

    /// These settings, and `other` where they say nothing.
    pub(crate) fn or(self, other: Self) -> Self {
        let list = |own: Vec<String>, other: Vec<String>| if own.is_empty() { other } else { own };
        Self {
            model: list(self.model, other.model),
            host: self.host.or(other.host),
            port: self.port.or(other.port),
            api_key: list(self.api_key, other.api_key),
            key_weight: list(self.key_weight, other.key_weight),
            tls_cert: self.tls_cert.or(other.tls_cert),
            tls_key: self.tls_key.or(other.tls_key),
            ctx: self.ctx.or(other.ctx),
            parallel: self.parallel.or(other.parallel),
            queue: self.queue.or(other.queue),
            cache_memory: self.cache_memory.or(other.cache_memory),
            cache_dir: self.cache_dir.or(other.cache_dir),
            cache_disk: self.cache_disk.or(other.cache_disk),
            alias: list(self.alias, other.alias),
            keep_alive: self.keep_alive.or(other.keep_alive),
            max_loaded: self.max_loaded.or(other.max_loaded),
            strict_model: self.strict_model.or(other.strict_model),
            cors: list(self.cors, other.cors),
            request_timeout: self.request_timeout.or(other.request_timeout),
            max_body: self.max_body.or(other.max_body),
            media_urls: self.media_urls.or(other.media_urls),
            drain: self.drain.or(other.drain),
            traces: self.traces.or(other.traces),
            log: self.log.or(other.log),
            log_format: self.log_format.or(other.log_format),
        }
    }

    /// With the defaults of everything that has one.
    pub(crate) fn resolved(self) -> Self {
        let max_loaded = if self.model.len() == 1 { 1 } else { 3 };
        self.or(Self {
            host: Some(Host::LOCAL),
            port: Some(8080),
            parallel: Some(32),
            queue: Some(256),
            max_loaded: Some(max_loaded),
            strict_model: Some(false),
            max_body: Some(32),
            media_urls: Some(MediaAddresses::Public),
            drain: Some(30),
            log: Some(LogLevel::Info),
            log_format: Some(LogFormat::Text),
            ..Self::default()
        })
    }

    /// Refuses what cannot be meant, wherever it was said: flags, environment and file may each say a part.
    pub(crate) fn check(&self) -> Result<()> {
        if self.api_key.iter().any(|key| key.trim().is_empty()) {
            // Whoever sends an empty key would be let in by it.
            return Err(Hinted::wrong_arguments(
                "an --api-key is empty",
                "give a key that cannot be guessed, or leave --api-key out",
            )
            .into());
        }
        if let Some(n) = self.parallel.filter(|n| *n > MOST_PARALLEL) {
            return Err(Hinted::wrong_arguments(
                format!("{n} requests cannot be answered at the same time"),
                format!("choose a --parallel of at most {MOST_PARALLEL}; others wait, up to --queue"),
            )
            .into());
        }
        if self.cache_disk.is_some() && self.cache_dir.is_none() {
            return Err(Hinted::wrong_arguments(
                "--cache-disk is the size of a folder, and none is named",
                "name the folder with --cache-dir, or leave --cache-disk out",
            )
            .into());
        }
        Ok(())
    }

    /// What is worth saying when the server starts, though it can be meant.
    pub(crate) fn warning(&self) -> Option<String> {
        let is_open = self.host.is_some_and(|host| !host.0.is_loopback());
        let is_short = self.api_key.iter().any(|key| key.len() < LEAST_KEY);
        (is_open && is_short).then(|| {
            format!(
                "an --api-key has fewer than {LEAST_KEY} characters, which other machines can guess; `openssl rand -hex 16` \
                 makes a longer one"
            )
        })
    }

    /// As a settings file. Keys are left out of it, not replaced: whatever stood in their place would be a key.
    pub(crate) fn to_toml(&self) -> Result<String> {
        let text = toml::to_string(self).context("cannot write the settings")?;
        let hidden = [("api-key", &self.api_key), ("key-weight", &self.key_weight)];
        let notes = hidden.into_iter().filter(|(_, keys)| !keys.is_empty());
        let notes: String = notes
            .map(|(name, _)| format!("# {name}: hidden, set it here\n"))
            .collect();
        Ok(format!("[serve]\n{notes}{text}"))
    }
}

fn parsed<T: std::str::FromStr>(
    env: &dyn Fn(&str) -> Option<String>,
    name: &str,
    expected: &str,
) -> Result<Option<T>, Hinted> {
    let Some(text) = env(name) else { return Ok(None) };
    match text.trim().parse() {
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(Hinted::new(
            format!("{name} is `{text}`, which is not {expected}"),
            "unset it, or set it right",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("carat.toml");
        std::fs::write(
            &path,
            "[serve]\nport = 1\nctx = 100\nalias = [\"a\"]\nparallel = 4\n",
        )
        .unwrap();
        let file = ServeSettings::of_file(&path, true).unwrap();
        let env = |name: &str| match name {
            "CARAT_CTX" => Some("200".to_string()),
            "CARAT_PARALLEL" => Some("8".to_string()),
            "CARAT_API_KEY" => Some("x, y".to_string()),
            _ => None,
        };
        let env = ServeSettings::of_env(&env).unwrap();
        let flags = ServeSettings {
            parallel: Some(16),
            ..ServeSettings::default()
        };
        let all = flags.or(env).or(file).resolved();
        assert_eq!((all.port, all.ctx, all.parallel), (Some(1), Some(200), Some(16)));
        assert_eq!((all.queue, all.alias.len(), all.api_key.len()), (Some(256), 1, 2));
        let shown = all.to_toml().unwrap();
        assert!(shown.contains("port = 1") && !shown.contains("\"x\""), "{shown}");
        std::fs::write(&path, shown).unwrap();
        let again = ServeSettings::of_file(&path, true).unwrap();
        assert_eq!((again.port, again.api_key.len()), (Some(1), 0));
    }

    #[test]
    fn this_machine_has_a_name() {
        let file = |host: &str| toml::from_str::<File>(&format!("[serve]\nhost = \"{host}\""));
        assert_eq!(file("LocalHost").unwrap().serve.host, Some(Host::LOCAL));
        let shown = file("::1").unwrap().serve.to_toml().unwrap();
        assert!(shown.contains("host = \"::1\"\n"), "{shown}");
        let error = file("example").unwrap_err().to_string();
        assert!(error.contains("`example` is no IP address"), "{error}");
    }

    #[test]
    fn printed_settings_hold_no_key() {
        let settings = ServeSettings {
            api_key: vec!["secret".to_string()],
            key_weight: vec!["secret=2".to_string()],
            ..ServeSettings::default()
        };
        let shown = settings.to_toml().unwrap();
        assert!(!shown.contains("secret"), "{shown}");
        assert!(shown.contains("# api-key: hidden, set it here\n"), "{shown}");
        let read: File = toml::from_str(&shown).unwrap();
        assert_eq!(read.serve, ServeSettings::default());
        let without = ServeSettings::default().to_toml().unwrap();
        assert!(!without.contains("key"), "{without}");
    }

    #[test]
    fn settings_are_checked_together_wherever_they_were_said() {
        let of = |text: &str| toml::from_str::<File>(text).unwrap().serve;
        let refused = |settings: ServeSettings| settings.check().unwrap_err().to_string();
        let with_parallel = |n| ServeSettings {
            parallel: Some(n),
            ..ServeSettings::default()
        };
        with_parallel(MOST_PARALLEL).check().unwrap();
        assert!(refused(with_parallel(MOST_PARALLEL + 1)).contains("512 requests"));
        let options = carat_model::LoadOptions::default();
        assert_eq!(options.max_batch_tokens, MOST_PARALLEL as usize + 1);
        for key in ["", " ", "\t"] {
            let flag = ServeSettings {
                api_key: vec!["good".to_string(), key.to_string()],
                ..ServeSettings::default()
            };
            assert_eq!(refused(flag), "an --api-key is empty");
        }
        assert_eq!(refused(of("[serve]\napi-key = [\"\"]")), "an --api-key is empty");
        let flag = ServeSettings {
            cache_disk: Some("1GB".to_string()),
            ..ServeSettings::default()
        };
        assert!(refused(flag.clone()).contains("--cache-disk"));
        let both = flag.or(of("[serve]\ncache-dir = \"/tmp\"\napi-key = [\"good\"]"));
        both.check().unwrap();
    }

    #[test]
    fn short_keys_are_told_of_where_others_can_try_them() {
        let of = |text: &str| toml::from_str::<File>(text).unwrap().serve.warning();
        let long = "0123456789abcdef";
        assert_eq!(of("[serve]\napi-key = [\"short\"]"), None);
        for host in ["127.0.0.1", "localhost"] {
            let text = format!("[serve]\nhost = \"{host}\"\napi-key = [\"short\"]");
            assert_eq!(of(&text), None);
        }
        assert_eq!(
            of(&format!("[serve]\nhost = \"0.0.0.0\"\napi-key = [\"{long}\"]")),
            None
        );
        let both = format!("[serve]\nhost = \"0.0.0.0\"\napi-key = [\"{long}\", \"short\"]");
        let warning = of(&both).unwrap();
        assert!(
            warning.contains("16 characters") && !warning.contains("short\""),
            "{warning}"
        );
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("carat.toml");
        assert_eq!(
            ServeSettings::of_file(&path, false).unwrap(),
            ServeSettings::default()
        );
        assert!(ServeSettings::of_file(&path, true).is_err());
        std::fs::write(&path, "[serve]\nprot = 1\n").unwrap();
        let error = format!("{:#}", ServeSettings::of_file(&path, true).unwrap_err());
        assert!(error.contains("prot"), "{error}");
        let env = |name: &str| (name == "CARAT_PORT").then(|| "many".to_string());
        let error = ServeSettings::of_env(&env).unwrap_err().to_string();
        assert_eq!(error, "CARAT_PORT is `many`, which is not a port");
    }
}
