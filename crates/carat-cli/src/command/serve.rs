//! `carat serve`: a model behind the APIs that programs already speak.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use carat_engine::{Embed, Engine, Limits, SamplingParams};
use carat_model::{LanguageModel, LoadOptions, LogitRows, Model, Observed, Segment};
use carat_plan::{Choice, Wish};
use carat_server::{ModelDetails, ModelSetup, Server, ServerOptions};
use carat_text::ChatTemplate;
use clap::Args;

use crate::compute_args::{Arithmetic, ComputeArgs};
use crate::failure::Hinted;
use crate::interrupt::Interrupt;
use crate::model_source::ModelSource;
use crate::serve_settings::{LogFormat, LogLevel, ServeSettings};
use crate::settings::Settings;
use crate::{memory, output, planning};

/// Cache memory where the system does not say how much there is, in bytes.
const UNKNOWN_MEMORY: u64 = 2 << 30;
/// Tokens of a text that are embedded in one pass: each makes a row of logits on the way.
const EMBED_CHUNK: usize = 32;

/// Serve a model to programs: OpenAI's, Anthropic's and Ollama's APIs
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  carat serve gemma3:1b                            on http://127.0.0.1:8080\n  carat serve gemma3:12b \
                        --parallel 8 --ctx 8192\n  carat serve gemma3:1b --host 0.0.0.0 --api-key SECRET\n  carat serve \
                        gemma3:1b --print-config > carat.toml\n\nThen set OPENAI_BASE_URL=http://127.0.0.1:8080/v1, \
                        ANTHROPIC_BASE_URL=http://127.0.0.1:8080 or OLLAMA_HOST=127.0.0.1:8080. Settings are read from \
                        carat.toml in carat's folder too; docs/server.md has all of them."
)]
pub(crate) struct Serve {
    /// The model
    model: String,
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
            .or(settings.serve.clone())
            .or(file)
            .resolved();
        if self.print_config {
            output::write(&serving.to_toml()?)?;
            return Ok(());
        }
        start_log(&serving);
        let source = ModelSource::open(&self.model, settings, interrupt)?;
        let (load, limits) = self.fitting(&source, settings, &serving)?;
        let setup = setup(&source)?;
        let model = Model::from_checkpoint(&source.checkpoint, load)?;
        let engine = Engine::start(model, Arc::clone(&setup.tokenizer), limits, Some(embedder()))?;
        let server = Server::new(setup, engine, server_options(&serving));
        let host = serving.host.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let address = SocketAddr::new(host, serving.port.unwrap_or_default());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("cannot start the threads that serve connections")?;
        runtime.block_on(serve(server, address, &name_of(&source), limits.n_max))
    }

    /// How to load the model, and what requests may take: what the user said, else the best that fits.
    fn fitting(
        &self,
        source: &ModelSource,
        settings: &Settings,
        serving: &ServeSettings,
    ) -> Result<(LoadOptions, Limits)> {
        let options = self.compute.options(settings)?;
        let asked = serving.ctx.map(|n| n as usize);
        let is_reference = self.compute.dtype == Arithmetic::F32;
        let wish = Wish {
            context: asked,
            kv_dtype: self.compute.kv_type.or(is_reference.then_some(options.kv_dtype)),
        };
        let chosen = match planning::choose(source, &options, wish) {
            Err(_) if self.force => None,
            result => result?,
        };
        let context_len = source.checkpoint.config().context_len;
        let cache_bytes = match &serving.cache_memory {
            Some(text) => carat_plan::parse_bytes(text)
                .with_context(|| format!("--cache-memory `{text}` cannot be used"))?,
            None => spare_memory(chosen.as_ref()),
        };
        let limits = Limits {
            n_max: chosen
                .as_ref()
                .map_or(asked.unwrap_or(context_len), |choice| choice.context),
            n_running: serving.parallel.unwrap_or(1) as usize,
            n_waiting: serving.queue.unwrap_or(1) as usize,
            cache_bytes: usize::try_from(cache_bytes).unwrap_or(usize::MAX),
        };
        if limits.n_max > context_len {
            return Err(Hinted::wrong_arguments(
                format!(
                    "--ctx {} is more than the {context_len} tokens of this model",
                    limits.n_max
                ),
                "give a smaller one, or leave it out",
            )
            .into());
        }
        let kv_dtype = chosen.map_or(options.kv_dtype, |choice| choice.kv_dtype);
        Ok((LoadOptions { kv_dtype, ..options }, limits))
    }
}

/// Half of what is left beside the model, and room for one full context at least.
fn spare_memory(choice: Option<&Choice>) -> u64 {
    let (Some(choice), Some(usable)) = (choice, memory::usable_bytes()) else {
        return UNKNOWN_MEMORY;
    };
    let one = choice.plan.kv.total();
    let without = choice.plan.peak().saturating_sub(one);
    (usable.saturating_sub(without) / 2).max(one)
}

