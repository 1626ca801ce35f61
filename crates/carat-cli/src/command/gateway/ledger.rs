//! `carat gateway add-key` and the like: acts on the ledger, which a running gateway notices.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use carat_gateway::Env;
use carat_ledger::{Account, Admin, Credit, Kind, Limits, Micros, NewKey, Role};
use clap::{Args, Subcommand};

use super::limits::{AccountArgs, LimitArgs};
use super::lists;
use crate::failure::Hinted;
use crate::output;

#[derive(Debug, Subcommand)]
pub(super) enum LedgerTask {
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
    /// Set what a user may do and spend, with all keys together; what is not named stays as it is
    SetUser {
        #[command(flatten)]
        account: AccountArgs,
        /// admin (may administer), member (as users begin), or viewer (may look and ask nothing)
        #[arg(long, value_parser = role)]
        role: Option<Role>,
    },
    /// Set what a team may do and spend; what is not named stays as it is
    SetTeam(AccountArgs),
    /// Set what a project may do and spend; what is not named stays as it is
    SetProject(AccountArgs),
    /// List users, teams and projects
    Accounts,
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
        let config = super::open(path, env)?;
        let ledger = config.ledger().ok_or_else(|| {
            Hinted::new(
                format!("`{}` names no ledger to keep keys in", path.display()),
                "add [ledger] with path = \"gateway.db\"",
            )
        })?;
        let mut admin = Admin::open(ledger)?;
        match self {
            Self::AddKey(new) => {
                let now_ms = now_ms();
                let secret = admin.add_key(&new.key(now_ms)?, now_ms)?;
                output::line(secret.text())?;
            }
            Self::RotateKey { name, overlap } => {
                let secret = admin.rotate_key(&name, overlap * 3_600_000, now_ms())?;
                output::line(secret.text())?;
            }
            Self::Keys => lists::keys(&mut admin)?,
            Self::RevokeKey { name } => admin.revoke_key(&name)?,
            Self::SetUser { account, role } => set(&mut admin, Kind::User, account, role)?,
            Self::SetTeam(account) => set(&mut admin, Kind::Team, account, None)?,
            Self::SetProject(account) => set(&mut admin, Kind::Project, account, None)?,
            Self::Accounts => lists::accounts(&mut admin)?,
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

/// Changes what is named of an account, or makes it.
fn set(admin: &mut Admin, kind: Kind, change: AccountArgs, role: Option<Role>) -> Result<()> {
    let known = admin.account(kind, &change.name)?;
    let mut account = known.map_or_else(|| Account::new(kind, &change.name), |(account, _)| account);
    change.change(&mut account, role)?;
    Ok(admin.set_account(&account)?)
}

fn role(text: &str) -> Result<Role, String> {
    Role::of_name(text).ok_or_else(|| "say admin, member or viewer".to_string())
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
