//! The configuration: TOML in, checked values out.
//!
//! A file is refused as a whole, with the place that is wrong: nothing of it takes effect. Unknown settings are errors,
//! since a setting that is misspelt would otherwise silently be a default.

mod doubt;
mod route;

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use carat_fetch::{Fetcher, MediaUrls};
use carat_ledger::Place;
use carat_net::CertificateFiles;
use serde::Deserialize;

use crate::Error;
use crate::admin::{AdminSettings, AdminText};
use crate::engine;
use crate::limits::CONFIG_BYTES;
use crate::prices::Prices;
use crate::provider::{self, Provider, ProviderText};
use crate::route::{Abilities, Candidate, Route};

use self::route::{Parts, RouteText, check_rules};

/// Where values of variables come from: the caller's environment.
pub type Env = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// A configuration that makes sense.
#[derive(Debug)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Files of the certificate that clients are shown, if connections are encrypted.
    pub tls: Option<CertificateFiles>,
    /// How long answers may go on after the order to stop.
    pub drain: Duration,
    pub(crate) body_bytes: usize,
    /// Fetches images for providers that want data, if that is allowed.
    pub(crate) fetcher: Option<Fetcher>,
    pub(crate) timeouts: Timeouts,
    /// Calls that one request may cost.
    pub(crate) attempts: u32,
    /// Whether `provider/model` is served without a route.
    pub(crate) direct: bool,
    pub(crate) providers: HashMap<String, Arc<Provider>>,
    pub(crate) routes: HashMap<String, Arc<Route>>,
    /// Where keys, budgets and requests are kept, if they are.
    pub(crate) ledger: Option<Place>,
    /// How long rows of requests are kept, if not for ever.
    pub(crate) ledger_keep: Option<Duration>,
    /// The admin API, if there is one.
    pub(crate) admin: Option<AdminSettings>,
    pub(crate) unknown_price: UnknownPrice,
    /// Tokens of an answer whose length the request leaves open.
    pub(crate) expected_output: u64,
    pub(crate) prices: Prices,
    /// Most bytes of answers that are kept.
    pub(crate) cache_bytes: usize,
    /// Where spans go, if anywhere.
    pub(crate) traces: Option<carat_traces::Settings>,
    /// How many configurations were in force before it.
    pub(crate) generation: u64,
    /// What models can do, by `provider/model`.
    pub(crate) abilities: BTreeMap<String, Abilities>,
}

/// What becomes of a request for a model without a price, where there is a budget.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum UnknownPrice {
    /// It is refused.
    #[default]
    Refuse,
    /// It costs nothing that is known, and is counted.
    Allow,
}

