//! Keys and accounts: what each may do, what was paid in for it, and what it has spent.

use anyhow::Result;
use carat_ledger::{Admin, Kind, Limits, Total};
use serde_json::{Value, json};

use crate::output::{self, dollars};

/// Lists users, teams and projects.
pub(super) fn accounts(admin: &mut Admin, is_json: bool) -> Result<()> {
    let mut rows = Vec::new();
    let mut values = Vec::new();
    for kind in Kind::ALL {
        for (account, total) in admin.accounts(kind)? {
            values.push(with_total(json!(account), &total));
            let role = match kind {
                Kind::User => account.role.name(),
                Kind::Team | Kind::Project => "",
            };
            let mut row = vec![
                kind.name().to_string(),
                account.name,
                account.team.unwrap_or_default(),
                role.to_string(),
            ];
            row.extend(spent(&total, &account.limits));
            rows.push(row);
        }
    }
    if is_json {
        return output::json(&values);
    }
    let head = [
        "KIND", "NAME", "TEAM", "ROLE", "REQUESTS", "SPENT", "OF", "LIMITS",
    ];
    Ok(output::table(&head, &rows)?)
}

/// Lists keys.
pub(super) fn keys(admin: &mut Admin, is_json: bool, now_ms: u64) -> Result<()> {
    let keys = admin.keys()?;
    if is_json {
        let values: Vec<Value> = keys
            .iter()
            .map(|(key, total)| with_total(json!(key), total))
            .collect();
        return output::json(&values);
    }
    let rows = keys.into_iter().map(|(key, total)| {
        let state = match key.rights.expires_ms {
            _ if key.is_revoked => "revoked".to_string(),
            Some(end) if end <= now_ms => "ended".to_string(),
            Some(end) => format!("ends in {}", in_words(end - now_ms)),
            None => String::new(),
        };
        let mut row = vec![
            key.rights.name,
            format!("{}…", key.start),
            key.rights.user.or(key.rights.project).unwrap_or_default(),
            key.rights.team.unwrap_or_default(),
        ];
        row.extend(spent(&total, &key.rights.limits));
        row.push(state);
        row
    });
    let head = [
        "NAME", "KEY", "OWNER", "TEAM", "REQUESTS", "SPENT", "OF", "LIMITS", "STATE",
    ];
    Ok(output::table(&head, &rows.collect::<Vec<_>>())?)
}

fn with_total(mut value: Value, total: &Total) -> Value {
    value["total"] = json!(total);
    value
}

/// Requests, what they cost, of how much that is, and other limits.
fn spent(total: &Total, limits: &Limits) -> [String; 4] {
    let budget = limits
        .budget
        .map(|budget| format!("{}/{}", dollars(budget.limit), budget.period.name()));
    let paid_in = limits
        .is_prepaid
        .then(|| format!("{} paid in", dollars(total.paid_in)));
    let of: Vec<String> = budget.into_iter().chain(paid_in).collect();
    [
        total.requests.to_string(),
        dollars(total.spent),
        of.join(", "),
        others(limits),
    ]
}

/// Limits but for the budget, in few words.
fn others(limits: &Limits) -> String {
    let mut words = Vec::new();
    if !limits.models.is_empty() {
        words.push(format!("only {}", limits.models.join(" ")));
    }
    let counts = [
        (limits.requests_per_minute, "rpm"),
        (limits.tokens_per_minute, "tpm"),
        (limits.concurrency, "at once"),
    ];
    let counts = counts
        .into_iter()
        .filter_map(|(n, unit)| Some(format!("{} {unit}", n?)));
    words.extend(counts);
    if let Some(soft) = limits.soft {
        words.push(format!("soft {}/{}", dollars(soft.limit), soft.period.name()));
    }
    if let Some(fallback) = &limits.fallback {
        words.push(format!("then {fallback}"));
    }
    words.join(", ")
}

/// A time in the largest unit that fits.
fn in_words(ms: u64) -> String {
    let minutes = ms / 60_000;
    let units = [(24 * 60, "day"), (60, "hour"), (1, "minute")];
    let (unit, name) = units
        .into_iter()
        .find(|(unit, _)| minutes >= *unit)
        .unwrap_or((1, "minute"));
    let n = minutes / unit;
    format!("{n} {name}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use carat_ledger::{Budget, Micros, Period};

    #[test]
    fn what_may_be_spent_and_done_is_all_told() {
        let amount = |dollars: u64| {
            Some(Budget {
                limit: Micros(dollars * 1_000_000),
                period: Period::Day,
            })
        };
        let limits = Limits {
            models: vec!["chat".into(), "groq/*".into()],
            requests_per_minute: Some(5),
            concurrency: Some(2),
            budget: amount(20),
            soft: amount(10),
            fallback: Some("small".into()),
            is_prepaid: true,
            ..Limits::default()
        };
        let total = Total {
            paid_in: Micros(50_500_000),
            requests: 3,
            ..Total::default()
        };
        let told = spent(&total, &limits);
        assert_eq!(told[..3], ["3", "$0", "$20/day, $50.5 paid in"]);
        assert_eq!(
            told[3],
            "only chat groq/*, 5 rpm, 2 at once, soft $10/day, then small"
        );
        assert_eq!(spent(&Total::default(), &Limits::default())[2..], ["", ""]);
        assert_eq!(in_words(90 * 60_000), "1 hour");
        assert_eq!(in_words(50 * 3_600_000), "2 days");
    }
}
