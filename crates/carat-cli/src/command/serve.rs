//! `carat serve`: models behind the APIs that programs already speak.

mod models;
mod prefix_folder;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use carat_hub::{Hub, LocalModel, Resolution};
use carat_server::{CertificateFiles, MediaUrls, Server, ServerOptions, Tls, parse_keep_alive};
use carat_traces::Tracer;
use clap::Args;
use tokio::task::JoinSet;

use self::models::LocalModels;
use crate::compute_args::ComputeArgs;
use crate::draft_args::DraftArgs;
use crate::failure::Hinted;
use crate::interrupt::Interrupt;
use crate::output;
use crate::serve_settings::{Host, LogFormat, LogLevel, MediaAddresses, ServeSettings};
use crate::settings::{self, Settings};

/// Largest body that the server within a gateway takes, in MB: the gateway's own largest.
const MOST_BODY_MB: u32 = 4096;
/// How long a model stays that nobody uses, where there are several; Ollama's.
const KEEP_ALIVE: Duration = Duration::from_secs(300);

/// How long work for clients who have left is waited for at the end.
const LEFTOVER_PATIENCE: Duration = Duration::from_secs(1);

/// How long the latest traces may take to be sent at the end.
pub(super) const TRACES_PATIENCE: Duration = Duration::from_secs(5);

