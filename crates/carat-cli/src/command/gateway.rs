//! `carat gateway`: one endpoint over many providers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use carat_gateway::{Config, Env, Gateway as Serving};
use carat_ledger::{Admin, Budget, Micros, NewKey, Period, Secret};
use clap::{Args, Subcommand};

use crate::failure::Hinted;
use crate::output;
use crate::serve_settings::{LogFormat, LogLevel};
use crate::settings::{self, Settings};

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
    /// Make a key; its text is shown once
    AddKey(NewKeyArgs),
    /// List keys and what each has spent
    Keys,
    /// Take a key back
    RevokeKey {
        /// Its name
        name: String,
    },
    /// Set a team's budget, or take it away
    SetTeam {
        /// The team's name
        name: String,
        #[command(flatten)]
        budget: BudgetArgs,
    },
}

#[derive(Debug, Args)]
struct NewKeyArgs {
    /// By which you will know it
    name: String,
    /// Team whose budget it spends too
    #[arg(long)]
    team: Option<String>,
    /// Route or model that it may ask for, or a beginning such as `openai/*`; may be given several times [default: all]
    #[arg(long, value_name = "NAME")]
    allow: Vec<String>,
    /// Requests a minute
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    rpm: Option<u64>,
    /// Tokens a minute, of prompts and answers
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000_000))]
    tpm: Option<u64>,
    /// Requests at the same time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    concurrency: Option<u64>,
    /// Days until it ends
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=36_500))]
    days: Option<u64>,
    #[command(flatten)]
    budget: BudgetArgs,
}

#[derive(Debug, Args)]
struct BudgetArgs {
    /// Dollars that may be spent, such as 12.50
    #[arg(long, value_name = "DOLLARS")]
    budget: Option<Micros>,
    /// In which time: day, month (UTC) or total
    #[arg(long, value_name = "PERIOD", default_value = "month", value_parser = period)]
    per: Period,
}

impl BudgetArgs {
    fn budget(&self) -> Option<Budget> {
        self.budget.map(|limit| Budget {
            limit,
            period: self.per,
        })
    }
}

fn period(text: &str) -> Result<Period, String> {
    Period::of_name(text).ok_or_else(|| "say day, month or total".to_string())
}

impl Gateway {
    pub(crate) fn run(self, settings: &Settings) -> Result<()> {
        let path = self
            .config
            .unwrap_or_else(|| settings.carat_dir.join("gateway.toml"));
        let env: Env = Arc::new(settings::variable);
        let config =
            Config::open(&path, &env).with_context(|| format!("cannot serve by `{}`", path.display()))?;
        if let Some(task) = self.task {
            return task.run(&path, &config);
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

impl Task {
    fn run(self, path: &Path, config: &Config) -> Result<()> {
        if matches!(self, Self::Check) {
            output::note(&format!("`{}` makes sense", path.display()));
            return Ok(());
        }
        let ledger = config.ledger().ok_or_else(|| {
            Hinted::new(
                format!("`{}` names no ledger to keep keys in", path.display()),
                "add [ledger] with path = \"gateway.db\"",
            )
        })?;
        let admin = Admin::open(ledger)?;
        match self {
            Self::Check => {}
            Self::AddKey(new) => output::write(&format!("{}\n", new.add(&admin)?.text()))?,
            Self::Keys => output::write(&listed(&admin)?)?,
            Self::RevokeKey { name } => admin.revoke_key(&name)?,
            Self::SetTeam { name, budget } => admin.set_team(&name, budget.budget())?,
        }
        Ok(())
    }
}

impl NewKeyArgs {
    fn add(self, admin: &Admin) -> Result<Secret> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let new = NewKey {
            budget: self.budget.budget(),
            name: self.name,
            team: self.team,
            models: self.allow,
            requests_per_minute: self.rpm,
            tokens_per_minute: self.tpm,
            concurrency: self.concurrency,
            expires_ms: self
                .days
                .map(|days| now_ms.saturating_add(days.saturating_mul(86_400_000))),
        };
        Ok(admin.add_key(&new, now_ms)?)
    }
}

fn listed(admin: &Admin) -> Result<String> {
    let mut text = format!(
        "{:<20} {:<14} {:<12} {:>9} {:>16} {:<8}\n",
        "NAME", "KEY", "TEAM", "REQUESTS", "SPENT", "STATE"
    );
    for (key, total) in admin.keys()? {
        let state = if key.is_revoked { "revoked" } else { "" };
        let team = key.rights.team.as_deref().unwrap_or("");
        let line = format!(
            "{:<20} {:<14} {team:<12} {:>9} {:>16} {state:<8}",
            key.rights.name,
            format!("{}…", key.start),
            total.requests,
            total.spent.to_string()
        );
        text.push_str(line.trim_end());
        text.push('\n');
    }
    Ok(text)
}
