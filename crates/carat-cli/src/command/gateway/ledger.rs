//! `carat gateway add-key` and the like: acts on the ledger, which a running gateway notices.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use carat_gateway::{Config, Env};
use carat_ledger::{Account, Admin, Credit, Kind, Limits, Micros, NewKey, Role};
use clap::{Args, Subcommand};

use super::limits::{AccountArgs, LimitArgs};
use super::lists;
use crate::failure::Hinted;
use crate::output;

#[derive(Debug, Subcommand)]
pub(super) enum LedgerTask {
    /// Make a key; its text is shown once
    #[command(
        after_help = "Examples:\n  carat gateway add-key alice --budget 20 --per month --rpm 60\n  carat gateway add-key bob-laptop --user bob --days 90 --allow chat --allow \"groq/*\""
    )]
    AddKey(NewKeyArgs),
    /// Give a key another text, shown once; the old one stays good for a while
    #[command(
        after_help = "Examples:\n  carat gateway rotate-key alice\n  carat gateway rotate-key alice --overlap 0   the old text ends at once"
    )]
    RotateKey {
        /// Its name
        name: String,
        /// Hours for which the old text stays good
        #[arg(long, value_name = "HOURS", default_value_t = 24, value_parser = clap::value_parser!(u64).range(0..=2160))]
        overlap: u64,
    },
    /// List keys and what each has spent
    #[command(after_help = "Examples:\n  carat gateway keys\n  carat gateway keys --json")]
    Keys {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Take a key back
    #[command(after_help = "Examples:\n  carat gateway revoke-key alice")]
    RevokeKey {
        /// Its name
        name: String,
    },
    /// Set what a user may do and spend, with all keys together; what is not named stays as it is
    #[command(
        after_help = "Examples:\n  carat gateway set-user bob --team research --role viewer\n  carat gateway set-user bob --rpm none   lifts a limit"
    )]
    SetUser {
        #[command(flatten)]
        account: AccountArgs,
        /// admin (may administer), member (as users begin), or viewer (may look and ask nothing)
        #[arg(long, value_parser = role)]
        role: Option<Role>,
    },
    /// Set what a team may do and spend; what is not named stays as it is
    #[command(
        after_help = "Examples:\n  carat gateway set-team research --budget 500 --soft 400 --fallback small\n  carat gateway set-team research --budget none"
    )]
    SetTeam(AccountArgs),
    /// Set what a project may do and spend; what is not named stays as it is
    #[command(
        after_help = "Examples:\n  carat gateway set-project app --team research --concurrency 8\n  carat gateway set-project app --prepaid"
    )]
    SetProject(AccountArgs),
    /// List users, teams and projects
    #[command(after_help = "Examples:\n  carat gateway accounts\n  carat gateway accounts --json")]
    Accounts {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Pay in for a key or an account that may spend only that (--prepaid)
    #[command(
        after_help = "Examples:\n  carat gateway top-up project:app 50 --id invoice-7\n  carat gateway top-up key:alice 12.50 --note \"cash\""
    )]
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
pub(super) struct NewKeyArgs {
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

impl LedgerTask {
    pub(super) fn run(self, path: &Path, env: &Env) -> Result<()> {
        let ledger = Config::ledger_of(path, env);
        let ledger = ledger.with_context(|| format!("cannot tell the ledger of `{}`", path.display()))?;
        let ledger = ledger.ok_or_else(|| {
            Hinted::new(
                format!("`{}` names no ledger to keep keys in", path.display()),
                "add [ledger] with path = \"gateway.db\"",
            )
        })?;
        let mut admin = Admin::open(ledger)?;
        match self {
            Self::AddKey(new) => {
                let now_ms = now_ms();
                let key = new.key(now_ms)?;
                let secret = admin.add_key(&key, now_ms)?;
                warn(&key.limits, path, env);
                output::line(secret.text())?;
            }
            Self::RotateKey { name, overlap } => {
                let secret = admin.rotate_key(&name, overlap * 3_600_000, now_ms())?;
                output::line(secret.text())?;
            }
            Self::Keys { json } => lists::keys(&mut admin, json, now_ms())?,
            Self::RevokeKey { name } => admin.revoke_key(&name)?,
            Self::SetUser { account, role } => warn(&set(&mut admin, Kind::User, account, role)?, path, env),
            Self::SetTeam(account) => warn(&set(&mut admin, Kind::Team, account, None)?, path, env),
            Self::SetProject(account) => warn(&set(&mut admin, Kind::Project, account, None)?, path, env),
            Self::Accounts { json } => lists::accounts(&mut admin, json)?,
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

impl NewKeyArgs {
    fn key(self, now_ms: u64) -> Result<NewKey> {
        let mut limits = Limits::default();
        self.limits.change(&mut limits)?;
        Ok(NewKey {
            name: self.name,
            user: self.user,
            project: self.project,
            team: self.team,
            limits,
            expires_ms: self
                .days
                .map(|days| now_ms.saturating_add(days.saturating_mul(86_400_000))),
        })
    }
}

/// Says which names in limits nothing answers to, as far as the configuration can be read by who has not all of its keys.
fn warn(limits: &Limits, path: &Path, env: &Env) {
    let Ok(config) = Config::open(path, env) else {
        return;
    };
    let names = limits.models.iter().chain(&limits.fallback);
    for name in names.filter(|name| !config.answers_to(name)) {
        output::note(&format!(
            "warning: `{}` has no route and no provider for `{name}`",
            path.display()
        ));
    }
}

/// Changes what is named of an account, or makes it. Gives its limits.
fn set(admin: &mut Admin, kind: Kind, change: AccountArgs, role: Option<Role>) -> Result<Limits> {
    let known = admin.account(kind, &change.name)?;
    let mut account = known.map_or_else(|| Account::new(kind, &change.name), |(account, _)| account);
    change.change(&mut account, role)?;
    admin.set_account(&account)?;
    Ok(account.limits)
}

fn role(text: &str) -> Result<Role, String> {
    Role::of_name(text).ok_or_else(|| "say admin, member or viewer".to_string())
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
