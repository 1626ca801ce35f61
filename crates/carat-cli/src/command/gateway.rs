//! `carat gateway`: one endpoint over many providers.

mod ledger;
mod limits;
mod lists;
mod secret;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use carat_gateway::{Config, Engine, Env, Gateway as Serving, Hands, Source};
use carat_server::Server;
use carat_traces::Tracer;
use clap::{Args, Subcommand};

use crate::compute_args::ComputeArgs;
use crate::failure::Hinted;
use crate::interrupt::Interrupt;
use crate::output;
use crate::serve_settings::{LogFormat, LogLevel};
use crate::settings::{self, Settings};
use crate::vault::Vault;

use self::ledger::LedgerTask;
use self::secret::SecretTask;

/// Answer programs from many providers behind one endpoint
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  carat gateway                         serve by gateway.toml in carat's folder\n  carat gateway \
                  --config FILE check     say what is wrong with a file\n  carat gateway add-key alice --budget 5  make a key (needs [ledger])\n\nThe smallest configuration:\n  [providers.openai]      \
                  # its key is in OPENAI_API_KEY\n  [providers.groq]        # and GROQ_API_KEY\n  [routes.chat]\n  candidates = \
                  [\"openai/gpt-5-mini\", \"groq/openai/gpt-oss-120b\"]\n\nThen set OPENAI_BASE_URL=http://127.0.0.1:8090/v1 and ask \
                  for the model `chat`. docs/gateway.md has all settings."
)]
pub(crate) struct Gateway {
    /// The configuration; it is read anew when it changes [default: gateway.toml in carat's folder]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What is logged, to stderr; prompts never are [default: info]
    #[arg(long, value_name = "LEVEL")]
    log: Option<LogLevel>,
    /// How log lines look [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// Encrypted secrets, for variables that are not set [default: secrets.json in carat's folder]
    #[arg(long, global = true, value_name = "FILE")]
    secrets: Option<PathBuf>,
    /// Key of that file, where CARAT_SECRETS_KEY is not set [default: secrets.key in carat's folder]
    #[arg(long, global = true, value_name = "FILE")]
    secrets_key: Option<PathBuf>,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Read the configuration and say whether it makes sense
    #[command(after_help = "Examples:\n  carat gateway check\n  carat gateway check --config FILE")]
    Check,
    #[command(flatten)]
    Ledger(Box<LedgerTask>),
    #[command(flatten)]
    Secret(SecretTask),
}

impl Gateway {
    pub(crate) fn run(self, settings: &Settings, interrupt: &Interrupt) -> Result<()> {
        let path = self
            .config
            .unwrap_or_else(|| settings.carat_dir.join("gateway.toml"));
        let vault = Arc::new(Vault {
            store: self
                .secrets
                .unwrap_or_else(|| settings.carat_dir.join("secrets.json")),
            key: self
                .secrets_key
                .unwrap_or_else(|| settings.carat_dir.join("secrets.key")),
        });
        let env: Env = {
            let vault = Arc::clone(&vault);
            Arc::new(move |name| settings::variable(name).or_else(|| vault.secret(name)))
        };
        match self.task {
            Some(Task::Check) => return check(&path, &env, settings),
            Some(Task::Ledger(task)) => return task.run(&path, &env),
            Some(Task::Secret(task)) => return task.run(&vault),
            None => {}
        }
        let config = open(&path, &env, settings)?;
        super::serve::start_log(self.log, self.log_format);
        let (address, admin_address) = (config.listen, config.admin());
        // Models may have to be downloaded for it, which blocks.
        let inside = config
            .uses_engine()
            .then(|| super::serve::inside(settings, interrupt, self.compute))
            .transpose()?;
        let traces = config.traces().cloned();
        let scheme = if config.tls.is_some() { "https" } else { "http" };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .context("cannot start the threads that serve connections")?;
        // A wake across threads takes longer than an answer: connections stay where they are.
        let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
        let hands = Hands::start(n_threads).context("cannot start the threads that serve connections")?;
        let tracer = traces
            .map(|traces| Tracer::start(traces, runtime.handle()))
            .transpose()?;
        runtime.block_on(async {
            let gateway = match inside {
                Some(inside) => Serving::with_engine(config, engine(inside.start().await?))?,
                None => Serving::new(config)?,
            };
            let gateway = Arc::new(match &tracer {
                Some(tracer) => gateway.with_tracer(tracer.clone()),
                None => gateway,
            });
            let listener = carat_gateway::listen(address).await?;
            let url = listener.local_addr().unwrap_or(address);
            output::note(&format!("the gateway is on {scheme}://{url}; Ctrl-C stops it"));
            let source = Source { path, env };
            let mut beside = tokio::task::JoinSet::new();
            if let Some(address) = admin_address {
                let listener = carat_gateway::listen(address).await?;
                output::note(&format!(
                    "its admin API is on http://{}",
                    listener.local_addr().unwrap_or(address)
                ));
                let (gateway, source) = (Arc::clone(&gateway), source.clone());
                beside.spawn(async move {
                    if let Err(error) = carat_gateway::administer(gateway, listener, source).await {
                        output::note(&format!("the admin API cannot be served: {error}"));
                    }
                });
            }
            beside.spawn(carat_gateway::follow(Arc::clone(&gateway), source));
            // Ctrl-C is heard from here on; whoever pressed it before wants no gateway.
            interrupt.check()?;
            carat_gateway::run(gateway, listener, hands, super::serve::stop_signal()).await;
            beside.shutdown().await;
            if let Some(tracer) = tracer {
                tracer.flush(super::serve::TRACES_PATIENCE).await;
            }
            Ok(())
        })
    }
}

/// The smallest configuration that serves anybody.
const SMALLEST: &str = "the smallest one is\n  [providers.openai]      # its key is in OPENAI_API_KEY\n  [routes.chat]\n  \
                        candidates = [\"openai/gpt-5-mini\"]";

/// Reads the configuration, and says what of it is hardly meant.
fn open(path: &Path, env: &Env, settings: &Settings) -> Result<Config> {
    let config = Config::open(path, env);
    let failed = format!("cannot serve by `{}`", path.display());
    let config = if path.exists() {
        config.context(failed)
    } else {
        config.context(Hinted::new(
            failed,
            format!("write that file, or name another with --config; {SMALLEST}"),
        ))
    }?;
    for doubt in config.doubts() {
        output::note(&format!("warning: {doubt}"));
    }
    for model in config.engine_models() {
        if !super::serve::is_here(model, settings)? {
            output::note(&format!(
                "warning: `{model}` is not on this machine; `carat pull {model}` fetches it if it is in the catalogue"
            ));
        }
    }
    Ok(config)
}

fn check(path: &Path, env: &Env, settings: &Settings) -> Result<()> {
    open(path, env, settings)?;
    output::note(&format!("`{}` makes sense", path.display()));
    Ok(())
}

/// Connections at the engine that have not been taken up yet.
const CALLING: usize = 1024;

/// Serves what the gateway asks of this process's own engine.
fn engine(server: Server) -> Engine {
    let (connect, connections) = tokio::sync::mpsc::channel(CALLING);
    tokio::spawn(server.run_inside(connections));
    // One that finds no room is closed, which the gateway takes for a provider that cannot be reached.
    Arc::new(move |stream| drop(connect.try_send(stream)))
}