/// What the server needs of the model's files.
fn setup(source: &ModelSource) -> Result<ModelSetup> {
    let tokenizer = Arc::new(source.tokenizer()?);
    let template = source
        .chat_template(&tokenizer)?
        .unwrap_or_else(ChatTemplate::gemma3);
    let recommended = source.sampling_defaults()?;
    let gemma = SamplingParams::default();
    let config = source.checkpoint.config();
    let mut suppressed = source.suppressed(&tokenizer)?;
    suppressed.retain(|&id| (id as usize) < config.vocab_size);
    let formats = source.checkpoint.infos();
    let largest = formats.iter().max_by_key(|info| info.n_bytes);
    Ok(ModelSetup {
        id: name_of(source),
        template,
        sampling: SamplingParams {
            temperature: recommended.temperature.unwrap_or(gemma.temperature),
            top_k: recommended.top_k.unwrap_or(gemma.top_k),
            top_p: recommended.top_p.unwrap_or(gemma.top_p),
            min_p: recommended.min_p.unwrap_or(gemma.min_p),
            repetition_penalty: recommended.repetition_penalty.unwrap_or(gemma.repetition_penalty),
            ..gemma
        },
        suppressed,
        details: ModelDetails {
            family: format!("{:?}", config.family).to_lowercase(),
            parameters: format!("{}M", config.n_parameters() / 1_000_000),
            quantization: largest.map(|info| info.type_name.to_string()).unwrap_or_default(),
            size_bytes: source.local.size_bytes,
            context_len: config.context_len,
            template: source.template_text()?.unwrap_or_default(),
        },
        tokenizer,
    })
}

/// The model's name as clients see it: of a path, only what its last part says.
fn name_of(source: &ModelSource) -> String {
    let name = &source.local.name;
    let is_path = name.contains(['/', '\\']) && !name.starts_with("hf:");
    let stem = Path::new(name).file_stem().filter(|_| is_path);
    stem.map_or_else(|| name.clone(), |stem| stem.to_string_lossy().into_owned())
}

fn server_options(serving: &ServeSettings) -> ServerOptions {
    let defaults = ServerOptions::default();
    ServerOptions {
        api_keys: serving.api_key.clone(),
        aliases: serving.alias.clone(),
        strict_model: serving.strict_model.unwrap_or(false),
        body_bytes: serving
            .max_body
            .map_or(defaults.body_bytes, |mb| mb as usize * 1_000_000),
        request_timeout: serving.request_timeout.map(Duration::from_secs),
        cors_origins: serving.cors.clone(),
        drain: serving.drain.map_or(defaults.drain, Duration::from_secs),
    }
}

/// The mean of the last hidden states of a text, of length 1.
fn embedder() -> Embed<Model> {
    Box::new(|model: &mut Model, ids: &[u32]| {
        let failed = |error: carat_model::Error| carat_engine::Error::Model(Box::new(error));
        let n_layers = model.config().layers.len();
        let mut sum = vec![0.0f32; model.config().d_model];
        let mut cache = model.new_cache(ids.len()).map_err(failed)?;
        let mut logits = Vec::new();
        for tokens in ids.chunks(EMBED_CHUNK.min(model.max_batch_tokens())) {
            let mut batch = [Segment {
                tokens,
                media: &[],
                cache: &mut cache,
                logits: LogitRows::All,
            }];
            let mut add = |what: Observed, rows: &[f32]| {
                if matches!(what, Observed::Hidden(i) if i == n_layers) {
                    for row in rows.chunks_exact(sum.len()) {
                        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
                    }
                }
            };
            model
                .forward_observed(&mut batch, &mut logits, &mut add)
                .map_err(failed)?;
        }
        let norm = sum
            .iter()
            .map(|x| x * x)
            .sum::<f32>()
            .sqrt()
            .max(f32::MIN_POSITIVE);
        sum.iter_mut().for_each(|x| *x /= norm);
        Ok(sum)
    })
}

async fn serve(server: Server, address: SocketAddr, name: &str, n_max: usize) -> Result<()> {
    let listener = server.listen(address).await?;
    let url = listener
        .local_addr()
        .map_or_else(|_| address.to_string(), |address| address.to_string());
    output::note(&format!(
        "{name} is served on http://{url} (context {n_max}); Ctrl-C stops it"
    ));
    server.run(listener, stop_signal()).await?;
    Ok(())
}

/// Ctrl-C, or the order to end that service managers give.
async fn stop_signal() {
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

fn start_log(serving: &ServeSettings) {
    use tracing_subscriber::filter::LevelFilter;
    let level = match serving.log.unwrap_or(LogLevel::Info) {
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
    let _started = match serving.log_format {
        Some(LogFormat::Json) => log.json().try_init(),
        _ => log.try_init(),
    };
}
