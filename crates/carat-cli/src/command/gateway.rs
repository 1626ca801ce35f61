//! `carat gateway`: one endpoint over many providers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use carat_gateway::{Config, Engine, Env, Gateway as Serving, Hands, Source};
use carat_ledger::{Account, Admin, Budget, Credit, Kind, Limits, Micros, NewKey, Period, Role, Secret};
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
    /// Encrypted secrets, for variables that are not set [default: secrets.json in carat's folder]
    #[arg(long, value_name = "FILE")]
    secrets: Option<PathBuf>,
    /// Key of that file, where CARAT_SECRETS_KEY is not set [default: secrets.key in carat's folder]
    #[arg(long, value_name = "FILE")]
    secrets_key: Option<PathBuf>,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Read the configuration and say whether it makes sense
    Check,
    /// Make a key; its text is shown once
    AddKey(NewKeyArgs),
    /// Give a key another text, shown once; the old one stays good for a while
    RotateKey {
        /// Its name
        name: String,
        /// Hours for which the old text stays good
        #[arg(long, value_name = "HOURS", default_value_t = 24, value_parser = clap::value_parser!(u64).range(0..=2160))]
        overlap: u64,
    },
    /// List keys and what each has spent
    Keys,
    /// Take a key back
    RevokeKey {
        /// Its name
        name: String,
    },
    /// Set what a user may do and spend, with all keys together
    SetUser {
        #[command(flatten)]
        account: AccountArgs,
        /// admin (may administer), member, or viewer (may look and ask nothing)
        #[arg(long, default_value = "member", value_parser = role)]
        role: Role,
    },
    /// Set what a team may do and spend
    SetTeam(AccountArgs),
    /// Set what a project may do and spend
    SetProject(AccountArgs),
    /// List users, teams and projects
    Accounts,
    /// Keep a provider's key, encrypted, under the name of its variable; it is read from stdin
    SetSecret {
        /// Such as OPENAI_API_KEY
        name: String,
    },
    /// Forget a secret
    RemoveSecret {
        /// Its name
        name: String,
    },
    /// List the names of secrets
    Secrets,
    /// Pay in for a key or an account that may spend only that (--prepaid)
    TopUp {
        /// Who: key:NAME, user:NAME, team:NAME or project:NAME
        scope: String,
        /// Dollars, such as 12.50
        amount: Micros,
        /// A name of this payment; the same one again changes nothing [default: the time]
        #[arg(long)]
        id: Option<String>,
        /// What to remember of it
        #[arg(long, default_value = "")]
        note: String,
    },
}

#[derive(Debug, Args)]
struct NewKeyArgs {
    /// By which you will know it
    name: String,
    /// User whose it is
    #[arg(long)]
    user: Option<String>,
    /// Project that it is for
    #[arg(long)]
    project: Option<String>,
    /// Team whose budget it spends too [default: its project's or its user's]
    #[arg(long)]
    team: Option<String>,
    /// Days until it ends
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=36_500))]
    days: Option<u64>,
    #[command(flatten)]
    limits: LimitArgs,
}

#[derive(Debug, Args)]
struct AccountArgs {
    /// Its name
    name: String,
    /// Team that it belongs to, whose budget it spends too
    #[arg(long)]
    team: Option<String>,
    #[command(flatten)]
    limits: LimitArgs,
}

/// Limits of a key or an account; what is not given is no limit.
#[derive(Debug, Args)]
struct LimitArgs {
    /// Route or model that may be asked for, or a beginning such as `openai/*`; may be given several times [default: all]
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
    /// Dollars that may be spent, such as 12.50
    #[arg(long, value_name = "DOLLARS")]
    budget: Option<Micros>,
    /// Dollars from which on a warning is given
    #[arg(long, value_name = "DOLLARS")]
    soft: Option<Micros>,
    /// In which time: day, month (UTC) or total
    #[arg(long, value_name = "PERIOD", default_value = "month", value_parser = period)]
    per: Period,
    /// Route or model that answers once --soft is spent
    #[arg(long, value_name = "NAME")]
    fallback: Option<String>,
    /// Only what was paid in with `top-up` may be spent
    #[arg(long)]
    prepaid: bool,
}

impl LimitArgs {
    fn limits(self) -> Limits {
        let period = self.per;
        let budget = |limit: Micros| Budget { limit, period };
        Limits {
            models: self.allow,
            requests_per_minute: self.rpm,
            tokens_per_minute: self.tpm,
            concurrency: self.concurrency,
            budget: self.budget.map(budget),
            soft: self.soft.map(budget),
            fallback: self.fallback,
            is_prepaid: self.prepaid,
        }
    }
}

impl AccountArgs {
    fn account(self, kind: Kind, role: Role) -> Account {
        Account {
            kind,
            name: self.name,
            team: self.team,
            role,
            limits: self.limits.limits(),
        }
    }
}

fn role(text: &str) -> Result<Role, String> {
    Role::of_name(text).ok_or_else(|| "say admin, member or viewer".to_string())
}