/// Serve models to programs: OpenAI's, Anthropic's and Ollama's APIs
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  carat serve gemma3:1b                            on http://127.0.0.1:8080\n  carat serve gemma3:1b gemma3:12b                 \
                        each loaded when it is asked for\n  carat serve                                      all models of `carat list`\n  carat serve gemma3:12b \
                        --parallel 8 --ctx 8192\n  carat serve gemma3:1b --host 0.0.0.0 --api-key SECRET\n  carat serve \
                        gemma3:1b --print-config > carat.toml\n\nThen set OPENAI_BASE_URL=http://127.0.0.1:8080/v1, \
                        ANTHROPIC_BASE_URL=http://127.0.0.1:8080 or OLLAMA_HOST=127.0.0.1:8080. Settings are read from \
                        carat.toml in carat's folder too; docs/server.md has all of them."
)]
pub(crate) struct Serve {
    /// Settings file [default: carat.toml in carat's folder]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the settings in effect as a settings file, and end
    #[arg(long)]
    print_config: bool,
    /// Run the model even if memory has no room for it
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    serving: ServeSettings,
    #[command(flatten)]
    draft: DraftArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

impl Serve {
    pub(crate) fn run(self, settings: &Settings, interrupt: &Interrupt) -> Result<()> {
        let default_path = settings.carat_dir.join("carat.toml");
        let path = self.config.as_ref().unwrap_or(&default_path);
        let file = ServeSettings::of_file(path, self.config.is_some())?;
        let serving = self
            .serving
            .clone()
            .or(settings.serve.clone()?)
            .or(file)
            .resolved();
        serving.check()?;
        let files = certificate(&serving)?;
        if self.print_config {
            output::write(&serving.to_toml()?)?;
            return Ok(());
        }
        start_log(serving.log, serving.log_format);
        if let Some(warning) = serving.warning() {
            tracing::warn!("{warning}");
        }
        let flag = self.serving.traces.clone();
        let named = named(&serving.model, &self.draft, settings, interrupt)?;
        let options = server_options(&serving, &named)?;
        let file = serving.traces.as_deref();
        let traces = carat_traces::Settings::resolve(flag.as_deref(), &settings::variable, file, "carat")?;
        let host = serving.host.unwrap_or(Host::LOCAL).0;
        let address = SocketAddr::new(host, serving.port.unwrap_or_default());
        let models = LocalModels {
            settings: settings.clone(),
            serving,
            compute: self.compute,
            draft: self.draft,
            interrupt: interrupt.clone(),
            is_forced: self.force,
            named,
            details: Mutex::default(),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("cannot start the threads that serve connections")?;
        let tracer = traces
            .map(|traces| Tracer::start(traces, runtime.handle()))
            .transpose()?;
        let options = ServerOptions { tracer, ..options };
        let served = runtime.block_on(serve(Arc::new(models), options, address, files));
        // Work for clients who have left is not waited for: a long prompt may still be read.
        runtime.shutdown_timeout(LEFTOVER_PATIENCE);
        served
    }
}

/// What is set for a server within `carat gateway`'s process.
fn stated_inside(settings: &Settings) -> Result<ServeSettings> {
    let file = ServeSettings::of_file(&settings.carat_dir.join("carat.toml"), false)?;
    Ok(settings.serve.clone()?.or(file))
}

/// Whether such a server has a model without fetching it.
pub(super) fn is_here(model: &str, settings: &Settings) -> Result<bool> {
    let aliases = stated_inside(settings)?.alias;
    let mut aliases = aliases.iter().filter_map(|alias| alias.split('=').next());
    let found = Hub::new(settings.hub.clone())?.resolve(model);
    Ok(matches!(found, Ok(Resolution::Local(_))) || aliases.any(|alias| alias == model))
}

/// The server within `carat gateway`'s process: the models of `carat.toml`, or all of this machine. The gateway lets
/// clients in, so it asks for no keys; and a name stands for that model alone, since routes are made of names.
pub(super) fn inside(settings: &Settings, interrupt: &Interrupt, compute: ComputeArgs) -> Result<Inside> {
    let stated = stated_inside(settings)?;
    let serving = ServeSettings {
        api_key: Vec::new(),
        key_weight: Vec::new(),
        tls_cert: None,
        tls_key: None,
        strict_model: Some(true),
        // The gateway fetches what clients name, if anybody does, and limits bodies itself.
        media_urls: stated.media_urls.or(Some(MediaAddresses::None)),
        max_body: Some(MOST_BODY_MB),
        ..stated
    }
    .resolved();
    serving.check()?;
    let named = named(&serving.model, &DraftArgs::default(), settings, interrupt)?;
    let options = server_options(&serving, &named)?;
    let first = options.models.as_ref().and_then(|ids| ids.first().cloned());
    let models = LocalModels {
        settings: settings.clone(),
        serving,
        compute,
        draft: DraftArgs::default(),
        interrupt: interrupt.clone(),
        is_forced: false,
        named,
        details: Mutex::default(),
    };
    Ok(Inside {
        models: Arc::new(models),
        options,
        first,
    })
}

/// A server that is not started yet.
pub(super) struct Inside {
    models: Arc<LocalModels>,
    options: ServerOptions,
    first: Option<String>,
}

impl Inside {
    /// Starts it, within a runtime. What is wrong with the first model is said at once, not to the first client.
    pub(super) async fn start(self) -> Result<Server> {
        let interrupt = self.models.interrupt.clone();
        let server = Server::with_store(self.models, self.options);
        let what = match self.first {
            Some(id) => {
                let n_max = load(&server, &id, &interrupt).await?;
                format!("{id} runs in this process (context {n_max})")
            }
            None => "every model of `carat list` can run in this process".to_string(),
        };
        output::note(&what);
        Ok(server)
    }
}

/// Loads the first model; the context that it has then. Whoever pressed Ctrl-C meanwhile wants no server.
async fn load(server: &Server, id: &str, interrupt: &Interrupt) -> Result<usize> {
    let loaded = server.load(id).await;
    interrupt.check()?;
    Ok(loaded?)
}

/// The models that were named, found or pulled, by the names that clients see.
fn named(
    models: &[String],
    draft: &DraftArgs,
    settings: &Settings,
    interrupt: &Interrupt,
) -> Result<Vec<(String, LocalModel)>> {
    let mut named: Vec<(String, LocalModel)> = Vec::new();
    for model in models {
        let local = draft.obtain(model, settings, interrupt)?;
        let id = models::id_of(&local);
        if named.iter().any(|(other, _)| *other == id) {
            return Err(Hinted::wrong_arguments(
                format!("two of the models would be called `{id}`"),
                "leave one out, or give one of the files another name",
            )
            .into());
        }
        named.push((id, local));
    }
    Ok(named)
}

fn server_options(serving: &ServeSettings, named: &[(String, LocalModel)]) -> Result<ServerOptions> {
    let defaults = ServerOptions::default();
    let ids: Vec<String> = named.iter().map(|(id, _)| id.clone()).collect();
    let aliases = serving.alias.iter().map(|text| alias(text, &serving.model, &ids));
    let keep_alive = match (&serving.keep_alive, ids.len()) {
        (Some(text), _) => parse_keep_alive(text).with_context(|| {
            format!(
                "--keep-alive `{text}` cannot be used; give a time such as 5m or 1h30m, 0, or -1 for ever"
            )
        })?,
        (None, 1) => None,
        (None, _) => Some(KEEP_ALIVE),
    };
    Ok(ServerOptions {
        api_keys: serving.api_key.clone(),
        key_weights: key_weights(&serving.key_weight)?,
        tls: certificate(serving)?.as_ref().map(tls).transpose()?,
        aliases: aliases.collect::<Result<_>>()?,
        models: (!ids.is_empty()).then_some(ids),
        keep_alive,
        max_loaded: serving.max_loaded.unwrap_or(1) as usize,
        strict_model: serving.strict_model.unwrap_or(false),
        body_bytes: serving
            .max_body
            .map_or(defaults.body_bytes, |mb| mb as usize * 1_000_000),
        request_timeout: serving.request_timeout.map(Duration::from_secs),
        cors_origins: serving.cors.clone(),
        media_urls: match serving.media_urls {
            Some(MediaAddresses::None) => MediaUrls::Refused,
            Some(MediaAddresses::Any) => MediaUrls::Any,
            Some(MediaAddresses::Public) | None => MediaUrls::Public,
        },
        drain: serving.drain.map_or(defaults.drain, Duration::from_secs),
        tracer: None,
    })
}

/// `KEY=N` each.
fn key_weights(texts: &[String]) -> Result<Vec<(String, u32)>> {
    let weight = |text: &String| {
        let (key, weight) = text.rsplit_once('=')?;
        let weight = weight.parse().ok().filter(|weight| (1..=1000).contains(weight))?;
        Some((key.to_string(), weight))
    };
    texts
        .iter()
        .map(|text| {
            weight(text).ok_or_else(|| {
                // The key itself is not repeated where others may read it.
                let advice = "write --key-weight KEY=N with N from 1 to 1000";
                Hinted::wrong_arguments("a --key-weight cannot be used", advice).into()
            })
        })
        .collect()
}

/// The files of the certificate, if there is one.
fn certificate(serving: &ServeSettings) -> Result<Option<CertificateFiles>> {
    match (&serving.tls_cert, &serving.tls_key) {
        (Some(cert), Some(key)) => Ok(Some(CertificateFiles {
            cert: cert.clone(),
            key: key.clone(),
        })),
        (None, None) => Ok(None),
        _ => {
            let message = "`tls-cert` and `tls-key` are needed together";
            Err(Hinted::wrong_arguments(message, "set the other one too, or neither").into())
        }
    }
}

/// The certificate of these files.
fn tls(files: &CertificateFiles) -> Result<Tls> {
    files.open().with_context(|| {
        format!(
            "cannot serve https with `{}` and `{}`",
            files.cert.display(),
            files.key.display()
        )
    })
}

/// `NAME=MODEL`, or `NAME` for the first model. The model may be written as it was given or as clients see it.
fn alias(text: &str, given: &[String], ids: &[String]) -> Result<(String, String)> {
    let (name, model) = match text.split_once('=') {
        Some((name, model)) => (name, Some(model)),
        None => (text, ids.first().map(String::as_str)),
    };
    let id = model.map(|model| match given.iter().position(|given| given == model) {
        Some(i) => ids.get(i).map_or(model, String::as_str),
        None => model,
    });
    match id {
        Some(id) if ids.is_empty() || ids.iter().any(|other| other == id) => {
            Ok((name.to_string(), id.to_string()))
        }
        _ => Err(Hinted::wrong_arguments(
            format!("--alias `{text}` belongs to no model that is served"),
            "write --alias NAME=MODEL with one of the models",
        )
        .into()),
    }
}

async fn serve(
    models: Arc<LocalModels>,
    options: ServerOptions,
    address: SocketAddr,
    certificate: Option<CertificateFiles>,
) -> Result<()> {
    let mut beside = JoinSet::new();
    if let Some((tls, files)) = options.tls.clone().zip(certificate) {
        beside.spawn(carat_server::follow_certificate(tls, files));
    }
    let first = options.models.as_ref().and_then(|ids| ids.first().cloned());
    let tracer = options.tracer.clone();
    let scheme = if options.tls.is_some() { "https" } else { "http" };
    let interrupt = models.interrupt.clone();
    let is_empty = Hub::new(models.settings.hub.clone())?.list().is_empty();
    let server = Server::with_store(models, options);
    // A port that somebody has is said before a model is loaded. Not kept: clients that come now shall be refused, not wait.
    drop(server.listen(address).await?);
    // What is wrong with the first model is said at once, not to the first client.
    let what = match first {
        Some(id) => {
            let n_max = load(&server, &id, &interrupt).await?;
            format!("{id} is served (context {n_max})")
        }
        None if is_empty => {
            "no model is on this machine yet (`carat pull gemma3:1b` fetches one, which is then served)"
                .into()
        }
        None => "every model of `carat list` is served".to_string(),
    };
    let listener = server.listen(address).await?;
    let url = listener
        .local_addr()
        .map_or_else(|_| address.to_string(), |address| address.to_string());
    output::note(&format!("{what} on {scheme}://{url}; Ctrl-C stops it"));
    server.run(listener, stop_signal()).await;
    beside.shutdown().await;
    if let Some(tracer) = tracer {
        tracer.flush(TRACES_PATIENCE).await;
    }
    Ok(())
}

/// Ctrl-C, or the order to end that service managers give; says what can be done where that takes time.
pub(super) async fn stop_signal() {
    ordered_to_stop().await;
    output::note("stopping when answers under way have ended; Ctrl-C again ends them at once");
}

async fn ordered_to_stop() {
    let interrupted = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        if let Ok(mut ended) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            tokio::select! {
                _ = interrupted => {}
                _ = ended.recv() => {}
            }
            return;
        }
    }
    // Without signals the server runs until it is killed.
    if interrupted.await.is_err() {
        std::future::pending::<()>().await;
    }
}