/// How long each part of a call may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    pub(crate) connect: Duration,
    /// From the call to the first words of a stream.
    pub(crate) first_token: Duration,
    /// From the call to the end of a whole answer.
    pub(crate) whole: Duration,
    /// Between two events of a stream.
    pub(crate) idle: Duration,
    /// All attempts together.
    pub(crate) total: Duration,
    /// How long a request goes on when nobody can take it.
    pub(crate) outage: Duration,
    /// The same where only one could, and has not said when it is back.
    pub(crate) lone_outage: Duration,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    listen: SocketAddr,
    tls: Option<TlsText>,
    max_body_mb: usize,
    drain_s: u64,
    media_urls: MediaUrls,
    attempts: u32,
    direct: bool,
    timeouts: TimeoutsText,
    providers: BTreeMap<String, ProviderText>,
    routes: BTreeMap<String, RouteText>,
    ledger: LedgerText,
    admin: Option<AdminText>,
    prices: BTreeMap<String, PriceText>,
    models: BTreeMap<String, Abilities>,
    cache: CacheText,
    traces: TracesText,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct TracesText {
    endpoint: Option<String>,
    service: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsText {
    cert: PathBuf,
    key: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct CacheText {
    max_mb: usize,
}

impl Default for CacheText {
    fn default() -> Self {
        Self { max_mb: 64 }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct LedgerText {
    path: Option<PathBuf>,
    /// Variable with the address of a PostgreSQL server.
    url_env: Option<String>,
    /// Folder of this gateway's own, beside a server.
    journal: Option<PathBuf>,
    unknown_price: UnknownPrice,
    expected_output: Option<u64>,
    keep_days: Option<u32>,
}

/// Dollars for a million tokens.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct PriceText {
    input: f64,
    output: f64,
}

/// Tokens of an answer whose length nobody states, as long as no budget is harmed by too little.
const EXPECTED_OUTPUT: u64 = 4096;

impl Default for File {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8090),
            tls: None,
            max_body_mb: 100,
            drain_s: 30,
            media_urls: MediaUrls::Refused,
            attempts: 12,
            direct: true,
            timeouts: TimeoutsText::default(),
            providers: BTreeMap::new(),
            routes: BTreeMap::new(),
            ledger: LedgerText::default(),
            admin: None,
            prices: BTreeMap::new(),
            models: BTreeMap::new(),
            cache: CacheText::default(),
            traces: TracesText::default(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct TimeoutsText {
    connect_ms: u64,
    first_token_ms: u64,
    whole_ms: u64,
    idle_ms: u64,
    total_ms: u64,
    outage_ms: Option<u64>,
}

impl Default for TimeoutsText {
    fn default() -> Self {
        Self {
            connect_ms: 5_000,
            first_token_ms: 120_000,
            whole_ms: 300_000,
            idle_ms: 60_000,
            total_ms: 600_000,
            outage_ms: None,
        }
    }
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// [`Error`] says what in it is wrong.
    pub fn open(path: &Path, env: &Env) -> Result<Self, Error> {
        Self::parse(&read(path)?, env)
    }

    /// The ledger that a configuration file names, if it does. What else it says is not looked at: acts on the ledger
    /// need neither the admin API's key nor those of providers.
    ///
    /// # Errors
    /// [`Error`] says what in it is wrong.
    pub fn ledger_of(path: &Path, env: &Env) -> Result<Option<Place>, Error> {
        let text = read(path)?;
        let file: File = toml::from_str(&text).map_err(|error| Error::toml(&text, &error))?;
        file.ledger.place(env)
    }

    /// Reads a configuration.
    ///
    /// # Errors
    /// [`Error`] says what in it is wrong.
    pub fn parse(text: &str, env: &Env) -> Result<Self, Error> {
        let file: File = toml::from_str(text).map_err(|error| Error::toml(text, &error))?;
        let known = provider::known()?;
        let mut providers = HashMap::new();
        for (name, text) in file.providers {
            check_name(&format!("providers.{name}"), &name)?;
            let provider = provider::provider(&name, text, &known, env.as_ref())?;
            providers.insert(name, Arc::new(provider));
        }
        if file.attempts == 0 {
            return Err(Error::config("attempts", "must be at least 1"));
        }
        if !(1..=4096).contains(&file.max_body_mb) {
            return Err(Error::config("max-body-mb", "must be between 1 and 4096"));
        }
        let ledger = file.ledger.place(env)?;
        if ledger.is_none() && !file.listen.ip().is_loopback() {
            let message = "beyond this machine clients need keys; add [ledger] with a path";
            return Err(Error::config("listen", message));
        }
        let admin = file
            .admin
            .map(|admin| admin.checked(ledger.is_some(), env))
            .transpose()?;
        let tls = file.tls.map(|text| CertificateFiles {
            cert: text.cert,
            key: text.key,
        });
        if let Some(files) = &tls {
            // What is wrong with them is said with the rest.
            files.open().map_err(Error::Certificate)?;
        }
        let mut own = HashMap::new();
        for (name, text) in file.prices {
            let price = carat_ledger::Price::of(text.input, text.output);
            let price = price.map_err(|error| Error::config(format!("prices.{name}"), error.to_string()))?;
            own.insert(name, Arc::new(price));
        }
        let prices = Prices::new(own)?;
        let parts = Parts {
            providers: &providers,
            abilities: &file.models,
            prices: &prices,
        };
        let mut routes = HashMap::new();
        for (name, text) in file.routes {
            let route = text.checked(&name, &parts)?;
            routes.insert(name, Arc::new(route));
        }
        check_rules(&routes, |target| {
            let (provider, _) = target.split_once('/')?;
            providers.get(provider).map(|provider| provider.is_local)
        })?;
        Ok(Self {
            ledger,
            admin,
            ledger_keep: file
                .ledger
                .keep_days
                .map(|days| Duration::from_secs(u64::from(days) * 86_400)),
            unknown_price: file.ledger.unknown_price,
            expected_output: file.ledger.expected_output.unwrap_or(EXPECTED_OUTPUT),
            prices,
            generation: 0,
            abilities: file.models,
            traces: file.traces.checked(env)?,
            cache_bytes: file.cache.max_mb.saturating_mul(1_000_000),
            listen: file.listen,
            tls,
            drain: Duration::from_secs(file.drain_s),
            fetcher: (file.media_urls != MediaUrls::Refused).then(|| Fetcher::new(file.media_urls)),
            body_bytes: file.max_body_mb * 1_000_000,
            timeouts: file.timeouts.checked()?,
            attempts: file.attempts,
            direct: file.direct,
            providers,
            routes,
        })
    }

    /// Whether a provider is the engine of the gateway's own process.
    pub fn uses_engine(&self) -> bool {
        let mut providers = self.providers.values();
        providers.any(|provider| provider.base.authority.host() == engine::HOST)
    }

    /// Where spans of requests go, if the file or OpenTelemetry's variables say so.
    pub fn traces(&self) -> Option<&carat_traces::Settings> {
        self.traces.as_ref()
    }

    /// The ledger's database, if one is kept.
    pub fn ledger(&self) -> Option<&Place> {
        self.ledger.as_ref()
    }

    /// The target that `provider/model` names.
    pub(crate) fn target(&self, name: &str) -> Option<Candidate> {
        let (provider, model) = name.split_once('/')?;
        let provider = self.providers.get(provider)?;
        let parts = Parts {
            providers: &self.providers,
            abilities: &self.abilities,
            prices: &self.prices,
        };
        (!model.is_empty()).then(|| parts.candidate(provider, model, 1))
    }
}

impl LedgerText {
    /// Where it is kept, if it is.
    fn place(&self, env: &Env) -> Result<Option<Place>, Error> {
        match (&self.path, &self.url_env, &self.journal) {
            (None, None, None) => Ok(None),
            (Some(path), None, None) => Ok(Some(Place::from(path))),
            (None, Some(name), Some(journal)) => {
                // An address holds a password, so that it never stands in the file.
                let message = || Error::config("ledger.url-env", format!("the variable {name} is not set"));
                let url = env(name).ok_or_else(message)?;
                let journal = journal.clone();
                Ok(Some(Place::Postgres { url, journal }))
            }
            _ => {
                let message = "say `path` for a file, or `url-env` and `journal` for a PostgreSQL server";
                Err(Error::config("ledger", message))
            }
        }
    }
}

impl TracesText {
    fn checked(&self, env: &Env) -> Result<Option<carat_traces::Settings>, Error> {
        let service = self.service.as_deref().unwrap_or("carat-gateway");
        carat_traces::Settings::resolve(None, env.as_ref(), self.endpoint.as_deref(), service)
            .map_err(|error| Error::config("traces", error.to_string()))
    }
}

/// How long an outage is ridden through unless the file says otherwise.
const OUTAGE_MS: u64 = 20_000;
/// The same for who has nobody else to ask: long enough for a restart or a lost connection, short enough for somebody who
/// waits for the reason.
const LONE_OUTAGE_MS: u64 = 5_000;

impl TimeoutsText {
    fn checked(&self) -> Result<Timeouts, Error> {
        let time = |name: &str, ms: u64| match ms {
            1..=86_400_000 => Ok(Duration::from_millis(ms)),
            _ => Err(Error::config(
                format!("timeouts.{name}"),
                "must be between 1 ms and a day (86400000)",
            )),
        };
        Ok(Timeouts {
            connect: time("connect-ms", self.connect_ms)?,
            first_token: time("first-token-ms", self.first_token_ms)?,
            whole: time("whole-ms", self.whole_ms)?,
            idle: time("idle-ms", self.idle_ms)?,
            total: time("total-ms", self.total_ms)?,
            outage: time("outage-ms", self.outage_ms.unwrap_or(OUTAGE_MS))?,
            lone_outage: time("outage-ms", self.outage_ms.unwrap_or(LONE_OUTAGE_MS))?,
        })
    }
}

/// Names stand before a slash in models' names, and in headers and metrics.
fn check_name(field: &str, name: &str) -> Result<(), Error> {
    let is_fine = !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if is_fine {
        Ok(())
    } else {
        Err(Error::config(
            field,
            "names are made of letters, digits, `-`, `_` and `.`",
        ))
    }
}

/// Reads a small file.
pub(crate) fn read(path: &Path) -> Result<String, Error> {
    let failed = |source| Error::Read {
        path: path.to_path_buf(),
        source,
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut text = String::new();
    file.take(CONFIG_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > CONFIG_BYTES {
        return Err(Error::TooLarge {
            path: path.to_path_buf(),
            limit: CONFIG_BYTES,
        });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Config, Error> {
        let env: Env = Arc::new(|name| (name == "OPENAI_API_KEY").then(|| "k".to_string()));
        Config::parse(text, &env)
    }

    #[test]
    fn a_file_of_a_few_lines_is_enough() {
        let config = parsed(
            "[providers.openai]\n[providers.local]\nlike = \"carat\"\n\
             [routes.fast]\npolicy = \"weighted\"\ncandidates = [{ model = \"local/gemma3:4b\", weight = 3 }, \"openai/gpt-5-mini\"]\n",
        )
        .unwrap();
        assert_eq!(config.listen.port(), 8090);
        let route = &config.routes["fast"];
        assert_eq!(route.candidates[0].name, "local/gemma3:4b");
        assert_eq!((route.candidates[0].weight, route.candidates[1].weight), (3, 1));
        assert!(
            config
                .target("openai/x/y")
                .is_some_and(|target| target.model == "x/y")
        );
        assert!(config.target("nobody/x").is_none() && config.target("openai/").is_none());
    }

    #[test]
    fn keys_are_neither_printed_nor_told_in_errors() {
        let secrets = "[providers.openai]\nkey = \"sk-1\"\n[providers.a]\nlike = \"bedrock\"\nvars = { region = \"r\" }\n\
                       aws = { access-key-id = \"sk-2\", secret-access-key = \"sk-3\" }\n";
        let config = parsed(secrets).unwrap();
        assert!(!format!("{config:?}").contains("sk-"));
        let error = parsed("[providers.openai]\n\nkey = sk-1\n").unwrap_err();
        let told = format!("{error} {error:?}");
        assert!(told.contains("line 3") && !told.contains("sk-1"), "{told}");
    }

    #[test]
    fn what_stays_here_is_neither_judged_nor_ruled_elsewhere() {
        let base = "[providers.openai]\n[providers.local]\nlike = \"carat\"\n[routes.far]\ncandidates = [\"openai/x\"]\n\
                    [routes.near]\ncandidates = [\"local/x\"]\n[routes.r]\nnever-leaves-this-machine = true\n";
        for way in [
            "candidates = [\"local/x\"]\nguard = { classifier = { route = \"WHO\" } }",
            "otherwise = \"WHO\"",
            "otherwise = \"near\"\nrules = [{ route = \"WHO\", code = true }]",
        ] {
            for (who, is_fine) in [
                ("near", true),
                ("local/y", true),
                ("far", false),
                ("openai/y", false),
            ] {
                let result = parsed(&format!("{base}{}", way.replace("WHO", who)));
                assert_eq!(result.is_ok(), is_fine, "{way} {who}: {result:?}");
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_place() {
        let cases = [
            ("attemts = 3", "attemts"),
            ("attempts = 0", "attempts"),
            ("[ledger]\npath = \"a\"\nurl-env = \"b\"", "ledger"),
            ("[ledger]\nurl-env = \"b\"", "journal"),
            ("[ledger]\nurl-env = \"b\"\njournal = \"j\"", "the variable b"),
            ("[timeouts]\nidle-ms = 0", "timeouts.idle-ms"),
            ("[providers.\"a/b\"]\nbase-url = \"http://x\"", "providers.a/b"),
            ("[routes.r]\ncandidates = []", "routes.r.candidates"),
            ("[routes.r]\ncandidates = [\"openai/x\"]", "[providers.openai]"),
            (
                "[providers.openai]\n[routes.r]\ncandidates = [\"gpt\"]",
                "provider/model",
            ),
            (
                "[providers.openai]\n[routes.r]\npolicy = \"magic\"\ncandidates = [\"openai/x\"]",
                "magic",
            ),
            (
                "[providers.openai]\n[routes.r]\ncandidates = [{ model = \"openai/x\", weight = 0 }]",
                "weights",
            ),
            ("[routes.r]\notherwise = \"nobody\"", "`nobody`"),
            (
                "[routes.r]\nrules = [{ route = \"r\", code = true }]",
                "routes.r.otherwise",
            ),
            (
                "[providers.openai]\n[routes.r]\notherwise = \"openai/x\"\ncandidates = [\"openai/x\"]",
                "either rules or candidates",
            ),
            (
                "[providers.openai]\n[routes.r]\nweights = { cost = -1 }\ncandidates = [\"openai/x\"]",
                "routes.r.weights",
            ),
            (
                "[providers.openai]\n[routes.r]\nnever-leaves-this-machine = true\ncandidates = [\"openai/x\"]",
                "never leaves",
            ),
        ];
        for (text, expected) in cases {
            let error = parsed(text).unwrap_err();
            let chain = format!(
                "{error}: {:?}",
                std::error::Error::source(&error).map(ToString::to_string)
            );
            assert!(chain.contains(expected), "{text}: {chain}");
        }
    }
}
