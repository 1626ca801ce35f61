//! Keys and accounts as tables.

use anyhow::Result;
use carat_ledger::{Admin, Kind};

use crate::output;

/// Lists users, teams and projects.
pub(super) fn accounts(admin: &mut Admin) -> Result<()> {
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
    Ok(output::write(&text)?)
}

/// Lists keys.
pub(super) fn keys(admin: &mut Admin) -> Result<()> {
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
    Ok(output::write(&text)?)
}