pub(super) fn start_log(level: Option<LogLevel>, format: Option<LogFormat>) {
    use tracing_subscriber::filter::LevelFilter;
    let level = match level.unwrap_or(LogLevel::Info) {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    let log = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(false)
        .with_writer(std::io::stderr);
    // An error means that somebody else logs already.
    let _started = match format {
        Some(LogFormat::Json) => log.json().try_init(),
        _ => log.try_init(),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Interrupted;
    use carat_testkit::ChatModel;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        serve: Serve,
    }

    /// The end of `command`, which must not go on for ever.
    fn end_of(command: impl FnOnce() -> Result<()> + Send + 'static) -> anyhow::Error {
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || tell.send(command()));
        told.recv_timeout(Duration::from_secs(60)).unwrap().unwrap_err()
    }

    #[test]
    fn whoever_stops_the_loading_of_the_first_model_gets_no_server() {
        let folder = tempfile::tempdir().unwrap();
        let _chat = ChatModel::new("gemma3-vision", folder.path());
        let home = folder.path().join("home");
        let settings = Settings::of_home(&home);
        let model = folder.path().to_str().unwrap();
        let line = ["serve", model, "--port", "0", "--log", "off", "--threads", "1"];
        let serve = Line::parse_from(line).serve;
        let compute = serve.compute.clone();
        let own = settings.clone();
        let error = end_of(move || serve.run(&own, &Interrupt::for_test(true)));
        assert!(error.is::<Interrupted>(), "{error:#}");

        let settings = Settings {
            serve: Ok(ServeSettings {
                model: vec![model.to_string()],
                ..ServeSettings::default()
            }),
            ..settings
        };
        let error = end_of(move || {
            let inside = inside(&settings, &Interrupt::for_test(true), compute)?;
            let runtime = tokio::runtime::Runtime::new()?;
            runtime.block_on(inside.start()).map(drop)
        });
        assert!(error.is::<Interrupted>(), "{error:#}");
    }
}