fn period(text: &str) -> Result<Period, String> {
    Period::of_name(text).ok_or_else(|| "say day, month or total".to_string())
}

impl Gateway {
    pub(crate) fn run(self, settings: &Settings, interrupt: &Interrupt) -> Result<()> {
        let path = self
            .config
            .unwrap_or_else(|| settings.carat_dir.join("gateway.toml"));
        let vault = Vault {
            store: self
                .secrets
                .unwrap_or_else(|| settings.carat_dir.join("secrets.json")),
            key: self
                .secrets_key
                .unwrap_or_else(|| settings.carat_dir.join("secrets.key")),
        };
        let task = match self.task {
            Some(task) => match vault.run(task)? {
                Some(task) => Some(task),
                None => return Ok(()),
            },
            None => None,
        };
        let env: Env = Arc::new(move |name| settings::variable(name).or_else(|| vault.secret(name)));
        let config =
            Config::open(&path, &env).with_context(|| format!("cannot serve by `{}`", path.display()))?;
        if let Some(task) = task {
            return task.run(&path, &config);
        }
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

impl Vault {
    /// Does what concerns secrets alone; gives back all else.
    fn run(&self, task: Task) -> Result<Option<Task>> {
        match task {
            Task::SetSecret { name } => {
                let secret = crate::vault::read_secret(&name)?;
                self.open_or_make()?.set(&name, &secret)?;
                output::note(&format!(
                    "`{name}` is kept; a running gateway takes it up when its configuration is read anew"
                ));
            }
            Task::RemoveSecret { name } => {
                anyhow::ensure!(self.open_or_make()?.remove(&name)?, "there is no secret `{name}`");
            }
            Task::Secrets => {
                for name in self.open_or_make()?.names()? {
                    output::line(&name)?;
                }
            }
            task => return Ok(Some(task)),
        }
        Ok(None)
    }
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
        let mut admin = Admin::open(ledger)?;
        match self {
            // Done already, without a ledger.
            Self::Check | Self::SetSecret { .. } | Self::RemoveSecret { .. } | Self::Secrets => {}
            Self::AddKey(new) => output::write(&format!("{}\n", new.add(&mut admin)?.text()))?,
            Self::RotateKey { name, overlap } => {
                let secret = admin.rotate_key(&name, overlap * 3_600_000, now_ms())?;
                output::write(&format!("{}\n", secret.text()))?;
            }
            Self::Keys => output::write(&listed(&mut admin)?)?,
            Self::RevokeKey { name } => admin.revoke_key(&name)?,
            Self::SetUser { account, role } => admin.set_account(&account.account(Kind::User, role))?,
            Self::SetTeam(account) => admin.set_account(&account.account(Kind::Team, Role::Member))?,
            Self::SetProject(account) => admin.set_account(&account.account(Kind::Project, Role::Member))?,
            Self::Accounts => output::write(&accounts(&mut admin)?)?,
            Self::TopUp {
                scope,
                amount,
                id,
                note,
            } => {
                let at_ms = now_ms();
                let id = id.unwrap_or_else(|| at_ms.to_string());
                let is_new = admin.top_up(&Credit {
                    id,
                    scope,
                    amount,
                    note,
                    at_ms,
                })?;
                if !is_new {
                    output::note("this payment was there already; nothing has changed");
                }
            }
        }
        Ok(())
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

impl NewKeyArgs {
    fn add(self, admin: &mut Admin) -> Result<Secret> {
        let now_ms = now_ms();
        let new = NewKey {
            name: self.name,
            user: self.user,
            project: self.project,
            team: self.team,
            limits: self.limits.limits(),
            expires_ms: self
                .days
                .map(|days| now_ms.saturating_add(days.saturating_mul(86_400_000))),
        };
        Ok(admin.add_key(&new, now_ms)?)
    }
}

fn accounts(admin: &mut Admin) -> Result<String> {
    let mut text = format!(
        "{:<8} {:<20} {:<12} {:<7} {:>9} {:>16} {:>16}\n",
        "KIND", "NAME", "TEAM", "ROLE", "REQUESTS", "SPENT", "BUDGET"
    );
    for kind in Kind::ALL {
        for (account, total) in admin.accounts(kind)? {
            let team = account.team.as_deref().unwrap_or("");
            let role = match kind {
                Kind::User => account.role.name(),
                Kind::Team | Kind::Project => "",
            };
            let budget = account.limits.budget;
            let budget = budget.map_or(String::new(), |budget| {
                format!("{}/{}", budget.limit, budget.period.name())
            });
            let (kind, name, spent) = (kind.name(), &account.name, total.spent.to_string());
            let line = format!(
                "{kind:<8} {name:<20} {team:<12} {role:<7} {:>9} {spent:>16} {budget:>16}",
                total.requests
            );
            text.push_str(line.trim_end());
            text.push('\n');
        }
    }
    Ok(text)
}

fn listed(admin: &mut Admin) -> Result<String> {
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
