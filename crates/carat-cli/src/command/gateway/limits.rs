//! Limits as options give them: what is named changes, and all else stays as it is.

use anyhow::Result;
use carat_ledger::{Account, Budget, Limits, Micros, Period, Role};
use clap::Args;

use crate::failure::Hinted;

/// How an option says that there shall be nothing of its kind.
const NONE: &str = "none";

/// What becomes of something that may be set.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change<T> {
    To(T),
    Lifted,
}

/// Limits of a key or an account.
#[derive(Debug, Args)]
pub(super) struct LimitArgs {
    /// Route or model that may be asked for, or a beginning such as `openai/*`, or `*` for all; may be given several times
    #[arg(long, value_name = "NAME")]
    allow: Vec<String>,
    /// Requests a minute, or `none` for no limit, as below
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = or_none(up_to(1_000_000_000)))]
    rpm: Option<Change<u64>>,
    /// Tokens a minute, of prompts and answers
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = or_none(up_to(1_000_000_000_000)))]
    tpm: Option<Change<u64>>,
    /// Requests at the same time
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = or_none(up_to(1_000_000)))]
    concurrency: Option<Change<u64>>,
    /// Dollars that may be spent, such as 12.50
    #[arg(long, value_name = "DOLLARS", allow_negative_numbers = true, value_parser = or_none(str::parse::<Micros>))]
    budget: Option<Change<Micros>>,
    /// Dollars from which on a warning is given
    #[arg(long, value_name = "DOLLARS", allow_negative_numbers = true, value_parser = or_none(str::parse::<Micros>))]
    soft: Option<Change<Micros>>,
    /// In which time: day, month (UTC; where nothing is said) or total
    #[arg(long, value_name = "PERIOD", value_parser = period)]
    per: Option<Period>,
    /// Route or model that answers once --soft is spent
    #[arg(long, value_name = "NAME", value_parser = or_none(name))]
    fallback: Option<Change<String>>,
    /// Only what was paid in with `top-up` may be spent; `--prepaid=false` ends that
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    prepaid: Option<bool>,
}

/// What an account is, as options change it.
#[derive(Debug, Args)]
pub(super) struct AccountArgs {
    /// Its name
    pub(super) name: String,
    /// Team that it belongs to, whose budget it spends too; `none` takes it out of its team
    #[arg(long, value_parser = or_none(name))]
    team: Option<Change<String>>,
    #[command(flatten)]
    limits: LimitArgs,
}

impl LimitArgs {
    /// Changes what is named.
    pub(super) fn change(self, limits: &mut Limits) -> Result<()> {
        if !self.allow.is_empty() {
            limits.models = self.allow;
        }
        change(&mut limits.requests_per_minute, self.rpm);
        change(&mut limits.tokens_per_minute, self.tpm);
        change(&mut limits.concurrency, self.concurrency);
        change(&mut limits.fallback, self.fallback);
        limits.is_prepaid = self.prepaid.unwrap_or(limits.is_prepaid);
        limits.budget = amount(limits.budget, self.budget, self.per, Period::Month);
        let default = limits.budget.map_or(Period::Month, |budget| budget.period);
        limits.soft = amount(limits.soft, self.soft, self.per, default);
        match self.per {
            Some(per) if limits.budget.is_none() && limits.soft.is_none() => Err(Hinted::wrong_arguments(
                format!("there is no amount that --per {} is for", per.name()),
                "give --budget or --soft too",
            )
            .into()),
            _ => Ok(()),
        }
    }
}

impl AccountArgs {
    /// Changes what is named.
    pub(super) fn change(self, account: &mut Account, role: Option<Role>) -> Result<()> {
        change(&mut account.team, self.team);
        account.role = role.unwrap_or(account.role);
        self.limits.change(&mut account.limits)
    }
}

fn change<T>(value: &mut Option<T>, change: Option<Change<T>>) {
    match change {
        Some(Change::To(new)) => *value = Some(new),
        Some(Change::Lifted) => *value = None,
        None => {}
    }
}

/// An amount as it becomes; `default` is for one that was not there, of whose time nothing is said.
fn amount(
    before: Option<Budget>,
    to: Option<Change<Micros>>,
    per: Option<Period>,
    default: Period,
) -> Option<Budget> {
    let mut limit = before.map(|budget| budget.limit);
    change(&mut limit, to);
    let period = per.or(before.map(|budget| budget.period));
    let period = period.unwrap_or(default);
    limit.map(|limit| Budget { limit, period })
}

/// Reads `none`, or what `read` reads.
fn or_none<T, E: ToString>(
    read: impl Fn(&str) -> Result<T, E> + Clone + Send + Sync + 'static,
) -> impl Fn(&str) -> Result<Change<T>, String> + Clone + Send + Sync + 'static {
    move |text| match text {
        NONE => Ok(Change::Lifted),
        text => read(text).map(Change::To).map_err(|error| error.to_string()),
    }
}

fn up_to(most: u64) -> impl Fn(&str) -> Result<u64, String> + Clone + Send + Sync + 'static {
    move |text| {
        let n = text.parse().ok().filter(|n| (1..=most).contains(n));
        n.ok_or_else(|| format!("say a number from 1 to {most}, or {NONE}"))
    }
}

fn name(text: &str) -> Result<String, String> {
    Ok(text.to_string())
}

fn period(text: &str) -> Result<Period, String> {
    Period::of_name(text).ok_or_else(|| "say day, month or total".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use carat_ledger::Kind;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        account: AccountArgs,
    }

    fn changed(account: &mut Account, line: &str) -> Result<()> {
        let words = ["set", "x"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(words)?.account.change(account, None)
    }

    #[test]
    fn what_is_not_named_stays() {
        let mut account = Account::new(Kind::User, "x");
        account.role = Role::Admin;
        let first = "--team a --budget 500 --per day --soft 400 --fallback small --prepaid --allow chat";
        changed(&mut account, first).unwrap();
        let before = account.clone();
        changed(&mut account, "--rpm 5").unwrap();
        assert_eq!(account.limits.requests_per_minute.take(), Some(5));
        assert_eq!(account, before);

        changed(&mut account, "--budget 600").unwrap();
        let budget = |limit, period| {
            Some(Budget {
                limit: Micros(limit),
                period,
            })
        };
        assert_eq!(account.limits.budget, budget(600_000_000, Period::Day));
        changed(&mut account, "--per total").unwrap();
        assert_eq!(account.limits.soft, budget(400_000_000, Period::Total));
    }

    #[test]
    fn limits_are_lifted_by_name() {
        let mut account = Account::new(Kind::User, "x");
        let all = "--team a --budget 5 --soft 4 --fallback small --prepaid --rpm 1 --tpm 1 --concurrency 1";
        changed(&mut account, all).unwrap();
        let none = "--team none --budget none --soft none --fallback none --prepaid=false --rpm none --tpm none --concurrency none";
        changed(&mut account, none).unwrap();
        assert_eq!(account, Account::new(Kind::User, "x"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let mut account = Account::new(Kind::Team, "x");
        for (line, said) in [
            ("--per day", "no amount"),
            ("--budget -5", "`-5` is no amount of dollars"),
            ("--rpm 0", "from 1 to"),
        ] {
            let error = changed(&mut account, line).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
