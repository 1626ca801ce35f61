//! `carat gateway`: one endpoint over many providers.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use carat_gateway::{Config, Env, Gateway as Serving};
use clap::{Args, Subcommand};

use crate::output;
use crate::serve_settings::{LogFormat, LogLevel};
use crate::settings::{self, Settings};

/// Answer programs from many providers behind one endpoint
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  carat gateway                         serve by gateway.toml in carat's folder\n  carat gateway \
                  --config FILE check     say what is wrong with a file\n\nThe smallest configuration:\n  [providers.openai]      \
                  # its key is in OPENAI_API_KEY\n  [providers.groq]        # and GROQ_API_KEY\n  [routes.chat]\n  candidates = \
                  [\"openai/gpt-5-mini\", \"groq/openai/gpt-oss-120b\"]\n\nThen set OPENAI_BASE_URL=http://127.0.0.1:8090/v1 and ask \
                  for the model `chat`. docs/gateway.md has all settings."
)]
pub(crate) struct Gateway {
    /// The configuration; it is read anew when it changes [default: gateway.toml in carat's folder]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What is logged, to stderr; prompts never are [default: info]
    #[arg(long, value_name = "LEVEL")]
    log: Option<LogLevel>,
    /// How log lines look [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Read the configuration and say whether it makes sense
    Check,
}

impl Gateway {
    pub(crate) fn run(self, settings: &Settings) -> Result<()> {
        let path = self
            .config
            .unwrap_or_else(|| settings.carat_dir.join("gateway.toml"));
        let env: Env = Arc::new(settings::variable);
        let config =
            Config::open(&path, &env).with_context(|| format!("cannot serve by `{}`", path.display()))?;
        if let Some(Task::Check) = self.task {
            output::note(&format!("`{}` makes sense", path.display()));
            return Ok(());
        }
        super::serve::start_log(self.log, self.log_format);
        let address = config.listen;
        let gateway = Arc::new(Serving::new(config)?);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .context("cannot start the threads that serve connections")?;
        runtime.block_on(async {
            let listener = carat_gateway::listen(address).await?;
            let url = listener.local_addr().unwrap_or(address);
            output::note(&format!("the gateway is on http://{url}; Ctrl-C stops it"));
            let following = tokio::spawn(carat_gateway::follow(Arc::clone(&gateway), path, env));
            carat_gateway::run(gateway, listener, super::serve::stop_signal()).await;
            following.abort();
            Ok(())
        })
    }
}
