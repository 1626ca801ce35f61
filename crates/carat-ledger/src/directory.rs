//! Who holds which key, and who pays for it: a picture of the database's keys and accounts, taken anew when they change.

use std::collections::HashMap;
use std::sync::Arc;

use crate::account::key_scope;
use crate::key::{self, KeyInfo};
use crate::store::Store;
use crate::{Account, Error, Kind, Limits, Micros, Role};

/// Somebody who pays for a key's requests.
#[derive(Debug, Clone)]
pub(crate) struct Payer {
    /// What is said of it: `key`, `user`, `project` or `team`.
    pub(crate) whose: &'static str,
    pub(crate) scope: Arc<str>,
    pub(crate) limits: Limits,
    /// What was paid in for it.
    pub(crate) granted: Micros,
}

/// A key in force, with all who pay for it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Holder {
    pub(crate) id: i64,
    pub(crate) name: String,
    pub(crate) user: Option<String>,
    pub(crate) project: Option<String>,
    pub(crate) team: Option<String>,
    pub(crate) role: Role,
    pub(crate) expires_ms: Option<u64>,
    pub(crate) payers: Vec<Payer>,
}

/// Keys by their hashes. One that was rotated has two for a while.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    secrets: HashMap<[u8; 32], (Arc<Holder>, Option<u64>)>,
}

impl Directory {
    /// Reads it.
    pub(crate) fn load(store: &mut Store) -> Result<Self, Error> {
        let credits = store.granted()?;
        let accounts = store.accounts()?;
        let accounts: HashMap<(Kind, &str), &Account> = accounts
            .iter()
            .map(|account| ((account.kind, account.name.as_str()), account))
            .collect();
        let mut by_id = HashMap::new();
        let mut directory = Self::default();
        for (hash, info) in store.keys()? {
            if info.is_revoked {
                continue;
            }
            let holder = Arc::new(holder(info, &accounts, &credits));
            by_id.insert(holder.id, Arc::clone(&holder));
            directory.secrets.insert(hash, (holder, None));
        }
        for (hash, id, expires_ms) in store.old_secrets()? {
            if let Some(holder) = by_id.get(&id) {
                directory
                    .secrets
                    .insert(hash, (Arc::clone(holder), Some(expires_ms)));
            }
        }
        Ok(directory)
    }

    /// Who holds a key, if it is in force. Looking it up by its hash tells nothing by the time that it takes.
    pub(crate) fn find(&self, secret: &str, now_ms: u64) -> Option<&Arc<Holder>> {
        let (holder, until) = self.secrets.get(&key::hash(secret))?;
        let is_over = |end: Option<u64>| end.is_some_and(|end| end <= now_ms);
        (!is_over(*until) && !is_over(holder.expires_ms)).then_some(holder)
    }
}

fn holder(
    info: KeyInfo,
    accounts: &HashMap<(Kind, &str), &Account>,
    credits: &HashMap<String, Micros>,
) -> Holder {
    let granted = |scope: &str| credits.get(scope).copied().unwrap_or_default();
    let rights = info.rights;
    let account = |kind: Kind, name: Option<&String>| {
        let name = name?;
        accounts.get(&(kind, name.as_str())).copied()
    };
    let user = account(Kind::User, rights.user.as_ref());
    let project = account(Kind::Project, rights.project.as_ref());
    let of_team = |account: Option<&Account>| account.and_then(|account| account.team.clone());
    let team = rights.team.or_else(|| of_team(project)).or_else(|| of_team(user));
    let scope = key_scope(info.id);
    let mut payers = vec![Payer {
        whose: "key",
        granted: granted(&scope),
        scope: scope.into(),
        limits: rights.limits,
    }];
    let team_account = account(Kind::Team, team.as_ref());
    for account in [user, project, team_account].into_iter().flatten() {
        let scope = account.kind.scope(&account.name);
        payers.push(Payer {
            whose: account.kind.name(),
            granted: granted(&scope),
            scope: scope.into(),
            limits: account.limits.clone(),
        });
    }
    Holder {
        id: info.id,
        name: rights.name,
        role: user.map_or(Role::Member, |user| user.role),
        expires_ms: rights.expires_ms,
        user: rights.user,
        project: rights.project,
        team,
        payers,
    }
}
